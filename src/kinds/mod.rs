//! The kinds of resources that come with the crate. Each has a folder, which implements `Resource`.

#[cfg(feature = "clickhouse")]
pub(crate) mod clickhouse;
#[cfg(feature = "files")]
pub(crate) mod files;
pub(crate) mod model;
#[cfg(feature = "mongodb")]
pub(crate) mod mongo;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "processes")]
pub(crate) mod processes;
#[cfg(feature = "r2d2")]
pub(crate) mod r2d2;
#[cfg(feature = "rabbitmq")]
pub(crate) mod rabbitmq;
#[cfg(feature = "redis")]
pub(crate) mod redis;

/// The table of the kinds that can be configured, one line for each. From a line `pool` makes the TOML section, the
/// environment variables, the default resource, the verbs of both facades, their shortcuts, `scoped`, `from_env` and
/// the exports.
///
/// The folder's name is also the name of the section, the default resource and the verb. The guard for tasks comes
/// before the guard for threads. A phrase for each follows, for the docs.
macro_rules! for_each_kind {
    ($then:ident) => {
        $then! {
            "mongodb" "MongoDB" mongo mongo_named mongo_with Mongo MongoConfig MongoResource
                $crate::lifecycle::lease::Lease<mongodb::Client>,
                $crate::lifecycle::lease::Lease<mongodb::sync::Client>,
                "A lease of MongoDB, which derefs to `mongodb::Client`"
                "A lease of MongoDB, which derefs to `mongodb::sync::Client`";
            "rabbitmq" "RabbitMQ" rabbitmq rabbitmq_named rabbitmq_with RabbitMq RabbitMqConfig RabbitMqResource
                $crate::lifecycle::lease::Lease<$crate::kinds::rabbitmq::RabbitMq>,
                $crate::lifecycle::lease::Lease<$crate::kinds::rabbitmq::blocking::RabbitMq>,
                "A lease of RabbitMQ, which derefs to `RabbitMq`"
                "A lease of RabbitMQ, which derefs to `blocking::RabbitMq`";
            "clickhouse" "ClickHouse" clickhouse clickhouse_named clickhouse_with ClickHouse ClickHouseConfig ClickHouseResource
                $crate::lifecycle::lease::Lease<clickhouse::Client>,
                $crate::lifecycle::lease::Lease<$crate::kinds::clickhouse::blocking::ClickHouse>,
                "A lease of ClickHouse, which derefs to `clickhouse::Client`"
                "A lease of ClickHouse, which derefs to `blocking::ClickHouse`";
            "redis" "Redis" redis redis_named redis_with Redis RedisConfig RedisResource
                $crate::lifecycle::lease::Lease<$crate::kinds::redis::Redis>,
                $crate::kinds::redis::blocking::Redis,
                "A lease of Redis, which derefs to `Redis`, a `redis::aio::ConnectionLike`"
                "A Redis connection of one's own, a `redis::ConnectionLike`";
            "postgres" "PostgreSQL" postgres postgres_named postgres_with Postgres PostgresConfig PostgresResource
                $crate::kinds::postgres::Postgres,
                $crate::kinds::postgres::blocking::Postgres,
                "A PostgreSQL connection of one's own, whose `&mut` is a `sqlx::Executor`"
                "A PostgreSQL connection of one's own, which is lent by `wait`";
        }
    };
}

pub(crate) use for_each_kind;
