//! A running example, and plain HTTP to talk to it.

#![allow(dead_code, missing_docs, reason = "each test file uses some of it")]

use std::env;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The limit for an expected change, also on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A running example of this package.
pub(crate) struct Example {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Example {
    pub(crate) fn start(name: &str, variables: &[(&str, &str)]) -> Example {
        let tests = env::current_exe().unwrap();
        // Cargo builds the examples with the tests, beside them.
        let example = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
        assert!(example.exists(), "`cargo test --test` builds no examples; run `cargo build --examples`");
        let mut command = Command::new(example);
        command.envs(variables.iter().copied()).env("RUST_BACKTRACE", "0");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Example { child, lines }
    }

    /// The rest of the next line that begins like this.
    pub(crate) fn hear(&self, beginning: &str) -> String {
        let began = Instant::now();
        loop {
            let left = SOON.saturating_sub(began.elapsed());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no {beginning:?}: {error}"));
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.to_owned();
            }
        }
    }

    pub(crate) fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }

    pub(crate) fn end(mut self) -> ExitStatus {
        crate::common::until(SOON, || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory of this process in bytes: what it has in use with the field `VmRSS`, and the most so far with `VmHWM`.
pub(crate) fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of_field = |line: &str| line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok();
    status.lines().find_map(of_field).map_or_else(|| panic!("no {field}: {status}"), |kilobytes: u64| kilobytes * 1024)
}

/// An answer of HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut pairs = self.head.lines().filter_map(|line| line.split_once(": "));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One request over a connection of its own. `line` is such as `GET /status`, and `headers` are lines without their ends.
pub(crate) fn request(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut head = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("host:")) {
        head.push_str(&format!("host: {address}\r\n"));
    }
    headers.iter().for_each(|header| head.push_str(&format!("{header}\r\n")));
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let broken = || io::Error::other(format!("no answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { joined(body) } else { body.to_owned() };
    Ok(Answer { status, head: head.to_owned(), body })
}

/// A body without the frames of `chunked`.
fn joined(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        body.push_str(&rest[..size]);
        chunks = rest[size..].trim_start_matches("\r\n");
    }
    body
}

/// The messages of an open stream, each as its name and its data.
pub(crate) struct Messages {
    lines: BufReader<TcpStream>,
}

impl Messages {
    /// Opens `/events`.
    pub(crate) fn open(address: SocketAddr, headers: &[&str]) -> Messages {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        write!(stream, "GET /events HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        Messages { lines }
    }

    /// The next message that fits. Panics if the stream ends.
    #[track_caller]
    pub(crate) fn hear<T>(&mut self, mut fits: impl FnMut(&str, serde_json::Value) -> Option<T>) -> T {
        self.listen(|name, data| fits(name, data)).expect("the stream ended")
    }

    /// Like `hear`. `None` if the stream ends.
    pub(crate) fn listen<T>(&mut self, mut fits: impl FnMut(&str, serde_json::Value) -> Option<T>) -> Option<T> {
        let (mut name, mut line) = (String::new(), Vec::new());
        loop {
            line.clear();
            match self.lines.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                // The stream is open, and silent for longer than it may be.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("{error}"),
                Err(_) => return None,
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if text == "0" {
                // The last chunk. The connection may stay open for a further request.
                return None;
            }
            if let Some(kind) = text.strip_prefix("event: ") {
                name = kind.to_owned();
            } else if let Some(data) = text.strip_prefix("data: ")
                && let Some(found) = fits(&name, serde_json::from_str(data).expect(data))
            {
                return Some(found);
            }
        }
    }
}
