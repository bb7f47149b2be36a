//! A question by GET, for servers of HTTP that need no more to be asked whether they are ready.

use crate::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The body of the answer to a GET of this path, with this token. `name` is the server's, for errors.
pub(crate) fn get(
    name: &str,
    address: (&str, u16),
    token: Option<&str>,
    path: &str,
    patience: Duration,
) -> Result<String, Error> {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(patience))?;
        // HTTP 1.0 ends the answer with the connection, so its length needs no parsing.
        let login = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n{login}\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let what = format!("asking {name}");
    let answer = ask().map_err(Error::io(&*what))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(Error::exchange(what, answer)),
    }
}
