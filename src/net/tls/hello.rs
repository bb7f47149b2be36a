//! Whether a port speaks TLS, asked without a TLS client by one `ClientHello` and the first bytes of the answer.
//!
//! The question is asked by hand, because builds without TLS have no client for it. A client would also go on, and
//! check a certificate whose authority nobody has told it. The answer serves only to tell a user the right
//! configuration.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::base::error::{Failure, Worded};
use crate::base::runtime::within;

/// How long a port may take to answer. A connect waits that much longer for its failure.
const LIMIT: Duration = Duration::from_millis(500);

/// A `ClientHello` in its record: TLS 1.2, a random, no session, two ciphers, no compression, and as extensions
/// two groups and three kinds of signature, without which OpenSSL hangs up.
const HELLO: [&[u8]; 4] = [
    &[22, 3, 1, 0, 71, 1, 0, 0, 67, 3, 3],
    &[0x5A; 32],
    &[0, 0, 4, 0xC0, 0x2B, 0xC0, 0x2F, 1, 0],
    &[0, 22, 0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1],
];

/// The failure of a client that speaks no TLS. If the port wants TLS, the failure says so, with this remedy.
///
/// # Cancel safety
/// Cancelling closes the connection.
pub async fn or_wanted(failure: Failure, host: &str, port: u16, remedy: &str) -> Failure {
    match !failure.permanent && speaks_tls(host, port).await {
        true => {
            let text = format!("this port speaks TLS: {remedy} ({failure})");
            Failure::permanent(Worded::new(text, failure.source))
        }
        false => failure,
    }
}

/// Whether a server answers a TLS client there.
async fn speaks_tls(host: &str, port: u16) -> bool {
    let asked = async { answers_in_tls(TcpStream::connect((host, port)).await?).await };
    matches!(within(LIMIT, asked).await, Ok(Ok(true)))
}

/// Whether the answer begins as a TLS record with an alert or a handshake message, of any version.
async fn answers_in_tls(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<bool> {
    stream.write_all(&HELLO.concat()).await?;
    let mut record = [0; 2];
    stream.read_exact(&mut record).await?;
    Ok(matches!(record, [21 | 22, 3]))
}

#[cfg(test)]
mod tests {
    use super::{HELLO, answers_in_tls};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// The verdict on a server that reads the hello, answers with these pieces, and then hangs up.
    fn answer(pieces: &[&[u8]]) -> Option<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            // The pipe is so narrow that each piece arrives by itself.
            let (ours, mut server) = duplex(1);
            let serve = async {
                server.read_exact(&mut vec![0; HELLO.concat().len()]).await.unwrap();
                for piece in pieces {
                    // The client reads only the first bytes.
                    let _ = server.write_all(piece).await;
                    tokio::task::yield_now().await;
                }
                drop(server);
            };
            tokio::join!(answers_in_tls(ours), serve).0.ok()
        })
    }

    #[test]
    fn a_server_hello_is_tls_whole_or_in_pieces() {
        let hello: [&[u8]; 2] = [&[22, 3, 3, 0, 41, 2, 0, 0, 37, 3, 3], &[0xA5; 32]];
        assert_eq!(answer(&hello), Some(true));
        assert_eq!(answer(&[&[22], &[3], &[3, 0, 41]]), Some(true));
    }

    #[test]
    fn an_alert_is_tls_of_whatever_version() {
        for version in 0..=4 {
            assert_eq!(answer(&[&[21, 3, version, 0, 2, 2, 40]]), Some(true), "handshake_failure of {version}");
        }
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for text in ["HTTP/1.1 400 Bad Request\r\n\r\n", "AMQP\0\0\x09\x01", "-ERR unknown command\r\n"] {
            assert_eq!(answer(&[text.as_bytes()]), Some(false), "{text:?}");
        }
        // Application data, which no server begins with, and SSL 2.
        assert_eq!(answer(&[&[23, 3, 3, 0, 1, 0]]), Some(false));
        assert_eq!(answer(&[&[0x80, 0x2E, 1, 3, 3]]), Some(false));
    }

    #[test]
    fn an_answer_that_is_too_short_tells_nothing() {
        assert_eq!(answer(&[]), None, "it hung up");
        assert_eq!(answer(&[&[22]]), None);
    }

    /// A record whose length is wrong has begun as TLS all the same, because the length is not looked at.
    #[test]
    fn lengths_of_the_answer_do_not_matter() {
        assert_eq!(answer(&[&[22, 3, 3, 0xFF, 0xFF]]), Some(true));
        assert_eq!(answer(&[&[22, 3, 3, 0, 0]]), Some(true));
    }

    #[test]
    fn lengths_of_the_question_are_right() {
        let hello = HELLO.concat();
        let length = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
        assert_eq!(length(3), hello.len() - 5, "the record's");
        assert_eq!((hello[6], length(7)), (0, hello.len() - 9), "the message's");
        let (session, ciphers) = (43, 44);
        assert_eq!((hello[session], length(ciphers)), (0, 4));
        let compressions = ciphers + 2 + length(ciphers);
        assert_eq!(hello[compressions], 1);
        let extensions = compressions + 2;
        assert_eq!(length(extensions), hello.len() - extensions - 2);
        let (groups, signatures) = (extensions + 2, extensions + 2 + 4 + length(extensions + 4));
        assert_eq!((length(groups), length(groups + 2), length(groups + 4)), (10, 6, 4));
        assert_eq!((length(signatures), length(signatures + 2), length(signatures + 4)), (13, 8, 6));
    }
}
