//! A kind of one's own: servers that answer each line with a line, such as Redis with its inline commands.
//!
//! It is made of [`resource_pool::adapter`] alone, and has the same parts as the built-in kinds: a section in TOML and
//! environment variables, connections that one user at a time checks out, streams that the prober cuts if the server
//! stops answering, waits that name the holders, and a facade for threads.

pub mod blocking;
mod config;
mod connection;
mod resource;

pub use config::LinesConfig;
pub use connection::Connection;
pub use resource::{Lines, LinesResource};
