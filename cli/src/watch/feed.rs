//! The news of the pool: the messages of its stream, which is connected again when it breaks off.

use std::time::Duration;

use tokio::sync::mpsc::Sender;

use crate::client::Client;
use crate::stream::{Message, Stream};

/// The pause before connecting again.
const PAUSE: Duration = Duration::from_secs(1);

/// One piece of news.
#[derive(Debug)]
pub(crate) enum News {
    Message(Message),
    /// The stream broke off, for this reason.
    Lost(String),
}

/// Sends the news until nobody takes them any more.
pub(crate) async fn run(client: Client, mut stream: Stream, news: Sender<News>) {
    loop {
        let why = loop {
            match stream.next().await {
                Ok(Some(message)) => {
                    if news.send(News::Message(message)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break "the stream ended".to_owned(),
                Err(why) => break why,
            }
        };
        if news.send(News::Lost(why)).await.is_err() {
            return;
        }
        stream = loop {
            tokio::time::sleep(PAUSE).await;
            match client.stream().await {
                Ok(stream) => break stream,
                Err(problem) => {
                    if news.send(News::Lost(problem.what().to_owned())).await.is_err() {
                        return;
                    }
                }
            }
        };
    }
}
