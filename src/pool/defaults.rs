//! The default resource of each kind.

use std::sync::Arc;

use crate::base::error::Error;
#[cfg(feature = "clickhouse")]
use crate::kinds::clickhouse::{ClickHouseConfig, ClickHouseResource};
#[cfg(feature = "mongodb")]
use crate::kinds::mongo::{MongoConfig, MongoResource};
#[cfg(feature = "rabbitmq")]
use crate::kinds::rabbitmq::{RabbitMqConfig, RabbitMqResource};
#[cfg(feature = "redis")]
use crate::kinds::redis::{RedisConfig, RedisResource};
use crate::lifecycle::registry::Registry;
use crate::lifecycle::slot::Slot;

macro_rules! defaults {
    ($($feature:literal $kind:ident $resource:ident $config:ident;)*) => {
        /// Where a registry keeps the default resource of each kind.
        #[allow(non_camel_case_types, reason = "named like the verbs")]
        enum Kind {
            $(#[cfg(feature = $feature)] $kind,)*
            Count,
        }

        impl Registry {
            $(
                /// The default resource of this kind, made on first use.
                #[cfg(feature = $feature)]
                #[inline]
                pub(crate) fn $kind(&self) -> Result<&Arc<Slot<$resource>>, Error> {
                    self.default::<$config>(Kind::$kind as usize)
                }
            )*
        }
    };
}

defaults! {
    "mongodb" mongo MongoResource MongoConfig;
    "rabbitmq" rabbitmq RabbitMqResource RabbitMqConfig;
    "clickhouse" clickhouse ClickHouseResource ClickHouseConfig;
    "redis" redis RedisResource RedisConfig;
}

/// How many kinds there are.
pub(crate) const COUNT: usize = Kind::Count as usize;
