use crate::server::Server;
use crate::{clickhouse, mongo, rabbitmq, redis};
use std::fmt;

/// The kinds of server there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// MongoDB, a replica set of one node.
    Mongo,
    /// RabbitMQ.
    RabbitMq,
    /// ClickHouse, its HTTP port.
    ClickHouse,
    /// Redis.
    Redis,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Mongo, Kind::RabbitMq, Kind::ClickHouse, Kind::Redis];

    /// The environment variable whose URL, if it is set, takes the place of a [`shared`](crate::shared) server.
    pub fn variable(self) -> &'static str {
        match self {
            Kind::Mongo => "RESOURCE_POOL_TEST_MONGODB_URI",
            Kind::RabbitMq => "RESOURCE_POOL_TEST_AMQP_URL",
            Kind::ClickHouse => "RESOURCE_POOL_TEST_CLICKHOUSE_URL",
            Kind::Redis => "RESOURCE_POOL_TEST_REDIS_URL",
        }
    }

    /// The environment variable that names the folder of the server behind [`variable`](Kind::variable), when `cargo xtask` started
    /// it: its log and its administration tool can then be used.
    pub fn folder_variable(self) -> &'static str {
        match self {
            Kind::Mongo => "RESOURCE_POOL_TEST_MONGODB_DIR",
            Kind::RabbitMq => "RESOURCE_POOL_TEST_AMQP_DIR",
            Kind::ClickHouse => "RESOURCE_POOL_TEST_CLICKHOUSE_DIR",
            Kind::Redis => "RESOURCE_POOL_TEST_REDIS_DIR",
        }
    }

    /// `mongo`, `rabbitmq`, `clickhouse`, `redis`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Mongo => "mongo",
            Kind::RabbitMq => "rabbitmq",
            Kind::ClickHouse => "clickhouse",
            Kind::Redis => "redis",
        }
    }

    pub(crate) fn standard_port(self) -> u16 {
        match self {
            Kind::Mongo => 27017,
            Kind::RabbitMq => 5672,
            Kind::ClickHouse => 8123,
            Kind::Redis => 6379,
        }
    }

    pub(crate) fn server(self) -> Box<dyn Server> {
        match self {
            Kind::Mongo => Box::new(mongo::Mongo),
            Kind::RabbitMq => Box::new(rabbitmq::RabbitMq::default()),
            Kind::ClickHouse => Box::new(clickhouse::ClickHouse::default()),
            Kind::Redis => Box::new(redis::Redis),
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
        })
    }
}
