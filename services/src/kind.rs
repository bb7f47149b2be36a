//! The kinds of server, with their names, variables and ports.

use crate::server::Server;
use crate::{chroma, clickhouse, elastic, milvus, mongo, mysql, postgres, rabbitmq, redis};
use std::fmt;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// MongoDB, as a replica set of one node.
    Mongo,
    /// RabbitMQ.
    RabbitMq,
    /// ClickHouse, by its HTTP port.
    ClickHouse,
    /// Redis.
    Redis,
    /// The compatible engine osmem, in the place of Elasticsearch and OpenSearch.
    Elastic,
    /// PostgreSQL.
    Postgres,
    /// MariaDB, which speaks the protocol of MySQL.
    MySql,
    /// Chroma.
    Chroma,
    /// Milvus. It needs a network namespace of its own, as `cargo xtask vectors` makes one.
    Milvus,
}

impl Kind {
    /// The kinds that the pool reaches by default. They are started for all tests and for the demo.
    pub const ALL: [Kind; 4] = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis];

    /// The environment variable for a URL that replaces the [`shared`](crate::shared) server.
    pub fn variable(self) -> &'static str {
        match self {
            Kind::Mongo => "RESOURCE_POOL_TEST_MONGODB_URI",
            Kind::RabbitMq => "RESOURCE_POOL_TEST_AMQP_URL",
            Kind::ClickHouse => "RESOURCE_POOL_TEST_CLICKHOUSE_URL",
            Kind::Redis => "RESOURCE_POOL_TEST_REDIS_URL",
            Kind::Elastic => "RESOURCE_POOL_TEST_ELASTIC_URL",
            Kind::Postgres => "RESOURCE_POOL_TEST_POSTGRES_URL",
            Kind::MySql => "RESOURCE_POOL_TEST_MYSQL_URL",
            Kind::Chroma => "RESOURCE_POOL_TEST_CHROMA_URL",
            Kind::Milvus => "RESOURCE_POOL_TEST_MILVUS_URL",
        }
    }

    /// The environment variable for the folder of the server behind [`variable`](Kind::variable). `cargo xtask` sets it
    /// if it started that server. The server's log and administration tool can then be used.
    pub fn folder_variable(self) -> &'static str {
        match self {
            Kind::Mongo => "RESOURCE_POOL_TEST_MONGODB_DIR",
            Kind::RabbitMq => "RESOURCE_POOL_TEST_AMQP_DIR",
            Kind::ClickHouse => "RESOURCE_POOL_TEST_CLICKHOUSE_DIR",
            Kind::Redis => "RESOURCE_POOL_TEST_REDIS_DIR",
            Kind::Elastic => "RESOURCE_POOL_TEST_ELASTIC_DIR",
            Kind::Postgres => "RESOURCE_POOL_TEST_POSTGRES_DIR",
            Kind::MySql => "RESOURCE_POOL_TEST_MYSQL_DIR",
            Kind::Chroma => "RESOURCE_POOL_TEST_CHROMA_DIR",
            Kind::Milvus => "RESOURCE_POOL_TEST_MILVUS_DIR",
        }
    }

    /// The environment variable that programs read the server's URL from.
    pub fn url_variable(self) -> &'static str {
        match self {
            Kind::Mongo => "MONGODB_URI",
            Kind::RabbitMq => "AMQP_URL",
            Kind::ClickHouse => "CLICKHOUSE_URL",
            Kind::Redis => "REDIS_URL",
            Kind::Elastic => "ELASTIC_URL",
            Kind::Postgres => "POSTGRES_URL",
            Kind::MySql => "MYSQL_URL",
            Kind::Chroma => "CHROMA_URL",
            Kind::Milvus => "MILVUS_URL",
        }
    }

    /// `mongo`, `rabbitmq`, `clickhouse`, `redis`, `postgres`, `mysql`, `chroma`, `milvus`, `elastic`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mongo => "mongo",
            Kind::RabbitMq => "rabbitmq",
            Kind::ClickHouse => "clickhouse",
            Kind::Redis => "redis",
            Kind::Elastic => "elastic",
            Kind::Postgres => "postgres",
            Kind::MySql => "mysql",
            Kind::Chroma => "chroma",
            Kind::Milvus => "milvus",
        }
    }

    pub(crate) fn standard_port(self) -> u16 {
        match self {
            Kind::Mongo => 27017,
            Kind::RabbitMq => 5672,
            Kind::ClickHouse => 8123,
            Kind::Redis => 6379,
            Kind::Elastic => 9200,
            Kind::Postgres => 5432,
            Kind::MySql => 3306,
            Kind::Chroma => 8000,
            Kind::Milvus => 19530,
        }
    }

    pub(crate) fn server(self) -> Box<dyn Server> {
        match self {
            Kind::Mongo => Box::new(mongo::Mongo),
            Kind::RabbitMq => Box::new(rabbitmq::RabbitMq::default()),
            Kind::ClickHouse => Box::new(clickhouse::ClickHouse::default()),
            Kind::Redis => Box::new(redis::Redis),
            Kind::Postgres => Box::new(postgres::Postgres::default()),
            Kind::MySql => Box::new(mysql::MySql),
            Kind::Chroma => Box::new(chroma::Chroma),
            Kind::Milvus => Box::new(milvus::Milvus),
            Kind::Elastic => Box::new(elastic::Elastic),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Mongo => "MongoDB",
            Kind::RabbitMq => "RabbitMQ",
            Kind::ClickHouse => "ClickHouse",
            Kind::Redis => "Redis",
            Kind::Elastic => "the compatible engine osmem",
            Kind::Postgres => "PostgreSQL",
            Kind::MySql => "MySQL",
            Kind::Chroma => "Chroma",
            Kind::Milvus => "Milvus",
        })
    }
}
