//! The order in which resources close.

use std::fmt;

/// When something closes. Phases close in this order. Resources of one phase close in parallel, unless one depends on
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Phase {
    /// Background tasks.
    Tasks,
    /// HTTP clients.
    HttpClients,
    /// RabbitMQ: every channel, then the connection.
    #[cfg_attr(feature = "serde", serde(rename = "rabbitmq"))]
    RabbitMq,
    /// Redis.
    Redis,
    /// Vector stores.
    VectorStores,
    /// ClickHouse.
    #[cfg_attr(feature = "serde", serde(rename = "clickhouse"))]
    ClickHouse,
    /// SQL databases and MongoDB.
    Databases,
    /// Models, and resources that name no phase.
    Models,
    /// Open files.
    Files,
    /// Temporary files.
    TempFiles,
    /// Telemetry. It closes last, so that it can report on everything before it.
    Telemetry,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Tasks => "tasks",
            Phase::HttpClients => "http clients",
            Phase::RabbitMq => "rabbitmq",
            Phase::Redis => "redis",
            Phase::VectorStores => "vector stores",
            Phase::ClickHouse => "clickhouse",
            Phase::Databases => "databases",
            Phase::Models => "models",
            Phase::Files => "files",
            Phase::TempFiles => "temp files",
            Phase::Telemetry => "telemetry",
        })
    }
}
