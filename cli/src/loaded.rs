//! The configuration that the verbs work with, and the kinds that it can have.

use std::collections::BTreeSet;

use resource_pool::config::{
    ChromaConfig, ClickHouseConfig, Config, HttpConfig, LlmConfig, MilvusConfig, MongoConfig, MySqlConfig, Origin,
    PostgresConfig, RabbitMqConfig, RedisConfig, SqliteConfig,
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
    MySql,
    Sqlite,
    Http,
    Llm,
    Chroma,
    Milvus,
}

impl Kind {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Mongo => "MongoDB",
            Kind::RabbitMq => "RabbitMQ",
            Kind::ClickHouse => "ClickHouse",
            Kind::Redis => "Redis",
            Kind::Postgres => "PostgreSQL",
            Kind::MySql => "MySQL",
            Kind::Sqlite => "SQLite",
            Kind::Http => "HTTP",
            Kind::Llm => "LLM",
            Kind::Chroma => "Chroma",
            Kind::Milvus => "Milvus",
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
            Kind::MySql => 3306,
            // A file has no port, and its endpoint no host that could lack one.
            Kind::Sqlite => 0,
            Kind::Http | Kind::Llm => 443,
            Kind::Chroma => 8000,
            Kind::Milvus => 19530,
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
            Kind::MySql => "MYSQL_URL",
            Kind::Sqlite => "SQLITE_URL",
            Kind::Http => "HTTPCLIENT_URL",
            Kind::Llm => "OPENAI_BASE_URL",
            Kind::Chroma => "CHROMA_URL",
            Kind::Milvus => "MILVUS_URL",
        }
    }

    /// The field that has the database or the virtual host, or else the URL.
    pub(crate) fn place(self) -> &'static str {
        match self {
            Kind::RabbitMq => "vhost",
            Kind::Redis => "db",
            Kind::Sqlite => "file",
            Kind::Mongo | Kind::ClickHouse | Kind::Postgres | Kind::MySql | Kind::Chroma | Kind::Milvus => "database",
            Kind::Http => "url",
            Kind::Llm => "base_url",
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
            "set REDIS_URL, MONGODB_URI, AMQP_URL, CLICKHOUSE_URL, POSTGRES_URL, MYSQL_URL or SQLITE_URL, name a TOML \
             file by --config, or name resources (`resource-pool check redis`) to try localhost",
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
        (config.get::<MySqlConfig>(name).is_some(), Kind::MySql),
        (config.get::<SqliteConfig>(name).is_some(), Kind::Sqlite),
        (config.get::<HttpConfig>(name).is_some(), Kind::Http),
        (config.get::<LlmConfig>(name).is_some(), Kind::Llm),
        (config.get::<ChromaConfig>(name).is_some(), Kind::Chroma),
        (config.get::<MilvusConfig>(name).is_some(), Kind::Milvus),
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
        Kind::MySql => serde_json::to_value(config.get::<MySqlConfig>(name)),
        Kind::Sqlite => serde_json::to_value(config.get::<SqliteConfig>(name)),
        Kind::Http => serde_json::to_value(config.get::<HttpConfig>(name)),
        Kind::Llm => serde_json::to_value(config.get::<LlmConfig>(name)),
        Kind::Chroma => serde_json::to_value(config.get::<ChromaConfig>(name)),
        Kind::Milvus => serde_json::to_value(config.get::<MilvusConfig>(name)),
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
