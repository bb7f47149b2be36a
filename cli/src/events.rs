//! `events`: the last events of a running pool, and those to come.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::arguments::EventsArguments;
use crate::client::Client;
use crate::error::Problem;
use crate::model::{Repetitions, Told};
use crate::paint::Paint;
use crate::stream::{Message, Stream};
use crate::table::{clean, columns, time_of_day};

/// How many events an admin keeps.
const KEPT: u16 = 200;
/// The pause before connecting again after a stream broke off.
const PAUSE: Duration = Duration::from_secs(1);
/// How often connecting again may fail in a row.
const ATTEMPTS: usize = 30;

pub(crate) async fn run(asked: &EventsArguments) -> Result<ExitCode, Problem> {
    let client = Client::new(&asked.address)?;
    if asked.follow {
        return follow(&client, asked).await;
    }
    let answer = client.get(&format!("/events?last={KEPT}")).await?;
    let mut repetitions = Repetitions::default();
    let mut events: Vec<Value> = client.read(answer)?;
    events.retain(|event| asked.json || repetitions.is_news(event));
    for event in events.iter().skip(events.len().saturating_sub(usize::from(asked.last))) {
        show(event, asked.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints events until the pool is closed.
async fn follow(client: &Client, asked: &EventsArguments) -> Result<ExitCode, Problem> {
    let mut stream = client.stream().await?;
    // The time of the newest event that is printed, so that none is printed twice after the stream broke off.
    let mut newest = None;
    let mut repetitions = Repetitions::default();
    loop {
        let why = match read(&mut stream, asked, &mut newest, &mut repetitions).await? {
            End::Closed => return Ok(ExitCode::SUCCESS),
            End::Broken(why) => why,
        };
        eprintln!("{}", clean(&format!("{why}; connecting again")));
        let mut attempt = 0;
        stream = loop {
            tokio::time::sleep(PAUSE).await;
            attempt += 1;
            match client.stream().await {
                Ok(stream) => break stream,
                Err(problem) if attempt >= ATTEMPTS => return Err(problem),
                Err(_) => {}
            }
        };
    }
}

/// How a stream ended.
enum End {
    Closed,
    Broken(String),
}

async fn read(
    stream: &mut Stream,
    asked: &EventsArguments,
    newest: &mut Option<f64>,
    repetitions: &mut Repetitions,
) -> Result<End, Problem> {
    let at = |event: &Value| event["at_ms"].as_f64().unwrap_or_default();
    let mut is_news = |event: &Value| asked.json || repetitions.is_news(event);
    loop {
        let Message { name, data } = match stream.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(End::Broken("the stream ended".to_owned())),
            Err(why) => return Ok(End::Broken(why)),
        };
        let data: Value = serde_json::from_str(&data).unwrap_or_default();
        match &*name {
            "snapshot" => {
                let kept = data["events"].as_array().map(Vec::as_slice).unwrap_or_default();
                let known = newest.unwrap_or(f64::MIN);
                let events: Vec<&Value> = kept.iter().filter(|event| at(event) > known && is_news(event)).collect();
                let first = match newest {
                    None => events.len().saturating_sub(usize::from(asked.last)),
                    Some(_) => 0,
                };
                for event in events.iter().skip(first) {
                    show(event, asked.json)?;
                }
                *newest = Some(kept.last().map_or(newest.unwrap_or_default(), at));
            }
            "event" => {
                if is_news(&data) {
                    show(&data, asked.json)?;
                }
                *newest = data["at_ms"].as_f64().or(*newest);
            }
            "closed" => return Ok(End::Closed),
            _ => {}
        }
    }
}

fn show(event: &Value, json: bool) -> Result<(), Problem> {
    if json {
        return crate::print(&format!("{event}\n"));
    }
    let told = Told::of(event);
    let paint = Paint::for_output();
    let (resource, what) = (clean(&told.resource), clean(&told.what));
    let blank = |text: &str, width: usize| " ".repeat(width.saturating_sub(columns(text)));
    let line = format!(
        "{}  {resource}{}  {}{}  {}",
        paint.dim(&time_of_day(told.at_ms)),
        blank(&resource, 14),
        if told.state.is_empty() { what.clone() } else { paint.state(told.state, &what) },
        blank(&what, 15),
        clean(&told.text)
    );
    crate::print(&format!("{}\n", line.trim_end()))
}
