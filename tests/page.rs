//! The status page in a real browser, beside a real Redis that is killed and restarted. The browser's part is
//! `tests/page/page.test.mjs`, and its pictures are in `target/page-test`.

#![cfg(all(feature = "admin", feature = "macros", feature = "redis"))]
#![allow(missing_docs)]

mod common;
#[path = "common/example.rs"]
mod example;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use example::Example;
use parking_lot::Mutex;
use services::{Kind, Service};

/// The browser of Debian, with a font that has Chinese.
const PACKAGES: [&str; 4] = ["chromium", "fonts-wqy-microhei", "nodejs", "npm"];
const CHROMIUM: &str = "/usr/bin/chromium";

#[test]
fn the_page_shows_what_happens_in_a_browser() {
    let folder = prepare();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut node = Command::new("node")
        .args(["--test", "--test-reporter=spec", "--test-concurrency=1", "page.test.mjs"])
        .current_dir(&folder)
        .env("CONTROL", format!("http://{address}"))
        .env("CHROMIUM", CHROMIUM)
        .spawn()
        .unwrap();
    let stage = Arc::new(Mutex::new(Stage { redis: Service::start(Kind::Redis).unwrap(), program: None }));
    let served = Arc::clone(&stage);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            served.lock().serve(stream);
        }
    });
    let ended = node.wait().unwrap();
    // A test that failed may have left its program.
    stage.lock().program = None;
    assert!(ended.success(), "the browser's tests failed; their pictures are in {}", folder.display());
}

/// The folder of the browser's test, with what it needs.
fn prepare() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !(Path::new(CHROMIUM).exists() && has("node") && has("npm")) {
        let installed =
            Command::new("apt-get").args(["install", "-y", "--no-install-recommends"]).args(PACKAGES).status();
        assert!(installed.is_ok_and(|status| status.success()), "install these as root: {PACKAGES:?}");
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("page-test");
    fs::create_dir_all(&folder).unwrap();
    let copied = |name: &str| {
        let text = fs::read(root.join("tests/page").join(name)).unwrap();
        let is_new = fs::read(folder.join(name)).is_ok_and(|old| old == text);
        fs::write(folder.join(name), text).unwrap();
        is_new
    };
    let is_same = [copied("package.json"), copied("package-lock.json")].iter().all(|same| *same);
    copied("page.test.mjs");
    if !is_same || !folder.join("node_modules/playwright-core/package.json").exists() {
        let installed = Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder).status();
        assert!(installed.is_ok_and(|status| status.success()), "`npm ci` fails in {}", folder.display());
    }
    folder
}

/// The programs that the browser looks at.
struct Stage {
    redis: Service,
    program: Option<Example>,
}

impl Stage {
    /// Serves one request, whose path is a verb with variables for the program.
    fn serve(&mut self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        if reader.read_line(&mut first).is_err() {
            return;
        }
        let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        // The head is read to its end, or the answer would be lost in a reset.
        for line in reader.lines().map_while(Result::ok) {
            if line.is_empty() {
                break;
            }
        }
        let (verb, query) = path.split_once('?').unwrap_or((&path, ""));
        let text = self.act(verb, query);
        let length = text.len();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}");
    }

    fn act(&mut self, verb: &str, query: &str) -> String {
        match verb {
            "start" => {
                self.program = None;
                let mut variables = vec![("REDIS_URL", self.redis.url()), ("LISTEN", "127.0.0.1:0")];
                variables.extend(query.split('&').filter_map(|pair| pair.split_once('=')));
                let program = Example::start("admin", &variables);
                let address = program.hear("the status page is at ");
                program.hear("working");
                self.program = Some(program);
                return address;
            }
            "kill" => self.redis.kill().unwrap(),
            "restart" => self.redis.restart().unwrap(),
            "terminate" => self.program.as_ref().unwrap().terminate(),
            "abort" => self.program = None,
            "end" => drop(self.program.take().unwrap().end()),
            other => panic!("no verb {other:?}"),
        }
        String::new()
    }
}
