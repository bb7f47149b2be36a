//! Child processes, each with the group of all that it starts.

mod child;
mod resource;
mod run;

pub use self::child::Child;
pub use self::resource::ChildProcess;
