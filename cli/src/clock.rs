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
    let (server, exactness) = server_time(pool, kind, name).await.ok().flatten()?;
    Some(difference((before, now()), (server, server + exactness)))
}

/// The difference in milliseconds that is certain: from the time of the question, to the time that the server told.
fn difference((before, after): (f64, f64), (earliest, latest): (f64, f64)) -> f64 {
    if latest < before {
        latest - before
    } else if earliest > after {
        earliest - after
    } else {
        0.0
    }
}

/// The server's time in milliseconds since the beginning of 1970, and how many more it may be.
async fn server_time(pool: &ResourcePool, kind: Kind, name: &str) -> Result<Option<(f64, f64)>, BoxError> {
    Ok(match kind {
        Kind::RabbitMq | Kind::Http | Kind::Llm | Kind::Chroma | Kind::Milvus => None,
        Kind::Redis => {
            let mut redis = pool.redis_named(name).await?.clone();
            let (seconds, micros): (f64, f64) = redis::cmd("TIME").query_async(&mut redis).await?;
            Some((seconds * 1e3 + micros / 1e3, 0.0))
        }
        Kind::ClickHouse => {
            let clickhouse = pool.clickhouse_named(name).await?;
            // Old servers know whole seconds only.
            let seconds: u32 = clickhouse.query("SELECT toUInt32(now())").fetch_one().await?;
            Some((f64::from(seconds) * 1e3, 1e3))
        }
        Kind::Mongo => {
            let mongo = pool.mongo_named(name).await?;
            let hello = mongo.database("admin").run_command(doc! { "hello": 1 }).await?;
            match hello.get("localTime") {
                Some(Bson::DateTime(time)) => Some((time.timestamp_millis() as f64, 1.0)),
                _ => None,
            }
        }
        Kind::Postgres => {
            let mut postgres = pool.postgres_named(name).await?;
            let time = sqlx::query_scalar::<_, f64>("SELECT extract(epoch FROM clock_timestamp())::float8");
            Some((time.fetch_one(&mut postgres).await? * 1e3, 0.0))
        }
        Kind::MySql => {
            let mut mysql = pool.mysql_named(name).await?;
            let time = sqlx::query_scalar::<_, f64>("SELECT CAST(unix_timestamp(now(6)) AS double)");
            Some((time.fetch_one(&mut mysql).await? * 1e3, 0.0))
        }
        // The file's clock is ours.
        Kind::Sqlite => None,
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
        let asked = (100.0, 200.0);
        assert_eq!(difference(asked, (150.0, 150.0)), 0.0);
        assert_eq!(difference(asked, (50.0, 1_050.0)), 0.0);
        assert_eq!(difference(asked, (40.0, 50.0)), -50.0);
        assert_eq!(difference(asked, (3_200.0, 4_200.0)), 3_000.0);
    }
}
