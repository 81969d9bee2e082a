//! The suite on an engine with Docker's API: what the targets for each of them share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, PullPolicy, Result, Runtime};
use v6_runtime_conformance::{Harness, main as run, skip};
use v6_runtime_docker::{DockerConfig, DockerRuntime};

/// Made by `tests/algorithms/build probe`.
const PROBE: &str = "localhost/v6-probe:test";

/// The engine's socket, and one of our own before it for each owner, whose connections can be cut.
struct Docker {
    socket: PathBuf,
    folder: tempfile::TempDir,
    fronts: Mutex<HashMap<Owner, watch::Sender<u32>>>,
}

impl Docker {
    /// # Errors
    /// An engine that is not at a socket; no temporary folder.
    fn new(host: &str) -> std::io::Result<Self> {
        let socket = host
            .strip_prefix("unix://")
            .ok_or_else(|| std::io::Error::other(format!("{host} is no unix:// socket")))?;
        Ok(Self {
            socket: socket.into(),
            folder: tempfile::tempdir()?,
            fronts: Mutex::default(),
        })
    }

    /// The socket of this owner. It serves as long as the Tokio runtime in which it was made, so
    /// each case has another.
    fn front(&self, owner: &Owner) -> std::io::Result<PathBuf> {
        let path = self.folder.path().join(format!("{owner}.sock"));
        let mut fronts = self.fronts.lock().unwrap_or_else(PoisonError::into_inner);
        if !fronts.contains_key(owner) {
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            let cuts = watch::Sender::new(0);
            fronts.insert(owner.clone(), cuts.clone());
            let socket = self.socket.clone();
            tokio::spawn(async move {
                while let Ok((from, _)) = listener.accept().await {
                    tokio::spawn(forward(from, socket.clone(), cuts.subscribe()));
                }
            });
        }
        Ok(path)
    }
}

async fn forward(mut from: UnixStream, socket: PathBuf, mut cuts: watch::Receiver<u32>) {
    let Ok(mut to) = UnixStream::connect(socket).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
        _ = cuts.changed() => {}
    }
}

#[async_trait]
impl Harness for Docker {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let front = self.front(owner).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "the socket before the engine's").with_source(error)
        })?;
        let config = DockerConfig::new(owner.clone())
            .with_host(format!("unix://{}", front.display()))
            .with_runtime_dir(self.folder.path().join("run"));
        Ok(Arc::new(DockerRuntime::connect(config).await?))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse(PROBE).expect("a reference")
    }

    /// Asked of the engine's API directly, by curl.
    async fn leftovers(&self, owner: &Owner) -> Result<Vec<String>> {
        let (owner, socket) = (owner.clone(), self.socket.clone());
        let asked = tokio::task::spawn_blocking(move || inventory(&socket, &owner)).await;
        asked.map_err(|error| Error::new(ErrorKind::Unexpected, error.to_string()))?
    }

    /// The engine's socket is on this machine, and so is the engine.
    fn shared_folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_owned())
    }

    async fn cut_connection(&self, owner: &Owner) -> bool {
        let fronts = self.fronts.lock().unwrap_or_else(PoisonError::into_inner);
        fronts.get(owner).is_some_and(|cuts| {
            cuts.send_modify(|cuts| *cuts += 1);
            true
        })
    }
}

fn inventory(socket: &Path, owner: &Owner) -> Result<Vec<String>> {
    let failed = |what: String| Error::new(ErrorKind::Unexpected, what);
    let mut found = Vec::new();
    for list in ["containers/json?all=1", "volumes"] {
        let asked = Command::new("curl")
            .args(["-sS", "--fail", "-G", "--unix-socket"])
            .arg(socket)
            .arg("--data-urlencode")
            .arg(format!(
                "filters={{\"label\":[\"v6-runtime.owner={owner}\"]}}"
            ))
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

/// Runs the suite on the engine at `host`, which has to be of this kind. `None`, or an engine that
/// does not answer: every case is skipped, with the reason; with `required` (a variable) set to 1,
/// that is a failure.
pub fn run_at(host: Option<String>, kind: &str, required: &str) -> ExitCode {
    let tokio = tokio::runtime::Runtime::new().expect("threads");
    let host = host.ok_or_else(|| "nobody says where it is".to_owned());
    let usable = host.and_then(|host| Docker::new(&host).map_err(|error| error.to_string()));
    let usable = usable.and_then(|docker| {
        let looked = tokio.block_on(async {
            let owner = Owner::new("conformance-look").expect("a name");
            let runtime = docker.connect(&owner).await?;
            let image = docker.probe_image();
            runtime.resolve(&image, PullPolicy::Never).await?;
            Ok::<_, Error>(runtime.kind())
        });
        match looked {
            Ok(found) if found == kind => Ok(docker),
            Ok(found) => Err(format!("it is {found}")),
            Err(error) => Err(error.to_string()),
        }
    });
    match usable {
        Ok(docker) => run(docker),
        Err(error) if std::env::var_os(required).is_some_and(|v| v == "1") => {
            eprintln!(
                "{kind}, or the image of tests/algorithms/build probe, is not to be had: {error}"
            );
            ExitCode::FAILURE
        }
        Err(error) => skip(&format!("{kind} cannot be used: {error}")),
    }
}
