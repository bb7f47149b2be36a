//! The driver's trait [`Executor`](sqlx::Executor) for the guards. Every call through it ends when the kill switch is
//! thrown.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::{Database, Describe, Either, Execute, Executor, SqlStr};

use crate::kinds::sql::connection::{CutFuture, LentConnection, Line, PendingCall};
use crate::kinds::sql::effect::SqlEffect;
use crate::kinds::sql::guard::SqlGuard;
use crate::kinds::sql::kind::SqlKind;
use crate::kinds::sql::transaction::SqlTransaction;

/// A row of an answer, or the result at its end.
pub(crate) type QueryStep<D> = Either<<D as Database>::QueryResult, <D as Database>::Row>;

/// A query, taken apart so that its text can be read before it is sent.
pub struct Query<D: Database> {
    sql: SqlStr,
    statement: Option<D::Statement>,
    arguments: Result<Option<D::Arguments>, BoxDynError>,
    persistent: bool,
}

impl<D: SqlKind> Query<D> {
    fn new<'q>(mut query: impl Execute<'q, D>) -> Self {
        let (arguments, persistent) = (query.take_arguments(), query.persistent());
        let statement = query.statement().cloned();
        Query { statement, arguments, persistent, sql: query.sql() }
    }

    fn effect(&self) -> SqlEffect {
        D::effect(self.sql.as_str())
    }
}

impl<D: SqlKind> Execute<'_, D> for Query<D> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&D::Statement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<D::Arguments>, BoxDynError> {
        std::mem::replace(&mut self.arguments, Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

impl<D: Database> fmt::Debug for Query<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The statement and its arguments may have secrets.
        f.debug_struct("Query").field("persistent", &self.persistent).finish_non_exhaustive()
    }
}

/// The rows and results of an answer. The stream ends with an error when the switch is thrown.
struct Steps<'a, D: SqlKind> {
    steps: BoxStream<'a, sqlx::Result<QueryStep<D>>>,
    cut: CutFuture,
    /// `None` once the stream has ended.
    call: Option<PendingCall<D>>,
    line: &'a mut Line<D>,
}

impl<D: SqlKind> Stream for Steps<'_, D> {
    type Item = sqlx::Result<QueryStep<D>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let me = &mut *self;
        let Some(call) = &mut me.call else { return Poll::Ready(None) };
        let step = me.steps.as_mut().poll_next(context);
        // A stream may drop between two rows. Behind a result, and behind a row of several statements, the driver still
        // awaits an answer. SQLite goes on to the next row of a single statement, and ends there. The next call waits
        // for that, so its own limit holds for both.
        let is_row = matches!(step, Poll::Ready(Some(Ok(Either::Right(_)))));
        call.stop.is_awaited = call.is_several || !is_row;
        let step = match step {
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
struct Refused<D>(Option<sqlx::Error>, PhantomData<fn() -> D>);

impl<D: SqlKind> Stream for Refused<D> {
    type Item = sqlx::Result<QueryStep<D>>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

impl<'c, D: SqlKind> LentConnection<'c, D> {
    fn fetch_many<'q>(mut self, query: impl Execute<'q, D>) -> BoxStream<'c, sqlx::Result<QueryStep<D>>> {
        let query = Query::new(query);
        match self.begin("query", query.effect()) {
            Ok(call) => {
                let cut = CutFuture::of(&call.switch);
                Box::pin(Steps { steps: D::fetch_many(self.driver, query), cut, call: Some(call), line: self.line })
            }
            Err(refused) => Box::pin(Refused::<D>(Some(refused), PhantomData)),
        }
    }

    fn fetch_optional<'q>(self, query: impl Execute<'q, D>) -> BoxFuture<'c, sqlx::Result<Option<D::Row>>> {
        let query = Query::new(query);
        if D::ENDS_READS && query.effect() == SqlEffect::Reads {
            return Box::pin(self.ask("query", SqlEffect::Reads, |driver| D::fetch_optional(driver, query)));
        }
        // A statement may fail behind its first row, as by its commit, so the answer is read to its end.
        let mut steps = self.fetch_many(query);
        Box::pin(async move {
            let mut first = None;
            while let Some(step) = poll_fn(|context| steps.as_mut().poll_next(context)).await {
                if let Either::Right(row) = step? {
                    first.get_or_insert(row);
                }
            }
            Ok(first)
        })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [D::TypeInfo]) -> BoxFuture<'e, sqlx::Result<D::Statement>>
    where
        'c: 'e,
    {
        Box::pin(self.ask("prepare", SqlEffect::Reads, move |driver| D::prepare_with(driver, sql, parameters)))
    }

    fn describe(self, sql: SqlStr) -> BoxFuture<'c, sqlx::Result<Describe<D>>> {
        Box::pin(self.ask("describe", SqlEffect::Reads, |driver| D::describe(driver, sql)))
    }
}

/// Implements [`Executor`] for `&mut` of a guard that has a connection.
macro_rules! runs_on_its_connection {
    ([$($more:lifetime)?] $guard:ty) => {
        impl<'c $(, $more)?, D: SqlKind> Executor<'c> for &'c mut $guard {
            type Database = D;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<QueryStep<D>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, D>,
            {
                self.lent().fetch_many(query)
            }

            fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<D::Row>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, D>,
            {
                self.lent().fetch_optional(query)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [D::TypeInfo],
            ) -> BoxFuture<'e, sqlx::Result<D::Statement>>
            where
                'c: 'e,
            {
                self.lent().prepare_with(sql, parameters)
            }

            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<Describe<D>>>
            where
                'c: 'e,
            {
                self.lent().describe(sql)
            }
        }
    };
}

runs_on_its_connection!([] SqlGuard<D>);
runs_on_its_connection!(['t] SqlTransaction<'t, D>);

/// The driver's calls of a [`SqlKind`], by the trait that each of its connections has.
macro_rules! runs_on_the_driver {
    () => {
        fn fetch_many<'e>(
            driver: &'e mut Self::Connection,
            query: $crate::kinds::sql::Query<Self>,
        ) -> futures_core::stream::BoxStream<'e, sqlx::Result<$crate::kinds::sql::QueryStep<Self>>> {
            sqlx::Executor::fetch_many(driver, query)
        }

        fn fetch_optional<'e>(
            driver: &'e mut Self::Connection,
            query: $crate::kinds::sql::Query<Self>,
        ) -> futures_core::future::BoxFuture<'e, sqlx::Result<Option<Self::Row>>> {
            sqlx::Executor::fetch_optional(driver, query)
        }

        fn prepare_with<'e>(
            driver: &'e mut Self::Connection,
            sql: sqlx::SqlStr,
            parameters: &'e [Self::TypeInfo],
        ) -> futures_core::future::BoxFuture<'e, sqlx::Result<Self::Statement>> {
            sqlx::Executor::prepare_with(driver, sql, parameters)
        }

        fn describe<'e>(
            driver: &'e mut Self::Connection,
            sql: sqlx::SqlStr,
        ) -> futures_core::future::BoxFuture<'e, sqlx::Result<sqlx::Describe<Self>>> {
            sqlx::Executor::describe(driver, sql)
        }
    };
}

pub(crate) use runs_on_the_driver;
