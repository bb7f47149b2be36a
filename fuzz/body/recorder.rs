//! Fake servers for all protocols, on loopback. One records the login that a driver sends and hangs up. One answers
//! with an error that repeats the login. One hangs up on the first word.
//!
//! The fuzz bodies connect pools to them. Each server runs on one thread, which serves one connection at a time until
//! the process ends. The only lock is `Recorder::heard`. It is held only to push one login or to take them all.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

/// The login that a driver sends, and the database it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
    pub database: String,
}

pub struct Recorder {
    pub port: u16,
    heard: Mutex<Vec<Login>>,
}

/// The first byte of a TLS handshake. A plain client that probes the port for TLS sends it too.
const TLS: u8 = 22;

/// Records the login, then hangs up.
pub static RECORDER: LazyLock<Recorder> = LazyLock::new(|| Recorder { port: serve(record), heard: Mutex::default() });

/// Answers with an error that repeats the login.
pub static ECHO: LazyLock<u16> = LazyLock::new(|| serve(echo));

/// Hangs up on the first word. Hanging up before that would make it a matter of chance which side acts first.
pub static RUDE: LazyLock<u16> = LazyLock::new(|| {
    serve(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
    })
});

impl Recorder {
    pub fn take(&self) -> Vec<Login> {
        std::mem::take(&mut self.heard.lock().expect("no panic"))
    }
}

fn serve(with: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
            with(stream);
        }
    });
    port
}

fn record(mut stream: TcpStream) {
    if let Some(login) = listen(&mut stream) {
        RECORDER.heard.lock().expect("no panic").push(login);
    }
}

/// Reads until `made` returns a value for the bytes so far.
fn until<T>(stream: &mut TcpStream, heard: &mut Vec<u8>, made: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(made) = made(heard) {
            return Some(made);
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(size) => heard.extend_from_slice(&buffer[..size]),
        }
    }
}

fn listen(stream: &mut TcpStream) -> Option<Login> {
    let mut heard = Vec::new();
    match until(stream, &mut heard, |heard| heard.get(..4).map(<[u8]>::to_vec))?.as_slice() {
        b"AMQP" => amqp(stream, &mut heard),
        [TLS, ..] => None,
        [b'*', ..] => until(stream, &mut heard, redis),
        _ => until(stream, &mut heard, http),
    }
}

/// Reads the login from the commands so far. `None` until they are complete.
fn redis(heard: &[u8]) -> Option<Login> {
    let mut words = Vec::new();
    let mut rest = heard;
    let line = |rest: &mut &[u8]| {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let text = std::str::from_utf8(&rest[..end]).ok()?.to_owned();
        *rest = &rest[end + 2..];
        Some(text)
    };
    while !rest.is_empty() {
        let text = line(&mut rest)?;
        if let Some(length) = text.strip_prefix('$') {
            let length: usize = length.parse().ok()?;
            words.push(String::from_utf8(rest.get(..length)?.to_vec()).ok()?);
            rest = rest.get(length + 2..)?;
        }
    }
    let after = |word: &str| words.iter().position(|known| known == word).map(|at| &words[at + 1..]);
    let login = after("AUTH")?;
    Some(Login {
        user: login.first()?.clone(),
        password: login.get(1)?.clone(),
        database: after("SELECT").and_then(|rest| rest.first().cloned()).unwrap_or_else(|| "0".to_owned()),
    })
}

fn http(heard: &[u8]) -> Option<Login> {
    let end = heard.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&heard[..end]).into_owned();
    let header = |name: &str| {
        let lines = head.split("\r\n");
        let mut named =
            lines.filter_map(|line| line.split_once(": ")).filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim_matches([' ', '\t']).to_owned())
    };
    let query = head.split(' ').nth(1)?.split_once('?')?.1.to_owned();
    let database = query.split('&').find_map(|pair| pair.strip_prefix("database="))?.replace('+', " ");
    let database = percent_encoding::percent_decode_str(&database).decode_utf8().ok()?.into_owned();
    Some(Login { user: header("x-clickhouse-user")?, password: header("x-clickhouse-key")?, database })
}

const FRAME_END: u8 = 0xce;

/// An AMQP method frame on channel 0.
fn frame(class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
    let size = u32::try_from(arguments.len() + 4).expect("small");
    let mut frame = vec![1, 0, 0];
    frame.extend(size.to_be_bytes());
    frame.extend(class.to_be_bytes());
    frame.extend(method.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    frame
}

fn long(text: &str) -> Vec<u8> {
    let mut long = u32::try_from(text.len()).expect("small").to_be_bytes().to_vec();
    long.extend(text.as_bytes());
    long
}

/// The arguments of this method, once its frame has arrived.
fn method(heard: &[u8], class: u16, method: u16) -> Option<Vec<u8>> {
    let mut rest = heard.get(8..)?;
    loop {
        let size = u32::from_be_bytes(rest.get(3..7)?.try_into().ok()?) as usize;
        let payload = rest.get(7..7 + size)?;
        if payload.get(..4)? == [class.to_be_bytes(), method.to_be_bytes()].concat() {
            return Some(payload[4..].to_vec());
        }
        rest = rest.get(8 + size..)?;
    }
}

/// Plays the broker up to the point where the client logs in. Returns the user and the password.
fn start(stream: &mut TcpStream, heard: &mut Vec<u8>) -> Option<(String, String)> {
    let mut arguments = vec![0, 9, 0, 0, 0, 0];
    arguments.extend(long("PLAIN"));
    arguments.extend(long("en_US"));
    stream.write_all(&frame(10, 10, &arguments)).ok()?;
    let answer = until(stream, heard, |heard| method(heard, 10, 11))?;
    let properties = u32::from_be_bytes(answer.get(..4)?.try_into().ok()?) as usize;
    let mechanism = answer.get(4 + properties..)?;
    let response = mechanism.get(1 + usize::from(*mechanism.first()?)..)?;
    let length = u32::from_be_bytes(response.get(..4)?.try_into().ok()?) as usize;
    let response = String::from_utf8(response.get(4..4 + length)?.to_vec()).ok()?;
    let mut parts = response.splitn(3, '\0').skip(1);
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

fn amqp(stream: &mut TcpStream, heard: &mut Vec<u8>) -> Option<Login> {
    let (user, password) = start(stream, heard)?;
    let tune = [&2047u16.to_be_bytes()[..], &131_072u32.to_be_bytes(), &60u16.to_be_bytes()].concat();
    stream.write_all(&frame(10, 30, &tune)).ok()?;
    let open = until(stream, heard, |heard| method(heard, 10, 40))?;
    let vhost = open.get(1..1 + usize::from(*open.first()?))?;
    Some(Login { user, password, database: String::from_utf8(vhost.to_vec()).ok()? })
}

fn echo(mut stream: TcpStream) {
    let mut heard = Vec::new();
    let Some(first) = until(&mut stream, &mut heard, |heard| heard.get(..4).map(<[u8]>::to_vec)) else { return };
    let plain = |text: &str| text.replace(['\r', '\n'], " ");
    let answer = match first.as_slice() {
        [TLS, ..] => return,
        b"AMQP" => {
            let Some((user, password)) = start(&mut stream, &mut heard) else { return };
            let mut text = plain(&format!("ACCESS_REFUSED - not with {password}, {user}"));
            while text.len() > 255 {
                text.pop();
            }
            let mut arguments = 403u16.to_be_bytes().to_vec();
            arguments.push(u8::try_from(text.len()).expect("a short string"));
            arguments.extend(text.as_bytes());
            arguments.extend([0, 10, 0, 11]);
            frame(10, 50, &arguments)
        }
        [b'*', ..] => {
            let Some(login) = until(&mut stream, &mut heard, redis) else { return };
            let text = plain(&format!("-ERR unknown command 'AUTH', with args: '{}' '{}'", login.user, login.password));
            // The client sends several commands at once, and each needs an answer.
            format!("{text}\r\n").repeat(8).into_bytes()
        }
        _ => {
            let Some(login) = until(&mut stream, &mut heard, http) else { return };
            let body = format!("Code: 516. DB::Exception: {}: not with {}", login.user, login.password);
            let size = body.len();
            format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n{body}").into_bytes()
        }
    };
    let _ = stream.write_all(&answer);
    // The answer is only sure to arrive if the other side hangs up first.
    let _ = until(&mut stream, &mut heard, |_| None::<()>);
}
