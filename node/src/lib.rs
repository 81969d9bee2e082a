//! A vantage6 node that takes its container engine by name.

pub mod crypto;
pub mod secret;
