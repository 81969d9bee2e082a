//! What one connected runtime holds in memory. All of it can be lost: the cluster is the journal.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use v6_runtime::{Capabilities, Owner, RunId, WatchHub};

use crate::api::Cluster;
use crate::canary::Canary;
use crate::config::KubernetesConfig;
use crate::egress::Egress;
use crate::record;
use crate::registry::Registry;
use crate::tunnel::Tunnels;

pub(crate) struct Shared {
    pub(crate) cluster: Cluster,
    pub(crate) config: KubernetesConfig,
    pub(crate) capabilities: Capabilities,
    pub(crate) notices: Vec<String>,
    pub(crate) registry: Registry,
    pub(crate) hub: WatchHub,
    pub(crate) egress: Egress,
    pub(crate) tunnels: Tunnels,
    pub(crate) canary: Canary,
    pub(crate) watching: OnceCell<()>,
    /// This value's name, where others read who is at work.
    pub(crate) holder: String,
    /// Ends every task of this runtime.
    pub(crate) closing: CancellationToken,
    runs: Mutex<HashMap<RunId, Live>>,
}

/// What this process is doing about one run.
#[derive(Default)]
struct Live {
    /// Held by whoever changes the run.
    lock: Arc<tokio::sync::Mutex<()>>,
    /// It is bringing the run's input.
    driven: bool,
    tasks: HashMap<Care, AbortHandle>,
}

/// What is being waited for on behalf of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Care {
    /// Its deadline.
    Deadline,
    /// That what stands in its way goes.
    Patience,
    /// That it ends, after it was told to.
    Stop,
    /// That the helper lets it go.
    Release,
    /// A word of whoever brings its input.
    Driver,
    /// That its outputs are fetched.
    Booking,
    /// That what is left of it goes.
    Removal,
}

impl Shared {
    pub(crate) fn new(
        cluster: Cluster,
        config: KubernetesConfig,
        capabilities: Capabilities,
        notices: Vec<String>,
        registry: Registry,
    ) -> Self {
        Self {
            cluster,
            config,
            capabilities,
            notices,
            registry,
            hub: WatchHub::new(),
            egress: Egress::default(),
            tunnels: Tunnels::default(),
            canary: Canary::default(),
            watching: OnceCell::new(),
            holder: format!("{:032x}", rand::random::<u128>()),
            closing: CancellationToken::new(),
            runs: Mutex::default(),
        }
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.config.owner
    }

    pub(crate) fn name(&self, id: &RunId) -> String {
        record::name(self.owner(), id)
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

    /// Whether this process is bringing the input of a run.
    pub(crate) fn is_driven(&self, id: &RunId) -> bool {
        self.live().get(id).is_some_and(|live| live.driven)
    }

    pub(crate) fn set_driven(&self, id: &RunId, driven: bool) {
        self.live().entry(id.clone()).or_default().driven = driven;
    }

    /// Keeps the task that `task` makes, unless there is one of its kind at work.
    pub(crate) fn care(&self, id: &RunId, kind: Care, task: impl FnOnce() -> AbortHandle) {
        let mut runs = self.live();
        let tasks = &mut runs.entry(id.clone()).or_default().tasks;
        if tasks.get(&kind).is_none_or(AbortHandle::is_finished) {
            tasks.insert(kind, task());
        }
    }

    /// Ends one kind of care.
    pub(crate) fn leave(&self, id: &RunId, kind: Care) {
        let task = self
            .live()
            .get_mut(id)
            .and_then(|live| live.tasks.remove(&kind));
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Ends what this process was doing about a run that is over, but for what begins then.
    pub(crate) fn settle(&self, id: &RunId) {
        if let Some(live) = self.live().get_mut(id) {
            live.tasks.retain(|kind, task| {
                let stays = matches!(kind, Care::Removal | Care::Booking);
                if !stays {
                    task.abort();
                }
                stays
            });
        }
    }

    /// Forgets a run, unless somebody waits for the right to change it.
    pub(crate) fn forget(&self, id: &RunId) {
        self.settle(id);
        self.leave(id, Care::Booking);
        self.egress.close(id);
        self.tunnels.close(id);
        let mut runs = self.live();
        // One count is the map's, one the caller's.
        if runs
            .get(id)
            .is_some_and(|live| Arc::strong_count(&live.lock) <= 2 && live.tasks.is_empty())
        {
            runs.remove(id);
        }
    }

    /// The runs for which something is kept here.
    pub(crate) fn cared_for(&self) -> HashSet<RunId> {
        self.live().keys().cloned().collect()
    }

    fn live(&self) -> MutexGuard<'_, HashMap<RunId, Live>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
