//! An engine with Docker's API, and ways to make life with it hard.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bollard::Docker;
use bollard::query_parameters::ListVolumesOptions;
use clap::Args;
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;
use v6_fault_proxy::{Address, Answer, Fault as Wrong, FaultProxy, Requests, Rule, RuleGuard};
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, Result, RunId, Runtime};
use v6_runtime_conformance::{
    Fault, Harness, Injected, Planted, Registries, Stranger, Tagged, suite_process,
};
use v6_runtime_docker::{DockerConfig, DockerRuntime};

#[cfg(feature = "faults")]
use crate::prove::{How, Seed};
use crate::registries::Started;
use crate::restart::Restart;
use crate::{images, planted};

/// For a call that does not lead through the runtime.
const CALL_SECONDS: u64 = 60;
/// Sizes in bytes of the pieces in which answers come, in turn: in the midst of words and letters.
const PIECES: [usize; 5] = [1, 3, 7, 64, 1021];
/// The label of what belongs to an owner, as `docs/` has it.
const OWNER_LABEL: &str = "v6-runtime.owner";

/// The file in the suite's folder that names the fault that it is at.
#[cfg(feature = "faults")]
const FAULT: &str = "fault";

/// How an engine is reached, and what the suite may do with it.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineOptions {
    /// Where the engine listens, unix:///PATH or tcp://ADDRESS:PORT [default: DOCKER_HOST or
    /// CONTAINER_HOST, or the engine's usual socket]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<Address>,
    /// The image that holds the probe; the engine has to have it (tests/algorithms/build probe)
    #[arg(long, value_name = "IMAGE", default_value = "localhost/v6-probe:test")]
    probe: String,
    /// Ends and starts the engine, for the cases about that; run by sh, as whoever started this
    #[arg(long, value_name = "COMMAND")]
    pub(crate) restart: Option<String>,
    /// Two registries to fetch from: the file that tests/services/registry.sh writes. For
    /// Apptainer they have to hold the probe as v6-conformance/probe:1 (registry.sh push)
    #[arg(long, value_name = "FILE")]
    pub(crate) registries: Option<PathBuf>,
}

impl EngineOptions {
    /// Where the engine is: as the options say, or else this variable or this default.
    ///
    /// # Errors
    /// A variable that is no address.
    pub(crate) fn host(
        &self,
        variable: &str,
        default: &str,
    ) -> std::result::Result<Address, String> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        let set = std::env::var(variable).ok().filter(|host| !host.is_empty());
        let host = set.as_deref().unwrap_or(default);
        host.parse().map_err(|error| format!("{variable}: {error}"))
    }
}

/// What went wrong at the engine, or on the way to it, while the suite was at work past the
/// runtime.
#[derive(Debug)]
pub(crate) struct Failed(Error);

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.0
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// Says what was being done.
pub(crate) fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &str,
) -> impl FnOnce(E) -> Failed {
    let what = format!("the suite, {what}");
    move |error| Failed(Error::new(ErrorKind::Unexpected, what).with_source(error))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some repeat their cause's words.
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// Whether the engine says that there is no such thing.
pub(crate) fn is_absent(error: &bollard::errors::Error) -> bool {
    matches!(
        error,
        bollard::errors::Error::DockerResponseServerError {
            status_code: 404,
            ..
        }
    )
}

/// A folder of the suite and of its children, which have their leases and sockets in it: the suite
/// removes it, since a child is killed. Its name is short, as a socket's path has to be.
struct Folder(PathBuf);

impl Folder {
    fn path() -> PathBuf {
        std::env::temp_dir().join(format!("v6-{}", suite_process()))
    }

    fn new() -> std::io::Result<Self> {
        let path = Self::path();
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self(path)),
        }
    }
}

/// The name of the fault that the process that has started this one is at.
#[cfg(feature = "faults")]
pub(crate) fn fault_of_the_parent() -> Option<String> {
    std::fs::read_to_string(Folder::path().join(FAULT)).ok()
}

impl Drop for Folder {
    fn drop(&mut self) {
        if suite_process() == std::process::id() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// Changes the body of a request.
type Rewrite = fn(&mut serde_json::Value);
/// Makes a runtime of one, with the folder of this suite and its children.
type Wrap = dyn Fn(Arc<dyn Runtime>, &Path) -> Arc<dyn Runtime> + Send + Sync;

/// What is made wrong on purpose, to see the suite fail.
#[derive(Default)]
struct Tampering {
    /// Of requests that make a container.
    rewrite: Option<Rewrite>,
    /// Of every value of the runtime.
    wrap: Option<Box<Wrap>>,
}

/// How one owner's runtime values reach the engine.
struct Way {
    proxy: FaultProxy,
    /// Dropped, it ends the streams of events.
    events: RuleGuard,
    _rewrite: Option<RuleGuard>,
}

/// The engine, and a proxy before it for each owner.
pub(crate) struct EngineHarness {
    engine: Address,
    docker: Docker,
    /// Whether a version of the API has been agreed on; Podman takes a second for it each time.
    agreed: OnceCell<()>,
    folder: Folder,
    probe: ImageRef,
    restart: Option<Restart>,
    registries: Option<Started>,
    ways: Mutex<HashMap<Owner, Way>>,
    /// Owners for whose cases something was made past the runtime.
    made_for: Mutex<HashSet<Owner>>,
    tampering: Tampering,
    kind: &'static str,
}

impl EngineHarness {
    /// The engine of this kind at this address.
    ///
    /// # Errors
    /// An image name that is none; registries that cannot be read; no temporary folder.
    pub(crate) fn new(
        options: EngineOptions,
        engine: Address,
        kind: &'static str,
    ) -> std::result::Result<Self, String> {
        let version = bollard::API_DEFAULT_VERSION;
        let docker = match &engine {
            Address::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), CALL_SECONDS, version)
            }
            Address::Tcp(address) => {
                Docker::connect_with_http(&address.to_string(), CALL_SECONDS, version)
            }
        }
        .map_err(|error| format!("{engine}: {error}"))?;
        let probe = ImageRef::parse(&options.probe).map_err(|error| error.to_string())?;
        Ok(Self {
            engine,
            docker,
            agreed: OnceCell::new(),
            folder: Folder::new().map_err(|error| format!("a temporary folder: {error}"))?,
            probe,
            restart: Restart::of(options.restart),
            registries: options
                .registries
                .as_deref()
                .map(Started::read)
                .transpose()?,
            ways: Mutex::default(),
            made_for: Mutex::default(),
            tampering: Tampering::default(),
            kind,
        })
    }

    /// Whether there is an engine, with the probe: what a hundred cases would find out otherwise.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub(crate) async fn check(&self) -> std::result::Result<(), String> {
        let engine = &self.engine;
        let docker = self.agree().await;
        let docker =
            docker.map_err(|error| format!("no engine answers at {engine}: {}", chain(&error)))?;
        let probe = &self.probe;
        let image = match docker.inspect_image(&probe.to_string()).await {
            Ok(image) => image,
            Err(error) if is_absent(&error) => {
                return Err(format!(
                    "the engine at {engine} has no image {probe}: load it with \
                     DOCKER_HOST={engine} tests/algorithms/build probe, or name another with --probe"
                ));
            }
            Err(error) => return Err(format!("the image {probe}: {}", chain(&error))),
        };
        let program = image.config.and_then(|config| config.entrypoint);
        match program.as_deref() {
            Some([program]) if program.ends_with("probe") => Ok(()),
            other => Err(format!(
                "{probe} is not the probe's image: its entry point is {other:?}, and not the one \
                 program v6-probe"
            )),
        }
    }

    /// With this fault, also for the children of this process.
    ///
    /// # Errors
    /// A folder that cannot be written.
    #[cfg(feature = "faults")]
    pub(crate) fn with_fault(self, seed: &'static Seed) -> std::result::Result<Self, String> {
        std::fs::write(self.folder.0.join(FAULT), seed.name)
            .map_err(|error| format!("the suite's folder: {error}"))?;
        Ok(self.again_with(seed))
    }

    /// With the fault of the process that has started this one.
    #[cfg(feature = "faults")]
    pub(crate) fn again_with(mut self, seed: &'static Seed) -> Self {
        match seed.how {
            How::Container(rewrite) => self.tampering.rewrite = Some(rewrite),
            How::Caller(caller) => {
                self.tampering.wrap =
                    Some(Box::new(move |inner: Arc<dyn Runtime>, folder: &Path| {
                        caller.wrap(inner, folder)
                    }));
            }
        }
        self
    }

    /// Does something with the owner's way to the engine, which is made the first time.
    fn way<T>(&self, owner: &Owner, act: impl FnOnce(&mut Way) -> T) -> Result<T> {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let way = match ways.entry(owner.clone()) {
            Entry::Occupied(way) => way.into_mut(),
            Entry::Vacant(place) => place.insert(self.make_way(owner)?),
        };
        Ok(act(way))
    }

    fn make_way(&self, owner: &Owner) -> Result<Way> {
        // A child of the suite has the same owner: its proxy is another one.
        let name = format!("{owner}-{}.sock", std::process::id());
        let listen = Address::Unix(self.folder.0.join(name));
        let proxy = FaultProxy::start(listen, self.engine.clone())
            .map_err(failed("starting a proxy before the engine"))?;
        let rewrite = self.tampering.rewrite.map(|rewrite| {
            let create = Requests::any()
                .method("POST")
                .path_ends_with("/containers/create");
            proxy.add(Rule::new(create, Wrong::rewrite(rewrite)))
        });
        Ok(Way {
            events: proxy.add(events()),
            proxy,
            _rewrite: rewrite,
        })
    }

    fn note(&self, owner: &Owner) {
        let mut owners = self.made_for.lock().unwrap_or_else(PoisonError::into_inner);
        owners.insert(owner.clone());
    }

    /// The engine with a version of the API that it speaks.
    async fn docker(&self) -> Result<Docker> {
        let docker = self.agree().await;
        Ok(docker
            .map_err(failed("asking for the version of the API"))?
            .clone())
    }

    async fn agree(&self) -> std::result::Result<&Docker, bollard::errors::Error> {
        // The version is shared by all clones.
        let negotiate = || async { self.docker.clone().negotiate_version().await.map(drop) };
        self.agreed.get_or_try_init(negotiate).await?;
        Ok(&self.docker)
    }
}

#[async_trait]
impl Harness for EngineHarness {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let host = self.way(owner, |way| way.proxy.address().to_string())?;
        let credentials = self.registries.iter().map(Started::credentials).collect();
        let config = DockerConfig::new(owner.clone())
            .with_host(host)
            .with_credentials(credentials)
            .with_runtime_dir(self.folder.0.clone());
        let runtime = DockerRuntime::connect(config).await?;
        if runtime.kind() != self.kind {
            let message = format!("{} is {}, not {}", self.engine, runtime.kind(), self.kind);
            return Err(Error::new(ErrorKind::InvalidSpec, message));
        }
        let runtime: Arc<dyn Runtime> = Arc::new(runtime);
        Ok(match &self.tampering.wrap {
            Some(wrap) => wrap(runtime, &self.folder.0),
            None => runtime,
        })
    }

    fn probe_image(&self) -> ImageRef {
        self.probe.clone()
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let docker = self.docker().await?;
        let containers = listed(&docker, "/containers/json?all=true").await?;
        let volumes = docker.list_volumes(None::<ListVolumesOptions>).await;
        let volumes = volumes.map_err(failed("listing volumes"))?;
        let is_owners = |name: &str, labels: &HashMap<String, String>| {
            // By label and by name: what lacks one of them is not tidy either.
            name.starts_with(&format!("v6-{owner}."))
                || labels.get(OWNER_LABEL).map(String::as_str) == Some(owner.as_str())
        };
        let mut found = Vec::new();
        for container in containers {
            let name = container["Names"][0].as_str().unwrap_or_default();
            let name = name.trim_start_matches('/');
            let labels = HashMap::deserialize(&container["Labels"]).unwrap_or_default();
            if is_owners(name, &labels) {
                found.push(format!("container {name}: {container}"));
            }
        }
        // What a runtime asks a registry with.
        for image in listed(&docker, "/images/json").await? {
            let names = image["RepoTags"].as_array();
            let names = names.into_iter().flatten().filter_map(Value::as_str);
            let prefix = format!("localhost/v6-runtime/{owner}:");
            let theirs = names.filter(|name| name.starts_with(&prefix));
            found.extend(theirs.map(|name| format!("image {name}")));
        }
        for volume in volumes.volumes.unwrap_or_default() {
            // What was planted there is not the runtime's.
            let planted = volume.labels.contains_key(planted::MARK);
            if !planted && is_owners(&volume.name, &volume.labels) {
                found.push(format!("volume {}: {volume:?}", volume.name));
            }
        }
        Ok(found)
    }

    fn outlives_us(&self) -> bool {
        true
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        let all = Requests::any;
        let refusal = |status| Wrong::Answer(Answer::new(status).json(&message()));
        let rule = match fault {
            Fault::Cut => {
                self.way(owner, |way| way.proxy.cut())?;
                return Ok(Some(Injected::new(())));
            }
            Fault::WatchEnds => {
                self.way(owner, |way| way.events = way.proxy.add(events()))?;
                return Ok(Some(Injected::new(())));
            }
            Fault::Away => {
                let away = self.way(owner, |way| way.proxy.away())?;
                return Ok(Some(Injected::new(away)));
            }
            Fault::Errors(times) => Rule::new(all(), refusal(500)).times(times),
            Fault::Throttled(times) => Rule::new(all(), refusal(429)).times(times),
            Fault::ReplyLost => {
                let makes = all().method("POST").path_ends_with("/create");
                Rule::new(makes, Wrong::LoseReply).times(1)
            }
            Fault::Slow(time) => Rule::new(all(), Wrong::Delay(time)),
            Fault::OddPieces => Rule::new(all(), Wrong::Split(PIECES.to_vec())),
            Fault::Stuck => {
                let removal = all().method("DELETE").path_contains("/containers/");
                Rule::new(removal, refusal(500))
            }
            _ => return Ok(None),
        };
        let guard = self.way(owner, |way| way.proxy.add(rule))?;
        Ok(Some(Injected::new(guard)))
    }

    fn calls(&self, owner: &Owner) -> Option<u64> {
        self.way(owner, |way| way.proxy.requests()).ok()
    }

    async fn restart_engine(&self) -> Result<Option<()>> {
        Restart::hook(self.restart.as_ref()).await
    }

    /// Of an engine behind a socket, which is on this machine.
    fn shared_folder(&self) -> Option<PathBuf> {
        matches!(self.engine, Address::Unix(_)).then(|| self.folder.0.clone())
    }

    async fn plant(&self, owner: &Owner, id: &RunId, place: Planted) -> Result<Option<Stranger>> {
        let docker = self.docker().await?;
        self.note(owner);
        Ok(Some(planted::plant(docker, owner, id, place).await?))
    }

    async fn move_tag(&self, owner: &Owner, to: Tagged) -> Result<Option<ImageRef>> {
        let docker = self.docker().await?;
        let probe = self.probe.to_string();
        let name = moving(owner);
        let repository = name.trim_end_matches(":moving");
        self.note(owner);
        match to {
            Tagged::Probe => images::tag(&docker, &probe, repository, "moving").await?,
            Tagged::Other => {
                // Whatever arguments follow.
                let instruction = r#"ENTRYPOINT ["/probe", "exit", "99", "then"]"#;
                images::derive(&docker, &probe, instruction, repository, "moving").await?;
            }
        }
        Ok(Some(ImageRef::parse(&name)?))
    }

    async fn registries(&self) -> Result<Option<Registries>> {
        let Some(started) = &self.registries else {
            return Ok(None);
        };
        let docker = self.docker().await?;
        let probe = self.probe.to_string();
        Ok(Some(started.ready(&docker, &probe).await?))
    }

    async fn volume(&self, owner: &Owner) -> Result<Option<String>> {
        let docker = self.docker().await?;
        let probe = self.probe.to_string();
        self.note(owner);
        Ok(Some(planted::volume(&docker, owner, &probe).await?))
    }

    async fn tidy(&self, owner: &Owner) -> Result<()> {
        let made = {
            let mut owners = self.made_for.lock().unwrap_or_else(PoisonError::into_inner);
            owners.remove(owner)
        };
        if made {
            let docker = self.docker().await?;
            planted::remove(&docker, owner).await?;
            images::forget(&docker, &moving(owner)).await?;
        }
        let way = {
            let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
            ways.remove(owner)
        };
        // Its end waits for its thread.
        drop(way);
        Ok(())
    }
}

/// A list as the engine gives it: the client does not know every state that there is, and passes on
/// only the answer to one of its calls.
async fn listed(docker: &Docker, path: &'static str) -> Result<Vec<Value>> {
    let asking = docker.clone().with_request_modifier(move |mut request| {
        let uri = request.uri();
        let host = uri.authority().map_or("", |host| host.as_str());
        let uri = format!("{}://{host}{path}", uri.scheme_str().unwrap_or("http"));
        if let Ok(uri) = uri.parse() {
            *request.uri_mut() = uri;
        }
        request
    });
    // Podman 4.3.1 gives up a listing during which a process ends.
    let mut asked = 1;
    let answer: Vec<_> = loop {
        match asking.export_image("any").try_collect().await {
            Err(error) if asked < 5 && error.to_string().contains("no such process") => asked += 1,
            answer => break answer.map_err(failed("listing what the engine has"))?,
        }
    };
    let list = serde_json::from_slice(&answer.concat());
    Ok(list.map_err(failed("reading what the engine has"))?)
}

/// Ends streams of events as soon as its guard is dropped.
fn events() -> Rule {
    let streams = Requests::any().path_ends_with("/events");
    Rule::new(streams, Wrong::EndReplyAtRelease)
}

/// What an engine says with an error.
fn message() -> serde_json::Value {
    serde_json::json!({"message": "made by the conformance suite"})
}

/// The name that is pointed at one image or another.
fn moving(owner: &Owner) -> String {
    format!("localhost/v6-conformance/{owner}:moving")
}
