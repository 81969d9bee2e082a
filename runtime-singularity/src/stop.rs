//! Ending runs: the decision is made once, durably, by whoever makes the run's `stop` file.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use v6_helper::{Sight, StopCause};
use v6_runtime::{CancelOptions, Cancelled, ErrorKind, RunId};

use crate::error::{Error, Result, blocking};
use crate::look::Look;
use crate::state::Shared;

/// How long a monitor may take to write down what it has decided.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
        let decided = self.decide(id, grace).await?;
        self.stop_driver(id).await;
        self.ring(id).await?;
        if decided == StopCause::End {
            // It had ended by itself, and its monitor is just writing that down.
            self.settled(id).await?;
        }
        let done = match self.look(id).await? {
            // What could not be started had ended, too.
            Some(look) if look.status.phase.is_finished() && decided == StopCause::End => {
                Cancelled::AlreadyFinished
            }
            Some(look) if failed_before(&look.status) => Cancelled::AlreadyFinished,
            _ => Cancelled::Requested,
        };
        self.refresh(id).await?;
        Ok(done)
    }

    /// Decides that a run is cancelled, unless something else was decided before; gives what.
    pub(crate) async fn decide(self: &Arc<Self>, id: &RunId, grace: Duration) -> Result<StopCause> {
        let place = self.runs.place(id);
        let now = SystemTime::now();
        // As late as can be written down.
        let kill_at = now.checked_add(grace.min(Duration::from_secs(100 * 366 * 86_400)));
        blocking(move || {
            let decided = place.0.stop(StopCause::Cancel, kill_at.unwrap_or(now));
            let decided = decided.map_err(Error::host("the wish to cancel cannot be noted"))?;
            Ok(decided.cause)
        })
        .await
    }

    /// Waits until a run that is ending is over, or nobody works on it any more.
    pub(crate) async fn settled(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let waiting = async {
            while self.is_held(id).await? {
                let look = self.look(id).await?;
                let over = |look: &Look| matches!(look.sight, Sight::Ended(_) | Sight::Lost { .. });
                if look.as_ref().is_none_or(over) {
                    break;
                }
                // Also where nobody watches, and no news would come.
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok::<(), Error>(())
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| {
                let message = "the run's monitor does not end it";
                Err(v6_runtime::Error::new(ErrorKind::Timeout, message).into())
            })
    }
}

fn failed_before(status: &v6_runtime::RunStatus) -> bool {
    matches!(
        status.outcome(),
        Some(v6_runtime::Outcome::FailedToStart(_) | v6_runtime::Outcome::Lost(_))
    )
}
