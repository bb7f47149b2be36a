//! Checks that no log line of any crate has RabbitMQ's password, at any level. The test has a process of its own,
//! because it reads the log of the whole process.

#![cfg(feature = "rabbitmq")]
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

use common::Log;
use resource_pool::config::{Options, RabbitMqConfig};
use resource_pool::{ResourcePool, blocking};

const PASSWORD: &str = "s3cr3tp4ss";
const ROUNDS: usize = 40;

/// The frame `connection.start`, which the driver answers with the login.
fn start() -> Vec<u8> {
    let mut method = vec![0, 10, 0, 10, 0, 9, 0, 0, 0, 0];
    for text in ["PLAIN", "en_US"] {
        method.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        method.extend(text.as_bytes());
    }
    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(method.len()).unwrap().to_be_bytes());
    frame.extend(method);
    frame.push(0xCE);
    frame
}

/// A fake broker asks for the login and hangs up.
#[test]
fn rabbitmq_login_that_nobody_takes_is_in_no_log() {
    let log = Log::start();
    let broker = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = broker.local_addr().unwrap().port();
    let serving = thread::spawn(move || {
        for client in broker.incoming().take(ROUNDS) {
            let mut client = client.unwrap();
            let mut protocol = [0; 8];
            if client.read_exact(&mut protocol).is_ok() && client.write_all(&start()).is_ok() {
                // The shutdown fails only if the client was faster.
                let _ = client.shutdown(Shutdown::Both);
            }
        }
    });
    let mut options = Options::default();
    options.retry.attempts = 1;
    options.circuit = Duration::ZERO;
    let url = format!("amqp://me:{PASSWORD}@127.0.0.1:{port}/");
    let builder = ResourcePool::builder().environment([("", ""); 0]).options(options);
    let pool = blocking::ResourcePool::from(builder.resource(RabbitMqConfig::url(url)).build().unwrap());
    while !serving.is_finished() {
        pool.rabbitmq().map(drop).expect_err("nobody takes the login");
    }
    serving.join().unwrap();
    let text = log.text();
    let bytes = PASSWORD.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
    assert!(text.contains("connecting failed"), "it is the log");
    for secret in [PASSWORD, &bytes] {
        let told = text.lines().find(|line| line.contains(secret));
        assert!(told.is_none(), "{told:?}");
    }
}
