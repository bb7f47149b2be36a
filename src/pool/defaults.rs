//! The default resource of each kind.

use std::sync::Arc;

use once_cell::sync::OnceCell;

use crate::base::error::Error;
#[cfg(feature = "clickhouse")]
use crate::kinds::clickhouse::{ClickHouseConfig, ClickHouseResource};
#[cfg(feature = "mongodb")]
use crate::kinds::mongo::{MongoConfig, MongoResource};
#[cfg(feature = "rabbitmq")]
use crate::kinds::rabbitmq::{RabbitMqConfig, RabbitMqResource};
#[cfg(feature = "redis")]
use crate::kinds::redis::{RedisConfig, RedisResource};
use crate::lifecycle::kind::KindConfig;
use crate::lifecycle::registry::Registry;
use crate::lifecycle::slot::Slot;

macro_rules! defaults {
    ($($feature:literal $kind:ident $resource:ident $config:ident;)*) => {
        /// The default resource of each kind, made on first use. A registry keeps it without its type, since a compiler
        /// that asks whether a pool may cross threads would have to look through all drivers' types each time, and
        /// gives up at 128 levels.
        #[derive(Default)]
        pub(crate) struct Defaults {
            $(#[cfg(feature = $feature)] $kind: OnceCell<Arc<Slot<$resource>>>,)*
        }

        impl Registry {
            $(
                /// The default resource of this kind.
                #[cfg(feature = $feature)]
                #[inline]
                pub(crate) fn $kind(&self) -> Result<&Arc<Slot<$resource>>, Error> {
                    let Defaults { $kind, .. } = self.defaults()?;
                    $kind.get_or_try_init(|| self.named::<$config>($config::KIND))
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
