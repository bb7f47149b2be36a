//! Runs the real command, in a pipe or in a terminal, and waits for conditions.

#![allow(dead_code, reason = "each test file uses some of it")]

pub(crate) mod admin;
pub(crate) mod terminal;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine. It only bounds a test that hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The path of the command.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_resource-pool");

/// The command's exit code and all that it wrote.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that the error is two lines, the problem and the remedy, and returns them.
    #[track_caller]
    pub(crate) fn two_lines(&self) -> (String, String) {
        let lines: Vec<&str> = self.err.lines().collect();
        let [problem, remedy] = lines[..] else { panic!("no two lines: {self:?}") };
        let (problem, remedy) = (problem.strip_prefix("error: "), remedy.strip_prefix("remedy: "));
        (problem.expect("a problem").to_owned(), remedy.expect("a remedy").to_owned())
    }
}

/// The command with these variables and no others of this process.
pub(crate) fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(BINARY);
    clean(&mut command);
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

/// Takes all variables away but the path.
pub(crate) fn clean(command: &mut Command) {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
}

/// Runs the command to its end.
pub(crate) fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    finish(command(arguments, variables))
}

/// Runs this command to its end.
pub(crate) fn finish(mut command: Command) -> Ran {
    let output = command.output().expect("the command");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let (out, err) = (text(output.stdout), text(output.stderr));
    Ran { code: output.status.code().unwrap_or(-1), out, err }
}

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "not so within {LONG:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A folder of this test's own.
pub(crate) fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// An address of the loopback network that no other test uses, so that its well-known ports are free.
pub(crate) fn own_host() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id() % (120 * 250);
    format!("127.{}.{}.{}", 100 + process / 250, 1 + process % 250, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Leads this port of the host to a server's, as a container's published port does.
pub(crate) fn lead(host: &str, port: u16, server: u16) {
    let listener = TcpListener::bind(format!("{host}:{port}")).expect("a free port");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server))) else { continue };
            let both = client.try_clone().and_then(|client| Ok((client, server.try_clone()?)));
            let Ok((from, to)) = both else { continue };
            thread::spawn(move || copy(from, to));
            thread::spawn(move || copy(server, client));
        }
    });
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 4096];
    loop {
        let copied: io::Result<bool> = from.read(&mut bytes).and_then(|read| {
            to.write_all(&bytes[..read])?;
            Ok(read > 0)
        });
        if !copied.unwrap_or(false) {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}
