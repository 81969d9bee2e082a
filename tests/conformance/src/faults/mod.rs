//! Runtimes with a fault, to show that the suite can fail.
//!
//! A suite that is green says something only if it would be red otherwise. So here is the
//! in-memory runtime once more, with a switch for each way in which a runtime can go wrong: a
//! [`Seed`]. [`SeededHarness`] makes a harness of it, and the self-test `tests/faults.rs` runs
//! every case on every one of them: exactly the cases that a seed names have to be red, and no
//! case may be named by none.
//!
//! The list is in `seeds.rs`, what each fault does is in the module for its subject, and
//! [`table()`] prints it, beside those of an engine, which is `docs/conformance/faults.md`.
//!
//! Cases that only an engine outside of this process can run are [`ELSEWHERE`]: faults at such an
//! engine, made by `v6-conformance prove`, turn them red.
//!
//! To add a case, add the fault that it is there to find. To see one at work:
//!
//! ```
//! use v6_runtime_conformance::faults::{Seed, SeededHarness};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let seed: Seed = "exit-codes-have-seven-bits".parse()?;
//! assert_eq!(seed.cases(), ["exit_codes_are_exact"]);
//! let harness = SeededHarness::new(seed)?;
//! # drop(harness);
//! # Ok(())
//! # }
//! ```

#[macro_use]
mod table;

mod connecting;
mod ending;
mod files;
mod harness;
mod images;
mod logs;
mod looking;
mod program;
mod removing;
mod runtime;
mod seeds;
mod sets;
mod specs;
mod starting;
mod streams;
mod surroundings;
mod watching;
mod world;

pub use harness::SeededHarness;
pub use seeds::Seed;
pub use sets::ELSEWHERE;
pub use table::{Rows, UnknownSeed, table};
