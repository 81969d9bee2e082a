//! Each way to a cluster that an operator may have, on a real one.
//!
//! Everything is made from the kubeconfigs of the environment; see [`given`].
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

#[path = "../common/mod.rs"]
mod common;

mod contexts;
mod given;
mod issuer;
mod logins;
mod oidc;
mod places;
mod plugins;
mod proxies;
mod tls;
mod trust;
