//! A fresh look at one run or all of them.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use v6_helper::{Claim, MAX_CLAIM, Sight};
use v6_runtime::{Error as Public, ResultStream, RunId, RunStatus};

use crate::error::{Error, Result, blocking};
use crate::record::{Place, Record, There};
use crate::slurm::Job;
use crate::state::Shared;
use crate::translate::{self, Seen};

/// How many runs are looked at at once.
pub(crate) const AT_ONCE: usize = 8;

/// Who holds a run, and whether that is known to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A monitor on this machine, which has the run's lock.
    Monitor,
    /// A job of Slurm.
    Job {
        /// Whether it is in Slurm's hands, or about to be.
        alive: bool,
        /// How it ended, if that is known.
        over: Option<Job>,
    },
}

/// What a look at one run has found.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) record: Record,
    pub(crate) sight: Sight,
    pub(crate) status: RunStatus,
}

impl Look {
    /// Whether the run's command was ever started.
    pub(crate) fn has_begun(&self) -> bool {
        self.status.started.is_some()
    }
}

impl Shared {
    /// Looks at one run; `None` if there is no record of it.
    pub(crate) async fn look(self: &Arc<Self>, id: &RunId) -> Result<Option<Look>> {
        match self.slurm.clone() {
            None => self.look_here(id, &Holder::Monitor).await,
            Some(slurm) => self.look_at_job(&slurm, id).await,
        }
    }

    /// Looks at its folder.
    pub(crate) async fn look_here(
        self: &Arc<Self>,
        id: &RunId,
        holder: &Holder,
    ) -> Result<Option<Look>> {
        let (shared, id, holder) = (self.clone(), id.clone(), holder.clone());
        blocking(move || shared.look_now(&id, &holder)).await
    }

    fn look_now(&self, id: &RunId, holder: &Holder) -> Result<Option<Look>> {
        let There::Run(record) = self.runs.read(id)? else {
            return Ok(None);
        };
        let place = self.runs.place(id);
        let looked = (|| -> Result<_> {
            let failed = || Error::host(format!("the run's folder {} cannot be read", place.0));
            // In this order: a failure is noted before the lock is given back.
            let sight = match holder {
                Holder::Monitor => place.0.look(),
                Holder::Job { alive, .. } => place.0.look_at_job(*alive),
            };
            let sight = sight.map_err(failed())?;
            let failed_start = place.failure()?;
            let concluded = match holder {
                Holder::Monitor => None,
                Holder::Job { .. } => place.conclusion()?,
            };
            let (mut claim, mut words) = (None, String::new());
            if matches!(sight, Sight::Ended(_)) {
                claim = read_claim(&place).map_err(failed())?;
                if claim.is_none() {
                    words = place.0.words().map_err(failed())?;
                }
            }
            Ok((sight, failed_start, concluded, claim, words))
        })();
        let (sight, failed, concluded, claim, words) = match looked {
            Ok(seen) => seen,
            // Removed under our eyes.
            Err(_) if matches!(self.runs.read(id), Ok(There::Nothing)) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Without a state it was not begun, or is just taken away: the record goes with it.
        if matches!(sight, Sight::NotBegun { .. }) {
            match self.runs.read(id)? {
                There::Run(again) if again == record => {}
                There::Run(_) => return self.look_now(id, holder),
                There::Nothing | There::Stranger => return Ok(None),
            }
        }
        let seen = Seen {
            record: &record,
            failed: failed.as_ref(),
            concluded: concluded.as_ref(),
            holder,
            sight: &sight,
            claim: claim.as_ref(),
            words: &words,
            driven: self.pending(id),
        };
        let status = translate::status(id, &seen);
        Ok(Some(Look {
            record: *record,
            sight,
            status,
        }))
    }
}

pub(crate) fn read_claim(place: &Place) -> std::io::Result<Option<Claim>> {
    let file = match File::open(place.claim()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_CLAIM as u64 + 1).read_to_end(&mut bytes)?;
    // What is no claim tells as much as none.
    Ok(Claim::parse(&bytes).ok())
}

/// Every run of the owner.
pub(crate) fn list(shared: Arc<Shared>) -> ResultStream<RunStatus> {
    let ids = async move {
        let runs = shared.runs.clone();
        let ids = blocking(move || runs.ids()).await?;
        let looks = stream::iter(ids).map(move |id| {
            let shared = shared.clone();
            async move { shared.look(&id).await }
        });
        let found = looks.buffer_unordered(AT_ONCE);
        Ok::<_, Error>(found.try_filter_map(|look| async move { Ok(look.map(|look| look.status)) }))
    };
    let statuses = stream::once(ids).try_flatten();
    Box::pin(statuses.map_err(|error| Public::from(error).with_operation("list")))
}
