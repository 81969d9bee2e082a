//! What all tests on a real engine need.
#![allow(dead_code, reason = "each test file uses its own part of it")]
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

pub mod raw;

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use bollard::Docker;
use v6_runtime::{
    ContainerPath, ImageRef, Output, OutputName, Owner, PullPolicy, RunId, RunSpec, Runtime,
};
use v6_runtime_docker::{DockerConfig, DockerRuntime};

/// An owner of its own on the machine's engine; what it has made goes at the end.
pub struct Bench {
    pub config: DockerConfig,
    pub docker: Docker,
    folder: tempfile::TempDir,
}

impl Bench {
    /// `None`, and a line that says why, if no engine answers.
    pub async fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let owner = Owner::new(format!("test-{}-{count}", std::process::id())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = DockerConfig::new(owner).with_runtime_dir(folder.path().join("run"));
        let reached = match Docker::connect_with_host(&config.host) {
            Ok(docker) => docker.ping().await.map(|_| docker),
            Err(error) => Err(error),
        };
        let reached = match reached {
            Ok(docker) => docker.negotiate_version().await,
            Err(error) => Err(error),
        };
        match reached {
            Ok(docker) => Some(Self {
                config,
                docker,
                folder,
            }),
            Err(error) => {
                let required = std::env::var_os("V6_REQUIRE_DOCKER").is_some_and(|v| v == "1");
                assert!(!required, "no engine at {}: {error}", config.host);
                println!("SKIP no engine at {}: {error}", config.host);
                None
            }
        }
    }

    pub async fn connect(&self) -> DockerRuntime {
        DockerRuntime::connect(self.config.clone()).await.unwrap()
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The engine's name of a run's container and record.
    pub fn name(&self, id: &RunId) -> String {
        format!("v6-{}.{id}", self.config.owner)
    }

    /// Names of everything in the engine that carries the owner's label.
    pub async fn leftovers(&self) -> Vec<String> {
        let labels = vec![format!("v6-runtime.owner={}", self.config.owner)];
        let filters = HashMap::from([("label", labels)]);
        let containers = bollard::query_parameters::ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let volumes = bollard::query_parameters::ListVolumesOptionsBuilder::new()
            .filters(&filters)
            .build();
        let containers = self.docker.list_containers(Some(containers)).await.unwrap();
        let volumes = self.docker.list_volumes(Some(volumes)).await.unwrap();
        let names = containers.into_iter().filter_map(|c| c.names).flatten();
        let volumes = volumes
            .volumes
            .unwrap_or_default()
            .into_iter()
            .map(|v| v.name);
        names.chain(volumes).collect()
    }

    /// Removes every run of the owner, and checks that nothing is left.
    pub async fn finish(self, runtime: &DockerRuntime) {
        use futures_util::TryStreamExt;
        let runs: Vec<_> = runtime.list().try_collect().await.unwrap();
        for run in runs {
            let force = v6_runtime::CleanupOptions::default().with_force(true);
            runtime.cleanup(&run.id, force).await.unwrap();
        }
        assert_eq!(self.leftovers().await, Vec::<String>::new());
    }
}

/// A run of this shell text.
pub async fn shell(runtime: &DockerRuntime, text: &str) -> RunSpec {
    let image = ImageRef::parse("localhost/v6-busybox:test").unwrap();
    let image = runtime.resolve(&image, PullPolicy::Never).await.unwrap();
    RunSpec::new(image).with_command(["sh", "-c", text])
}

pub fn id(text: &str) -> RunId {
    RunId::new(text).unwrap()
}

pub fn path(text: &str) -> ContainerPath {
    ContainerPath::new(text).unwrap()
}

pub fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).unwrap()
}

pub fn output(name: &str) -> OutputName {
    OutputName::new(name).unwrap()
}

pub fn file(at: &str, limit: u64) -> Output {
    Output::file(path(at), bytes(limit))
}

/// What the engine says about the state of a container, as it is, without what is this machine's.
pub async fn state(bench: &Bench, name: &str) -> serde_json::Value {
    let path = format!("/containers/{name}/json");
    let inspected = raw::call(&bench.config.host, "GET", &path, None).await;
    assert_eq!(inspected.status, 200, "{name}: {inspected:?}");
    let members = [
        "Status",
        "Running",
        "Paused",
        "Restarting",
        "OOMKilled",
        "Dead",
        "ExitCode",
        "Error",
        "StartedAt",
        "FinishedAt",
    ];
    raw::only(&inspected.body["State"], &members)
}

/// Writes what the engine says about a run's container to where the tests of the translation read
/// it, if answers are recorded.
pub async fn record(bench: &Bench, id: &RunId, named: &str) {
    use futures_util::TryStreamExt;
    if !raw::recording() {
        return;
    }
    let name = bench.name(id);
    let options = bollard::query_parameters::DownloadFromContainerOptionsBuilder::new()
        .path("/.v6/out/claim")
        .build();
    let archive: Vec<_> = bench
        .docker
        .download_from_container(&name, Some(options))
        .try_collect()
        .await
        .unwrap_or_default();
    let archive = archive.concat();
    let mut claim = String::new();
    if let Some(entry) = tar::Archive::new(&archive[..]).entries().unwrap().next() {
        std::io::Read::read_to_string(&mut entry.unwrap(), &mut claim).unwrap();
    }
    let seen = serde_json::json!({ "state": state(bench, &name).await, "claim": claim });
    let file = format!("states/{named}.json");
    raw::write(&bench.config.host, &file, &seen).await;
}
