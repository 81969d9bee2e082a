//! Accepting a run: its record and its files, in a state that the next call can always go on from.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use v6_helper::RunLock;
use v6_runtime::{Accepted, ErrorKind, MountSource, Pending, RunId, RunPhase, RunSpec, SpecDigest};

use crate::driver::Job;
use crate::error::{Error, Result, blocking};
use crate::look::Look;
use crate::record::{Record, There};
use crate::state::Shared;
use crate::{files, gpu, plan, translate};

/// How often somebody else may be quicker.
const ATTEMPTS: usize = 5;

impl Shared {
    /// Accepts a run, once. When nobody waits for the answer any more, input that is not there yet
    /// is not waited for either: it may never come, and others wait for the run's lock.
    pub(crate) async fn run(
        self: &Arc<Self>,
        id: &RunId,
        spec: &RunSpec,
        dropped: &CancellationToken,
    ) -> v6_runtime::Result<Accepted> {
        self.capabilities.admit(spec)?;
        gpu::admit(spec.resources.gpu, self.slurm.is_some())?;
        self.start_watching().await;
        let _lock = self.lock(id).await;
        // A cleanup that was called since then has said that there is nothing.
        if dropped.is_cancelled() {
            let message = "the call was dropped before it had begun";
            return Err(v6_runtime::Error::new(ErrorKind::Unavailable, message));
        }
        for _ in 0..ATTEMPTS {
            // Until it is known what there is, the run may be under way.
            let unknown = |error| v6_runtime::Error::from(error).with_may_have_started(true);
            if let Some(look) = self.look(id).await.map_err(unknown)? {
                if let Some(accepted) = adopt(&look, spec)? {
                    return Ok(accepted);
                }
                self.remove_abandoned(id).await?;
            }
            self.spare_strangers(id).await?;
            let record = Record::new(self.owner(), id, spec, SystemTime::now());
            let Some(lock) = self.make_record(id, &record).await? else {
                continue;
            };
            return Ok(self.take_up(id, spec, record, lock, dropped).await?);
        }
        let message = "somebody else makes and removes the run at the same time";
        Err(v6_runtime::Error::new(ErrorKind::Conflict, message))
    }

    async fn take_up(
        self: &Arc<Self>,
        id: &RunId,
        spec: &RunSpec,
        record: Record,
        lock: RunLock,
        dropped: &CancellationToken,
    ) -> Result<Accepted> {
        let undriven = Undriven { shared: self, id };
        self.set_pending(id, Some(Pending::Accepted));
        let place = self.runs.place(id);
        let storing = files::make(plan::files(spec, &place));
        let stored = tokio::select! {
            biased;
            stored = storing => stored,
            () = dropped.cancelled() => {
                let message = "the call was dropped while its input was read";
                Err(v6_runtime::Error::new(ErrorKind::Unavailable, message).into())
            }
        };
        if let Err(error) = stored {
            drop(lock);
            if let Err(left) = self.remove_all(id).await {
                tracing::warn!(run = %id, error = %left, "parts of a run are left behind");
            }
            return Err(error);
        }
        std::mem::forget(undriven);
        // Before this returns, so that a watch that begins afterwards knows the run.
        let accepted = RunPhase::Pending(Pending::Accepted);
        self.hub.update(translate::status_at(id, &record, accepted));
        let job = Job {
            id: id.clone(),
            record,
            spec: without_content(spec),
            lock: Arc::new(lock),
        };
        self.set_driver(id, |stop| crate::driver::drive(self.clone(), job, stop));
        Ok(Accepted::Created)
    }

    async fn make_record(self: &Arc<Self>, id: &RunId, record: &Record) -> Result<Option<RunLock>> {
        let (runs, id, record) = (self.runs.clone(), id.clone(), record.clone());
        blocking(move || runs.create(&id, &record)).await
    }

    async fn spare_strangers(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let (runs, id) = (self.runs.clone(), id.clone());
        blocking(move || match runs.read(&id)? {
            There::Stranger => Err(Error::Stranger(format!(
                "{} is there and is no run of this owner",
                runs.place(&id).0
            ))),
            _ => Ok(()),
        })
        .await
    }
}

/// What a second call for a run that has a record comes to; `None` if it is to be made anew.
fn adopt(look: &Look, spec: &RunSpec) -> v6_runtime::Result<Option<Accepted>> {
    if look.status.phase == RunPhase::Pending(Pending::Abandoned) {
        return Ok(None);
    }
    if look.record.spec == SpecDigest::of(spec) {
        return Ok(Some(Accepted::Adopted));
    }
    let message = "there is a run of this id with another spec";
    Err(v6_runtime::Error::new(ErrorKind::Conflict, message).with_may_have_started(true))
}

/// A spec as far as it is needed after the files are stored. Secret variables are needed still:
/// which others there are, is known only with the image.
fn without_content(spec: &RunSpec) -> RunSpec {
    let mut spec = spec.clone();
    for mount in &mut spec.mounts {
        let given = mount.is_given();
        if given {
            mount.source = MountSource::Inline(Bytes::new());
        }
    }
    spec
}

/// Until a driver has taken over, a call that is dropped leaves nobody at work.
struct Undriven<'a> {
    shared: &'a Shared,
    id: &'a RunId,
}

impl Drop for Undriven<'_> {
    fn drop(&mut self) {
        self.shared.set_pending(self.id, None);
    }
}
