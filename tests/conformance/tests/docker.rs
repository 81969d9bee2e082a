//! The suite on the Docker engine that `DOCKER_HOST` names. Without one that answers it is skipped,
//! with the reason; with `V6_REQUIRE_DOCKER=1` that is a failure.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use async_trait::async_trait;
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, PullPolicy, Result, Runtime};
use v6_runtime_conformance::{Harness, main as run, skip};
use v6_runtime_docker::{DockerConfig, DockerRuntime};

/// Made by `tests/algorithms/build probe`.
const PROBE: &str = "localhost/v6-probe:test";

struct Docker;

#[async_trait]
impl Harness for Docker {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let config = DockerConfig::new(owner.clone()).with_runtime_dir(folder());
        Ok(Arc::new(DockerRuntime::connect(config).await?))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse(PROBE).expect("a reference")
    }

    /// Asked of the engine's API directly, by curl.
    async fn leftovers(&self, owner: &Owner) -> Result<Vec<String>> {
        let owner = owner.clone();
        let asked = tokio::task::spawn_blocking(move || inventory(&owner)).await;
        asked.map_err(|error| Error::new(ErrorKind::Unexpected, error.to_string()))?
    }
}

/// For sockets and leases; its path is short, because sockets' paths must be.
fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("v6c-{}", std::process::id()))
}

fn inventory(owner: &Owner) -> Result<Vec<String>> {
    let failed = |what: String| Error::new(ErrorKind::Unexpected, what);
    let mut found = Vec::new();
    for list in ["containers/json?all=1&", "volumes?"] {
        let filters = format!("{{\"label\":[\"v6-runtime.owner={owner}\"]}}");
        let host =
            std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
        let socket = host
            .strip_prefix("unix://")
            .ok_or_else(|| failed(format!("{host} is no socket")))?;
        let asked = Command::new("curl")
            .args([
                "-sS",
                "--fail",
                "--unix-socket",
                socket,
                "-G",
                "--data-urlencode",
            ])
            .arg(format!("filters={filters}"))
            .arg(format!("http://engine/{list}"))
            .output()
            .map_err(|error| failed(format!("curl: {error}")))?;
        if !asked.status.success() {
            return Err(failed(String::from_utf8_lossy(&asked.stderr).into_owned()));
        }
        let answer: serde_json::Value =
            serde_json::from_slice(&asked.stdout).map_err(|error| failed(error.to_string()))?;
        let items = answer.as_array().or_else(|| answer["Volumes"].as_array());
        found.extend(items.into_iter().flatten().map(ToString::to_string));
    }
    Ok(found)
}

fn main() -> ExitCode {
    let tokio = tokio::runtime::Runtime::new().expect("threads");
    let usable = tokio.block_on(async {
        let owner = Owner::new("conformance-look").expect("a name");
        let runtime = Docker.connect(&owner).await?;
        runtime
            .resolve(&Docker.probe_image(), PullPolicy::Never)
            .await
    });
    let code = match usable {
        Ok(_) => run(Docker),
        Err(error) if std::env::var_os("V6_REQUIRE_DOCKER").is_some_and(|v| v == "1") => {
            eprintln!(
                "Docker, or the image of tests/algorithms/build probe, is not to be had: {error}"
            );
            ExitCode::FAILURE
        }
        Err(error) => skip(&format!("Docker cannot be used: {error}")),
    };
    match std::fs::remove_dir_all(folder()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("{}: {error}", folder().display());
            ExitCode::FAILURE
        }
        _ => code,
    }
}
