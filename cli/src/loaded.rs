//! The configuration that the verbs work with, and the kinds that it can have.

use std::collections::BTreeSet;

use resource_pool::config::{
    ClickHouseConfig, Config, MongoConfig, Origin, PostgresConfig, RabbitMqConfig, RedisConfig,
};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::FileArguments;
use crate::error::Problem;

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Mongo,
    RabbitMq,
    ClickHouse,
    Redis,
    Postgres,
}

impl Kind {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Mongo => "MongoDB",
            Kind::RabbitMq => "RabbitMQ",
            Kind::ClickHouse => "ClickHouse",
            Kind::Redis => "Redis",
            Kind::Postgres => "PostgreSQL",
        }
    }

    /// The port that a server of this kind has unless its configuration says otherwise.
    pub(crate) fn port(self) -> u16 {
        match self {
            Kind::Mongo => 27017,
            Kind::RabbitMq => 5672,
            Kind::ClickHouse => 8123,
            Kind::Redis => 6379,
            Kind::Postgres => 5432,
        }
    }

    /// The variable that has the address of the default resource.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Kind::Mongo => "MONGODB_URI",
            Kind::RabbitMq => "AMQP_URL",
            Kind::ClickHouse => "CLICKHOUSE_URL",
            Kind::Redis => "REDIS_URL",
            Kind::Postgres => "POSTGRES_URL",
        }
    }

    /// The field that has the database or the virtual host.
    pub(crate) fn place(self) -> &'static str {
        match self {
            Kind::RabbitMq => "vhost",
            Kind::Redis => "db",
            Kind::Mongo | Kind::ClickHouse | Kind::Postgres => "database",
        }
    }
}

/// Loads the configuration of a program that has none in code.
pub(crate) fn load(file: &FileArguments) -> Result<Config, Problem> {
    let loaded = match &file.config {
        Some(path) => Config::load_file(path),
        None => Config::load(),
    };
    loaded.map_err(|error| Problem::of_config(&error))
}

/// The names that are asked for, or all that are configured.
pub(crate) fn names(config: &Config, asked: &[String]) -> Result<Vec<String>, Problem> {
    for name in asked {
        if !config.names().any(|known| known == name) {
            let known: Vec<&str> = config.names().collect();
            let remedy = format!("use one of {}, or configure it as [named.KIND.{name}]", known.join(", "));
            return Err(Problem::wrong(format!("no resource is named {name:?}"), remedy));
        }
    }
    let mut names: Vec<String> = match asked {
        [] => config.configured().map(str::to_owned).collect(),
        asked => asked.to_vec(),
    };
    let mut known = BTreeSet::new();
    names.retain(|name| known.insert(name.clone()));
    match names.is_empty() {
        true => Err(Problem::wrong(
            "nothing is configured",
            "set REDIS_URL, MONGODB_URI, AMQP_URL, CLICKHOUSE_URL or POSTGRES_URL, name a TOML file by --config, or name \
             resources (`resource-pool check redis`) to try localhost",
        )),
        false => Ok(names),
    }
}

/// The kind of this resource.
pub(crate) fn kind(config: &Config, name: &str) -> Option<Kind> {
    let kinds = [
        (config.get::<MongoConfig>(name).is_some(), Kind::Mongo),
        (config.get::<RabbitMqConfig>(name).is_some(), Kind::RabbitMq),
        (config.get::<ClickHouseConfig>(name).is_some(), Kind::ClickHouse),
        (config.get::<RedisConfig>(name).is_some(), Kind::Redis),
        (config.get::<PostgresConfig>(name).is_some(), Kind::Postgres),
    ];
    kinds.into_iter().find(|(is_it, _)| *is_it).map(|(_, kind)| kind)
}

/// The fields of this resource, without secrets.
pub(crate) fn fields(config: &Config, name: &str) -> Option<Value> {
    let fields = match kind(config, name)? {
        Kind::Mongo => serde_json::to_value(config.get::<MongoConfig>(name)),
        Kind::RabbitMq => serde_json::to_value(config.get::<RabbitMqConfig>(name)),
        Kind::ClickHouse => serde_json::to_value(config.get::<ClickHouseConfig>(name)),
        Kind::Redis => serde_json::to_value(config.get::<RedisConfig>(name)),
        Kind::Postgres => serde_json::to_value(config.get::<PostgresConfig>(name)),
    };
    fields.ok()
}

/// The words for the place at which a user can change this field.
pub(crate) fn where_to_set(config: &Config, kind: Kind, name: &str, field: &str) -> String {
    let by_uri = config.origin(&format!("{name}.uri"));
    match config.origin(&format!("{name}.{field}")) {
        Origin::Default if by_uri != Origin::Default => by_uri.to_string(),
        Origin::Default => format!("{}, or [{name}] of the TOML", kind.variable()),
        origin => origin.to_string(),
    }
}
