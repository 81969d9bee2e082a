//! The `v6-node` command.
fn main() {}
