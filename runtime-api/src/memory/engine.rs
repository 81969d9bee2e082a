//! The state that outlives every runtime value: images, records, programs that run.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::files::Tree;
use super::images::{Images, MemoryImage, RegistryFault};
use super::program::{ExitStatus, ProgramContext};
use super::record::Run;
use super::runtime::MemoryRuntime;
use super::way::{Way, away};
use crate::{
    Capabilities, Connection, Error, ErrorKind, Floor, ImageRef, LogFeatures, MountKinds, Outcome,
    OutcomeKinds, OutputKinds, Owner, ResolvedImage, ResourceKinds, Result, RunId, RunPhase,
    RunStatus, StopCause, WatchHub,
};

/// How many connections of an owner wait for a reader, and for how long.
pub(super) const CONNECTIONS_MAX: usize = 128;
pub(super) const CONNECTION_WAIT: Duration = Duration::from_secs(60);
const LOG_LIMIT: u64 = 64 << 20;

pub(super) type Key = (Owner, RunId);

/// What a run's program is told from outside.
#[derive(Debug, Clone, Default)]
pub(super) struct Control {
    /// It is asked to end.
    pub stop: Option<StopCause>,
    /// When it is killed.
    pub kill_at: Option<Instant>,
    /// It is over at once, and this is how.
    pub over: Option<Outcome>,
}

/// An engine in memory: what a daemon, a cluster or a batch system is to other runtimes.
///
/// It keeps records and lets programs run, whether or not a [`MemoryRuntime`] exists. Two values
/// from [`runtime`](Self::runtime) with the same owner are what two processes one after the other
/// are: the second finds all that the first has left. Cheap to clone; clones share one state.
#[derive(Clone)]
pub struct MemoryEngine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    pulls_held: watch::Sender<usize>,
    /// The same moment on both clocks.
    begun: (SystemTime, Instant),
}

pub(super) struct State {
    pub images: Images,
    pub runs: BTreeMap<Key, Run>,
    pub volumes: HashMap<String, Tree>,
    pub leases: HashMap<Owner, watch::Sender<Option<String>>>,
    pub capabilities: Capabilities,
    pub log_limit: u64,
    /// Names that are taken by what is nobody's.
    strangers: BTreeSet<Key>,
    pub ways: HashMap<Owner, Way>,
    /// Whether the engine is away for everybody.
    pub away: bool,
    connections: HashMap<Owner, Queue>,
    pub values: BTreeMap<u64, Value>,
    last_value: u64,
    last_attempt: u64,
    last_created: Option<SystemTime>,
}

/// One runtime value's watch.
pub(super) struct Value {
    pub owner: Owner,
    hub: WatchHub,
    connected: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Instant, Connection)>,
    reader: u64,
    changed: watch::Sender<()>,
}

impl MemoryEngine {
    /// An engine without images and runs, which can do all that can be done in memory.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            images: Images::default(),
            runs: BTreeMap::new(),
            volumes: HashMap::new(),
            leases: HashMap::new(),
            capabilities: Self::all_capabilities(),
            log_limit: LOG_LIMIT,
            strangers: BTreeSet::new(),
            ways: HashMap::new(),
            away: false,
            connections: HashMap::new(),
            values: BTreeMap::new(),
            last_value: 0,
            last_attempt: 0,
            last_created: None,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            pulls_held: watch::Sender::new(0),
            begun: (SystemTime::now(), Instant::now()),
        }))
    }

    /// What it can do unless told otherwise: everything but limiting processor time,
    /// accelerators, and those parts of the floor that need a kernel.
    #[must_use]
    pub fn all_capabilities() -> Capabilities {
        Capabilities {
            mounts: MountKinds::all(),
            outputs: OutputKinds::all(),
            resources: ResourceKinds {
                cpu: false,
                gpu: false,
                ..ResourceKinds::all()
            },
            logs: LogFeatures::all(),
            outcomes: OutcomeKinds::all(),
            floor: Floor {
                read_only_root: true,
                no_network: true,
                only_loopback: true,
                private: true,
                ..Floor::default()
            },
            egress: true,
            deadline: true,
            grace: true,
            init: true,
            trust: true,
            supplementary_groups: true,
            pull: true,
            image_store: true,
            usage: false,
        }
    }

    /// Restricts what runtime values made from now on can do.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.state().capabilities = capabilities;
    }

    /// How much is kept of what one run prints, in bytes, for runs made from now on; 64 MiB.
    /// Older output is dropped.
    pub fn set_log_limit(&self, bytes: u64) {
        self.state().log_limit = bytes;
    }

    /// Puts an image into the registry that starts this program. Under a name that is taken, the
    /// name moves and the old content stays, as at a real registry.
    ///
    /// # Errors
    /// `InvalidSpec` if the name is not an image's.
    pub fn add_image<F, Fut>(&self, name: &str, program: F) -> Result<ResolvedImage>
    where
        F: Fn(ProgramContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ExitStatus> + Send + 'static,
    {
        self.add(name, MemoryImage::new(program))
    }

    /// The same with an image that has more than one program.
    ///
    /// # Errors
    /// As [`add_image`](Self::add_image).
    pub fn add(&self, name: &str, image: MemoryImage) -> Result<ResolvedImage> {
        let reference = ImageRef::parse(name)?;
        Ok(self.state().images.add(&reference, image))
    }

    /// The same, and the engine has the image already.
    ///
    /// # Errors
    /// As [`add_image`](Self::add_image).
    pub fn load(&self, name: &str, image: MemoryImage) -> Result<ResolvedImage> {
        let reference = ImageRef::parse(name)?;
        Ok(self.state().images.load(&reference, image))
    }

    /// Lets the registry answer so when this image is asked for or fetched; `None` mends it. What
    /// the engine has already can be run all the same.
    ///
    /// # Errors
    /// As [`add_image`](Self::add_image).
    pub fn set_registry_fault(&self, name: &str, fault: Option<RegistryFault>) -> Result<()> {
        let reference = ImageRef::parse(name)?;
        self.state().images.set_fault(reference, fault);
        Ok(())
    }

    /// No image arrives while the result is held: runs of images that the engine does not have
    /// stay in [`PullingImage`](crate::Pending::PullingImage).
    pub fn hold_pulls(&self) -> PullHold {
        self.0.pulls_held.send_modify(|held| *held += 1);
        PullHold(self.clone())
    }

    pub(super) fn pulls_held(&self) -> watch::Receiver<usize> {
        self.0.pulls_held.subscribe()
    }

    /// Makes a named volume, or adds a file to it. `path` is below the volume's root.
    pub fn add_volume_file(&self, volume: &str, path: &str, content: impl Into<Vec<u8>>) {
        let mut state = self.state();
        let tree = state
            .volumes
            .entry(volume.to_owned())
            .or_insert_with(Tree::folder);
        tree.place(path.trim_start_matches('/'), content.into());
    }

    /// Removes a named volume. Runs that have it mounted keep it.
    pub fn remove_volume(&self, volume: &str) {
        self.state().volumes.remove(volume);
    }

    /// Makes something that is no run of this owner's under the name of one: `run` is then
    /// `Conflict`, and nothing else sees it.
    pub fn plant(&self, owner: &Owner, id: &RunId) {
        self.state().strangers.insert((owner.clone(), id.clone()));
    }

    /// Whether what [`plant`](Self::plant) made is there.
    #[must_use]
    pub fn has_planted(&self, owner: &Owner, id: &RunId) -> bool {
        let key = (owner.clone(), id.clone());
        self.state().is_taken(&key)
    }

    /// Removes it.
    pub fn uproot(&self, owner: &Owner, id: &RunId) {
        let key = (owner.clone(), id.clone());
        self.state().strangers.remove(&key);
    }

    /// Connects to the engine, as this owner.
    #[must_use]
    pub fn runtime(&self, owner: Owner) -> MemoryRuntime {
        let hub = WatchHub::new();
        let mut state = self.state();
        state.last_value += 1;
        let id = state.last_value;
        state.values.insert(
            id,
            Value {
                owner: owner.clone(),
                hub: hub.clone(),
                connected: false,
            },
        );
        state.connect(id);
        MemoryRuntime::new(self.clone(), id, owner, hub, state.capabilities.clone())
    }

    /// Ends what there is without warning, as a restart of an engine that carries programs in its
    /// own process does: every program, as [`Lost`](Outcome::Lost), and every watch, which comes
    /// back. Records stay.
    pub fn restart(&self) {
        let mut state = self.state();
        for run in state.runs.values_mut() {
            if (1..3).contains(&run.status.phase.rank()) {
                let over = Outcome::Lost("the engine was restarted".into());
                run.control.send_modify(|control| control.over = Some(over));
            }
        }
        drop(state);
        self.cut_watches();
    }

    /// Ends a run from outside, as an engine does for reasons of its own:
    /// [`Evicted`](Outcome::Evicted), [`NodeLost`](Outcome::NodeLost), [`Lost`](Outcome::Lost).
    /// Says whether there was such a run and it had not finished.
    pub fn end_run(&self, owner: &Owner, id: &RunId, outcome: Outcome) -> bool {
        let key = (owner.clone(), id.clone());
        let mut state = self.state();
        let Some(run) = state.runs.get_mut(&key) else {
            return false;
        };
        if run.status.phase.is_finished() {
            return false;
        }
        run.control
            .send_modify(|control| control.over = Some(outcome.clone()));
        if run.status.phase.rank() == 0 {
            state.finish(&key, outcome, self.now());
        }
        true
    }

    /// Takes an owner's lease away from whoever holds it.
    pub fn break_lease(&self, owner: &Owner, why: impl Into<String>) {
        if let Some(lease) = self.state().leases.remove(owner) {
            lease.send_replace(Some(why.into()));
        }
    }

    /// All that there is of an owner, in words; for a look past the runtime.
    #[must_use]
    pub fn inventory(&self, owner: &Owner) -> Vec<String> {
        let state = self.state();
        let runs = state.runs.iter().filter(|(key, _)| key.0 == *owner);
        let waiting = state.connections.get(owner).into_iter();
        runs.map(|(key, run)| format!("the record of run {}: {:?}", key.1, run.status))
            .chain(waiting.flat_map(|queue| {
                let of = |(_, c): &(Instant, Connection)| format!("a connection of run {}", c.run);
                queue.waiting.iter().map(of).collect::<Vec<_>>()
            }))
            .collect()
    }

    /// What there is to know of a run, looked up past the runtime: it is no call, whatever
    /// disturbs those.
    #[must_use]
    pub fn look(&self, owner: &Owner, id: &RunId) -> Option<RunStatus> {
        let key = (owner.clone(), id.clone());
        self.state().runs.get(&key).map(|run| run.status.clone())
    }

    /// The engine's clock. It stands still and leaps with Tokio's, see `tokio::time::pause`.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.0.begun.0 + self.0.begun.1.elapsed()
    }

    /// The moment of Tokio's clock at which the engine's shows this time.
    pub(super) fn instant(&self, time: SystemTime) -> Instant {
        let now = Instant::now();
        match time.duration_since(self.now()) {
            // Further away than the clock can show is never.
            Ok(left) => now
                .checked_add(left)
                .unwrap_or_else(|| now + Duration::from_secs(u64::from(u32::MAX))),
            Err(_) => now,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// `Unavailable` while the engine is away.
    pub(super) fn reachable(
        &self,
        owner: &Owner,
        operation: &'static str,
    ) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        match state.is_away_from(owner) {
            true => Err(away().with_operation(operation)),
            false => Ok(state),
        }
    }

    /// Acts on a run if it is this attempt still.
    pub(super) fn with_run<T>(
        &self,
        key: &Key,
        attempt: u64,
        act: impl FnOnce(&mut Run) -> T,
    ) -> Option<T> {
        self.state().attempt(key, attempt).map(act)
    }

    /// Hands a connection to whoever reads them.
    pub(super) fn offer(&self, key: &Key, connection: Connection) -> io::Result<()> {
        let mut state = self.state();
        let queue = state.connections.entry(key.0.clone()).or_default();
        if queue.waiting.len() >= CONNECTIONS_MAX {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        queue.waiting.push_back((Instant::now(), connection));
        queue.changed.send_replace(());
        drop(state);
        let (engine, owner) = (self.clone(), key.0.clone());
        tokio::spawn(async move {
            tokio::time::sleep(CONNECTION_WAIT).await;
            if let Some(queue) = engine.state().connections.get_mut(&owner) {
                queue
                    .waiting
                    .retain(|(since, _)| since.elapsed() < CONNECTION_WAIT);
            }
        });
        Ok(())
    }

    /// Begins to read an owner's connections, instead of whoever did.
    pub(super) fn begin_reading(&self, owner: &Owner) -> u64 {
        let mut state = self.state();
        let queue = state.connections.entry(owner.clone()).or_default();
        queue.reader += 1;
        queue.changed.send_replace(());
        queue.reader
    }

    /// The next connection; `None` once somebody else reads.
    pub(super) async fn next_connection(&self, owner: &Owner, reader: u64) -> Option<Connection> {
        loop {
            let mut changed = {
                let mut state = self.state();
                let queue = state.connections.entry(owner.clone()).or_default();
                if queue.reader != reader {
                    return None;
                }
                if let Some((_, connection)) = queue.waiting.pop_front() {
                    return Some(connection);
                }
                queue.changed.subscribe()
            };
            changed.changed().await.ok()?;
        }
    }

    pub(super) fn disconnect_value(&self, value: u64) {
        let mut state = self.state();
        state.values.remove(&value);
        let left: Vec<Key> = state
            .runs
            .iter()
            .filter(|(_, run)| run.at_work == Some(value))
            .map(|(key, _)| key.clone())
            .collect();
        for key in left {
            state.abandon(&key);
        }
    }
}

impl State {
    /// Whether a name is taken by what is nobody's.
    pub(super) fn is_taken(&self, key: &Key) -> bool {
        self.strangers.contains(key)
    }

    pub(super) fn attempt(&mut self, key: &Key, attempt: u64) -> Option<&mut Run> {
        self.runs.get_mut(key).filter(|run| run.attempt == attempt)
    }

    pub(super) fn next_attempt(&mut self, now: SystemTime) -> (u64, SystemTime) {
        self.last_attempt += 1;
        // Two attempts are told apart by it.
        let created = match self.last_created {
            Some(last) if last >= now => last + Duration::from_nanos(1),
            _ => now,
        };
        self.last_created = Some(created);
        (self.last_attempt, created)
    }

    pub(super) fn enter(&mut self, key: &Key, phase: RunPhase) {
        let Some(run) = self.runs.get_mut(key) else {
            return;
        };
        run.status.phase = phase;
        run.changed.send_replace(());
        self.publish(key);
    }

    pub(super) fn abandon(&mut self, key: &Key) {
        if let Some(run) = self.runs.get_mut(key)
            && run.status.phase.rank() == 0
        {
            run.at_work = None;
            self.enter(key, RunPhase::Pending(crate::Pending::Abandoned));
        }
    }

    pub(super) fn finish(&mut self, key: &Key, outcome: Outcome, now: SystemTime) {
        let Some(run) = self.runs.get_mut(key) else {
            return;
        };
        if run.status.phase.is_finished() {
            return;
        }
        run.at_work = None;
        run.status.finished = Some(now);
        run.status.usage.peak_memory_bytes = Some(run.peak).filter(|peak| *peak > 0);
        if let Some(queue) = self.connections.get_mut(&key.0) {
            queue.waiting.retain(|(_, waiting)| waiting.run != key.1);
        }
        self.enter(key, RunPhase::Finished(outcome));
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(run) = self.runs.remove(key) {
            run.changed.send_replace(());
            for value in self.connected(&key.0) {
                value.hub.remove(&key.1);
            }
        }
    }

    pub(super) fn listing(&self, owner: &Owner) -> Vec<RunStatus> {
        let of_owner = self.runs.iter().filter(|(key, _)| key.0 == *owner);
        of_owner.map(|(_, run)| run.status.clone()).collect()
    }

    pub(super) fn publish(&self, key: &Key) {
        if let Some(run) = self.runs.get(key) {
            for value in self.connected(&key.0) {
                value.hub.update(run.status.clone());
            }
        }
    }

    fn connected(&self, owner: &Owner) -> impl Iterator<Item = &Value> {
        self.values
            .values()
            .filter(move |value| value.connected && value.owner == *owner)
    }

    /// Lets a value's watch follow the engine, unless that is away.
    pub(super) fn connect(&mut self, value: u64) {
        let Some(owner) = self.values.get(&value).map(|value| value.owner.clone()) else {
            return;
        };
        if self.is_away_from(&owner) {
            return;
        }
        let listing = self.listing(&owner);
        if let Some(value) = self.values.get_mut(&value) {
            value.connected = true;
            let start = value.hub.begin_listing();
            value.hub.reset(start, listing);
        }
    }

    pub(super) fn disconnect(&mut self, value: u64, why: Option<&str>) {
        if let Some(value) = self.values.get_mut(&value) {
            value.connected = false;
            if let Some(why) = why {
                value.hub.failed(&Error::new(ErrorKind::Unavailable, why));
            }
        }
    }
}

/// Keeps images from arriving, see [`MemoryEngine::hold_pulls`].
#[derive(Debug)]
#[must_use = "images arrive again when this is dropped"]
pub struct PullHold(MemoryEngine);

impl Drop for PullHold {
    fn drop(&mut self) {
        self.0.0.pulls_held.send_modify(|held| *held -= 1);
    }
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryEngine")
            .field("runs", &self.state().runs.len())
            .finish_non_exhaustive()
    }
}
