//! [`Pooling`], the options of connections that all kinds over sqlx have.

use std::time::Duration;

use crate::lifecycle::checkout::Limits;

/// How many connections there may be, and for how long. The fields are those of the configurations.
#[derive(Debug, Clone, Copy)]
pub struct Pooling {
    pub(crate) pool_size: u32,
    pub(crate) max_overflow: u32,
    pub(crate) pool_timeout: Duration,
    pub(crate) pool_recycle: Duration,
    pub(crate) pre_ping: bool,
    pub(crate) overflow_timeout: Duration,
    pub(crate) test_idle_after: Duration,
}

impl Pooling {
    /// The most connections at a time.
    pub(crate) fn max(&self) -> usize {
        self.pool_size as usize + self.max_overflow as usize
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            max: self.max(),
            kept: self.pool_size as usize,
            idle_timeout: self.overflow_timeout,
            max_lifetime: self.pool_recycle,
            test_idle_after: self.test_idle_after,
            test_after: if self.pre_ping { Limits::default().test_after } else { Duration::MAX },
            ..Limits::default()
        }
    }
}

/// The [`Pooling`] of a configuration, which has fields of the same names.
macro_rules! pooling {
    ($config:expr) => {{
        let config = $config;
        $crate::kinds::sql::Pooling {
            pool_size: config.pool_size,
            max_overflow: config.max_overflow,
            pool_timeout: config.pool_timeout,
            pool_recycle: config.pool_recycle,
            pre_ping: config.pre_ping,
            overflow_timeout: config.overflow_timeout,
            test_idle_after: config.test_idle_after,
        }
    }};
}

pub(crate) use pooling;
