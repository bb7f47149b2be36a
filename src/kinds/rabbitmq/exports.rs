//! The names of RabbitMQ that users see.

/// The names at the crate's root.
pub(crate) mod root {
    pub use ::lapin;

    pub use crate::kinds::rabbitmq::{RabbitMq, RabbitMqResource};

    /// The types that the verbs of [`RabbitMq`] take and give.
    pub mod rabbitmq {
        pub use crate::kinds::rabbitmq::{
            Batch, Channel, Consume, Consumer, DeclaredQueue, Delivery, Exchange, Handled, HeaderValue, Message,
            Published, Queue,
        };
    }
}

/// The names in `resource_pool::blocking`.
pub(crate) mod threads {
    pub use crate::kinds::rabbitmq::blocking as rabbitmq;
    pub use crate::kinds::rabbitmq::blocking::RabbitMq;
}
