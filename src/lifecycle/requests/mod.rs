//! Requests over HTTP for kinds whose server speaks it: sent by one client of `reqwest`, limited, counted, and cut.
//!
//! `Requests` is the handle that kinds lease, or make their verbs of. It lends each `HttpRequest` a place and a kill
//! switch as it is sent. The `HttpResponse` keeps both until its body has ended, so closing waits for bodies too.
//!
//! `reqwest` opens its connections itself, so no switch cuts a socket. Instead every future and every body ends when
//! the switch is thrown, and its connection closes as it drops. The client's tasks and timers belong to the pool's
//! runtime, whichever executor polls.

mod core;
mod errors;
mod probe;
mod redirect;
mod request;
mod response;
mod settings;

pub use self::core::Requests;
pub use self::errors::HttpStatusError;
pub use self::probe::RequestProbe;
pub use self::request::HttpRequest;
pub use self::response::HttpResponse;
pub use self::settings::RequestSettings;
