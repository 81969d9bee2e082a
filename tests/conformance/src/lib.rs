//! Behaviour that every runtime must show, as runnable cases.
//!
//! A backend's author implements [`Harness`] and calls [`main`] from a test target with
//! `harness = false`. Each case drives a small program, the *probe*, in containers of a
//! fresh runtime with an owner of its own, and afterwards asks the harness, out of band, whether
//! anything was left behind. Only what the runtime declares
//! ([`Capabilities`](v6_runtime::Capabilities)) changes what is asked of it: cases of what is not
//! declared are skipped, with the reason, and a case of their own checks that asking for it is
//! refused.

mod bench;
mod case;
mod cases;
mod harness;
pub mod probe;
pub mod probe_memory;

pub use bench::Bench;
pub use case::{Case, Failure, Verdict};
pub use harness::{Harness, cases, main, skip};
