//! A kind of resource out of any adapter for r2d2. Its connections are exclusive, and for threads.

mod connections;
mod probe;
mod resource;

pub use self::connections::Connections;
pub use self::resource::R2d2;
