//! What one connected runtime holds in memory. All of it can be lost: the folders are the journal.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use v6_runtime::{Capabilities, Owner, Pending, RunId, WatchHub};

use crate::cgroup::Groups;
use crate::config::SingularityConfig;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::image::Images;
use crate::logs::LogNews;
use crate::record::Runs;
use crate::slurm::Slurm;

pub(crate) struct Shared {
    pub(crate) config: SingularityConfig,
    pub(crate) engine: Engine,
    pub(crate) images: Images,
    pub(crate) runs: Runs,
    /// What limits runs on this machine, if anything does.
    pub(crate) groups: Option<Groups>,
    /// What starts runs, if not this process.
    pub(crate) slurm: Option<Arc<Slurm>>,
    /// Our own program, as a file.
    pub(crate) helper: PathBuf,
    /// The system calls that runs have.
    pub(crate) seccomp: PathBuf,
    pub(crate) capabilities: Capabilities,
    pub(crate) notices: Vec<String>,
    pub(crate) hub: WatchHub,
    pub(crate) egress: Egress,
    pub(crate) log_news: LogNews,
    pub(crate) starts: Semaphore,
    pub(crate) watching: OnceCell<()>,
    /// Whether connections of jobs are answered.
    pub(crate) answering: OnceCell<()>,
    /// Ends every task of this runtime.
    pub(crate) closing: CancellationToken,
    live: Mutex<HashMap<RunId, Live>>,
}

/// What this process is doing about one run.
#[derive(Default)]
struct Live {
    /// Held by whoever changes the run.
    lock: Arc<tokio::sync::Mutex<()>>,
    pending: Option<Pending>,
    driver: Option<Driver>,
}

/// The task that brings a run to its start.
struct Driver {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What is settled while connecting.
pub(crate) struct Settled {
    pub(crate) config: SingularityConfig,
    pub(crate) engine: Engine,
    pub(crate) images: Images,
    pub(crate) runs: Runs,
    pub(crate) groups: Option<Groups>,
    pub(crate) slurm: Option<Arc<Slurm>>,
    pub(crate) helper: PathBuf,
    pub(crate) seccomp: PathBuf,
    pub(crate) capabilities: Capabilities,
    pub(crate) notices: Vec<String>,
}

impl Shared {
    pub(crate) fn new(settled: Settled) -> Self {
        let Settled {
            config,
            engine,
            images,
            runs,
            groups,
            slurm,
            helper,
            seccomp,
            capabilities,
            notices,
        } = settled;
        let starts = usize::try_from(config.concurrent_starts.get()).unwrap_or(1);
        Self {
            egress: Egress::new(runs.clone()),
            config,
            engine,
            images,
            runs,
            groups,
            slurm,
            helper,
            seccomp,
            capabilities,
            notices,
            hub: WatchHub::new(),
            log_news: LogNews::default(),
            starts: Semaphore::new(starts),
            watching: OnceCell::new(),
            answering: OnceCell::new(),
            closing: CancellationToken::new(),
            live: Mutex::default(),
        }
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.config.owner
    }

    /// Starts a task that ends with this runtime.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        tokio::spawn(async move {
            closing.run_until_cancelled(task).await;
        });
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

    /// Starts the task that brings a run to its start.
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

    /// Forgets a run that is gone.
    pub(crate) fn forget(&self, id: &RunId) {
        let mut all = self.live();
        // Somebody who waits for the lock has it still.
        if all
            .get(id)
            .is_some_and(|live| Arc::strong_count(&live.lock) <= 2)
        {
            all.remove(id);
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<RunId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
