//! The contract, carried out on folders.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::task::JoinHandle;
use v6_runtime::{
    Accepted, CancelOptions, Cancelled, Capabilities, CleanedUp, CleanupOptions, Connection,
    EngineInfo, Error, ErrorKind, Floor, Held, ImageIdentity, ImageRef, Lease, LogChunk,
    LogFeatures, LogOptions, OutputName, Owner, Pending, PullPolicy, ResolvedImage, Result,
    ResultStream, RunId, RunPhase, RunSpec, RunStatus, Runtime, SpecDigest, WatchEvent, WatchHub,
};

use crate::ending::{Cleaning, cancel, clean};
use crate::images::Images;
use crate::inside::UNSHARE;
use crate::logs::Log;
use crate::notices::{News, Notices};
use crate::record::{Folder, State, sweep};
use crate::start::{start, store};

/// How long whoever is at work on a run may take to let go of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to get a lock: no notice tells that one has been given up.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// The most bytes of an output in memory.
const CHUNK: usize = 64 << 10;

/// Runs of one owner, as folders below one folder of this machine.
#[derive(Debug)]
pub struct ProcessRuntime {
    owner: Owner,
    capabilities: Capabilities,
    images: Images,
    helper: PathBuf,
    runs: Runs,
    /// What feeds the hub, once somebody watches.
    feeding: Mutex<Option<JoinHandle<()>>>,
}

/// Where runs and images are kept.
#[derive(Debug, Clone)]
pub struct Runs {
    /// The owner's runs.
    owner: PathBuf,
    /// What watchers are told.
    hub: WatchHub,
    /// Held from a look to telling it: no watcher hears of an older look after a newer one.
    telling: Arc<Mutex<()>>,
    /// Held by each step that makes or removes something. One whose call was dropped is at work
    /// still: whoever comes next waits for it.
    step: Arc<tokio::sync::Mutex<()>>,
}

impl ProcessRuntime {
    /// The runtime of this owner in this folder, which is made if need be. `helper` is this
    /// package's program, `process-runtime`.
    ///
    /// # Errors
    /// `Denied` if the folder cannot be used.
    pub fn new(folder: &Path, owner: &Owner, helper: impl Into<PathBuf>) -> Result<Self> {
        let runs = Runs {
            owner: folder.join(owner.as_str()),
            hub: WatchHub::new(),
            telling: Arc::default(),
            step: Arc::default(),
        };
        // No owner begins with a dot.
        let images = Images::new(folder.join(".images"));
        let made = fs::create_dir_all(&runs.owner).and_then(|()| images.make());
        made.map_err(|error| {
            Error::new(ErrorKind::Denied, "the folder cannot be used").with_source(error)
        })?;
        Ok(Self {
            owner: owner.clone(),
            capabilities: capabilities(),
            images,
            helper: helper.into(),
            runs,
            feeding: Mutex::default(),
        })
    }

    /// Gives a name to a program, which has to be a static one: a run sees no library.
    #[must_use]
    pub fn with_image(mut self, name: ImageRef, program: impl Into<PathBuf>) -> Self {
        self.images.add(name, program.into());
        self
    }

    /// Does one step of a call, when the one before is done.
    async fn step<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.runs.step.clone().lock_owned().await;
        // What a dropped call would have got is dropped before the turn is over.
        let done = blocking(operation, move || Ok((work()?, turn)));
        done.await.map(|(done, _turn)| done)
    }

    /// Starts feeding the hub, if nobody does: a task ends with its Tokio runtime.
    fn feed(&self) {
        let mut feeding = self.feeding.lock().unwrap_or_else(PoisonError::into_inner);
        if feeding.as_ref().is_none_or(JoinHandle::is_finished) {
            let runs = self.runs.clone();
            *feeding = Some(tokio::spawn(async move {
                loop {
                    let Err(error) = feed(&runs).await;
                    runs.hub
                        .failed(&Error::new(ErrorKind::Unavailable, error.to_string()));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }));
        }
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        let feeding = self
            .feeding
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = feeding {
            task.abort();
        }
    }
}

/// What is kept, and nothing else. The suite tries each of it.
fn capabilities() -> Capabilities {
    let mut can = Capabilities::none();
    can.mounts.stream = true;
    can.mounts.scratch = true;
    can.mounts.scratch_limit = true;
    can.outputs.file = true;
    can.resources.scratch = true;
    can.logs = LogFeatures::all();
    can.outcomes.signaled = true;
    can.outcomes.cancelled = true;
    can.outcomes.command_not_found = true;
    can.floor = Floor::all();
    can.floor.seccomp = false;
    // Nobody inside, and outside whoever started us.
    can.floor.non_root = !rustix::process::geteuid().is_root();
    can.deadline = true;
    can.grace = true;
    can.init = true;
    can.image_store = true;
    can
}

/// Tells watchers all that happens, until the notices fail.
async fn feed(runs: &Runs) -> io::Result<Infallible> {
    // Before the listing: what happens during it is told as well.
    let notices = Notices::of(&runs.owner)?;
    let mut news = News::Any;
    loop {
        let runs = runs.clone();
        tokio::task::spawn_blocking(move || runs.take_in(news)).await??;
        news = notices.next().await?;
    }
}

/// What a call of `run` finds to do.
enum Claim {
    Ours(Folder),
    Adopted,
    Conflict,
}

impl Runs {
    fn at(&self, id: &RunId) -> PathBuf {
        self.owner.join(id.as_str())
    }

    /// The folder of a run, if there is one.
    pub fn open(&self, id: &RunId) -> io::Result<Option<Folder>> {
        Folder::open(&self.at(id))
    }

    fn status(&self, id: &RunId) -> io::Result<Option<RunStatus>> {
        self.open(id)?.map_or(Ok(None), |folder| folder.status(id))
    }

    /// Tells watchers how a run is now.
    pub fn tell(&self, id: &RunId) -> io::Result<()> {
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        match self.status(id)? {
            Some(status) => self.hub.update(status),
            None => self.hub.remove(id),
        }
        Ok(())
    }

    /// Looks at what may have changed.
    fn take_in(&self, news: News) -> io::Result<()> {
        match news {
            News::Any => {
                let start = self.hub.begin_listing();
                let all: Vec<RunStatus> = self.all()?.collect::<io::Result<_>>()?;
                self.hub.reset(start, all);
                Ok(())
            }
            // A while without news: there may be what no notice tells of.
            News::Of(names) if names.is_empty() => self.ids()?.try_for_each(|id| self.tell(&id)),
            News::Of(names) => {
                let mut ids = names.into_iter().filter_map(|name| RunId::new(name).ok());
                ids.try_for_each(|id| self.tell(&id))
            }
        }
    }

    fn ids(&self) -> io::Result<impl Iterator<Item = RunId> + Send + use<>> {
        let names = fs::read_dir(&self.owner)?.filter_map(Result::ok);
        Ok(names.filter_map(|entry| RunId::new(entry.file_name().to_str()?).ok()))
    }

    /// Every run, one after the other.
    fn all(&self) -> io::Result<impl Iterator<Item = io::Result<RunStatus>> + Send + use<>> {
        let runs = self.clone();
        Ok(self
            .ids()?
            .filter_map(move |id| runs.status(&id).transpose()))
    }

    /// Makes the record of a run and takes its lock, unless there is such a run.
    fn claim(&self, id: &RunId, state: &State) -> io::Result<Claim> {
        loop {
            if let Some(mut old) = self.open(id)? {
                let Some(known) = old.status(id)? else {
                    if old.is_in_place()? {
                        // Somebody's folder that is no run.
                        return Ok(Claim::Conflict);
                    }
                    continue;
                };
                if known.phase != RunPhase::Pending(Pending::Abandoned) {
                    let same = known.spec == state.spec;
                    return Ok(if same {
                        Claim::Adopted
                    } else {
                        Claim::Conflict
                    });
                }
                // Who takes it now has not been at work for long: it was free just before.
                if old.claim()? && old.is_in_place()? {
                    let mut new = Folder::make(&self.owner, state)?;
                    new.replace(old)?;
                    return Ok(Claim::Ours(new));
                }
            } else {
                let mut new = Folder::make(&self.owner, state)?;
                if new.put(&self.at(id))? {
                    return Ok(Claim::Ours(new));
                }
                new.remove()?;
            }
        }
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn ping(&self) -> Result<EngineInfo> {
        // The very thing that each run needs. What is mounted is gone with the process.
        let tried = Command::new("unshare")
            .args(UNSHARE)
            .arg(&self.helper)
            .arg("check")
            .arg(&self.runs.owner)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| broken("ping", error))?;
        if !tried.status.success() {
            let words = String::from_utf8_lossy(&tried.stderr);
            let message = format!("a run cannot have namespaces of its own: {}", words.trim());
            return Err(Error::new(ErrorKind::Denied, message).with_operation("ping"));
        }
        Ok(EngineInfo::new("processes", env!("CARGO_PKG_VERSION")))
    }

    async fn acquire(&self) -> Result<Lease> {
        let failed = |error| broken("acquire", error);
        // Here and not in a step: a lease must not be taken after the call was dropped.
        let folder = File::open(&self.runs.owner).map_err(failed)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let held = Error::new(ErrorKind::Conflict, "another process holds the lease");
                return Err(held.with_operation("acquire"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let lease = Lease::new(Locked(folder));
        let owner = self.runs.owner.clone();
        self.step("acquire", move || sweep(&owner)).await?;
        Ok(lease)
    }

    async fn resolve(&self, image: &ImageRef, _policy: PullPolicy) -> Result<ResolvedImage> {
        let Some(program) = self.images.program(image) else {
            let message = format!("{image}: no program has this name");
            return Err(Error::new(ErrorKind::NotFound, message).with_operation("resolve"));
        };
        let images = self.images.clone();
        let digest = blocking("resolve", move || images.keep(&program)).await?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let identity = ImageIdentity::ImageId(digest);
        Ok(ResolvedImage::new(
            image.clone(),
            identity,
            format!("linux/{architecture}"),
        ))
    }

    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        if self.images.at(image.identity.digest()).exists() {
            return Ok(());
        }
        let message = format!("{}: its program is not in the store", image.reference);
        Err(Error::new(ErrorKind::NotFound, message).with_operation("prefetch"))
    }

    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        self.capabilities.admit(spec)?;
        let state = State {
            spec: SpecDigest::of(spec),
            image: spec.image.clone(),
            annotations: spec.annotations.clone(),
            outputs: spec
                .outputs
                .iter()
                .map(|(name, output)| (name.clone(), output.limit))
                .collect(),
            deadline: spec.deadline,
            grace: spec.grace,
            created: SystemTime::now(),
            started: None,
            finished: None,
            phase: RunPhase::Pending(Pending::Accepted),
        };
        let (runs, of) = (self.runs.clone(), id.clone());
        let claiming = self.step("run", move || runs.claim(&of, &state));
        let folder = match claiming.await? {
            Claim::Ours(folder) => folder,
            Claim::Adopted => return Ok(Accepted::Adopted),
            Claim::Conflict => {
                let message = "the name is taken by something else";
                let error = Error::new(ErrorKind::Conflict, message);
                return Err(error.with_operation("run").with_run(id));
            }
        };
        // Dropped from here on, the folder is left without anybody at work on it: Abandoned.
        let image = self.images.at(spec.image.identity.digest());
        let order = match store(&folder, image, spec).await {
            Ok(order) => order,
            Err(error) => {
                self.step("run", move || folder.remove()).await?;
                return Err(error.with_operation("run").with_run(id));
            }
        };
        let (helper, runs, of) = (self.helper.clone(), self.runs.clone(), id.clone());
        self.step("run", move || {
            start(&helper, folder, &order)?;
            // Whoever watches from now on has to see it; the notice may come later.
            runs.tell(&of)
        })
        .await?;
        Ok(Accepted::Created)
    }

    async fn status(&self, id: &RunId) -> Result<RunStatus> {
        let (runs, of) = (self.runs.clone(), id.clone());
        let known = blocking("status", move || runs.status(&of)).await?;
        known.ok_or_else(|| Error::no_such_run(id).with_operation("status"))
    }

    fn list(&self) -> ResultStream<RunStatus> {
        let runs = self.runs.clone();
        // One at a time: memory does not grow with the number of runs.
        let listing = async move {
            let all = blocking("list", move || runs.all()).await?;
            Ok(stream::try_unfold(all, |mut all| async move {
                let next = blocking("list", move || {
                    Ok(all.next().transpose()?.map(|run| (run, all)))
                });
                next.await
            }))
        };
        Box::pin(stream::once(listing).try_flatten())
    }

    fn watch(&self) -> ResultStream<WatchEvent> {
        self.feed();
        self.runs.hub.watch()
    }

    fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk> {
        let (runs, id) = (self.runs.clone(), id.clone());
        let opening = async move {
            let of = id.clone();
            let folder = blocking("logs", move || runs.open(&of)).await?;
            let folder = folder.ok_or_else(|| Error::no_such_run(&id).with_operation("logs"))?;
            let log = Log::open(id, folder, &options)?;
            Ok(stream::try_unfold(log, Log::next))
        };
        Box::pin(stream::once(opening).try_flatten())
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        let (runs, id, output) = (self.runs.clone(), id.clone(), output.clone());
        let opening = async move {
            let failed = |error: Error| error.with_operation("collect").with_run(&id);
            let (of, name) = (id.clone(), output.clone());
            let file = blocking("collect", move || Ok(open_output(&runs, &of, &name))).await?;
            let file = tokio::fs::File::from_std(file.map_err(failed)?);
            Ok(stream::try_unfold(file, |mut file| async move {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = file.read_buf(&mut chunk).await;
                let length = read.map_err(|error| broken("collect", error))?;
                Ok((length > 0).then(|| (chunk.into(), file)))
            }))
        };
        Box::pin(stream::once(opening).try_flatten())
    }

    fn connections(&self) -> ResultStream<Connection> {
        let error = Error::unsupported("egress", "runs of this runtime have no network");
        stream::once(async { Err(error) }).boxed()
    }

    async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled> {
        let (runs, of) = (self.runs.clone(), id.clone());
        let told = blocking("cancel", move || {
            let Some(folder) = runs.open(&of)? else {
                return Ok(None);
            };
            cancel(&folder, &of, options.grace)
        });
        told.await?
            .ok_or_else(|| Error::no_such_run(id).with_operation("cancel"))
    }

    async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
        let until = Instant::now() + PATIENCE;
        loop {
            let (runs, of, force) = (self.runs.clone(), id.clone(), options.force);
            let cleaning = self.step("cleanup", move || clean(&runs, &of, force));
            match cleaning.await? {
                Cleaning::Done(done) => return Ok(done),
                Cleaning::NotReady => {
                    let error = Error::new(ErrorKind::NotReady, "the run has not finished");
                    return Err(error.with_operation("cleanup").with_run(id));
                }
                Cleaning::Ending if Instant::now() > until => {
                    let error = Error::new(ErrorKind::Timeout, "somebody is at work on the run");
                    return Err(error.with_operation("cleanup").with_run(id));
                }
                Cleaning::Ending => tokio::time::sleep(TRY_AGAIN).await,
            }
        }
    }
}

/// The file of an output, once that can be read.
fn open_output(runs: &Runs, id: &RunId, name: &OutputName) -> Result<File> {
    let io = |error| broken("collect", error);
    let folder = runs.open(id).map_err(io)?;
    let folder = folder.ok_or_else(|| Error::no_such_run(id))?;
    let known = folder.status(id).map_err(io)?;
    let known = known.ok_or_else(|| Error::no_such_run(id))?;
    if !known.phase.is_finished() {
        return Err(Error::new(ErrorKind::NotReady, "the run has not finished"));
    }
    let outputs = folder.state().map_err(io)?.outputs;
    let limit = *outputs
        .get(name)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("it declares no output {name}")))?;
    let file = folder.read(&format!("out/{name}")).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if length > limit.get() {
        let message = format!("output {name} has {length} bytes, at most {limit}");
        return Err(Error::new(ErrorKind::Quota, message));
    }
    Ok(file)
}

/// A lease is a lock on the owner's folder, which ends with the process at the latest.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        // As with a run's folder, closing is not enough.
        let _ = self.0.unlock();
    }
}

impl Held for Locked {
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

impl fmt::Display for ProcessRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processes of {}", self.owner)
    }
}

/// Does what may wait for a disk. Once begun it is done, also if nobody waits for it.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(error.into()))
        .map_err(|error| broken(operation, error))
}

/// The machine could not do something.
pub(crate) fn broken(operation: &'static str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Quota,
        io::ErrorKind::InvalidData => ErrorKind::Protocol,
        // A stranger's file where a run's folder would be.
        io::ErrorKind::NotADirectory => ErrorKind::Conflict,
        _ => ErrorKind::Unavailable,
    };
    let error = Error::new(kind, error.to_string()).with_source(error);
    error.with_operation(operation)
}
