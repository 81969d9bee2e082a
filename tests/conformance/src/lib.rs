//! Behaviour that every runtime must show, as runnable cases.
//!
//! A backend's author implements [`Harness`] and calls [`main`](main()) from a test target with
//! `harness = false`; `docs/conformance/own-runtime.md` walks through it with a complete runtime.
//! Each [`Case`] drives a small program, the *probe* (crate `v6-probe`), in containers of a fresh
//! runtime with an owner of its own, and afterwards asks the harness, past the runtime, whether
//! anything was left behind.
//!
//! # What decides which cases are run
//!
//! Only what the runtime declares, its [`Capabilities`](v6_runtime::Capabilities): what is
//! declared has to work, and what is not has to be refused as `Unsupported`, before anything is
//! done. The core cannot be declined. Nothing is inferred from how the runtime behaves.
//!
//! # What can come of a case
//!
//! [`Verdict`]: it passed; it failed, with the clause of the contract (`docs/contract.md`) and the
//! evidence; it was skipped, because the runtime does not declare what it is about, or the machine
//! or whoever started the suite left it out; or it is inconclusive: the harness lacks a hook that
//! the case needs, such as one that breaks the connection to the engine. Nothing passes for want
//! of something, and a suite in which nothing ran has failed.
//!
//! # Other ways to run it
//!
//! [`cases`] gives all cases to another runner, which calls [`Case::check`] with a harness;
//! [`suite::run`] runs a [`Selection`](suite::Selection) and returns a [`Report`]; [`run`](run())
//! is for a program with a command line of its own.
//!
//! # Versions
//!
//! The suite has a version of its own. New cases come with a minor version: a runtime that passed
//! one may fail the next. An id is never used again for something else.

mod bench;
mod case;
mod cases;
mod child;
mod cli;
#[cfg(feature = "faults")]
pub mod faults;
mod harness;
mod junit;
pub mod matrix;
mod memory;
mod phases;
pub mod probe;
pub mod probe_memory;
mod report;
pub mod suite;

pub use case::{Case, Level, SkippedBy, Verdict};
pub use child::{act_as_child, suite_process};
pub use cli::{Format, Options, main, run};
pub use harness::{Fault, Harness, Injected, Planted, Registries, Stranger, Tagged, Untouched};
pub use memory::MemoryHarness;
pub use report::{CaseReport, Engine, Machine, Report};
pub use suite::cases;
