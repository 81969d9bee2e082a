//! One event stream for all runs: an event says where to look, never what is so.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::{StreamExt, stream};
use rand::Rng;
use v6_runtime::RunId;

use crate::error::{Error, Result};
use crate::look::Look;
use crate::record::{self, Part};
use crate::state::Shared;
use crate::time;

/// How many events are taken together.
const BATCH: usize = 256;
/// How many runs are looked at at once.
const AT_ONCE: usize = 8;
/// Silence for so long, and the engine is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);

impl Shared {
    /// Starts the watch, once.
    pub(crate) async fn start_watching(self: &Arc<Self>) {
        let start = || async {
            // The watch ends with the runtime, whose state it must not keep alive.
            let shared = self.clone();
            self.spawn(follow(shared));
        };
        self.watching.get_or_init(start).await;
    }

    /// Looks at a run, and passes on what is so.
    pub(crate) async fn refresh(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let _lock = self.lock(id).await;
        self.refresh_locked(id).await?;
        if self.hub.get(id).is_none() {
            self.forget(id);
        }
        Ok(())
    }

    /// The same for a caller who has the right to change the run.
    pub(crate) async fn refresh_locked(self: &Arc<Self>, id: &RunId) -> Result<()> {
        match self.look(id).await? {
            Some(look) => {
                self.hub.update(look.status.clone());
                self.attend(&look);
            }
            None => self.hub.remove(id),
        }
        Ok(())
    }

    /// Listens for all runs that have grants, those of an earlier process included.
    pub(crate) async fn open_sockets(self: &Arc<Self>) {
        if self.watching.initialized() {
            // The runs that the watch has seen before anybody wanted connections.
            self.spawn(take_up_all(self.clone()));
        } else {
            self.start_watching().await;
        }
    }

    /// Takes up what a run needs of a live process: its stop, its deadline, its sockets.
    pub(crate) fn attend(self: &Arc<Self>, look: &Look) {
        let id = &look.record.id;
        if look.status.phase.is_finished() {
            self.settle(id);
            self.egress.close(id);
            return;
        }
        self.watch_over(look);
        if self.egress.is_wanted()
            && let Err(error) = self.egress.open(self.owner(), id, &look.record.egress)
        {
            let error = v6_runtime::Error::from(error);
            self.hub
                .notice(id, format!("its connections wait: {error}"));
        }
    }
}

async fn take_up_all(shared: Arc<Shared>) {
    let mut delay = FIRST_DELAY;
    while let Err(error) = list(&shared).await {
        tracing::warn!(%error, "sockets of runs are not open yet");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

async fn follow(shared: Arc<Shared>) {
    let mut delay = FIRST_DELAY;
    loop {
        let mut synced = false;
        let Err(error) = session(&shared, &mut synced).await;
        let error = v6_runtime::Error::from(error);
        tracing::warn!(%error, "the engine's events are interrupted");
        // Whatever it was, it is tried again: to watchers it is an interruption.
        let kind = match error.kind() {
            kind if error.is_retryable() => kind,
            _ => v6_runtime::ErrorKind::Unavailable,
        };
        shared
            .hub
            .failed(&v6_runtime::Error::new(kind, error.message()));
        if synced {
            delay = FIRST_DELAY;
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(delay.mul_f64(jitter)).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

/// One connection to the event stream, until it ends.
async fn session(shared: &Arc<Shared>, synced: &mut bool) -> Result<std::convert::Infallible> {
    // Events from before the listing on, by the engine's clock: the stream begins before it.
    let now = shared.engine.clock().await?;
    let mut query = EventsOptionsBuilder::new().filters(&HashMap::from([
        ("type", vec!["container".to_owned()]),
        ("label", record::of_owner(shared.owner())),
        (
            "event",
            shared
                .quirks()
                .events
                .iter()
                .map(ToString::to_string)
                .collect(),
        ),
    ]));
    if let Some(now) = now {
        query = query.since(&time::to_label(now));
    }
    let events = shared.engine.docker.events(Some(query.build()));
    let mut events = Box::pin(events.ready_chunks(BATCH));

    list(shared).await?;
    *synced = true;
    loop {
        let batch = match tokio::time::timeout(SILENCE, events.next()).await {
            Ok(Some(batch)) => batch,
            Ok(None) => return Err(ended()),
            Err(_) => {
                shared.engine.ping().await?;
                continue;
            }
        };
        let step = "reading events";
        let mut ids = BTreeSet::new();
        let mut broken = None;
        for event in batch {
            match event {
                Ok(event) => ids.extend(run_of(shared, &event)),
                Err(source) => broken = Some(Error::Engine { step, source }),
            }
        }
        let looks = stream::iter(ids).map(|id| async move { shared.refresh(&id).await });
        let mut looks = looks.buffer_unordered(AT_ONCE);
        while let Some(look) = looks.next().await {
            look?;
        }
        if let Some(error) = broken {
            return Err(error);
        }
    }
}

fn ended() -> Error {
    let message = "the engine ended its event stream";
    v6_runtime::Error::new(v6_runtime::ErrorKind::Unavailable, message).into()
}

fn run_of(shared: &Shared, event: &EventMessage) -> Option<RunId> {
    let attributes = event.actor.as_ref()?.attributes.as_ref()?;
    let name = attributes.get("name")?;
    let (id, part) = record::identify(shared.owner(), name, attributes)?;
    if matches!(event.action.as_deref(), Some("destroy" | "remove")) {
        // Our own work, of which nobody has to be told: a cleanup that is done, and the removal of
        // what is not needed after the start.
        let known = shared.hub.get(&id)?;
        let started = known.phase.rank() > 0 || shared.pending(&id).is_some();
        if part == Part::Files && started {
            return None;
        }
    }
    Some(id)
}

async fn list(shared: &Arc<Shared>) -> Result<()> {
    let start = shared.hub.begin_listing();
    let looks = shared.look_at_all().await?;
    let mut statuses = Vec::with_capacity(looks.len());
    for look in looks {
        match look {
            Ok(look) => {
                shared.attend(&look);
                statuses.push(look.status);
            }
            // One record that cannot be read must not hide all others.
            Err(error @ Error::Record { .. }) => tracing::error!(%error, "a run is left out"),
            Err(error) => return Err(error),
        }
    }
    shared.hub.reset(start, statuses);
    Ok(())
}
