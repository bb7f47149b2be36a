//! Status, holders, events and verbs of a pool over HTTP, with a status page.
//!
//! [`Admin`] makes a router to nest into a web service, or listens by itself:
//!
//! ```no_run
//! # fn main() -> Result<(), resource_pool::Error> {
//! use resource_pool::ResourcePool;
//! use resource_pool::admin::{ADDRESS, Admin};
//!
//! let pool = ResourcePool::global();
//! let address = Admin::new(pool).listen(ADDRESS)?;
//! println!("the status page is at http://{address}");
//! # Ok(()) }
//! ```
//!
//! | path | who may ask |
//! |---|---|
//! | `GET /livez`, `/readyz`, `/startupz` | everybody |
//! | `GET /`, `/page.js`, `/view.js`, `/words.js`, `/page.css`, `/icon.svg` | everybody; they have no data in them |
//! | `POST` and `DELETE /session` | who has the token, and the session itself |
//! | `GET /status`, `/holders`, `/events`, `/metrics`, `/pool-status` | who has the token |
//! | `POST /close/{name}`, `/reconnect/{name}` | who has the token |
//! | every other path of a listener | who has the token; the answer is 404 |
//!
//! The token comes as `Authorization: Bearer …`, or by the session of a browser. Without a token the listener stays on
//! loopback, where everybody may ask for everything. `docs/admin.md` in the repository has the security model.
//!
//! Threads: an admin has a thread of its own with a runtime of its own. So the requests of strangers delay neither the
//! pool's runtime nor its prober, and the admin goes on while the pool closes. `aside` calls the program's code, each
//! `usage` and the renderer, on another thread. A token in a file is read again on the crate's background runtime.
//! Locks: `rates`, `sessions` and `token` have one each, `hub` has three, and each place in `clients` has one. They are
//! held for a moment and across no await. The channel's own lock may be taken under `recent` of the hub; no other is
//! taken under another.

mod answer;
mod aside;
mod bucket;
mod builder;
mod clients;
mod guard;
mod holders;
mod hub;
mod limits;
mod listener;
mod page;
mod patient;
mod peer;
mod rates;
mod recent;
mod routes;
mod sessions;
mod stream;
mod token;
mod views;

pub use builder::Admin;
pub use limits::AdminLimits;

/// The address at which the command `resource-pool` looks for an admin by default.
pub const ADDRESS: &str = "127.0.0.1:9099";
