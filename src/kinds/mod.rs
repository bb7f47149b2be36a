//! The kinds of resources that come with the crate. Each has a folder, which implements `Resource`.

#[cfg(feature = "chroma")]
pub(crate) mod chroma;
#[cfg(feature = "clickhouse")]
pub(crate) mod clickhouse;
#[cfg(feature = "elastic")]
pub(crate) mod elastic;
#[cfg(feature = "files")]
pub(crate) mod files;
#[cfg(feature = "http")]
pub(crate) mod http;
#[cfg(feature = "llm")]
pub(crate) mod llm;
#[cfg(feature = "milvus")]
pub(crate) mod milvus;
pub(crate) mod model;
#[cfg(feature = "mongodb")]
pub(crate) mod mongo;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
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
#[cfg(feature = "http")]
pub(crate) mod rest;
#[cfg(feature = "_sql")]
pub(crate) mod sql;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

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
            "mysql" "MySQL" mysql mysql_named mysql_with MySql MySqlConfig MySqlResource
                $crate::kinds::mysql::MySql,
                $crate::kinds::mysql::blocking::MySql,
                "A connection of one's own to a MySQL, whose `&mut` is a `sqlx::Executor`"
                "A connection of one's own to a MySQL, which is lent by `wait`";
            "sqlite" "SQLite" sqlite sqlite_named sqlite_with Sqlite SqliteConfig SqliteResource
                $crate::kinds::sqlite::Sqlite,
                $crate::kinds::sqlite::blocking::Sqlite,
                "A connection of one's own to a file of SQLite, whose `&mut` is a `sqlx::Executor`"
                "A connection of one's own to a file of SQLite, which is lent by `wait`";
            "elastic" "Elasticsearch" elastic elastic_named elastic_with Elastic ElasticConfig ElasticResource
                $crate::lifecycle::lease::Lease<$crate::kinds::elastic::Elastic>,
                $crate::lifecycle::lease::Lease<$crate::kinds::elastic::blocking::Elastic>,
                "A lease of an Elasticsearch, which derefs to `Elastic`"
                "A lease of an Elasticsearch, which derefs to `blocking::Elastic`";
            "http" "HTTP" http http_named http_with Http HttpConfig HttpResource
                $crate::lifecycle::lease::Lease<$crate::kinds::http::Http>,
                $crate::lifecycle::lease::Lease<$crate::kinds::http::blocking::Http>,
                "A lease of a client of HTTP, which derefs to `Http`"
                "A lease of a client of HTTP, which derefs to `blocking::Http`";
            "llm" "LLM" llm llm_named llm_with Llm LlmConfig LlmResource
                $crate::lifecycle::lease::Lease<$crate::kinds::llm::Llm>,
                $crate::lifecycle::lease::Lease<$crate::kinds::llm::blocking::Llm>,
                "A lease of a language model, which derefs to `Llm`"
                "A lease of a language model, which derefs to `blocking::Llm`";
            "chroma" "Chroma" chroma chroma_named chroma_with Chroma ChromaConfig ChromaResource
                $crate::lifecycle::lease::Lease<$crate::kinds::chroma::Chroma>,
                $crate::lifecycle::lease::Lease<$crate::kinds::chroma::blocking::Chroma>,
                "A lease of Chroma, which derefs to `Chroma`"
                "A lease of Chroma, which derefs to `blocking::Chroma`";
            "milvus" "Milvus" milvus milvus_named milvus_with Milvus MilvusConfig MilvusResource
                $crate::lifecycle::lease::Lease<$crate::kinds::milvus::Milvus>,
                $crate::lifecycle::lease::Lease<$crate::kinds::milvus::blocking::Milvus>,
                "A lease of Milvus, which derefs to `Milvus`"
                "A lease of Milvus, which derefs to `blocking::Milvus`";
        }
    };
}

pub(crate) use for_each_kind;
