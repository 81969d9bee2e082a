//! Waiting for many runs through one watch.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, ErrorKind, Result, RunId, RunStatus, Runtime, WatchEvent};

type Known = HashMap<RunId, RunStatus>;

/// Waits for any number of runs through one [`Runtime::watch`], so that the cost of an event does
/// not grow with the number of waiters. Cheap to clone; the watch ends with the last clone.
#[derive(Clone)]
pub struct Tracker(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    _follow: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    synced: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    runs: Known,
    waiting: HashMap<RunId, Vec<Waiter>>,
}

struct Waiter {
    until: Box<dyn Fn(&RunStatus) -> bool + Send>,
    tell: oneshot::Sender<Result<RunStatus, ErrorKind>>,
}

impl Tracker {
    /// Starts following a runtime. Needs a Tokio runtime.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        let shared = Arc::new(Shared::default());
        let follow = tokio::spawn(follow(runtime, shared.clone()));
        Self(Arc::new(Inner {
            shared,
            _follow: AbortOnDropHandle::new(follow),
        }))
    }

    /// Waits until a run has finished. Call it after `run` has returned.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` if there is no such run, or it was cleaned up meanwhile; `Protocol` if the watch
    /// ended for good.
    pub async fn wait(&self, id: &RunId) -> Result<RunStatus> {
        self.wait_until(id, |run| run.phase.is_finished()).await
    }

    /// Waits until `until` holds for the state of a run. A run may skip phases: ask for "at least
    /// running" by [`rank`](crate::RunPhase::rank), not for one phase.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub async fn wait_until(
        &self,
        id: &RunId,
        until: impl Fn(&RunStatus) -> bool + Send + 'static,
    ) -> Result<RunStatus> {
        let mut synced = self.0.shared.synced.subscribe();
        let ended = || Error::new(ErrorKind::Protocol, "the watch ended").with_run(id);
        synced
            .wait_for(|synced| *synced)
            .await
            .map_err(|_| ended())?;
        let waiting = {
            let mut state = self.0.shared.state();
            if let Some(known) = state.runs.get(id).filter(|run| until(run)) {
                return Ok(known.clone());
            }
            let (tell, waiting) = oneshot::channel();
            let waiters = state.waiting.entry(id.clone()).or_default();
            waiters.retain(|waiter| !waiter.tell.is_closed());
            waiters.push(Waiter {
                until: Box::new(until),
                tell,
            });
            waiting
        };
        match waiting.await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(_)) => Err(Error::no_such_run(id)),
            Err(_) => Err(ended()),
        }
    }

    /// The last known state of a run, without asking the engine.
    #[must_use]
    pub fn last_known(&self, id: &RunId) -> Option<RunStatus> {
        self.0.shared.state().runs.get(id).cloned()
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").finish_non_exhaustive()
    }
}

async fn follow(runtime: Arc<dyn Runtime>, shared: Arc<Shared>) {
    let mut events = runtime.watch();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => shared.take(event),
            Err(error) if error.is_retryable() => {}
            Err(_) => break,
        }
    }
    // Waiters learn that nothing will come any more.
    shared.state().waiting.clear();
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: WatchEvent) {
        let mut state = self.state();
        match event {
            WatchEvent::Snapshot(runs) => {
                state.runs = runs.into_iter().map(|run| (run.id.clone(), run)).collect();
                let settled: Vec<RunId> = state.waiting.keys().cloned().collect();
                for id in settled {
                    state.settle(&id);
                }
                self.synced.send_replace(true);
            }
            WatchEvent::Changed(run) => {
                let id = run.id.clone();
                state.runs.insert(id.clone(), *run);
                state.settle(&id);
            }
            WatchEvent::Removed(id) => {
                state.runs.remove(&id);
                state.settle(&id);
            }
            WatchEvent::Notice(..) => {}
        }
    }
}

impl State {
    /// Answers those whose wait for this run is over.
    fn settle(&mut self, id: &RunId) {
        let Some(waiters) = self.waiting.remove(id) else {
            return;
        };
        let known = self.runs.get(id);
        let mut left = Vec::new();
        for waiter in waiters {
            match known {
                Some(run) if !(waiter.until)(run) => left.push(waiter),
                Some(run) => drop(waiter.tell.send(Ok(run.clone()))),
                None => drop(waiter.tell.send(Err(ErrorKind::NotFound))),
            }
        }
        if !left.is_empty() {
            self.waiting.insert(id.clone(), left);
        }
    }
}
