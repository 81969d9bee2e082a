//! The suite on the Docker engine that `DOCKER_HOST` names. Without one that answers every case is
//! skipped, with the reason; with `V6_REQUIRE_DOCKER=1` that is a failure.

mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let host = std::env::var("DOCKER_HOST")
        .ok()
        .filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
    support::run_at(Some(host), "docker", "V6_REQUIRE_DOCKER")
}
