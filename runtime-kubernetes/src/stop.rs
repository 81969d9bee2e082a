//! Ending runs. What is asked for is noted at the pod before anything is told.
//!
//! A pod that is deleted takes its outputs and its log with it. So a program is ended through the
//! sidecar, which lets the machine's probe of it fail: the pod stays. Only where that cannot be, or
//! not soon enough, the pod is deleted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use v6_runtime::{CancelOptions, Cancelled, RunId};

use crate::error::Result;
use crate::look::Look;
use crate::obstacle;
use crate::pod::whole_seconds;
use crate::record;
use crate::state::{Care, Shared};
use crate::time;
use crate::translate;

/// How long the sidecar has to be reached.
const REACH: Duration = Duration::from_secs(10);
/// How long the machine may take beside the grace: for its probes, and to tell.
const LATE: Duration = Duration::from_secs(15);
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
        let name = self.name(id);
        let again = look.marks.cancelled.is_some();
        if !again {
            let note = record::note_cancelled(SystemTime::now());
            let gone = || v6_runtime::Error::no_such_run(id);
            self.patch(&name, &note).await?.ok_or_else(gone)?;
        }
        let grace = options.grace.unwrap_or(look.record.grace);
        // The probe gives what the spec says.
        let gently = whole_seconds(grace) == whole_seconds(look.record.grace) && !grace.is_zero();
        if !translate::has_run(&look.pod) {
            // Nothing of it has begun that could be asked to end.
            self.delete(&look, Duration::ZERO).await?;
        } else if translate::is_deleted(&look.pod) {
            // A grace that was given is shortened by it, and never lengthened.
            self.delete(&look, grace).await?;
        } else if gently {
            if !self.end_gently(&look).await {
                self.delete(&look, grace).await?;
            }
        } else if !again || grace < look.record.grace {
            self.delete(&look, grace).await?;
        }
        self.refresh(id).await?;
        Ok(Cancelled::Requested)
    }

    /// Has the program ended and the pod kept; `false` if that cannot be.
    async fn end_gently(self: &Arc<Self>, look: &Look) -> bool {
        let asking = async {
            let tunnel = self.tunnel(look).await?;
            let failed = |source| crate::error::Error::Tunnel {
                step: "asking the sidecar to end the program",
                source,
            };
            tunnel.ask("END").await.map_err(failed)
        };
        let id = &look.record.id;
        match tokio::time::timeout(REACH, Box::pin(asking)).await {
            Ok(Ok(answer)) if answer == "OK" => {
                self.make_sure(look, look.record.grace);
                true
            }
            Ok(Ok(answer)) => {
                tracing::warn!(run = %id, answer, "the sidecar does not end the program");
                false
            }
            Ok(Err(error)) => {
                tracing::warn!(run = %id, %error, "a run is ended with its pod");
                false
            }
            Err(_) => false,
        }
    }

    /// Deletes the pod should the program not have ended in time.
    fn make_sure(self: &Arc<Self>, look: &Look, grace: Duration) {
        let (shared, id) = (self.clone(), look.record.id.clone());
        let at = after(SystemTime::now(), grace);
        self.care(&look.record.id, Care::Stop, || {
            self.spawn(async move {
                sleep_until(at).await;
                shared.delete_until_gone(&id).await;
            })
        });
    }

    async fn delete_until_gone(self: &Arc<Self>, id: &RunId) {
        loop {
            let deleted = async {
                match self.look(id).await? {
                    Some(look) if !look.status.phase.is_finished() => {
                        self.delete(&look, Duration::ZERO).await
                    }
                    _ => Ok(()),
                }
            };
            match deleted.await {
                Ok(()) => return,
                Err(error) => tracing::warn!(run = %id, %error, "a run could not be ended"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends the pod. Its record stays, as our finalizer keeps it.
    pub(crate) async fn delete(&self, look: &Look, grace: Duration) -> Result<()> {
        let name = self.name(&look.record.id);
        let grace = u32::try_from(whole_seconds(grace)).unwrap_or(u32::MAX);
        self.cluster.delete_pod(&name, look.uid(), grace).await?;
        Ok(())
    }

    /// Takes up stops and deadlines of a run that is not over, also for a process that is gone.
    pub(crate) fn watch_over(self: &Arc<Self>, look: &Look) {
        let id = &look.record.id;
        if look.marks.cancelled.is_some() && !translate::is_deleted(&look.pod) {
            let (shared, of) = (self.clone(), id.clone());
            self.care(id, Care::Stop, || {
                self.spawn(async move { shared.stop_again(&of).await })
            });
        }
        if let Some(deadline) = look.record.deadline {
            let (shared, of, grace) = (self.clone(), id.clone(), look.record.grace);
            self.care(id, Care::Deadline, || {
                self.spawn(async move { shared.keep_deadline(&of, deadline, grace).await })
            });
        }
    }

    /// Ends a run about which somebody, perhaps a process that is gone, has noted that it is to
    /// end.
    async fn stop_again(self: &Arc<Self>, id: &RunId) {
        // Whoever noted it is at it, if he is this process.
        let lock = self.lock(id).await;
        let Ok(Some(look)) = self.look(id).await else {
            return;
        };
        if look.status.phase.is_finished() || translate::is_deleted(&look.pod) {
            return;
        }
        let grace = if translate::has_run(&look.pod) {
            look.record.grace
        } else {
            Duration::ZERO
        };
        let told = translate::has_run(&look.pod) && self.tell_end(&look).await;
        drop(lock);
        if told {
            sleep_until(after(SystemTime::now(), grace)).await;
        } else if let Err(error) = self.delete(&look, grace).await {
            tracing::warn!(run = %id, %error, "a run could not be ended");
        } else {
            return;
        }
        self.delete_until_gone(id).await;
    }

    async fn tell_end(&self, look: &Look) -> bool {
        let asking = async { Some(self.tunnel(look).await.ok()?.ask("END").await.ok()? == "OK") };
        let asked = tokio::time::timeout(REACH, Box::pin(asking)).await;
        asked.ok().flatten().unwrap_or(false)
    }

    /// The sidecar ends a program at its deadline, and the helper before it does not let one start
    /// that is late. This sees to those that no machine has yet, and makes sure of the others.
    async fn keep_deadline(self: &Arc<Self>, id: &RunId, deadline: SystemTime, grace: Duration) {
        sleep_until(deadline).await;
        match self.look(id).await {
            Ok(Some(look)) if !translate::has_run(&look.pod) => {
                if let Err(error) = self.delete(&look, Duration::ZERO).await {
                    tracing::warn!(run = %id, %error, "a late run could not be ended");
                }
            }
            Ok(Some(look)) => self.hub.update(look.status),
            Ok(None) => return,
            Err(error) => tracing::warn!(run = %id, %error, "a late run could not be looked at"),
        }
        sleep_until(after(deadline, grace)).await;
        self.delete_until_gone(id).await;
    }

    /// Gives up on a run that still cannot be started at that time, and says why for good.
    pub(crate) async fn give_up(self: &Arc<Self>, id: &RunId, until: SystemTime) {
        sleep_until(until).await;
        loop {
            match Box::pin(self.give_up_now(id)).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(run = %id, %error, "a failure could not be noted"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn give_up_now(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let Some(look) = self.look(id).await? else {
            return Ok(());
        };
        let Some((failure, _)) = obstacle::obstacle(&look.pod) else {
            return Ok(());
        };
        if look.status.phase.is_finished() || look.marks.cancelled.is_some() {
            return Ok(());
        }
        let note = record::note_failed(&failure)?;
        let Some(pod) = self.patch(&self.name(id), &note).await? else {
            return Ok(());
        };
        self.delete(&look, Duration::ZERO).await?;
        // This ends the care that calls it, and so comes last.
        if let Some(look) = self.judge(pod)? {
            self.hub.update(look.status);
        }
        Ok(())
    }
}

/// When a program that was told to end at a time must have ended, and have been seen to.
fn after(at: SystemTime, grace: Duration) -> SystemTime {
    time::later(at, grace.saturating_add(LATE))
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
