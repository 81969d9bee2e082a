//! The contract itself.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;

use crate::{
    Capabilities, Connection, Error, ImageRef, Lease, LogChunk, LogOptions, OutputName, Owner,
    PullPolicy, ResolvedImage, Result, RunId, RunSpec, RunStatus, WatchEvent,
};

/// A stream that borrows nothing: it outlives the call and the reference it was made with.
pub type ResultStream<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send + 'static>>;

/// One engine, as seen by one [`Owner`]: runs containers to their end.
///
/// This is the contract for implementors; conveniences for callers are in
/// [`RuntimeExt`](crate::RuntimeExt) and [`Tracker`](crate::Tracker).
///
/// # Rules for every method
///
/// - **The engine is the journal.** Each run has a record that exists before anything else of it
///   and is removed last. A value of this trait keeps nothing that a new value, in another
///   process, would miss.
/// - **Cancel-safe.** Dropping a future or stream at any point stops the *call*. It leaves a state
///   that the next call repairs. Only [`cancel`](Self::cancel), [`cleanup`](Self::cleanup), a
///   deadline or the engine stop a *run*.
/// - **A lost connection is never a verdict.** What is said about a run comes from a fresh look.
/// - **How a run ended is data**, an [`Outcome`](crate::Outcome). An [`Error`](crate::Error) means
///   that the question could not be answered, and says whether the run may have started.
/// - **Strangers are spared.** Whatever does not carry this owner's mark is neither listed nor
///   touched; a name taken by such is [`Conflict`](crate::ErrorKind::Conflict).
/// - **Bounded.** Every call ends in time; memory does not grow with the size of inputs, outputs
///   or logs; a slow reader slows itself only.
#[async_trait]
pub trait Runtime: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// A word for this kind of engine, for labels and messages only.
    fn kind(&self) -> &'static str;

    /// Whose runs this value sees and touches.
    fn owner(&self) -> &Owner;

    /// What this runtime can do. No I/O.
    fn capabilities(&self) -> &Capabilities;

    /// Whether the engine can be reached and used now.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Denied`, `Protocol`.
    async fn ping(&self) -> Result<EngineInfo>;

    /// Starts a run of the backend's own, tries from inside what a run must not be able to do, and
    /// tells what it saw. Leaves nothing behind. Takes seconds; for an operator's check, and before
    /// a node begins to serve.
    ///
    /// # Errors
    /// As [`ping`](Self::ping); an examination that could not be finished is an error, not a
    /// finding.
    async fn examine(&self) -> Result<Vec<Observation>> {
        Err(Error::unsupported(
            "examine",
            "this runtime cannot examine itself",
        ))
    }

    /// Makes this process the owner's only one, as long as the lease is held.
    ///
    /// # Errors
    /// `Conflict` if another process holds it (not retried inside: the caller waits and says so).
    async fn acquire(&self) -> Result<Lease>;

    /// Settles what an image name stands for.
    ///
    /// Cheap where the registry can be asked without fetching the image: it is called before a
    /// policy decides, so the image's content is not fetched for its sake.
    ///
    /// # Errors
    /// `NotFound` if there is no such image, `Denied` if the registry refuses, `Unavailable` or
    /// `Timeout` if it cannot be reached; with the registry's words.
    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage>;

    /// Fetches a resolved image, so that a later run starts without a pull. Does nothing if the
    /// engine has it. Without [`image_store`](Capabilities::image_store) it only sees that the image
    /// can be fetched.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    async fn prefetch(&self, image: &ResolvedImage) -> Result<()>;

    /// Starts a run, once.
    ///
    /// Returns when the record is made and all input is stored, not when the program runs: what
    /// goes wrong later, a missing image included, is an [`Outcome`](crate::Outcome). Calling it
    /// again is always safe:
    ///
    /// - a run that has started, or that somebody is at work on, with the same
    ///   [`SpecDigest`](crate::SpecDigest): `Adopted`, nothing happens;
    /// - one that is [`Abandoned`](crate::Pending::Abandoned): replaced by this spec, `Created`;
    /// - any other: `Conflict`.
    ///
    /// # Errors
    /// `InvalidSpec`, `Unsupported` (before any I/O), `Conflict`, `Denied`, `Quota`,
    /// `Unavailable`, `Timeout`, `Protocol`.
    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted>;

    /// What is known of one run, from a fresh look.
    ///
    /// # Errors
    /// `NotFound` if there is no record; otherwise as [`ping`](Self::ping).
    async fn status(&self, id: &RunId) -> Result<RunStatus>;

    /// Every run of the owner, whatever its phase. The source of truth after a crash.
    fn list(&self) -> ResultStream<RunStatus>;

    /// All changes of all runs of the owner.
    ///
    /// Begins with a [`Snapshot`](WatchEvent::Snapshot), and gives another after each
    /// reconnection. All streams of one value share one connection to the engine. A retryable
    /// `Err` is followed by more items; any other ends the stream. It never ends otherwise.
    fn watch(&self) -> ResultStream<WatchEvent>;

    /// What a run has printed: whole from the start unless `since` is given; available from
    /// Running until [`cleanup`](Self::cleanup). A run's life never depends on anyone reading it.
    fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk>;

    /// The bytes of one declared output, after the run has finished.
    ///
    /// Errors in the stream: `NotReady` before the end, `NotFound` for an unknown run or output or
    /// one that never came to be, `Quota` if it is larger than its limit, `InvalidSpec` if it is
    /// not what was declared (a link, a device).
    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes>;

    /// Every connection that any run of the owner opens to one of its grants.
    ///
    /// One stream at a time: a later call takes over. While none is read, connections wait in the
    /// run, up to a limit of number and time; they do not fail at once.
    fn connections(&self) -> ResultStream<Connection>;

    /// Asks a run to end: now, and by force after the grace.
    ///
    /// Returns when this is durably noted and the engine has been told. A run that had ended by
    /// itself keeps its outcome. Repeating with a shorter grace shortens it.
    ///
    /// # Errors
    /// `NotFound`; otherwise as [`ping`](Self::ping).
    async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled>;

    /// Removes all that belongs to a run, its record last.
    ///
    /// Goes on past a part that cannot be removed and returns the first error; repeating it
    /// finishes the work. When it returns `Ok`, `status` is `NotFound` and nothing is left.
    ///
    /// # Errors
    /// `NotReady` for an unfinished run unless forced; otherwise as [`ping`](Self::ping).
    async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp>;
}

/// What [`Runtime::run`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accepted {
    /// There is a new run.
    Created,
    /// There was this very run already.
    Adopted,
}

/// What [`Runtime::cancel`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cancelled {
    /// The run has been told to end.
    Requested,
    /// It had ended.
    AlreadyFinished,
}

/// What [`Runtime::cleanup`] did. Both mean that nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CleanedUp {
    /// It was there and is gone.
    Removed,
    /// There was nothing.
    Absent,
}

/// How to cancel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CancelOptions {
    /// The time between the request and the kill; `None` is the spec's.
    pub grace: Option<Duration>,
}

impl CancelOptions {
    /// Sets [`grace`](Self::grace).
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }
}

/// How to clean up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CleanupOptions {
    /// Kill the run first if it has not finished.
    pub force: bool,
}

impl CleanupOptions {
    /// Sets [`force`](Self::force).
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }
}

/// What an engine says of itself, for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct EngineInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Further facts by name, such as kernel and cgroup mode.
    pub facts: std::collections::BTreeMap<String, String>,
}

impl EngineInfo {
    /// Name and version, no facts.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            facts: Default::default(),
        }
    }
}

/// One thing that [`Runtime::examine`] tried.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Observation {
    /// What was tried, in a few words, the same in every examination.
    pub name: String,
    /// Whether it came out as it must.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

impl Observation {
    /// An observation.
    pub fn new(name: impl Into<String>, holds: bool, seen: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            holds,
            seen: seen.into(),
        }
    }
}

macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<R: Runtime + ?Sized> Runtime for $pointer<R> {
            fn kind(&self) -> &'static str {
                (**self).kind()
            }
            fn owner(&self) -> &Owner {
                (**self).owner()
            }
            fn capabilities(&self) -> &Capabilities {
                (**self).capabilities()
            }
            async fn ping(&self) -> Result<EngineInfo> {
                (**self).ping().await
            }
            async fn examine(&self) -> Result<Vec<Observation>> {
                (**self).examine().await
            }
            async fn acquire(&self) -> Result<Lease> {
                (**self).acquire().await
            }
            async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
                (**self).resolve(image, policy).await
            }
            async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
                (**self).prefetch(image).await
            }
            async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
                (**self).run(id, spec).await
            }
            async fn status(&self, id: &RunId) -> Result<RunStatus> {
                (**self).status(id).await
            }
            fn list(&self) -> ResultStream<RunStatus> {
                (**self).list()
            }
            fn watch(&self) -> ResultStream<WatchEvent> {
                (**self).watch()
            }
            fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk> {
                (**self).logs(id, options)
            }
            fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
                (**self).collect(id, output)
            }
            fn connections(&self) -> ResultStream<Connection> {
                (**self).connections()
            }
            async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled> {
                (**self).cancel(id, options).await
            }
            async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
                (**self).cleanup(id, options).await
            }
        }
    };
}
forward!(Arc);
forward!(Box);
