//! One answer of Slurm's about all jobs, for everybody who asks about one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::commands::{Commands, Past};
use super::first;
use super::states::{Job, JobState, Over, Row};
use crate::error::{Error, Result};

/// By then the accounting has been told what the controller has forgotten; if not, it never will be: the
/// controller lost what it knew.
const LATE: Duration = Duration::from_secs(60);

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// As it was when Slurm was asked at this moment or later.
    Job(Job, Instant),
    /// There is no such job.
    Nothing,
    /// Slurm does not answer: anything can be.
    Unknown(String),
}

/// The jobs at one moment.
#[derive(Debug)]
pub(crate) struct Table {
    /// When it was asked for.
    at: Instant,
    jobs: HashMap<u64, Job>,
    names: HashMap<String, u64>,
}

impl Table {
    fn new(at: Instant, rows: Vec<Row>) -> Self {
        let mut table = Self {
            at,
            jobs: HashMap::new(),
            names: HashMap::new(),
        };
        for Row { job, name } in rows {
            table.names.insert(name, job.id);
            table.jobs.insert(job.id, job);
        }
        table
    }

    fn find(&self, id: Option<u64>, name: &str) -> Option<&Job> {
        let named = self.names.get(name).copied();
        // A number is given to another job some day.
        let id = id.map_or(named, |id| named.filter(|named| *named == id));
        self.jobs.get(&id?)
    }

    /// How many jobs with names of this beginning are not over.
    fn alive(&self, prefix: &str) -> usize {
        let ours = self.names.iter().filter(|(name, id)| {
            let job = self.jobs.get(id);
            name.starts_with(prefix) && job.is_some_and(|job| job.state.over().is_none())
        });
        ours.count()
    }
}

/// The last answer, and how old it may be.
#[derive(Debug)]
pub(super) struct Queue {
    age: Duration,
    last: tokio::sync::Mutex<Option<Arc<Table>>>,
    /// Answers from before this are too old.
    expired: Mutex<Instant>,
    /// Jobs that were submitted after that answer was asked for, and when.
    young: Mutex<HashMap<u64, Instant>>,
    /// What only the accounting knew; it does not change.
    past: Mutex<HashMap<u64, Over>>,
    /// Since when neither it nor the queue knows how a job ended, by name.
    missing: Mutex<HashMap<String, Instant>>,
}

impl Queue {
    pub(super) fn new(age: Duration) -> Self {
        Self {
            age,
            last: tokio::sync::Mutex::default(),
            expired: Mutex::new(Instant::now()),
            young: Mutex::default(),
            past: Mutex::default(),
            missing: Mutex::default(),
        }
    }

    pub(super) fn expire(&self) {
        *self.expired.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// A job has just been submitted: nobody has to ask for it.
    pub(super) fn submitted(&self, id: u64) {
        self.young().insert(id, Instant::now());
    }

    fn young(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many jobs with names of this beginning are in Slurm's hands: not more than this. Only we
    /// submit them, so that Slurm is asked only if there could be as many as `most`.
    pub(super) async fn alive(
        &self,
        commands: &Commands,
        prefix: &str,
        most: usize,
    ) -> Result<usize> {
        let last = self.last.lock().await.clone();
        let known = last.map(|table| table.alive(prefix) + self.young().len());
        if let Some(known) = known.filter(|known| *known < most) {
            return Ok(known);
        }
        let known = self.recent(commands).await?.alive(prefix);
        Ok(known + self.young().len())
    }

    /// An answer that is not too old.
    pub(super) async fn recent(&self, commands: &Commands) -> Result<Arc<Table>> {
        let from = Instant::now().checked_sub(self.age);
        let expired = *self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        self.since(commands, from.map_or(expired, |from| from.max(expired)))
            .await
    }

    /// An answer to a question that was asked after this call was.
    pub(super) async fn fresh(&self, commands: &Commands) -> Result<Arc<Table>> {
        self.since(commands, Instant::now()).await
    }

    /// Whoever waits for the same answer, gets it with one question.
    async fn since(&self, commands: &Commands, from: Instant) -> Result<Arc<Table>> {
        let mut last = self.last.lock().await;
        if let Some(table) = last.as_ref().filter(|table| table.at >= from) {
            return Ok(table.clone());
        }
        let at = Instant::now();
        let table = Arc::new(Table::new(at, commands.queue().await?));
        self.young().retain(|_, submitted| *submitted > at);
        *last = Some(table.clone());
        Ok(table)
    }

    pub(super) async fn job(&self, commands: &Commands, id: Option<u64>, name: &str) -> Known {
        let looked = async {
            let table = self.recent(commands).await?;
            if let Some(job) = table.find(id, name) {
                return Ok::<_, Error>(Some((job.clone(), table.at)));
            }
            if let Some(id) = id.filter(|id| self.young().contains_key(id)) {
                let job = Job {
                    id,
                    state: JobState::Waiting,
                    reason: String::new(),
                };
                return Ok(Some((job, table.at)));
            }
            // It may be younger than that answer nevertheless, submitted by another process.
            let table = self.fresh(commands).await?;
            if let Some(job) = table.find(id, name) {
                return Ok(Some((job.clone(), table.at)));
            }
            match id {
                Some(id) => Ok(Some((self.past(commands, id, name).await?, table.at))),
                None => Ok(None),
            }
        };
        match looked.await {
            Ok(Some((job, at))) => Known::Job(job, at),
            Ok(None) => Known::Nothing,
            Err(error) => Known::Unknown(error.to_string()),
        }
    }

    /// How a job ended that the queue has no more.
    async fn past(&self, commands: &Commands, id: u64, name: &str) -> Result<Job> {
        let known = || {
            let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            past.get(&id).copied()
        };
        let over = if let Some(over) = known() {
            over
        } else {
            let over = match commands.past(id, name).await? {
                Past::Over(over) => over,
                Past::NotYet if first(&self.missing, name).elapsed() < LATE => {
                    return Err(Error::Unavailable {
                        step: "asking the accounting",
                        words: format!("it does not know yet how job {id} ended"),
                    });
                }
                Past::NotYet | Past::NotKept => Over::Forgotten,
            };
            let mut known = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(id, over);
            over
        };
        Ok(Job {
            id,
            state: JobState::Over(over),
            reason: String::new(),
        })
    }
}
