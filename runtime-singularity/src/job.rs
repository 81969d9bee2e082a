//! A run as a job of Slurm: bringing it there, seeing how it is, ending it.
//!
//! Slurm may start a job twice, answer late or not at all, and forget. So what counts is in the run's
//! folder: whoever makes `begun` there first has begun the run, a job or, in place of it, whoever
//! ended it before ([`RunFolder::forestall`](v6_helper::RunFolder::forestall)). Slurm is asked about
//! what the folder cannot tell: whether a job is still in its hands, and why it ended without a word.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use v6_helper::{MonitorOptions, RunLock, Sight, StopCause, TunnelOptions};
use v6_runtime::{
    Gpu, Outcome, Pending, Resources, RunId, RunPhase, RunStatus, StartFailure, StartFailureCause,
};

use crate::error::{Error, Result, blocking};
use crate::image::Fault;
use crate::job_end::{explained, without_a_word};
use crate::look::{Holder, Look, read_claim};
use crate::record::{Place, Record, write_new};
use crate::slurm::{self, Job, JobState, Known, NotSubmitted, Over, Request, Slurm};
use crate::state::Shared;
use crate::translate::needs_a_reason;
use crate::tunnel;

/// How long what a job has written may take to be seen here: NFS looks again after 3 s at first.
const SETTLE: Duration = Duration::from_secs(4);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What a run's folder says of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Noted {
    /// There is none yet, or will be none.
    NoJob,
    /// How it ended is told without Slurm.
    Closed,
    /// Slurm has to be asked.
    Open(Ticket),
}

/// By what Slurm knows a run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ticket {
    run: RunId,
    begun: bool,
    id: Option<u64>,
    name: String,
}

impl Shared {
    /// Writes down what the job executes. Blocks.
    pub(crate) fn make_job(
        &self,
        slurm: &Slurm,
        id: &RunId,
        record: &Record,
        resources: &Resources,
        monitor: &MonitorOptions,
        line: &[OsString],
    ) -> Result<Request> {
        let place = self.runs.place(id);
        let failed = || Error::host(format!("the job of {id} cannot be made"));
        let attempt = format!("{:016x}", rand::random::<u64>());
        let environment = self.engine.environment();
        let mut monitor = monitor.clone();
        if let Ok(grants) = u16::try_from(record.egress.len())
            && grants > 0
        {
            let key: [u8; 32] = rand::random();
            write_new(&place.file("key"), &key, 0o600).map_err(failed())?;
            let address = tunnel::address_file(self);
            monitor = monitor.with_tunnel(TunnelOptions::new(address, id.as_str(), grants));
        }
        let line = place
            .0
            .make_job(&attempt, &self.helper, &monitor, line, &environment)
            .map_err(failed())?;
        let script = place.file("job.sh");
        write_new(&script, &slurm::script(&line), 0o600).map_err(failed())?;
        let left = record.deadline.map(|deadline| {
            // The monitor keeps the deadline; Slurm's limit is for a monitor that cannot.
            let left = deadline.duration_since(SystemTime::now());
            left.unwrap_or_default() + record.grace + Duration::from_secs(60)
        });
        let ask = slurm
            .config
            .ask_for(&record.image.reference, &record.annotations);
        Ok(Request {
            name: slurm::job_name(self.owner(), id, &attempt),
            comment: format!("v6 owner={} run={id}", self.owner()),
            folder: place.path().to_owned(),
            script,
            log: place.file("job.log"),
            memory: resources.memory_bytes,
            gpus: match resources.gpu {
                Some(Gpu::Count(count)) => Some(count),
                _ => None,
            },
            time: left.or(ask.time_limit),
            ask,
        })
    }

    /// Submits a job as soon as there is room, and notes its number. Dropping the future leaves no
    /// submission half done: whoever wants to know waits for the lock.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        slurm: &Arc<Slurm>,
        id: &RunId,
        lock: Arc<RunLock>,
        request: Request,
    ) -> Result<(), Fault> {
        let mut pause = FIRST_PAUSE;
        loop {
            let (at_work, request, lock) = (slurm.clone(), request.clone(), lock.clone());
            let place = self.runs.place(id);
            let attempt = tokio::spawn(async move {
                let submitted = at_work.submit(&request).await?;
                let noted = blocking(move || place.note_job(submitted)).await;
                drop(lock);
                noted.map_err(NotSubmitted::Failed)
            });
            let why = match attempt.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(NotSubmitted::Unknown(words) | NotSubmitted::Full(words))) => words,
                Ok(Err(NotSubmitted::Refused(words))) => {
                    let failure = StartFailure::new(StartFailureCause::Unschedulable, words);
                    return Err(Fault::Failure(failure));
                }
                Ok(Err(NotSubmitted::Failed(error))) => return Err(error.into()),
                Err(error) => {
                    let message = format!("the submission of {id} broke: {error}");
                    let failure = StartFailure::new(StartFailureCause::Engine, message);
                    return Err(Fault::Failure(failure));
                }
            };
            tracing::warn!(run = %id, %why, "a job could not be submitted yet");
            self.hub
                .notice(id, format!("it waits to be submitted: {why}"));
            let jitter = rand::random_range(0.75..1.25);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Looks at a run; Slurm is asked if the folder does not tell all.
    pub(crate) async fn look_at_job(
        self: &Arc<Self>,
        slurm: &Slurm,
        id: &RunId,
    ) -> Result<Option<Look>> {
        let place = self.runs.place(id);
        let (noted, holder, mut look) = loop {
            let noted = self.noted(&place, id).await?;
            let holder = match &noted {
                Noted::NoJob => Holder::Monitor,
                Noted::Closed => Holder::Job {
                    alive: false,
                    over: None,
                },
                Noted::Open(ticket) => self.holder(slurm, ticket).await?,
            };
            let Some(look) = self.look_here(id, &holder).await? else {
                return Ok(None);
            };
            // Who had the run's lock has gone on since, and that the lock is free tells nothing.
            if holder == Holder::Monitor && self.noted(&place, id).await? != noted {
                continue;
            }
            break (noted, holder, look);
        };
        let Noted::Open(ticket) = noted else {
            return Ok(Some(look));
        };
        let Holder::Job {
            over: Some(job), ..
        } = holder
        else {
            return Ok(Some(look));
        };
        self.remove_from_queue(slurm, &job, &ticket).await;
        if look.status.phase.is_finished() && !matches!(look.sight, Sight::Lost { .. }) {
            // The monitor has had its word; Slurm may know better why.
            let outcome = look.status.outcome().cloned();
            let Some(outcome) = outcome.map(|outcome| explained(job.state, outcome)) else {
                return Ok(Some(look));
            };
            self.conclude(&place, &mut look, outcome).await?;
            return Ok(Some(look));
        }
        if !slurm.has_settled(&ticket.name, SETTLE) {
            let waiting = Holder::Job {
                alive: true,
                over: None,
            };
            return self.look_here(id, &waiting).await;
        }
        let (at, begun) = (place.clone(), look.status.started.is_some());
        let outcome = blocking(move || {
            let stop = at.0.decision().map_err(unreadable(&at))?;
            Ok(match stop.map(|stop| stop.cause) {
                Some(StopCause::Cancel) => Outcome::Cancelled,
                Some(StopCause::Deadline) => Outcome::DeadlineExceeded,
                _ => without_a_word(&job, begun, &at),
            })
        });
        let outcome = outcome.await?;
        self.conclude(&place, &mut look, outcome).await?;
        Ok(Some(look))
    }

    /// A job that was put back into the queue has nothing to do there.
    async fn remove_from_queue(&self, slurm: &Slurm, job: &Job, ticket: &Ticket) {
        if job.state == JobState::Over(Over::PutBack)
            && let Err(error) = slurm.kill(job.id, &ticket.name).await
        {
            tracing::warn!(run = %ticket.run, %error, "a job is left in the queue");
        }
    }

    async fn conclude(&self, place: &Place, look: &mut Look, outcome: Outcome) -> Result<()> {
        let (at, noted) = (place.clone(), outcome.clone());
        blocking(move || at.conclude(&noted)).await?;
        look.status.phase = RunPhase::Finished(outcome);
        Ok(())
    }

    /// Reads what there is of a run's job.
    async fn noted(&self, place: &Place, id: &RunId) -> Result<Noted> {
        let (place, owner, id) = (place.clone(), self.owner().clone(), id.clone());
        blocking(move || {
            let failed = || unreadable(&place);
            let Some(attempt) = place.0.attempt().map_err(failed())? else {
                return Ok(Noted::NoJob);
            };
            if place.conclusion()?.is_some() || place.0.is_forestalled().map_err(failed())? {
                return Ok(Noted::Closed);
            }
            let sight = place.0.look_at_job(true).map_err(failed())?;
            if let Sight::Ended(ended) = &sight {
                let claim = read_claim(&place).map_err(failed())?;
                if !needs_a_reason(ended, claim.as_ref()) {
                    return Ok(Noted::Closed);
                }
            }
            Ok(Noted::Open(Ticket {
                begun: !matches!(sight, Sight::NotBegun { .. }),
                id: place.job()?,
                name: slurm::job_name(&owner, &id, &attempt),
                run: id,
            }))
        })
        .await
    }

    async fn holder(&self, slurm: &Slurm, ticket: &Ticket) -> Result<Holder> {
        let alive = |alive| Holder::Job { alive, over: None };
        // Whoever submits it has its lock, and notes its number before that is free.
        if ticket.id.is_none() && self.is_locked(&ticket.run).await? {
            return Ok(Holder::Monitor);
        }
        Ok(match slurm.job(ticket.id, &ticket.name).await {
            Known::Job(job, _) if job.state.over().is_some() => Holder::Job {
                alive: false,
                over: Some(job),
            },
            Known::Job(mut job, asked)
                if ticket.begun
                    && job.state == JobState::Waiting
                    && slurm.was_put_back(&ticket.name, asked) =>
            {
                job.state = JobState::Over(Over::PutBack);
                Holder::Job {
                    alive: false,
                    over: Some(job),
                }
            }
            Known::Job(job, _) => {
                if let Some(reason) = slurm.new_reason(&ticket.name, &job) {
                    let text = format!("Slurm holds its job {} back: {reason}", job.id);
                    tracing::warn!(run = %ticket.run, "{text}");
                    self.hub.notice(&ticket.run, text);
                }
                alive(true)
            }
            // Nobody has submitted it, or it has just been noted: its lock tells.
            Known::Nothing => Holder::Monitor,
            // It was there, and nobody says anything else.
            Known::Unknown(_) if ticket.id.is_some() => alive(true),
            Known::Unknown(words) => {
                let step = "asking Slurm about a job";
                return Err(Error::Unavailable { step, words });
            }
        })
    }

    async fn is_locked(&self, id: &RunId) -> Result<bool> {
        let at = self.runs.place(id);
        let failed = Error::host("the run's lock cannot be seen");
        blocking(move || at.0.is_held().map_err(failed)).await
    }

    /// Whether somebody works on a run, or may still do so.
    pub(crate) async fn is_held(&self, id: &RunId) -> Result<bool> {
        if self.is_locked(id).await? {
            return Ok(true);
        }
        let place = self.runs.place(id);
        let Some(slurm) = &self.slurm else {
            return Ok(false);
        };
        let at = place.clone();
        let ended = blocking(move || {
            let sight = at.0.look_at_job(true).map_err(unreadable(&at))?;
            Ok(matches!(sight, Sight::Ended(_)))
        });
        if ended.await? {
            return Ok(false);
        }
        match self.noted(&place, id).await? {
            Noted::NoJob | Noted::Closed => Ok(false),
            Noted::Open(ticket) => {
                let holder = self.holder(slurm, &ticket).await?;
                Ok(matches!(holder, Holder::Job { alive: true, .. }))
            }
        }
    }

    /// Has a run's job look at what was decided. What has not begun, never will.
    pub(crate) async fn ring(&self, id: &RunId) -> Result<()> {
        let Some((slurm, ticket)) = self.ticket(id).await? else {
            return Ok(());
        };
        let at = self.runs.place(id);
        let failed = Error::host("the end of a run that has not begun cannot be noted");
        let forestalled = blocking(move || at.0.forestall().map_err(failed)).await?;
        self.wait_for_submission(slurm.config.call_timeout, id)
            .await?;
        let Some(job) = number(&slurm, &ticket).await else {
            return Ok(());
        };
        let rung = match forestalled {
            true => slurm.kill(job, &ticket.name).await,
            false => slurm.ring(job, &ticket.name).await,
        };
        slurm.expire();
        if let Err(error) = rung {
            // It looks itself each second; and what cannot begin, ends when it starts.
            tracing::warn!(run = %id, %error, "a job could not be told to end");
        }
        Ok(())
    }

    /// Waits until nobody is submitting a run's job: then it can be found.
    async fn wait_for_submission(&self, patience: Duration, id: &RunId) -> Result<()> {
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        let until = tokio::time::Instant::now() + patience;
        loop {
            let at = self.runs.place(id);
            let held = blocking(move || at.0.is_held().map_err(unreadable(&at))).await?;
            // One that is not found ends by itself when it starts.
            if !held || tokio::time::Instant::now() > until {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Has Slurm end a run's job, whatever it does.
    pub(crate) async fn kill_job(&self, id: &RunId) -> Result<()> {
        if let Some((slurm, ticket)) = self.ticket(id).await?
            && let Some(job) = number(&slurm, &ticket).await
        {
            slurm.kill(job, &ticket.name).await?;
            slurm.expire();
        }
        Ok(())
    }

    async fn ticket(&self, id: &RunId) -> Result<Option<(Arc<Slurm>, Ticket)>> {
        let Some(slurm) = self.slurm.clone() else {
            return Ok(None);
        };
        Ok(match self.noted(&self.runs.place(id), id).await? {
            Noted::NoJob | Noted::Closed => None,
            Noted::Open(ticket) => Some((slurm, ticket)),
        })
    }

    /// Ends a run that waits in the queue for longer than its deadline allows.
    pub(crate) async fn end_overdue(self: &Arc<Self>, status: &RunStatus) -> Result<()> {
        let waits = matches!(status.phase, RunPhase::Pending(Pending::Queued));
        let Some(deadline) = status.deadline.filter(|_| waits) else {
            return Ok(());
        };
        let now = SystemTime::now();
        if now < deadline {
            return Ok(());
        }
        let place = self.runs.place(&status.id);
        let decided = Error::host("a passed deadline cannot be noted");
        blocking(move || {
            place
                .0
                .stop(StopCause::Deadline, now)
                .map(drop)
                .map_err(decided)
        })
        .await?;
        self.ring(&status.id).await?;
        self.refresh(&status.id).await
    }
}

fn unreadable(place: &Place) -> impl FnOnce(std::io::Error) -> Error {
    Error::host(format!("the run's folder {} cannot be read", place.0))
}

/// The number of a run's job, if there is one.
async fn number(slurm: &Slurm, ticket: &Ticket) -> Option<u64> {
    if ticket.id.is_some() {
        return ticket.id;
    }
    match slurm.job(None, &ticket.name).await {
        Known::Job(job, _) => Some(job.id),
        Known::Nothing | Known::Unknown(_) => None,
    }
}
