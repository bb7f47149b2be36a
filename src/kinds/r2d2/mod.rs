//! Any adapter for r2d2 as a kind of resource: exclusive connections, for threads.

mod connections;
mod probe;
mod resource;

pub use self::connections::Connections;
pub use self::resource::R2d2;
