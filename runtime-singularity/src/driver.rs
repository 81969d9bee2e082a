//! From an accepted run to a started one: its image, its container, its monitor.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use v6_helper::{RunLock, StopCause};
use v6_runtime::{ErrorKind, Pending, RunId, RunPhase, RunSpec, StartFailure, StartFailureCause};

use crate::error::{Error, Result, blocking};
use crate::image::{Fault, Ready};
use crate::record::Record;
use crate::slurm::{Request, Slurm};
use crate::state::Shared;
use crate::{files, plan, translate};

/// A run to be started.
pub(crate) struct Job {
    pub(crate) id: RunId,
    pub(crate) record: Record,
    pub(crate) spec: RunSpec,
    /// Whoever has it works on the run.
    pub(crate) lock: Arc<RunLock>,
}

/// Brings a run to its start, or notes why not. Told to stop, it leaves the run not begun.
pub(crate) async fn drive(shared: Arc<Shared>, job: Job, stop: CancellationToken) {
    let id = job.id.clone();
    // Kept until all is written down: a run that nobody works on and of which nothing is noted would
    // count as abandoned.
    let lock = job.lock.clone();
    let deadline = job.record.deadline;
    let starting = Box::pin(start(&shared, job));
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        () = passed(deadline) => {
            // A wish to cancel that came before it stands.
            let place = shared.runs.place(&id);
            let decided = blocking(move || {
                let failed = Error::host("the deadline cannot be noted");
                place.0.stop(StopCause::Deadline, SystemTime::now()).map_err(failed)
            });
            if let Err(error) = decided.await {
                tracing::warn!(run = %id, %error, "a passed deadline could not be noted");
            }
            None
        }
        started = starting => Some(started),
    };
    if let Some(Err(error)) = started {
        let failure = match error {
            Fault::Failure(failure) => failure,
            Fault::Step(error) => StartFailure::new(cause(&error), explain(&error)),
        };
        let place = shared.runs.place(&id);
        if let Err(error) = blocking(move || place.fail(&failure)).await {
            tracing::error!(run = %id, %error, "why a run could not be started could not be noted");
        }
    }
    drop(lock);
    shared.set_pending(&id, None);
    // Whoever stops this task holds the run's lock, and waits for the task to end.
    let looked = stop.run_until_cancelled(shared.refresh_unlocked(&id)).await;
    if let Some(Err(error)) = looked {
        tracing::warn!(run = %id, %error, "a run that was started could not be looked at");
    }
}

/// A step's failure with all its causes: it is read by people, and nothing else keeps it.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn cause(error: &Error) -> StartFailureCause {
    match error.kind() {
        ErrorKind::Quota => StartFailureCause::Unschedulable,
        _ => StartFailureCause::Engine,
    }
}

/// Waits for a time of the wall clock.
async fn passed(deadline: Option<SystemTime>) {
    // In steps, since the clock may be set meanwhile.
    const STEP: Duration = Duration::from_secs(30);
    let Some(deadline) = deadline else {
        return std::future::pending().await;
    };
    while let Ok(left) = deadline.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}

async fn start(shared: &Arc<Shared>, job: Job) -> Result<(), Fault> {
    let tell = |pending| {
        shared.set_pending(&job.id, Some(pending));
        let phase = RunPhase::Pending(pending);
        shared
            .hub
            .update(translate::status_at(&job.id, &job.record, phase));
    };
    tell(Pending::PullingImage);
    let image = shared.images.ensure(&job.spec.image).await?;
    tell(Pending::Queued);
    let room = shared.starts.acquire().await;
    tell(Pending::Starting);
    // From here on nothing waits for anybody but this machine, and nothing is left half done.
    let (id, lock) = (job.id.clone(), job.lock.clone());
    let at_work = shared.clone();
    let launched = tokio::spawn(async move { launch(&at_work, job, image).await }).await;
    drop(room);
    let launched = launched.unwrap_or_else(|error| {
        let message = format!("the start of {id} broke: {error}");
        let failure = StartFailure::new(StartFailureCause::Engine, message);
        Err(Fault::Failure(failure))
    });
    match launched? {
        Launched::Started => Ok(()),
        Launched::Made(slurm, request) => {
            shared.set_pending(&id, Some(Pending::Queued));
            shared.submit(&slurm, &id, lock, *request).await
        }
    }
}

/// How far a run has come here.
enum Launched {
    /// Its monitor has it.
    Started,
    /// What it is to become is written down, and has yet to be submitted.
    Made(Arc<Slurm>, Box<Request>),
}

async fn launch(shared: &Arc<Shared>, job: Job, image: Ready) -> Result<Launched, Fault> {
    let place = shared.runs.place(&job.id);
    let planned = plan::plan(&job.spec, &place, &image, &shared.config, &shared.seccomp);
    let planned = planned.map_err(Fault::Failure)?;
    files::make(planned.files).await?;
    if shared.slurm.is_none() && shared.egress.is_wanted() {
        shared.egress.open(&job.id, &job.record.egress)?;
    }
    let line = shared
        .engine
        .exec(&image, &planned.container, &planned.init);
    let (shared, mut monitor) = (shared.clone(), planned.monitor);
    blocking(move || {
        let failed = Error::host("the mounts of this machine cannot be read");
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
        if let Some(why) = job
            .spec
            .mounts
            .iter()
            .find_map(|mount| plan::unusable(mount, &mountinfo))
        {
            let cause = StartFailureCause::MountUnusable;
            return Ok(Err(Fault::Failure(StartFailure::new(cause, why))));
        }
        files::link_helper(&shared.helper, &place)?;
        if let Some(slurm) = &shared.slurm {
            let resources = &job.spec.resources;
            let request =
                shared.make_job(slurm, &job.id, &job.record, resources, &monitor, &line)?;
            return Ok(Ok(Launched::Made(slurm.clone(), Box::new(request))));
        }
        let resources = &job.spec.resources;
        if let Some(groups) = shared
            .groups
            .as_ref()
            .filter(|groups| groups.keep(resources))
        {
            let group = groups.place(shared.owner(), &job.id);
            place.note_group(&group)?;
            groups.make(&group, resources)?;
            monitor = monitor.with_cgroup(group);
        }
        let environment = shared.engine.environment();
        place
            .0
            .launch(&shared.helper, &monitor, &line, &environment, &job.lock)?;
        Ok(Ok(Launched::Started))
    })
    .await?
}
