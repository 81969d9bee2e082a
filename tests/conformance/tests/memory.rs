//! The suite on the in-memory runtime.

use std::process::ExitCode;

use v6_runtime_conformance::{MemoryHarness, main as run};

fn main() -> ExitCode {
    run(MemoryHarness::new().expect("a temporary folder"))
}
