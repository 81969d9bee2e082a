//! Text that must never be printed: API keys, passwords, database addresses.

pub use v6_runtime::Secret;
