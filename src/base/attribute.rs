//! The names that OpenTelemetry has for the attributes of spans and metrics.
//!
//! ```
//! use resource_pool::adapter::attribute;
//!
//! /// As `KindConfig::SYSTEM` of a kind whose server is a broker.
//! const SYSTEM: (&str, &str) = (attribute::MESSAGING_SYSTEM, "kafka");
//! # assert_eq!(SYSTEM.0, "messaging.system");
//! ```

/// The name of the resource.
pub const POOL_NAME: &str = "db.client.connection.pool.name";
/// Whether connections are idle or used.
pub const CONNECTION_STATE: &str = "db.client.connection.state";
/// The software of a server that is a database.
pub const DATABASE_SYSTEM: &str = "db.system.name";
/// The software of a server that is a broker.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// The host, or the path of a Unix socket.
pub const SERVER_ADDRESS: &str = "server.address";
/// The port.
pub const SERVER_PORT: &str = "server.port";
/// The sort of an error.
pub const ERROR_TYPE: &str = "error.type";
/// The operation of a database.
pub const DATABASE_OPERATION: &str = "db.operation.name";
/// How many operations a batch has.
pub const BATCH_SIZE: &str = "db.operation.batch.size";
/// The operation of a broker's client, such as `publish`.
pub const MESSAGING_OPERATION: &str = "messaging.operation.name";
/// The sort of a broker's operation, such as `send`.
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
/// The exchange and the key, or the queue, that a message goes to.
pub const MESSAGING_DESTINATION: &str = "messaging.destination.name";
