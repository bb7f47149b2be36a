//! Exclusive connections of async code, and the places that there are for them.

use std::fmt;
use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::sync::OwnedSemaphorePermit;

use crate::base::process::Ours;
use crate::kinds::redis::client::Redis;
use crate::kinds::redis::commands::{silenced, silences, unsafe_twice};
use crate::kinds::redis::connection::Connection;
use crate::kinds::redis::errors::{ended, refused};
use crate::kinds::redis::session::Session;
use crate::lifecycle::lease::Lease;
use crate::lifecycle::work::Work;

/// An async connection of one's own. Every command is allowed; it is closed when it drops.
pub struct Exclusive {
    pub(super) own: Ours<Connection>,
    pub(super) session: Arc<Session>,
    pub(super) _place: Ours<Place>,
}

impl Exclusive {
    /// Whether these can be sent.
    fn check<'a>(&self, commands: impl IntoIterator<Item = &'a Cmd>) -> RedisResult<()> {
        self.session.link.process.check().map_err(refused)?;
        if commands.into_iter().any(silences) {
            return Err(silenced());
        }
        if self.own.is_gone() { Err(refused(self.session.gone(ended(&self.own.switch)))) } else { Ok(()) }
    }
}

impl ConnectionLike for Exclusive {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            self.check([cmd])?;
            let busy = self.session.link.busy(Work::Operation);
            let answer = self.own.connection.req_packed_command(cmd).await;
            self.session.answered(busy, answer, || unsafe_twice([cmd]))
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            self.check(pipeline.cmd_iter())?;
            let busy = self.session.link.busy(Work::Operation);
            let answer = self.own.connection.req_packed_commands(pipeline, offset, count).await;
            self.session.answered(busy, answer, || unsafe_twice(pipeline.cmd_iter()))
        })
    }

    fn get_db(&self) -> i64 {
        self.session.config.db
    }
}

impl fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exclusive").field("resource", self.session.link.name()).finish_non_exhaustive()
    }
}

/// A place among the exclusive connections, and in the books.
pub(super) struct Place {
    pub(super) _permit: OwnedSemaphorePermit,
    pub(super) _lease: Lease<Redis>,
}
