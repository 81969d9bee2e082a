//! Slurm: jobs are submitted, asked about all together, and ended by name.

mod commands;
mod config;
mod queue;
mod states;
mod submit;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use v6_runtime::{Owner, RunId};

pub use config::{SlurmConfig, SlurmListen, SlurmOptions};

pub(crate) use queue::Known;
pub(crate) use states::{Job, JobState, Over};
pub(crate) use submit::{NotSubmitted, Request, script};

use crate::error::Result;
use commands::Commands;
use queue::Queue;

/// The name of the job of an attempt at a run. Neither owners nor runs have a dot.
pub(crate) fn job_name(owner: &Owner, run: &RunId, attempt: &str) -> String {
    format!("v6.{owner}.{run}.{attempt}")
}

/// When this was first called for a name; what is old, is forgotten.
fn first(times: &Mutex<HashMap<String, Instant>>, name: &str) -> Instant {
    const OLD: Duration = Duration::from_secs(120);
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    times.retain(|_, since| since.elapsed() < OLD);
    *times.entry(name.to_owned()).or_insert_with(Instant::now)
}

/// What a site's Slurm keeps jobs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confinement {
    pub(crate) memory: bool,
    pub(crate) devices: bool,
}

/// Slurm as it is reached from here.
#[derive(Debug)]
pub(crate) struct Slurm {
    pub(crate) config: SlurmConfig,
    commands: Commands,
    queue: Queue,
    /// How the names of this owner's jobs begin.
    prefix: String,
    /// One at a time: each has to know how many there are.
    submitting: tokio::sync::Mutex<()>,
    /// Names of jobs that may have been submitted.
    unsure: Mutex<HashSet<String>>,
    /// Why jobs wait that ought not to, by name.
    reasons: Mutex<HashMap<String, String>>,
    /// Since when it is known that jobs have begun, and that they are over, by name.
    begun: Mutex<HashMap<String, Instant>>,
    over: Mutex<HashMap<String, Instant>>,
}

impl Slurm {
    /// Looks whether Slurm is there.
    pub(crate) async fn find(config: SlurmConfig, owner: &Owner) -> Result<Arc<Self>> {
        config.validate()?;
        let commands = Commands::find(&config).await?;
        Ok(Arc::new(Self {
            queue: Queue::new(config.poll),
            prefix: format!("v6.{owner}."),
            submitting: tokio::sync::Mutex::default(),
            unsure: Mutex::default(),
            reasons: Mutex::default(),
            begun: Mutex::default(),
            over: Mutex::default(),
            config,
            commands,
        }))
    }

    /// Slurm's version, asked for anew; fails unless its controller answers.
    pub(crate) async fn version(&self) -> Result<String> {
        self.queue.fresh(&self.commands).await?;
        Ok(self.commands.version.clone())
    }

    /// What of that which a job asks for is all that it gets.
    pub(crate) async fn confinement(&self) -> Result<Confinement> {
        let settings = self.commands.settings().await?;
        let is = |name: &str, value: &str| {
            settings.lines().any(|line| {
                line.split_once('=').is_some_and(|(key, said)| {
                    key.trim() == name
                        && said
                            .split(',')
                            .any(|said| said.trim().eq_ignore_ascii_case(value))
                })
            })
        };
        Ok(Confinement {
            memory: is("ConstrainRAMSpace", "yes") || is("JobAcctGatherParams", "OverMemoryKill"),
            devices: is("ConstrainDevices", "yes"),
        })
    }

    /// What is known of a job, by its number if that is known, or else by its name.
    pub(crate) async fn job(&self, id: Option<u64>, name: &str) -> Known {
        self.queue.job(&self.commands, id, name).await
    }

    /// Whether it is this long since a job was first seen to be over.
    pub(crate) fn has_settled(&self, name: &str, time: Duration) -> bool {
        first(&self.over, name).elapsed() >= time
    }

    /// Whether a job that waited when Slurm was asked at this moment had begun before: it was put back
    /// into the queue. To be asked of a job that has begun.
    pub(crate) fn was_put_back(&self, name: &str, asked: Instant) -> bool {
        asked > first(&self.begun, name)
    }

    /// Why a job does not start, if that is news, and not just that others are before it.
    pub(crate) fn new_reason(&self, name: &str, job: &Job) -> Option<String> {
        const ORDINARY: [&str; 5] = ["", "None", "Priority", "Resources", "Cleaning"];
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if job.state != JobState::Waiting || ORDINARY.contains(&job.reason.as_str()) {
            reasons.remove(name);
            return None;
        }
        let told = reasons.insert(name.to_owned(), job.reason.clone());
        (told.as_ref() != Some(&job.reason)).then(|| job.reason.clone())
    }

    /// The next question about jobs gets an answer that is newer than this call.
    pub(crate) fn expire(&self) {
        self.queue.expire();
    }

    /// Ends a job, whatever it does; one that is over or is not of this name, is left alone.
    pub(crate) async fn kill(&self, id: u64, name: &str) -> Result<()> {
        self.commands.cancel(id, name, &[]).await
    }

    /// Has a job look at what has been decided; one that waits is ended.
    pub(crate) async fn ring(&self, id: u64, name: &str) -> Result<()> {
        self.commands.cancel(id, name, &["--state=PENDING"]).await?;
        self.commands
            .cancel(id, name, &["--state=RUNNING", "--batch", "--signal=USR1"])
            .await
    }

    /// Submits a job, unless there are too many; its number.
    pub(crate) async fn submit(&self, request: &Request) -> Result<u64, NotSubmitted> {
        let _turn = self.submitting.lock().await;
        // An earlier try, whose answer was lost, may have made it.
        if let Known::Job(job, _) = self.known(&request.name).await? {
            return Ok(job.id);
        }
        let most = usize::try_from(self.config.max_jobs.get()).unwrap_or(usize::MAX);
        let alive = self.queue.alive(&self.commands, &self.prefix, most).await;
        let alive = alive.map_err(|error| NotSubmitted::Unknown(error.to_string()))?;
        if alive >= most {
            let why = format!("{alive} jobs are in Slurm's hands, and no more than {most} may be");
            return Err(NotSubmitted::Full(why));
        }
        let submitted = submit::submit(&self.commands, request).await;
        match submitted {
            Ok(id) => self.queue.submitted(id),
            // The next try has to find what this one has made.
            Err(NotSubmitted::Unknown(_)) => {
                let mut unsure = self.unsure.lock().unwrap_or_else(PoisonError::into_inner);
                unsure.insert(request.name.clone());
                self.expire();
            }
            Err(_) => {}
        }
        submitted
    }

    /// A job of which it was not known whether it was submitted.
    async fn known(&self, name: &str) -> Result<Known, NotSubmitted> {
        let is_unsure = {
            let unsure = self.unsure.lock().unwrap_or_else(PoisonError::into_inner);
            unsure.contains(name)
        };
        if !is_unsure {
            return Ok(Known::Nothing);
        }
        match self.job(None, name).await {
            Known::Unknown(words) => Err(NotSubmitted::Unknown(words)),
            known => {
                let mut unsure = self.unsure.lock().unwrap_or_else(PoisonError::into_inner);
                unsure.remove(name);
                Ok(known)
            }
        }
    }
}
