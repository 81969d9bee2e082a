//! The runtime with a fault: every call goes to the in-memory runtime, by way of the module for
//! its subject, which knows what each seed does to it.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use v6_runtime::{
    Accepted, CancelOptions, Cancelled, Capabilities, CleanedUp, CleanupOptions, Connection,
    EngineInfo, ImageRef, Lease, LogChunk, LogOptions, Observation, OutputName, Owner, PullPolicy,
    ResolvedImage, Result, ResultStream, RunId, RunSpec, RunStatus, Runtime, WatchEvent,
};

use super::world::{Key, World};
use super::{
    Seed, connecting, ending, files, images, logs, looking, removing, starting, surroundings,
    watching,
};

/// A value of the in-memory runtime, and what is wrong with it. Clones are one value.
#[derive(Clone)]
pub(super) struct Seeded {
    pub inner: Arc<dyn Runtime>,
    /// `None`: nothing is wrong.
    pub seed: Option<Seed>,
    pub world: Arc<World>,
    own: Arc<Mutex<Own>>,
    /// The value's only line to the engine.
    pub line: Arc<Semaphore>,
}

/// What one value knows and another of the same owner does not: what a process has in memory.
#[derive(Default)]
pub(super) struct Own {
    /// Runs that it started.
    pub started: HashSet<RunId>,
    /// Runs that it cancelled.
    pub cancelled: HashSet<RunId>,
    /// How often somebody opened a watch.
    pub watches: usize,
    /// What ends with it.
    pub tasks: JoinSet<()>,
}

impl Seeded {
    pub(super) fn new(inner: Arc<dyn Runtime>, seed: Option<Seed>, world: Arc<World>) -> Self {
        world.notes().owners.push(inner.owner().clone());
        Self {
            inner,
            seed,
            world,
            own: Arc::default(),
            line: Arc::new(Semaphore::new(1)),
        }
    }

    pub(super) fn has(&self, seed: Seed) -> bool {
        self.seed == Some(seed)
    }

    pub(super) fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key(&self, id: &RunId) -> Key {
        (self.inner.owner().clone(), id.clone())
    }

    /// The engine's own word on a run; no call that anybody counts.
    pub(super) fn truth(&self, id: &RunId) -> Option<RunStatus> {
        self.world.engine.look(self.inner.owner(), id)
    }

    /// The engine as each other owner sees it.
    pub(super) fn others(&self) -> Vec<Arc<dyn Runtime>> {
        let mut owners = self.world.notes().owners.clone();
        owners.sort();
        owners.dedup();
        owners.retain(|owner| owner != self.inner.owner());
        owners
            .into_iter()
            .map(|owner| Arc::new(self.world.engine.runtime(owner)) as Arc<dyn Runtime>)
            .collect()
    }
}

impl fmt::Debug for Seeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Seeded");
        shown.field("inner", &self.inner).field("seed", &self.seed);
        if self.has(Seed::SecretInDebug) {
            shown.field("secrets", &surroundings::secrets(self));
        }
        shown.finish_non_exhaustive()
    }
}

impl fmt::Display for Seeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Runtime for Seeded {
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
        surroundings::examine(self).await
    }

    async fn acquire(&self) -> Result<Lease> {
        surroundings::acquire(self).await
    }

    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
        images::resolve(self, image, policy).await
    }

    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        images::prefetch(self, image).await
    }

    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        starting::run(self, id, spec).await
    }

    async fn status(&self, id: &RunId) -> Result<RunStatus> {
        looking::status(self, id).await
    }

    fn list(&self) -> ResultStream<RunStatus> {
        looking::list(self)
    }

    fn watch(&self) -> ResultStream<WatchEvent> {
        watching::watch(self)
    }

    fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk> {
        logs::logs(self, id, options)
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        files::collect(self, id, output)
    }

    fn connections(&self) -> ResultStream<Connection> {
        connecting::connections(self)
    }

    async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled> {
        ending::cancel(self, id, options).await
    }

    async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
        removing::cleanup(self, id, options).await
    }
}
