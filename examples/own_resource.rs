//! A resource of your own: a quote feed, a server that answers each line with a line. The pool connects it on first use,
//! watches it, connects it anew when it is lost, and closes it before the databases.

use std::sync::Arc;
use std::time::Duration;

use resource_pool::{Failure, KillSwitch, Killable, Link, Phase, Resource, ResourcePool};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

struct Feed {
    address: String,
}

/// A connection to the feed, which its users share. It is given up after the first failure, since a late answer would be
/// taken for that of the next question.
#[derive(Clone)]
struct Quotes {
    stream: Arc<Mutex<Option<BufStream<Killable<TcpStream>>>>>,
    switch: KillSwitch,
    link: Link,
    generation: u64,
}

impl Quotes {
    async fn ask(&self, line: &str) -> Result<String, Failure> {
        let mut place = self.stream.lock().await;
        // It comes back into its place only if the answer does.
        let mut stream = place.take().ok_or_else(|| Failure::transient("the feed is lost"))?;
        let asked = async {
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            stream.flush().await?;
            let mut answer = String::new();
            match stream.read_line(&mut answer).await? {
                0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
                _ => Ok(answer.trim_end().to_owned()),
            }
        };
        let answer = asked.await.map_err(Failure::transient);
        match &answer {
            Ok(_) => *place = Some(stream),
            Err(lost) => self.link.lost(self.generation, lost.to_string()),
        }
        answer
    }
}

impl Resource for Feed {
    type Handle = Quotes;

    async fn connect(&self, link: &Link) -> Result<Quotes, Failure> {
        let switch = KillSwitch::new();
        let stream = TcpStream::connect(&self.address).await.map_err(Failure::transient)?;
        let stream = Arc::new(Mutex::new(Some(BufStream::new(switch.guard(stream)))));
        let quotes = Quotes { stream, switch, link: link.clone(), generation: link.generation() };
        self.ping(&quotes).await?;
        Ok(quotes)
    }

    async fn ping(&self, quotes: &Quotes) -> Result<(), Failure> {
        quotes.ask("PING").await.map(drop)
    }

    async fn close(&self, quotes: Quotes) -> Result<(), Failure> {
        let stream = quotes.stream.lock().await.take();
        match stream {
            Some(mut stream) => stream.shutdown().await.map_err(Failure::transient),
            None => Ok(()),
        }
    }

    fn cut(&self, quotes: &Quotes) {
        quotes.switch.cut();
    }

    fn phase(&self) -> Phase {
        Phase::Tasks
    }
}

#[resource_pool::main]
async fn main() -> anyhow::Result<()> {
    let pool = ResourcePool::global();
    pool.register("feed", Feed { address: std::env::var("FEED").unwrap_or("127.0.0.1:7000".to_owned()) })?;
    while !pool.is_closing() {
        match pool.get::<Feed>("feed").await {
            Ok(feed) => println!("{:?}", feed.ask("QUOTE 000001").await.map_err(|failure| failure.to_string())),
            Err(error) => println!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
