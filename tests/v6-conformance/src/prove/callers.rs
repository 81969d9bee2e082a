//! Faults of a caller's process: what it keeps to itself is gone with it, and what it gathers
//! makes it larger.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;
use v6_runtime::{
    Accepted, CancelOptions, Cancelled, Capabilities, CleanedUp, CleanupOptions, Connection,
    EngineInfo, Error, ErrorKind, Held, ImageRef, InputReader, InputStream, Lease, LogChunk,
    LogOptions, MountSource, Observation, Outcome, OutputName, Owner, Pending, PullPolicy,
    ResolvedImage, Result, ResultStream, RunId, RunPhase, RunSpec, RunStatus, Runtime, WatchEvent,
};
use v6_runtime_conformance::suite_process;

use super::{How, Seed};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    RunsAgain,
    KeepsTheDeadline,
    KnowsItsCancels,
    SeesTheDeadAtWork,
    RefusesToClean,
    LeavesTheLease,
    GathersOutputs,
    GathersInputs,
    GathersLogs,
}

const fn caller(
    name: &'static str,
    wrong: &'static str,
    how: Caller,
    red: &'static [&'static str],
) -> Seed {
    Seed {
        name,
        wrong,
        how: How::Caller(how),
        red,
        alone: false,
    }
}

/// All of them.
pub(super) const ALL: &[Seed] = &[
    caller(
        "runs-of-others-are-run-again",
        "`run` starts anew what another process has started.",
        Caller::RunsAgain,
        &["a_killed_starter_leaves_its_run"],
    ),
    caller(
        "deadline-ends-with-its-process",
        "The deadline is kept by the process that started the run.",
        Caller::KeepsTheDeadline,
        &["the_deadline_outlives_its_process"],
    ),
    caller(
        "cancel-is-known-to-its-process",
        "Only the process that cancelled a run knows that it was cancelled.",
        Caller::KnowsItsCancels,
        &["a_killed_process_has_cancelled"],
    ),
    caller(
        "the-dead-seem-at-work",
        "What a killed process had begun to make looks as if it went on.",
        Caller::SeesTheDeadAtWork,
        &["a_killed_start_is_abandoned", "a_cut_start_is_abandoned"],
    ),
    caller(
        "half-made-runs-are-refused",
        "`cleanup` of what was begun and not finished is refused the first time.",
        Caller::RefusesToClean,
        &[
            "a_killed_start_can_be_cleaned_up",
            "a_cut_start_can_be_cleaned_up",
        ],
    ),
    caller(
        "lease-is-a-file",
        "The lease is a file, which its holder removes.",
        Caller::LeavesTheLease,
        &["a_killed_holder_frees_the_lease"],
    ),
    caller(
        "outputs-are-gathered",
        "An output is gathered in memory before it is given out.",
        Caller::GathersOutputs,
        &["collecting_takes_constant_memory"],
    ),
    caller(
        "inputs-are-gathered",
        "A stream is gathered in memory before it is stored.",
        Caller::GathersInputs,
        &["giving_takes_constant_memory"],
    ),
    caller(
        "logs-are-gathered",
        "The log of a run that is over is gathered in memory before it is given out.",
        Caller::GathersLogs,
        &["reading_logs_takes_constant_memory"],
    ),
];

type Keys = LazyLock<Mutex<HashSet<(Owner, RunId)>>>;

/// What this process has started; another does not know it.
static STARTED: Keys = LazyLock::new(Mutex::default);
/// What it has cancelled.
static CANCELLED: Keys = LazyLock::new(Mutex::default);
/// What it has refused to clean up.
static REFUSED: Keys = LazyLock::new(Mutex::default);

/// Adds this run; whether it was not there.
fn note(keys: &Keys, owner: &Owner, id: &RunId) -> bool {
    let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
    keys.insert((owner.clone(), id.clone()))
}

fn has(keys: &Keys, owner: &Owner, id: &RunId) -> bool {
    let keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
    keys.contains(&(owner.clone(), id.clone()))
}

/// A runtime with one of these faults.
#[derive(Clone)]
struct Wrong {
    inner: Arc<dyn Runtime>,
    caller: Caller,
    folder: PathBuf,
}

impl Caller {
    /// This runtime with this fault; the folder is the same in every process of the suite.
    pub(crate) fn wrap(self, inner: Arc<dyn Runtime>, folder: &Path) -> Arc<dyn Runtime> {
        Arc::new(Wrong {
            inner,
            caller: self,
            folder: folder.to_owned(),
        })
    }
}

impl Wrong {
    fn is(&self, caller: Caller) -> bool {
        self.caller == caller
    }

    /// What is told instead of this status.
    fn told(&self, mut run: RunStatus) -> RunStatus {
        run.phase = match run.phase {
            RunPhase::Finished(Outcome::Cancelled)
                if self.is(Caller::KnowsItsCancels) && !has(&CANCELLED, self.owner(), &run.id) =>
            {
                RunPhase::Finished(Outcome::Exited(143))
            }
            RunPhase::Pending(Pending::Abandoned) if self.is(Caller::SeesTheDeadAtWork) => {
                RunPhase::Pending(Pending::Accepted)
            }
            phase => phase,
        };
        run
    }

    fn event(&self, event: WatchEvent) -> WatchEvent {
        match event {
            WatchEvent::Snapshot(runs) => {
                WatchEvent::Snapshot(runs.into_iter().map(|run| self.told(run)).collect())
            }
            WatchEvent::Changed(run) => WatchEvent::Changed(Box::new(self.told(*run))),
            other => other,
        }
    }

    async fn phase(&self, id: &RunId) -> Option<RunPhase> {
        let status = self.inner.status(id).await;
        status.ok().map(|status| status.phase)
    }
}

/// A stream whose bytes are all read before the first is given.
fn gathered(input: &InputStream) -> InputStream {
    let reader = |input: InputStream| -> InputReader {
        let all = async move {
            let mut bytes = Vec::new();
            let mut reader = input.open().await.map_err(io::Error::other)?;
            reader.read_to_end(&mut bytes).await?;
            Ok::<Bytes, io::Error>(bytes.into())
        };
        Box::pin(StreamReader::new(Box::pin(stream::once(all))))
    };
    let (len, input) = (input.len(), input.clone());
    if input.is_reopenable() {
        InputStream::reopenable(len, move || {
            let reader = reader(input.clone());
            async move { Ok(reader) }
        })
    } else {
        InputStream::once(len, reader(input))
    }
}

/// A lease that a file stands for.
struct File(PathBuf);

impl Held for File {
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl fmt::Debug for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrong")
            .field("inner", &self.inner)
            .field("caller", &self.caller)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Runtime for Wrong {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn owner(&self) -> &Owner {
        self.inner.owner()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn ping(&self) -> Result<EngineInfo> {
        self.inner.ping().await
    }

    async fn examine(&self) -> Result<Vec<Observation>> {
        self.inner.examine().await
    }

    async fn acquire(&self) -> Result<Lease> {
        if !self.is(Caller::LeavesTheLease) {
            return self.inner.acquire().await;
        }
        let path = self.folder.join(format!("{}.lease", self.owner()));
        match std::fs::File::create_new(&path) {
            Ok(_) => Ok(Lease::new(File(path))),
            Err(error) => {
                Err(Error::new(ErrorKind::Conflict, "another process is there").with_source(error))
            }
        }
    }

    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
        self.inner.resolve(image, policy).await
    }

    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        self.inner.prefetch(image).await
    }

    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        let mut spec = spec.clone();
        match self.caller {
            // Noted first: concurrent calls of one process know of each other.
            Caller::RunsAgain
                if note(&STARTED, self.owner(), id)
                    && self.phase(id).await.is_some_and(|phase| phase.rank() > 0) =>
            {
                let forced = CleanupOptions::default().with_force(true);
                self.inner.cleanup(id, forced).await?;
            }
            // A child is killed before the deadline, so that nobody keeps it then.
            Caller::KeepsTheDeadline if suite_process() != std::process::id() => {
                spec.deadline = None;
            }
            Caller::GathersInputs => {
                for mount in &mut spec.mounts {
                    if let MountSource::Stream(input) = &mut mount.source {
                        *input = gathered(input);
                    }
                }
            }
            _ => {}
        }
        self.inner.run(id, &spec).await
    }

    async fn status(&self, id: &RunId) -> Result<RunStatus> {
        Ok(self.told(self.inner.status(id).await?))
    }

    fn list(&self) -> ResultStream<RunStatus> {
        let it = self.clone();
        Box::pin(self.inner.list().map_ok(move |run| it.told(run)))
    }

    fn watch(&self) -> ResultStream<WatchEvent> {
        let it = self.clone();
        Box::pin(self.inner.watch().map_ok(move |event| it.event(event)))
    }

    fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk> {
        let chunks = self.inner.logs(id, options);
        if !self.is(Caller::GathersLogs) {
            return chunks;
        }
        let (it, id) = (self.clone(), id.clone());
        let all = async move {
            if !it.phase(&id).await.is_some_and(|phase| phase.is_finished()) {
                return chunks;
            }
            let all: Vec<Result<LogChunk>> = chunks.collect().await;
            Box::pin(stream::iter(all)) as ResultStream<LogChunk>
        };
        Box::pin(stream::once(all).flatten())
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        let chunks = self.inner.collect(id, output);
        if !self.is(Caller::GathersOutputs) {
            return chunks;
        }
        let all = async move {
            let all: Vec<Result<Bytes>> = chunks.collect().await;
            stream::iter(all)
        };
        Box::pin(stream::once(all).flatten())
    }

    fn connections(&self) -> ResultStream<Connection> {
        self.inner.connections()
    }

    async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled> {
        if self.is(Caller::KnowsItsCancels) {
            note(&CANCELLED, self.owner(), id);
        }
        self.inner.cancel(id, options).await
    }

    async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
        if self.is(Caller::RefusesToClean)
            && self.phase(id).await == Some(RunPhase::Pending(Pending::Abandoned))
            && note(&REFUSED, self.owner(), id)
        {
            return Err(Error::new(ErrorKind::NotReady, "it is not finished"));
        }
        self.inner.cleanup(id, options).await
    }
}
