//! The suite on an in-memory runtime that declares nothing: the core cannot be declined, and all
//! that can be asked for beyond it is refused.

use std::process::ExitCode;

use v6_runtime::Capabilities;
use v6_runtime_conformance::{MemoryHarness, main as run};

fn main() -> ExitCode {
    let harness = MemoryHarness::with_capabilities(Capabilities::none());
    run(harness.expect("a temporary folder"))
}
