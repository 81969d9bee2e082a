//! The suite on the Podman, run by root, that `V6_PODMAN_HOST` names (`tests/services/podman.sh`).
//! Without one that answers every case is skipped, with the reason; with `V6_REQUIRE_PODMAN=1` that
//! is a failure.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let host = std::env::var("V6_PODMAN_HOST").ok();
    support::run_at(host, "podman", "V6_REQUIRE_PODMAN")
}
