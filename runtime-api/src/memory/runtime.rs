//! The contract, kept in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::engine::{Key, MemoryEngine, State};
use super::files::View;
use super::program::ProgramContext;
use super::reading::{LogReader, output_content};
use super::record::{Run, carry_out};
use super::way::away;
use super::{files, log};
use crate::{
    Accepted, Access, CancelOptions, Cancelled, Capabilities, CleanedUp, CleanupOptions,
    Connection, EngineInfo, Error, ErrorKind, Held, ImageRef, InputStream, Lease, LogChunk,
    LogOptions, MountSource, Observation, Outcome, OutputName, Owner, Pending, PullPolicy,
    ResolvedImage, Result, ResultStream, RunId, RunPhase, RunSpec, RunStatus, Runtime, SpecDigest,
    StopCause, WatchEvent, WatchHub,
};

/// The most bytes of one piece of an output.
const PIECE: usize = 64 << 10;

/// One connection to a [`MemoryEngine`], as one owner. Cheap to clone: clones are one value.
///
/// Dropping the last clone, streams of `watch` included, is what the end of a process is
/// elsewhere: runs that have started go on, and those that it was about to start are
/// [`Abandoned`](Pending::Abandoned).
#[derive(Clone)]
pub struct MemoryRuntime(Arc<Value>);

struct Value {
    engine: MemoryEngine,
    id: u64,
    owner: Owner,
    capabilities: Capabilities,
    hub: WatchHub,
    alive: CancellationToken,
    _ends: DropGuard,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.engine.disconnect_value(self.id);
    }
}

impl MemoryRuntime {
    pub(super) fn new(
        engine: MemoryEngine,
        id: u64,
        owner: Owner,
        hub: WatchHub,
        capabilities: Capabilities,
    ) -> Self {
        let alive = CancellationToken::new();
        Self(Arc::new(Value {
            engine,
            id,
            owner,
            capabilities,
            hub,
            _ends: alive.clone().drop_guard(),
            alive,
        }))
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &MemoryEngine {
        &self.0.engine
    }

    /// The beginning of each call.
    async fn call(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        let value = &self.0;
        value.engine.call(&value.owner, operation).await?;
        value.engine.reachable(&value.owner, operation)
    }

    fn key(&self, id: &RunId) -> Key {
        (self.0.owner.clone(), id.clone())
    }
}

impl fmt::Debug for MemoryRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRuntime")
            .field("owner", &self.0.owner)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for MemoryRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory runtime of {}", self.0.owner)
    }
}

#[async_trait]
impl Runtime for MemoryRuntime {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn owner(&self) -> &Owner {
        &self.0.owner
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    async fn ping(&self) -> Result<EngineInfo> {
        let state = self.call("ping").await?;
        let mut info = EngineInfo::new("memory", env!("CARGO_PKG_VERSION"));
        info.facts
            .insert("runs".into(), state.runs.len().to_string());
        Ok(info)
    }

    async fn examine(&self) -> Result<Vec<Observation>> {
        drop(self.call("examine").await?);
        let image = ResolvedImage::new(
            ImageRef::parse("localhost/examine")?,
            crate::ImageIdentity::ImageId(crate::Digest::new(format!(
                "sha256:{}",
                "0".repeat(64)
            ))?),
            "linux/amd64",
        );
        let context = ProgramContext::new(
            self.0.engine.clone(),
            (self.key(&RunId::new("examine")?), 0),
            &RunSpec::new(image),
            Vec::new(),
            &BTreeMap::new(),
            View::new(files::Tree::folder(), Access::ReadOnly),
            watch::Sender::default().subscribe(),
        );
        let refused = |name: &str, result: std::io::Result<()>| match result {
            Ok(()) => Observation::new(name, false, "it was allowed"),
            Err(error) => Observation::new(name, true, error.to_string()),
        };
        let by_name = context.connect("example.org", 443).await.map(drop);
        let by_address = context.connect("192.0.2.1", 443).await.map(drop);
        Ok(vec![
            refused("connect to a name", by_name),
            refused("connect to an address", by_address),
            refused("write to the root file system", context.write("/file", "")),
        ])
    }

    async fn acquire(&self) -> Result<Lease> {
        let mut state = self.call("acquire").await?;
        let owner = &self.0.owner;
        if state.leases.contains_key(owner) {
            let message = format!("another process is {owner} already");
            return Err(Error::new(ErrorKind::Conflict, message).with_operation("acquire"));
        }
        let (lost, when_lost) = watch::channel(None);
        state.leases.insert(owner.clone(), lost);
        Ok(Lease::new(HeldLease {
            engine: self.0.engine.clone(),
            owner: owner.clone(),
            lost: when_lost,
        }))
    }

    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
        let mut state = self.call("resolve").await?;
        if policy == PullPolicy::Never && !self.0.capabilities.image_store {
            let message = format!("{image}: what the engine has is not known");
            return Err(Error::new(ErrorKind::NotFound, message).with_operation("resolve"));
        }
        state
            .images
            .resolve(image, policy, self.0.capabilities.pull)
            .map_err(|error| error.with_operation("resolve"))
    }

    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        let mut held = self.0.engine.pulls_held();
        let there = self.call("prefetch").await?.images.has(image);
        if !there {
            // It fails only when the engine is gone, which `self` holds.
            let _ = held.wait_for(|held| *held == 0).await;
        }
        let mut state = self.0.engine.reachable(&self.0.owner, "prefetch")?;
        state
            .images
            .prefetch(image, self.0.capabilities.pull)
            .map_err(|error| error.with_operation("prefetch"))
    }

    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        self.accept(id, spec)
            .await
            .map_err(|error| error.with_operation("run").with_run(id))
    }

    async fn status(&self, id: &RunId) -> Result<RunStatus> {
        let state = self.call("status").await?;
        state
            .runs
            .get(&self.key(id))
            .map(|run| run.status.clone())
            .ok_or_else(|| Error::no_such_run(id).with_operation("status"))
    }

    fn list(&self) -> ResultStream<RunStatus> {
        let this = self.clone();
        let listing = async move {
            let runs = this.call("list").await?.listing(&this.0.owner);
            Ok::<_, Error>(stream::iter(runs.into_iter().map(Ok)))
        };
        Box::pin(stream::once(listing).try_flatten())
    }

    fn watch(&self) -> ResultStream<WatchEvent> {
        let value = self.0.clone();
        Box::pin(self.0.hub.watch().map(move |event| {
            // The stream keeps its value alive.
            let _ = &value;
            event
        }))
    }

    fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk> {
        let admitted = self.0.capabilities.admit_logs(&options);
        let since = options.since.as_ref().map_or(Ok(0), log::parse);
        let reader = LogReader {
            engine: self.0.engine.clone(),
            reach: self.0.engine.reach_changes(&self.0.owner),
            absences: self.0.engine.reach(&self.0.owner).absences,
            key: self.key(id),
            attempt: None,
            position: 0,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            follow: options.follow,
        };
        let id = id.clone();
        let chunks = async move {
            admitted?;
            let reader = LogReader {
                position: since?,
                ..reader
            };
            reader.engine.call(&reader.key.0, "logs").await?;
            Ok::<_, Error>(stream::try_unfold(reader, LogReader::next))
        };
        let chunks = stream::once(chunks).try_flatten();
        Box::pin(chunks.map_err(move |error| error.with_operation("logs").with_run(&id)))
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        let (engine, key) = (self.0.engine.clone(), self.key(id));
        let absences = engine.reach(&key.0).absences;
        let (id, output) = (id.clone(), output.clone());
        let pieces = async move {
            engine.call(&key.0, "collect").await?;
            let whole = output_content(&engine, &key, &output)?;
            Ok::<_, Error>(stream::try_unfold(whole, move |mut rest| {
                let (engine, owner) = (engine.clone(), key.0.clone());
                async move {
                    if rest.is_empty() {
                        return Ok(None);
                    }
                    let reach = engine.reach(&owner);
                    if reach.away || reach.absences > absences {
                        return Err(away());
                    }
                    let left = rest.len();
                    let piece = engine.piece(&owner, left as u64, PIECE as u64);
                    let piece = rest.split_to(left.min(piece as usize));
                    Ok(Some((piece, rest)))
                }
            }))
        };
        let pieces = stream::once(pieces).try_flatten();
        Box::pin(pieces.map_err(move |error| error.with_operation("collect").with_run(&id)))
    }

    fn connections(&self) -> ResultStream<Connection> {
        let value = self.0.clone();
        let reader = value.engine.begin_reading(&value.owner);
        Box::pin(stream::unfold(value, move |value| async move {
            let connection = value.engine.next_connection(&value.owner, reader).await?;
            Some((Ok(connection), value))
        }))
    }

    async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled> {
        let key = self.key(id);
        let mut state = self.call("cancel").await?;
        let Some(run) = state.runs.get_mut(&key) else {
            return Err(Error::no_such_run(id).with_operation("cancel"));
        };
        match run.status.phase.rank() {
            0 => state.finish(&key, Outcome::Cancelled, self.0.engine.now()),
            3 => return Ok(Cancelled::AlreadyFinished),
            _ => {
                let grace = match self.0.capabilities.grace {
                    true => options.grace.unwrap_or(run.spec.grace),
                    false => std::time::Duration::ZERO,
                };
                let cause = run.stop(StopCause::Cancel, grace);
                state.enter(&key, RunPhase::Stopping(cause));
            }
        }
        Ok(Cancelled::Requested)
    }

    async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
        let key = self.key(id);
        self.0.engine.call(&key.0, "cleanup").await?;
        loop {
            let mut changed = {
                let mut state = self.0.engine.reachable(&key.0, "cleanup")?;
                let stuck = state.is_stuck(&key.0);
                let Some(run) = state.runs.get_mut(&key) else {
                    return Ok(CleanedUp::Absent);
                };
                let rank = run.status.phase.rank();
                if rank < 3 && !options.force {
                    let message = "the run has not finished";
                    return Err(Error::new(ErrorKind::NotReady, message)
                        .with_operation("cleanup")
                        .with_run(id));
                }
                if rank == 0 || rank == 3 {
                    if stuck {
                        run.outputs.clear();
                        let message = "the record cannot be removed";
                        return Err(Error::new(ErrorKind::Unexpected, message)
                            .with_operation("cleanup")
                            .with_run(id));
                    }
                    state.remove(&key);
                    return Ok(CleanedUp::Removed);
                }
                // Its program goes first; the record is removed last.
                run.control.send_if_modified(|control| {
                    let over = Outcome::Lost("it was cleaned up".into());
                    control
                        .over
                        .is_none()
                        .then(|| control.over = Some(over))
                        .is_some()
                });
                run.changed.subscribe()
            };
            // An error is a record that is gone, which the next round sees.
            let _ = changed.changed().await;
        }
    }
}

impl MemoryRuntime {
    async fn accept(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        let value = &self.0;
        value.capabilities.admit(spec)?;
        let digest = SpecDigest::of(spec);
        let key = self.key(id);
        let storing = {
            value.engine.call(&value.owner, "run").await?;
            let mut state = value.engine.reachable(&value.owner, "run")?;
            if state.is_taken(&key) {
                let message = "the name is taken by what is not this owner's";
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            if let Some(run) = state.runs.get(&key)
                && run.status.phase != RunPhase::Pending(Pending::Abandoned)
            {
                return match run.status.spec == digest {
                    true => Ok(Accepted::Adopted),
                    false => Err(Error::new(
                        ErrorKind::Conflict,
                        "there is a run of this id with another spec",
                    )),
                };
            }
            let (attempt, created) = state.next_attempt(value.engine.now());
            let mut status = RunStatus::new(
                id.clone(),
                RunPhase::Pending(Pending::Accepted),
                digest,
                spec.image.clone(),
                spec.annotations.clone(),
            );
            status.egress = spec.egress.clone();
            status.deadline = spec.deadline;
            status.created = Some(created);
            // Also while nothing comes from the engine: a watch that begins after this call knows the run.
            value.hub.update(status.clone());
            let mut run = Run::new(spec.clone(), status, attempt, state.log_limit);
            run.at_work = Some(value.id);
            state.runs.insert(key.clone(), run);
            state.publish(&key);
            Storing {
                engine: value.engine.clone(),
                key,
                attempt,
                stored: false,
            }
        };
        let mut content = Vec::with_capacity(spec.mounts.len());
        for mount in &spec.mounts {
            content.push(match &mount.source {
                MountSource::Inline(bytes) => Some(bytes.to_vec()),
                MountSource::Secret(secret) => Some(secret.expose().as_bytes().to_vec()),
                MountSource::Stream(stream) => match read_whole(stream).await {
                    Ok(bytes) => Some(bytes),
                    Err(error) => {
                        storing.undo();
                        return Err(error);
                    }
                },
                _ => None,
            });
        }
        let Some((key, attempt)) = storing.done() else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the run was cleaned up while its input was being stored",
            ));
        };
        let start = carry_out(
            value.engine.clone(),
            key,
            attempt,
            content,
            value.alive.clone(),
        );
        tokio::spawn(start);
        if value.engine.state().loses_reply(&value.owner) {
            let message = "the engine's answer was lost";
            return Err(Error::new(ErrorKind::Timeout, message).with_may_have_started(true));
        }
        Ok(Accepted::Created)
    }
}

/// The time in which a record exists and its input does not. If the call is dropped meanwhile,
/// nobody is at work on it any more.
struct Storing {
    engine: MemoryEngine,
    key: Key,
    attempt: u64,
    stored: bool,
}

impl Storing {
    /// `None` if the run was removed or replaced meanwhile.
    fn done(mut self) -> Option<(Key, u64)> {
        self.stored = true;
        let there = self.engine.with_run(&self.key, self.attempt, |_| ());
        there.map(|()| (self.key.clone(), self.attempt))
    }

    fn undo(mut self) {
        self.stored = true;
        let mut state = self.engine.state();
        if state.attempt(&self.key, self.attempt).is_some() {
            state.remove(&self.key);
        }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        if self.stored {
            return;
        }
        let mut state = self.engine.state();
        if state.attempt(&self.key, self.attempt).is_some() {
            state.abandon(&self.key);
        }
    }
}

/// Exactly as many bytes as were announced.
async fn read_whole(stream: &InputStream) -> Result<Vec<u8>> {
    let broken = |e| Error::new(ErrorKind::Unexpected, "an input could not be read").with_source(e);
    let mut bytes = Vec::new();
    let mut reader = stream.open().await?.take(stream.len().saturating_add(1));
    reader.read_to_end(&mut bytes).await.map_err(broken)?;
    if bytes.len() as u64 == stream.len() {
        return Ok(bytes);
    }
    let found = match bytes.len() as u64 > stream.len() {
        true => "more".to_owned(),
        false => bytes.len().to_string(),
    };
    Err(Error::invalid(
        "mounts",
        format!("a stream of {} bytes gave {found}", stream.len()),
    ))
}

struct HeldLease {
    engine: MemoryEngine,
    owner: Owner,
    lost: watch::Receiver<Option<String>>,
}

impl Held for HeldLease {
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        let mut lost = self.lost.clone();
        Box::pin(async move {
            match lost.wait_for(Option::is_some).await.map(|why| why.clone()) {
                Ok(Some(why)) => why,
                Ok(None) | Err(_) => "the engine is gone".into(),
            }
        })
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        // Unless it was lost, and may be another's by now.
        if self.lost.borrow().is_none() {
            self.engine.state().leases.remove(&self.owner);
        }
    }
}
