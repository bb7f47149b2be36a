//! The server's clock, beside ours.

use std::time::{Duration, SystemTime};

use resource_pool::mongodb::bson::{Bson, doc};
use resource_pool::{BoxError, ResourcePool, redis, sqlx};

use crate::loaded::Kind;

/// How far the clocks may differ before it is a finding. TLS certificates, tokens and expiry times bear about so much.
pub(crate) const MOST: Duration = Duration::from_secs(2);

/// By how many milliseconds the server's clock is ahead of ours. `None` for RabbitMQ, which has no command that tells
/// the time, and if the server does not tell.
///
/// # Cancel safety
/// Cancel-safe.
pub(crate) async fn ahead(pool: &ResourcePool, kind: Kind, name: &str) -> Option<f64> {
    // The first question may open a connection, which would count as the time that the answer took.
    server_time(pool, kind, name).await.ok().flatten()?;
    let before = now();
    let server = server_time(pool, kind, name).await.ok().flatten()?;
    Some(difference(before, server, now()))
}

/// The difference beyond the time that the question took, in milliseconds.
fn difference(before: f64, server: f64, after: f64) -> f64 {
    if server < before {
        server - before
    } else if server > after {
        server - after
    } else {
        0.0
    }
}

/// The server's time in milliseconds since the beginning of 1970.
async fn server_time(pool: &ResourcePool, kind: Kind, name: &str) -> Result<Option<f64>, BoxError> {
    Ok(match kind {
        Kind::RabbitMq => None,
        Kind::Redis => {
            let mut redis = pool.redis_named(name).await?.clone();
            let (seconds, micros): (f64, f64) = redis::cmd("TIME").query_async(&mut redis).await?;
            Some(seconds * 1e3 + micros / 1e3)
        }
        Kind::ClickHouse => {
            let clickhouse = pool.clickhouse_named(name).await?;
            let millis: i64 = clickhouse.query("SELECT toUnixTimestamp64Milli(now64(3))").fetch_one().await?;
            Some(millis as f64)
        }
        Kind::Mongo => {
            let mongo = pool.mongo_named(name).await?;
            let hello = mongo.database("admin").run_command(doc! { "hello": 1 }).await?;
            match hello.get("localTime") {
                Some(Bson::DateTime(time)) => Some(time.timestamp_millis() as f64),
                _ => None,
            }
        }
        Kind::Postgres => {
            let mut postgres = pool.postgres_named(name).await?;
            let time = sqlx::query_scalar::<_, f64>("SELECT extract(epoch FROM clock_timestamp())::float8");
            Some(time.fetch_one(&mut postgres).await? * 1e3)
        }
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn the_time_of_the_question_is_no_difference() {
        assert_eq!(difference(100.0, 150.0, 200.0), 0.0);
        assert_eq!(difference(100.0, 50.0, 200.0), -50.0);
        assert_eq!(difference(100.0, 3_200.0, 200.0), 3_000.0);
    }
}
