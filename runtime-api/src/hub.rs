//! One engine connection, many watchers: for implementors of [`Runtime::watch`](crate::Runtime::watch).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{Error, ErrorKind, ResultStream, RunId, RunStatus, WatchEvent};

/// How many events a watcher may be behind before it gets a snapshot instead.
const BACKLOG: usize = 1024;

/// The last known state of every run, and its fan-out to any number of watchers.
///
/// The backend feeds it from its one connection: [`reset`](Self::reset) with each fresh listing,
/// [`update`](Self::update) and [`remove`](Self::remove) in between,
/// [`failed`](Self::failed) when the connection breaks. A watcher that falls behind gets a new
/// snapshot and delays nobody. A run's phase never goes back here, whatever order the engine's
/// news arrive in. Cheap to clone; clones share one state.
#[derive(Clone)]
pub struct WatchHub(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    events: broadcast::Sender<News>,
}

#[derive(Default)]
struct State {
    runs: BTreeMap<RunId, Known>,
    /// Runs that are gone, and since which version: a listing begun before must not bring them back.
    gone: BTreeMap<RunId, u64>,
    /// Counts every piece of news.
    version: u64,
    /// Whether a listing is under way: only then does `gone` have to be kept.
    listing: bool,
    /// Whether there has been a listing: before it, a snapshot would claim that there is nothing.
    listed: bool,
}

struct Known {
    status: RunStatus,
    version: u64,
}

/// The moment at which a listing began; see [`WatchHub::begin_listing`].
#[derive(Debug)]
#[must_use = "give it to `reset` with what was listed"]
pub struct ListingStart(u64);

#[derive(Clone)]
enum News {
    Event(WatchEvent),
    Resync,
    Failed(ErrorKind, Arc<str>),
}

impl WatchHub {
    /// A hub that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(BACKLOG);
        Self(Arc::new(Shared {
            state: Mutex::default(),
            events,
        }))
    }

    /// Call it right before asking the engine for all runs.
    pub fn begin_listing(&self) -> ListingStart {
        let mut state = self.state();
        state.listing = true;
        ListingStart(state.version)
    }

    /// These are all runs that there were when the listing began. What became known since then is
    /// newer than the listing, and stays.
    pub fn reset(&self, start: ListingStart, runs: impl IntoIterator<Item = RunStatus>) {
        let mut state = self.state();
        let mut old = std::mem::take(&mut state.runs);
        let gone = std::mem::take(&mut state.gone);
        for status in runs {
            if gone
                .get(&status.id)
                .is_some_and(|version| *version > start.0)
            {
                continue;
            }
            let known = match old.remove(&status.id) {
                Some(known) if known.version > start.0 || goes_back(&known.status, &status) => {
                    known
                }
                _ => Known {
                    status,
                    version: start.0,
                },
            };
            state.runs.insert(known.status.id.clone(), known);
        }
        state
            .runs
            .extend(old.into_iter().filter(|(_, known)| known.version > start.0));
        state.listed = true;
        state.listing = false;
        let _ = self.0.events.send(News::Resync);
    }

    /// A run is new or may have changed.
    pub fn update(&self, status: RunStatus) {
        let mut state = self.state();
        if let Some(known) = state.runs.get(&status.id)
            && (known.status == status || goes_back(&known.status, &status))
        {
            return;
        }
        state.version += 1;
        let known = Known {
            status: status.clone(),
            version: state.version,
        };
        state.gone.remove(&status.id);
        state.runs.insert(status.id.clone(), known);
        let _ = self
            .0
            .events
            .send(News::Event(WatchEvent::Changed(Box::new(status))));
    }

    /// A run's record is gone.
    pub fn remove(&self, id: &RunId) {
        let mut state = self.state();
        state.version += 1;
        if state.listing {
            let version = state.version;
            state.gone.insert(id.clone(), version);
        }
        if state.runs.remove(id).is_some() {
            let _ = self
                .0
                .events
                .send(News::Event(WatchEvent::Removed(id.clone())));
        }
    }

    /// Something for people.
    pub fn notice(&self, id: &RunId, text: impl Into<String>) {
        let _ = self
            .0
            .events
            .send(News::Event(WatchEvent::Notice(id.clone(), text.into())));
    }

    /// The connection broke; the backend is trying to get it back.
    pub fn failed(&self, error: &Error) {
        let _ = self
            .0
            .events
            .send(News::Failed(error.kind(), error.message().into()));
    }

    /// The last known state of a run.
    #[must_use]
    pub fn get(&self, id: &RunId) -> Option<RunStatus> {
        self.state().runs.get(id).map(|known| known.status.clone())
    }

    /// A stream as [`Runtime::watch`](crate::Runtime::watch) has to give it. Before the first
    /// listing it waits for it.
    #[must_use]
    pub fn watch(&self) -> ResultStream<WatchEvent> {
        let start = {
            let state = self.state();
            let events = self.0.events.subscribe();
            Watcher {
                hub: self.clone(),
                events,
                resync: state.listed,
            }
        };
        Box::pin(stream::unfold(start, |mut watcher| async move {
            let item = watcher.next().await?;
            Some((item, watcher))
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `new` is older news than `known` about the same attempt. A record that was made anew
/// under the same id is another attempt.
fn goes_back(known: &RunStatus, new: &RunStatus) -> bool {
    known.created == new.created
        && known.spec == new.spec
        && (new.phase.rank() < known.phase.rank()
            || known.phase.is_finished() && known.phase != new.phase)
}

struct Watcher {
    hub: WatchHub,
    events: broadcast::Receiver<News>,
    resync: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<crate::Result<WatchEvent>> {
        loop {
            if std::mem::take(&mut self.resync) {
                // Subscribing and copying under one lock: no event is lost or repeated.
                let state = self.hub.state();
                self.events = self.events.resubscribe();
                return Some(Ok(WatchEvent::Snapshot(
                    state
                        .runs
                        .values()
                        .map(|known| known.status.clone())
                        .collect(),
                )));
            }
            match self.events.recv().await {
                Ok(News::Event(event)) => return Some(Ok(event)),
                Ok(News::Resync) | Err(RecvError::Lagged(_)) => self.resync = true,
                Ok(News::Failed(kind, message)) => return Some(Err(Error::new(kind, &*message))),
                // Not while `hub` lives, which holds the sender.
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

impl Default for WatchHub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WatchHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchHub")
            .field("runs", &self.state().runs.len())
            .finish_non_exhaustive()
    }
}
