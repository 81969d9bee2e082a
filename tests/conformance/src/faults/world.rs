//! What the values of a seeded runtime and its programs share, as an engine would.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinHandle;
use tokio::time::Instant;
use v6_runtime::memory::MemoryEngine;
use v6_runtime::{LogPosition, Outcome, OutputName, Owner, RunId, RunSpec, SpecDigest};

/// Whose run.
pub(super) type Key = (Owner, RunId);

/// The engine, and what faults have to remember beside it.
pub(super) struct World {
    pub engine: MemoryEngine,
    notes: Mutex<Notes>,
}

/// A spec as the caller gave it.
#[derive(Clone)]
pub(super) struct Asked {
    pub spec: Arc<RunSpec>,
    /// Of that spec; every look at the run needs it.
    pub digest: SpecDigest,
}

impl Asked {
    pub(super) fn new(spec: &RunSpec) -> Self {
        Self {
            spec: Arc::new(spec.clone()),
            digest: SpecDigest::of(spec),
        }
    }
}

#[derive(Default)]
pub(super) struct Notes {
    /// What each run was asked for; the engine may have got another spec.
    pub asked: HashMap<Key, Asked>,
    /// Every owner that has connected.
    pub owners: Vec<Owner>,
    /// What a fault leaves behind at the engine.
    pub left_behind: Vec<(Owner, String)>,
    /// Runs that no caller asked for, by the one that somebody asked for.
    pub doubles: HashMap<Key, RunId>,
    /// Runs that a call of `run` is at work on.
    pub starting: HashSet<Key>,
    /// Images that were not there when a run asked for them first.
    pub fetching: HashSet<String>,
    /// Runs that are being cleaned up.
    pub going: HashSet<Key>,
    /// How runs that were cleaned up had ended.
    pub ended: HashMap<Key, Outcome>,
    /// Runs that were told to end already.
    pub cancelled: HashMap<Key, Instant>,
    /// Runs that a call of `cancel` is at work on.
    pub cancelling: HashSet<Key>,
    /// When runs are killed that were told to end.
    pub kills: HashMap<Key, JoinHandle<()>>,
    /// Outputs that were collected.
    pub collected: HashSet<(Key, OutputName)>,
    /// Runs whose deadline a caller's process has kept.
    pub late: HashSet<Key>,
    /// Whether somebody reads connections.
    pub connections_read: bool,
    /// How far logs of running programs have been read.
    pub read: HashMap<Key, LogPosition>,
    /// How many readers follow a log and have not read all of it.
    pub readers: usize,
    /// What programs have written, by path.
    pub written: BTreeMap<String, usize>,
}

impl World {
    pub(super) fn new(engine: MemoryEngine) -> Self {
        Self {
            engine,
            notes: Mutex::default(),
        }
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.engine.fmt(f)
    }
}
