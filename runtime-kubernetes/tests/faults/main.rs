//! What can befall a cluster, brought about on a real one, and what is said of the runs in it.
//!
//! The tests stand beside each other in one program, since most of their time is the cluster's.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

#[path = "../common/mod.rs"]
mod common;
mod images;
mod limits;
mod machines;
mod watches;
