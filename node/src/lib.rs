//! A vantage6 node that takes its container engine by name.

pub mod backends;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod gateway;
pub mod health;
pub mod hq;
pub mod join;
pub mod policy;
mod readable;
pub mod runs;
pub mod secret;
pub mod service;
pub mod session;
pub mod wire_env;
