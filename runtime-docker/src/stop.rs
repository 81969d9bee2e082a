//! Ending runs: cancel and deadline, both noted durably before anything is told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use v6_runtime::{CancelOptions, Cancelled, Outcome, RunId, RunPhase};

use crate::error::{Error, Result};
use crate::look::Look;
use crate::record::{self, Part, Record, Stop};
use crate::state::Shared;
use crate::translate;

/// How long after deadline and grace `init` is trusted to have done its work.
const INIT_LATE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);

impl Shared {
    /// Asks a run to end.
    pub(crate) async fn cancel(
        self: &Arc<Self>,
        id: &RunId,
        options: CancelOptions,
    ) -> Result<Cancelled> {
        let _lock = self.lock(id).await;
        let look = self.look(id).await?;
        let look = look.ok_or_else(|| v6_runtime::Error::no_such_run(id))?;
        if look.status.phase.is_finished() {
            return Ok(Cancelled::AlreadyFinished);
        }
        let grace = options.grace.unwrap_or(look.record.grace);
        let now = SystemTime::now();
        let asked = Stop { at: now, grace };
        let noted = look.marks.cancelled;
        if noted.is_none() {
            self.mark(Part::Cancelled, &look.record, &asked).await?;
        }
        self.stop_driver(id).await;
        let kill_at = noted.iter().chain([&asked]).filter_map(end).min();
        let signal = if grace.is_zero() {
            "SIGKILL"
        } else {
            "SIGTERM"
        };
        let name = self.name(id, Part::Run);
        // The container, if there is one of that name, is ours or there is none: see `look`.
        let told = look_is_live(&look) || self.look(id).await?.is_some_and(|l| look_is_live(&l));
        if told && self.engine.kill(&name, signal).await? {
            self.kill_at(id, kill_at.unwrap_or(now));
            self.refresh_locked(id).await?;
            return Ok(Cancelled::Requested);
        }
        // It had no program running: it never starts now, or it had just ended by itself.
        let phase = self.look(id).await?.map(|look| look.status.phase);
        let done = match phase {
            Some(RunPhase::Finished(outcome)) if outcome != Outcome::Cancelled => {
                self.engine
                    .remove_volume(&self.name(id, Part::Cancelled))
                    .await?;
                Cancelled::AlreadyFinished
            }
            _ => Cancelled::Requested,
        };
        self.refresh_locked(id).await?;
        Ok(done)
    }

    /// Keeps what was noted, once.
    async fn mark(&self, part: Part, record: &Record, stop: &Stop) -> Result<()> {
        let labels = stop.labels(record.labels_of(self.owner(), part));
        self.note(part, record, labels).await
    }

    /// Makes a mark's volume. One of an earlier attempt is replaced.
    pub(crate) async fn note(
        &self,
        part: Part,
        record: &Record,
        labels: std::collections::HashMap<String, String>,
    ) -> Result<()> {
        let name = self.name(&record.id, part);
        for _ in 0..2 {
            let made = self.engine.create_volume(&name, labels.clone()).await?;
            if record::attempt(&made.labels) == Some(&record.attempt) {
                return Ok(());
            }
            if record::identify(self.owner(), &made.name, &made.labels).is_none() {
                break;
            }
            self.engine.remove_volume(&name).await?;
        }
        Err(Error::Stranger(format!(
            "the volume {name} belongs to somebody else"
        )))
    }

    /// Takes up stops and deadlines of a run that is not over.
    pub(crate) fn watch_over(self: &Arc<Self>, look: &Look) {
        if !look_is_live(look) {
            return;
        }
        let id = &look.record.id;
        let stops = [look.marks.cancelled, look.marks.deadline];
        if let Some(at) = stops.iter().flatten().filter_map(end).min() {
            self.stop_again(id, at);
        } else if let Some(deadline) = look.record.deadline {
            let grace = look.record.grace;
            let shared = self.clone();
            self.set_deadline(id, || {
                let id = id.clone();
                let task = async move { shared.keep_deadline(id, deadline, grace).await };
                self.spawn(task)
            });
        }
    }

    /// Kills a run at a time.
    fn kill_at(self: &Arc<Self>, id: &RunId, at: SystemTime) {
        let (shared, name) = (self.clone(), self.name(id, Part::Run));
        self.set_stopper(id, at, || {
            self.spawn(async move { shared.kill_until_dead(&name, at).await })
        });
    }

    /// Stops a run about which somebody, perhaps a process that is gone, has noted that it is to
    /// end.
    fn stop_again(self: &Arc<Self>, id: &RunId, at: SystemTime) {
        let (shared, name) = (self.clone(), self.name(id, Part::Run));
        self.set_stopper(id, at, || {
            self.spawn(async move {
                if let Err(error) = shared.engine.kill(&name, "SIGTERM").await {
                    tracing::warn!(name, %error, "a run could not be asked to end");
                }
                shared.kill_until_dead(&name, at).await;
            })
        });
    }

    async fn kill_until_dead(&self, name: &str, at: SystemTime) {
        sleep_until(at).await;
        loop {
            match self.engine.kill(name, "SIGKILL").await {
                Ok(false) => return,
                Ok(true) => {}
                Err(error) => tracing::warn!(name, %error, "a run could not be killed"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// `init` ends a run at its deadline. Since it is in reach of the program, this makes sure.
    async fn keep_deadline(self: Arc<Self>, id: RunId, deadline: SystemTime, grace: Duration) {
        sleep_until(deadline).await;
        if let Err(error) = self.refresh(&id).await {
            tracing::warn!(run = %id, %error, "a run at its deadline could not be looked at");
        }
        if let Some(at) = deadline.checked_add(grace.saturating_add(INIT_LATE)) {
            sleep_until(at).await;
        }
        while let Err(error) = self.enforce_deadline(&id, deadline).await {
            tracing::warn!(run = %id, %error, "a run past its deadline could not be ended");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn enforce_deadline(self: &Arc<Self>, id: &RunId, deadline: SystemTime) -> Result<()> {
        let _lock = self.lock(id).await;
        let Some(look) = self.look(id).await? else {
            return Ok(());
        };
        if look_is_live(&look) {
            let stop = Stop {
                at: deadline,
                grace: look.record.grace,
            };
            self.mark(Part::Deadline, &look.record, &stop).await?;
            self.kill_at(id, SystemTime::now());
        }
        Ok(())
    }

    /// Notes that a run's deadline has passed before its program could be started.
    pub(crate) async fn mark_deadline(&self, record: &Record, at: SystemTime) -> Result<()> {
        let grace = record.grace;
        self.mark(Part::Deadline, record, &Stop { at, grace }).await
    }
}

fn end(stop: &Stop) -> Option<SystemTime> {
    stop.at.checked_add(stop.grace)
}

fn look_is_live(look: &Look) -> bool {
    let state = look.container.as_ref().and_then(|c| c.state.as_ref());
    state.is_some_and(translate::is_live)
}

/// Waits for a time of the wall clock.
pub(crate) async fn sleep_until(at: SystemTime) {
    // In steps, since the clock may be set meanwhile.
    const STEP: Duration = Duration::from_secs(30);
    while let Ok(left) = at.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}
