//! What one connected runtime holds in memory. All of it can be lost: the engine is the journal.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{OnceCell, Semaphore};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use v6_runtime::{Capabilities, Owner, Pending, RunId, WatchHub};

use crate::about::About;
use crate::config::DockerConfig;
use crate::container::Traits;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::quirks::Quirks;
use crate::record::{Part, name};

pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) about: About,
    pub(crate) config: DockerConfig,
    pub(crate) capabilities: Capabilities,
    pub(crate) traits: Traits,
    pub(crate) notices: Vec<String>,
    /// The lease's file, by engine and owner.
    pub(crate) lease: std::path::PathBuf,
    pub(crate) hub: WatchHub,
    pub(crate) egress: Egress,
    pub(crate) starts: Semaphore,
    pub(crate) watching: OnceCell<()>,
    /// Ends every task of this runtime.
    pub(crate) closing: CancellationToken,
    runs: Mutex<HashMap<RunId, Live>>,
}

/// What this process is doing about one run.
#[derive(Default)]
struct Live {
    /// Held by whoever changes the run.
    lock: Arc<tokio::sync::Mutex<()>>,
    pending: Option<Pending>,
    removing: bool,
    driver: Option<Driver>,
    stopper: Option<(SystemTime, AbortHandle)>,
    deadline: Option<AbortHandle>,
}

/// The task that brings a run to its start.
struct Driver {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "it is called once")]
    pub(crate) fn new(
        engine: Engine,
        about: About,
        config: DockerConfig,
        capabilities: Capabilities,
        traits: Traits,
        notices: Vec<String>,
        lease: std::path::PathBuf,
        egress: Egress,
    ) -> Self {
        let starts = usize::try_from(config.concurrent_starts.get()).unwrap_or(1);
        Self {
            engine,
            about,
            config,
            capabilities,
            traits,
            notices,
            lease,
            hub: WatchHub::new(),
            egress,
            starts: Semaphore::new(starts),
            watching: OnceCell::new(),
            closing: CancellationToken::new(),
            runs: Mutex::default(),
        }
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.config.owner
    }

    /// What the engine does otherwise than Docker.
    pub(crate) fn quirks(&self) -> &Quirks {
        &self.traits.quirks
    }

    pub(crate) fn name(&self, id: &RunId, part: Part) -> String {
        name(self.owner(), id, part)
    }

    /// Starts a task that ends with this runtime.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let closing = self.closing.clone();
        let task = tokio::spawn(async move {
            closing.run_until_cancelled(task).await;
        });
        task.abort_handle()
    }

    /// Waits for the right to change a run; no two callers in this process have it at once.
    pub(crate) async fn lock(&self, id: &RunId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = self.live().entry(id.clone()).or_default().lock.clone();
        lock.lock_owned().await
    }

    /// What this process is doing about the start of a run.
    pub(crate) fn pending(&self, id: &RunId) -> Option<Pending> {
        self.live().get(id).and_then(|live| live.pending)
    }

    pub(crate) fn set_pending(&self, id: &RunId, pending: Option<Pending>) {
        self.live().entry(id.clone()).or_default().pending = pending;
    }

    /// Whether this process is removing the run.
    pub(crate) fn is_removing(&self, id: &RunId) -> bool {
        self.live().get(id).is_some_and(|live| live.removing)
    }

    pub(crate) fn set_removing(&self, id: &RunId, removing: bool) {
        self.live().entry(id.clone()).or_default().removing = removing;
    }

    /// Starts the task that brings a run to its start. It looks at its token between calls, so that
    /// no call of it is on its way to the engine once it has ended.
    pub(crate) fn set_driver<F>(&self, id: &RunId, drive: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.closing.child_token();
        let task = tokio::spawn(drive(stop.clone()));
        self.live().entry(id.clone()).or_default().driver = Some(Driver { stop, task });
    }

    /// Gives up on starting a run, and waits until nothing is under way for it.
    pub(crate) async fn stop_driver(&self, id: &RunId) {
        let driver = self.live().get_mut(id).and_then(|live| live.driver.take());
        if let Some(Driver { stop, task }) = driver {
            stop.cancel();
            if let Err(error) = task.await {
                tracing::error!(run = %id, %error, "the start of a run broke");
            }
        }
        if let Some(live) = self.live().get_mut(id) {
            live.pending = None;
        }
    }

    /// Keeps the task that kills a run at `at`, made by `task`, unless one does so earlier.
    pub(crate) fn set_stopper(
        &self,
        id: &RunId,
        at: SystemTime,
        task: impl FnOnce() -> AbortHandle,
    ) {
        let mut runs = self.live();
        let live = runs.entry(id.clone()).or_default();
        if let Some((earlier, task)) = &live.stopper
            && *earlier <= at
            && !task.is_finished()
        {
            return;
        }
        if let Some((_, old)) = live.stopper.replace((at, task())) {
            old.abort();
        }
    }

    /// Keeps the task that watches over a run's deadline, made by `task`, unless there is one.
    pub(crate) fn set_deadline(&self, id: &RunId, task: impl FnOnce() -> AbortHandle) {
        let mut runs = self.live();
        let live = runs.entry(id.clone()).or_default();
        if live.deadline.as_ref().is_none_or(AbortHandle::is_finished) {
            live.deadline = Some(task());
        }
    }

    /// Ends what this process was doing about a run that is over.
    pub(crate) fn settle(&self, id: &RunId) {
        if let Some(live) = self.live().get_mut(id) {
            live.pending = None;
            let stopper = live.stopper.take().map(|(_, task)| task);
            for task in stopper.into_iter().chain(live.deadline.take()) {
                task.abort();
            }
        }
    }

    /// Forgets a run, unless somebody waits for the right to change it.
    pub(crate) fn forget(&self, id: &RunId) {
        self.settle(id);
        let mut runs = self.live();
        // One count is the map's, one the caller's.
        if runs
            .get(id)
            .is_some_and(|live| Arc::strong_count(&live.lock) <= 2)
        {
            runs.remove(id);
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<RunId, Live>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
