//! The command `resource-pool`.

fn main() {}
