//! Removing all that belongs to a run, its record last.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use v6_runtime::{CleanedUp, CleanupOptions, ErrorKind, Pending, RunId, RunPhase};

use crate::cgroup;
use crate::error::{Error, Result, blocking};
use crate::record::{Runs, There};
use crate::remove::remove_tree;
use crate::state::Shared;

/// What says how a run ended: kept to the last, so that until then it is still told.
const LAST: [&str; 11] = [
    "record.json",
    "failed.json",
    "concluded.json",
    "job",
    "attempt",
    "begun",
    "state",
    "stop",
    "claim",
    "engine.log",
    "lock",
];

/// How long a job has to end by itself.
const STUBBORN: Duration = Duration::from_secs(10);

impl Shared {
    /// Removes a run that has finished, or any if forced.
    pub(crate) async fn cleanup(
        self: &Arc<Self>,
        id: &RunId,
        options: CleanupOptions,
    ) -> Result<CleanedUp> {
        let _lock = self.lock(id).await;
        let there = match self.look(id).await {
            Ok(Some(look)) if !look.status.phase.is_finished() && !options.force => {
                let message = "the run has not finished";
                return Err(v6_runtime::Error::new(ErrorKind::NotReady, message).into());
            }
            Ok(look) => look.is_some(),
            // A record that cannot be read can still be removed.
            Err(Error::Record { .. }) if options.force => true,
            Err(error) => return Err(error),
        };
        if there {
            self.remove_all(id).await?;
        } else {
            self.remove_hidden(Some(id)).await?;
        }
        self.hub.remove(id);
        self.forget(id);
        Ok(if there {
            CleanedUp::Removed
        } else {
            CleanedUp::Absent
        })
    }

    /// Ends a run, if it has not ended, and removes every part of it. Goes on past what cannot be
    /// removed, keeps the record then, and gives the first error.
    pub(crate) async fn remove_all(self: &Arc<Self>, id: &RunId) -> Result<()> {
        const TRIES: u32 = 5;
        let mut tried = 0;
        loop {
            tried += 1;
            match self.remove_what_is_there(id).await {
                // Another process is at the same work: what is gone already is no error.
                Err(Error::Host { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound && tried < TRIES => {}
                removed => return removed,
            }
        }
    }

    async fn remove_what_is_there(self: &Arc<Self>, id: &RunId) -> Result<()> {
        if self.is_held(id).await? {
            self.decide(id, Duration::ZERO).await?;
            self.stop_driver(id).await;
            self.ring(id).await?;
            self.released(id).await?;
        } else {
            self.stop_driver(id).await;
        }
        self.egress.close(id);
        let (runs, run) = (self.runs.clone(), id.clone());
        blocking(move || remove_parts(&runs, &run)).await?;
        self.remove_hidden(Some(id)).await
    }

    /// Removes what an attempt has left that never started, if that is so still.
    pub(crate) async fn remove_abandoned(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let (runs, run) = (self.runs.clone(), id.clone());
        // With its lock, so that nobody begins to work on it meanwhile.
        let locked = blocking(move || {
            let failed = Error::host("the run's lock cannot be taken");
            runs.place(&run).0.lock().map_err(failed)
        });
        let Some(lock) = locked.await? else {
            return Ok(());
        };
        let look = self.look(id).await?;
        let begun = look.is_some_and(|look| {
            // With the lock in our own hand it looks as if somebody were at work.
            !matches!(
                look.status.phase,
                RunPhase::Pending(Pending::Accepted | Pending::Abandoned)
            )
        });
        if begun {
            return Ok(());
        }
        let (runs, run) = (self.runs.clone(), id.clone());
        blocking(move || remove_parts(&runs, &run)).await?;
        drop(lock);
        self.remove_hidden(Some(id)).await
    }

    /// Waits until nobody works on a run that was told to end at once.
    async fn released(self: &Arc<Self>, id: &RunId) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        const LOOK_AGAIN: Duration = Duration::from_millis(5);
        let mut kill_at = tokio::time::Instant::now() + STUBBORN;
        let waiting = async {
            while self.is_held(id).await? {
                // A monitor that could end its run has done it by then.
                if tokio::time::Instant::now() > kill_at {
                    self.kill_job(id).await?;
                    kill_at += STUBBORN;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok::<(), Error>(())
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| {
                let message = "somebody still works on the run: its monitor does not end";
                Err(v6_runtime::Error::new(ErrorKind::Timeout, message).into())
            })
    }

    /// Removes folders that are out of sight: of one run, or of all.
    pub(crate) async fn remove_hidden(&self, id: Option<&RunId>) -> Result<()> {
        let (runs, id) = (self.runs.clone(), id.cloned());
        blocking(move || {
            let mut first = None;
            for path in runs.hidden(id.as_ref())? {
                // Others may be at it, too.
                if let Err(error) = remove_tree(&path)
                    && path.exists()
                {
                    let what = format!("{} cannot be removed", path.display());
                    first.get_or_insert(Error::host(what)(error));
                }
            }
            first.map_or(Ok(()), Err)
        })
        .await
    }
}

fn remove_parts(runs: &Runs, id: &RunId) -> Result<()> {
    if matches!(runs.read(id), Ok(There::Nothing | There::Stranger)) {
        return Ok(());
    }
    let place = runs.place(id);
    let failed =
        |path: &std::path::Path| Error::host(format!("{} cannot be removed", path.display()));
    if let Some(group) = place.group()? {
        cgroup::remove(&group)?;
    }
    let mut first = None;
    for entry in fs::read_dir(place.path()).map_err(failed(place.path()))? {
        let entry = entry.map_err(failed(place.path()))?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| LAST.contains(&name))
        {
            continue;
        }
        if let Err(error) = remove_tree(&entry.path()) {
            first.get_or_insert(failed(&entry.path())(error));
        }
    }
    match first {
        Some(error) => Err(error),
        // In one step, all that tells of it.
        None => match runs.hide(id) {
            // By another process.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            hidden => hidden.map_err(failed(place.path())),
        },
    }
}
