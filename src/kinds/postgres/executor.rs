//! The driver's trait [`Executor`] for the guards. Every call through it ends when the kill switch is thrown.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection as _, Describe, Either, Execute, Executor, PgConnection, Postgres, SqlStr};

use crate::kinds::postgres::connection::{CutFuture, LentConnection, Line, PendingCall};
use crate::kinds::postgres::effect::SqlEffect;

type QueryStep = Either<PgQueryResult, PgRow>;

/// A query, taken apart so that its text can be read before it is sent.
struct Query {
    sql: SqlStr,
    statement: Option<PgStatement>,
    arguments: Result<Option<PgArguments>, BoxDynError>,
    persistent: bool,
}

impl Query {
    fn new<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let (arguments, persistent) = (query.take_arguments(), query.persistent());
        let statement = query.statement().cloned();
        Query { statement, arguments, persistent, sql: query.sql() }
    }

    fn effect(&self) -> SqlEffect {
        SqlEffect::of(self.sql.as_str())
    }
}

impl Execute<'_, Postgres> for Query {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        std::mem::replace(&mut self.arguments, Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// The rows and results of an answer. The stream ends with an error when the switch is thrown.
struct Steps<'a> {
    steps: BoxStream<'a, sqlx::Result<QueryStep>>,
    cut: CutFuture,
    /// `None` once the stream has ended.
    call: Option<PendingCall>,
    line: &'a mut Line,
}

impl Stream for Steps<'_> {
    type Item = sqlx::Result<QueryStep>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let me = &mut *self;
        if me.call.is_none() {
            return Poll::Ready(None);
        }
        let step = match me.steps.as_mut().poll_next(context) {
            Poll::Ready(Some(Ok(step))) => return Poll::Ready(Some(Ok(step))),
            Poll::Ready(step) => step,
            Poll::Pending => {
                return me.cut.poll(context).map(|()| me.call.take().map(|call| Err(call.cut())));
            }
        };
        let Some(call) = me.call.take() else { return Poll::Ready(None) };
        Poll::Ready(match step {
            Some(answer) => Some(call.ended(me.line, answer)),
            None => call.ended(me.line, Ok(())).err().map(Err),
        })
    }
}

/// A stream of one error, for a call that was refused.
struct Refused(Option<sqlx::Error>);

impl Stream for Refused {
    type Item = sqlx::Result<QueryStep>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

impl<'c> Executor<'c> for LentConnection<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<QueryStep>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let query = Query::new(query);
        let LentConnection { driver, line } = self;
        match line.begin("query", query.effect(), driver.is_in_transaction()) {
            Ok(call) => {
                let cut = CutFuture::of(&call.switch);
                Box::pin(Steps { steps: driver.fetch_many(query), cut, call: Some(call), line })
            }
            Err(refused) => Box::pin(Refused(Some(refused))),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let query = Query::new(query);
        let effect = query.effect();
        let ask = async |driver: &mut PgConnection| driver.fetch_optional(query).await;
        Box::pin(self.ask("query", effect, ask))
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, sqlx::Result<PgStatement>>
    where
        'c: 'e,
    {
        let ask = async |driver: &mut PgConnection| driver.prepare_with(sql, parameters).await;
        Box::pin(self.ask("prepare", SqlEffect::Reads, ask))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<Postgres>>>
    where
        'c: 'e,
    {
        let ask = async |driver: &mut PgConnection| driver.describe(sql).await;
        Box::pin(self.ask("describe", SqlEffect::Reads, ask))
    }
}

/// Implements [`sqlx::Executor`] for `&mut` of a guard that has a connection.
macro_rules! runs_on_its_connection {
    ($guard:ty) => {
        impl<'c> sqlx::Executor<'c> for &'c mut $guard {
            type Database = sqlx::Postgres;

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> futures_core::stream::BoxStream<
                'e,
                sqlx::Result<sqlx::Either<sqlx::postgres::PgQueryResult, sqlx::postgres::PgRow>>,
            >
            where
                'c: 'e,
                E: 'q + sqlx::Execute<'q, sqlx::Postgres>,
            {
                self.lent().fetch_many(query)
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> futures_core::future::BoxFuture<'e, sqlx::Result<Option<sqlx::postgres::PgRow>>>
            where
                'c: 'e,
                E: 'q + sqlx::Execute<'q, sqlx::Postgres>,
            {
                self.lent().fetch_optional(query)
            }

            fn prepare_with<'e>(
                self,
                sql: sqlx::SqlStr,
                parameters: &'e [sqlx::postgres::PgTypeInfo],
            ) -> futures_core::future::BoxFuture<'e, sqlx::Result<sqlx::postgres::PgStatement>>
            where
                'c: 'e,
            {
                self.lent().prepare_with(sql, parameters)
            }

            fn describe<'e>(
                self,
                sql: sqlx::SqlStr,
            ) -> futures_core::future::BoxFuture<'e, sqlx::Result<sqlx::Describe<sqlx::Postgres>>>
            where
                'c: 'e,
            {
                self.lent().describe(sql)
            }
        }
    };
}

pub(super) use runs_on_its_connection;
