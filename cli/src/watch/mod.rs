//! `watch`: the status page of a running pool, in a terminal.

mod app;
mod chart;
mod draw;
mod feed;
mod look;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use crossterm::event::{self, Event as Input};
use ratatui::DefaultTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::arguments::WatchArguments;
use crate::client::Client;
use crate::error::Problem;
use crate::watch::app::App;
use crate::watch::look::Look;

/// How often the screen is drawn anew without news, so that ages go on.
const TICK: Duration = Duration::from_secs(1);
/// How often the thread that reads keys looks whether the command ends.
const LOOK: Duration = Duration::from_millis(100);
/// How many keys, and how many messages of the pool, may wait until they are shown.
const WAITING: usize = 64;

pub(crate) async fn run(asked: &WatchArguments) -> Result<ExitCode, Problem> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Problem::wrong(
            "watch needs a terminal",
            "use `resource-pool status`, or `events --follow`, in a pipe",
        ));
    }
    let client = Client::new(&asked.address)?;
    // An error of the first connection is told before the screen is taken.
    let stream = client.stream().await?;
    let mut app = App::new(client.address());
    let mut ends = Ends::new()?;
    let (sender, mut news) = mpsc::channel(WAITING);
    tokio::spawn(feed::run(client, stream, sender));
    let mut screen = Screen::take()?;
    let mut inputs = inputs()?;
    let mut tick = tokio::time::interval(TICK);
    let look = Look::of_environment();
    loop {
        screen.0.draw(|frame| draw::draw(frame, &mut app, look)).map_err(|error| lost(&error))?;
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Key(key)) if key.is_press() => {
                    if app.press(key) {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                Some(_) => {}
                None => return Err(Problem::failed("the terminal is gone", "run it in a terminal")),
            },
            Some(one) = news.recv() => {
                app.take(one);
                // A burst of messages is drawn once.
                while let Ok(one) = news.try_recv() {
                    app.take(one);
                }
            }
            _ = tick.tick() => {}
            number = ends.next() => return Ok(ExitCode::from(SIGNALLED + number)),
        }
    }
}

/// The screen while this command has it. Dropping it gives the terminal back as it was, also after a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, Problem> {
        ratatui::try_init().map(Screen).map_err(|error| lost(&error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to give back.
        let _ = ratatui::try_restore();
        let _ = self.0.show_cursor();
    }
}

fn lost(error: &std::io::Error) -> Problem {
    Problem::failed(format!("the terminal cannot be used: {error}"), "run it in a terminal")
}

/// Reads keys on a thread of its own, since reading blocks. The thread ends soon after the receiver is gone.
fn inputs() -> Result<mpsc::Receiver<Input>, Problem> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let read = move || {
        while !sender.is_closed() {
            match event::poll(LOOK) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(input) = event::read() else { break };
                    if sender.blocking_send(input).is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
    };
    let thread = std::thread::Builder::new().name("keys".to_owned()).spawn(read);
    thread.map(|_| receiver).map_err(|error| lost(&error))
}

/// The exit code for a signal is this and the signal's number, as in shells.
const SIGNALLED: u8 = 128;

/// The signals that end the command.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn new() -> Result<Self, Problem> {
        let catch = |kind| signal(kind).map_err(|error| lost(&error));
        Ok(Ends {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    /// The number of the next signal.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}
