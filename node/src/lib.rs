//! A vantage6 node that takes its container engine by name.

pub mod cli;
pub mod config;
pub mod crypto;
pub mod gateway;
pub mod hq;
pub mod policy;
pub mod runs;
pub mod secret;
pub mod session;
pub mod wire_env;
