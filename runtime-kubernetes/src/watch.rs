//! One watch for all runs: pods come with what they are, so that nothing has to be asked for.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{WatchEvent, WatchParams};
use rand::Rng;
use v6_runtime::{Outcome, Pending, RunId, RunPhase};

use crate::error::{Error, Result};
use crate::look::Look;
use crate::obstacle::{self, Patience};
use crate::pod::PROGRAM;
use crate::record::{self, Driver};
use crate::state::{Care, Shared};
use crate::stop::sleep_until;
use crate::time;
use crate::translate;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// The API server ends a watch after so many seconds; it is begun again where it ended.
const LENGTH: u32 = 240;
/// A watch that says nothing for so long after its end is dead.
const SILENCE: Duration = Duration::from_secs(LENGTH as u64 + 10);

impl Shared {
    /// Starts the watch, once.
    pub(crate) async fn start_watching(self: &Arc<Self>) {
        let start = || async {
            let shared = self.clone();
            self.spawn(follow(shared));
            // So that the first run need not wait for it. What is wrong is told to each run.
            let shared = self.clone();
            self.spawn(async move {
                if let Err(error) = shared.see_denial().await {
                    tracing::warn!(%error, "no run can start");
                }
            });
        };
        self.watching.get_or_init(start).await;
    }

    /// Looks at a run, and passes on what is so.
    pub(crate) async fn refresh(self: &Arc<Self>, id: &RunId) -> Result<()> {
        match self.look(id).await? {
            Some(look) => self.take(&look),
            None => self.hub.remove(id),
        }
        Ok(())
    }

    /// Passes on what a look has found, and does what it asks for.
    pub(crate) fn take(self: &Arc<Self>, look: &Look) {
        self.hub.update(look.status.clone());
        self.attend(look);
    }

    /// Takes up what a run needs of a live process: its stop, its deadline, its connections.
    pub(crate) fn attend(self: &Arc<Self>, look: &Look) {
        let id = &look.record.id;
        if look.status.phase.is_finished() {
            self.settle(id);
            self.egress.close(id);
            self.give_back(look);
            self.note_loss(look);
            return;
        }
        self.take_connections(look);
        self.watch_over(look);
        self.watch_driver(look);
        self.watch_start(look);
    }

    /// Books no more for a run that is over than what keeps its outputs, should they not be fetched soon.
    fn give_back(self: &Arc<Self>, look: &Look) {
        if !translate::waits(&look.pod) || !translate::books(&look.pod) {
            return;
        }
        let (shared, of, after) = (
            self.clone(),
            look.record.id.clone(),
            self.config.keep_booked,
        );
        // Who waits longer is more likely to meet a machine that forgets it.
        let note = noted_end(look);
        self.care(&look.record.id, Care::Booking, || {
            self.spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(note) = note {
                    shared.note_end(&of, &note).await;
                }
                let name = shared.name(&of);
                // Where this cannot be, the wait costs more.
                if let Err(error) = shared.cluster.shrink_pod(&name, PROGRAM).await {
                    tracing::debug!(run = %of, %error, "what was booked for a run stays so");
                }
            })
        });
    }

    /// Notes at once what was said of a run whose machine is gone: that may come back, and know otherwise.
    fn note_loss(self: &Arc<Self>, look: &Look) {
        if !matches!(look.status.phase, RunPhase::Finished(Outcome::NodeLost(_))) {
            return;
        }
        let Some(note) = noted_end(look) else {
            return;
        };
        let (shared, of) = (self.clone(), look.record.id.clone());
        self.care(&look.record.id, Care::Loss, || {
            self.spawn(async move { shared.note_end(&of, &note).await })
        });
    }

    async fn note_end(&self, id: &RunId, note: &serde_json::Value) {
        if let Err(error) = self.patch(&self.name(id), note).await {
            tracing::warn!(run = %id, %error, "how a run ended could not be noted");
        }
    }

    /// A process that is gone says nothing any more, and nothing else shows it.
    fn watch_driver(self: &Arc<Self>, look: &Look) {
        let id = &look.record.id;
        if look.status.phase != RunPhase::Pending(Pending::Accepted) || look.marks.stored {
            self.leave(id, Care::Driver);
            return;
        }
        let Some(driver) = look.marks.driver.clone() else {
            return;
        };
        let (shared, of) = (self.clone(), id.clone());
        self.care(id, Care::Driver, || {
            self.spawn(async move { shared.await_driver(&of, driver).await })
        });
    }

    /// Waits until nothing was heard of anybody who brings a run's input, and tells it.
    async fn await_driver(self: &Arc<Self>, id: &RunId, mut driver: Driver) {
        loop {
            sleep_until(time::later(driver.at, Driver::SILENCE)).await;
            match self.look(id).await {
                Ok(Some(look)) => match look.marks.driver.clone() {
                    Some(again) if again != driver => driver = again,
                    _ => return self.hub.update(look.status),
                },
                Ok(None) => return,
                Err(error) => tracing::debug!(run = %id, %error, "a run cannot be looked at"),
            }
            tokio::time::sleep(FIRST_DELAY).await;
        }
    }

    /// Gives up on a run that cannot be started, and lets one go whose input is there.
    fn watch_start(self: &Arc<Self>, look: &Look) {
        let id = &look.record.id;
        if look.status.phase.rank() >= RunPhase::Running.rank() {
            self.leave(id, Care::Patience);
            self.leave(id, Care::Release);
            return;
        }
        match obstacle::obstacle(&look.pod) {
            None => self.leave(id, Care::Patience),
            Some((_, patience)) => {
                let since = translate::waiting_since(&look.pod, look.record.created);
                let until = match patience {
                    Patience::None => SystemTime::now(),
                    Patience::Registry => time::later(since, self.config.pull_timeout),
                    Patience::Machine => time::later(since, self.config.start_timeout),
                };
                if patience == Patience::None {
                    self.leave(id, Care::Patience);
                }
                let (shared, of) = (self.clone(), id.clone());
                self.care(id, Care::Patience, || {
                    self.spawn(async move { shared.give_up(&of, until).await })
                });
            }
        }
        if look.record.streams && look.marks.stored && translate::is_receiving(&look.pod) {
            let (shared, of) = (self.clone(), id.clone());
            self.care(id, Care::Release, || {
                self.spawn(async move { shared.release(&of).await })
            });
        }
    }
}

/// What is to be noted of a run that is over, unless it is.
fn noted_end(look: &Look) -> Option<serde_json::Value> {
    match &look.status.phase {
        RunPhase::Finished(outcome) if look.marks.ended.is_none() => {
            record::note_ended(outcome, look.uid()).ok()
        }
        _ => None,
    }
}

async fn follow(shared: Arc<Shared>) {
    let mut delay = FIRST_DELAY;
    let mut version = None;
    loop {
        let before = version.clone();
        let Err(error) = session(&shared, &mut version).await;
        let stands_still = version == before;
        if !stands_still {
            delay = FIRST_DELAY;
        }
        let ended = matches!(error.status(), Some(410)) || error.is_end();
        if error.status() == Some(410) {
            // The cluster has forgotten that version: everything anew.
            version = None;
        }
        if !ended {
            let error = v6_runtime::Error::from(error);
            tracing::warn!(%error, "the watch of pods is interrupted");
            // Whatever it was, it is tried again: to watchers it is an interruption.
            let kind = match error.kind() {
                v6_runtime::ErrorKind::Timeout => v6_runtime::ErrorKind::Timeout,
                _ => v6_runtime::ErrorKind::Unavailable,
            };
            shared
                .hub
                .failed(&v6_runtime::Error::new(kind, error.message()));
            version = None;
        }
        // A watch that ends as soon as it has begun is not begun again and again either.
        if !ended || stands_still {
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(delay.mul_f64(jitter)).await;
            delay = (delay * 2).min(LAST_DELAY);
        }
    }
}

/// One connection, until it ends: `version` is how far it came.
async fn session(shared: &Arc<Shared>, version: &mut Option<String>) -> Result<Infallible> {
    let step = "watching pods";
    // Now and again, as it is begun anew.
    shared.remove_leftovers();
    let from = match version.clone() {
        Some(from) => from,
        None => {
            let from = list(shared).await?;
            *version = Some(from.clone());
            from
        }
    };
    let options = WatchParams::default()
        .labels(&record::of_owner(shared.owner()))
        .timeout(LENGTH);
    let watching = shared.cluster.pods.watch(&options, &from);
    let events = shared.cluster.call(step, watching).await?;
    let mut events = Box::pin(events);
    loop {
        let event = match tokio::time::timeout(SILENCE, events.next()).await {
            Ok(Some(event)) => event.map_err(Error::api(step))?,
            Ok(None) => return Err(Error::end()),
            Err(_) => {
                let after = SILENCE;
                return Err(Error::Timeout { step, after });
            }
        };
        let (pod, gone) = match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, false),
            WatchEvent::Deleted(pod) => (pod, true),
            WatchEvent::Bookmark(bookmark) => {
                *version = Some(bookmark.metadata.resource_version);
                continue;
            }
            WatchEvent::Error(status) => {
                return Err(Error::api(step)(kube::Error::Api(status)));
            }
        };
        let at = pod.metadata.resource_version.clone();
        saw(shared, pod, gone).await;
        *version = at.or_else(|| version.take());
    }
}

/// Takes in one piece of news.
async fn saw(shared: &Arc<Shared>, pod: Pod, gone: bool) {
    let Some(id) = record::identify(shared.owner(), &pod) else {
        return;
    };
    if gone {
        shared.hub.remove(&id);
        shared.forget(&id);
        return;
    }
    let removing = record::Marks::read(&pod).removing;
    match shared.judge(pod) {
        Ok(Some(look)) => shared.take(&look),
        Ok(None) => {
            shared.hub.remove(&id);
            if removing {
                shared.finish_removal(&id);
            }
        }
        Err(error) => {
            let error = v6_runtime::Error::from(error);
            tracing::warn!(run = %id, %error, "a run cannot be read");
        }
    }
}

/// Looks at everything; gives the version that it was so at.
async fn list(shared: &Arc<Shared>) -> Result<String> {
    let start = shared.hub.begin_listing();
    let labels = record::of_owner(shared.owner());
    let (pods, version) = shared.cluster.list_pods(&labels).await?;
    let mut looks = Vec::new();
    for pod in pods {
        let removing = record::Marks::read(&pod).removing;
        let id = record::identify(shared.owner(), &pod);
        match shared.judge(pod) {
            Ok(Some(look)) => looks.push(look),
            Ok(None) => {
                if let Some(id) = id.filter(|_| removing) {
                    shared.finish_removal(&id);
                }
            }
            Err(error) => {
                let error = v6_runtime::Error::from(error);
                tracing::warn!(%error, "a run cannot be read");
            }
        }
    }
    shared
        .hub
        .reset(start, looks.iter().map(|look| look.status.clone()));
    let there: HashSet<&RunId> = looks.iter().map(|look| &look.record.id).collect();
    for id in shared.cared_for() {
        if !there.contains(&id) && shared.hub.get(&id).is_none() && !shared.is_driven(&id) {
            shared.forget(&id);
        }
    }
    for look in &looks {
        shared.attend(look);
    }
    Ok(version)
}

/// Looks at all runs again, for somebody who has begun to want their connections.
pub(crate) async fn take_up_all(shared: Arc<Shared>) {
    let mut delay = FIRST_DELAY;
    while let Err(error) = list(&shared).await {
        tracing::warn!(%error, "connections of runs are not taken yet");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}
