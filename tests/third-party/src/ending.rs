//! Ending a run, and removing what is left of it.

use std::io;
use std::time::{Duration, SystemTime};

use v6_runtime::{Cancelled, CleanedUp, Pending, RunId, RunPhase};

use crate::record::{Folder, later, unless_removed};
use crate::runtime::Runs;

/// Notes the wish, unless the run is over; `None` if there is no such run.
pub fn cancel(
    folder: &Folder,
    id: &RunId,
    grace: Option<Duration>,
) -> io::Result<Option<Cancelled>> {
    let Some(known) = folder.status(id)? else {
        return Ok(None);
    };
    if known.phase.is_finished() {
        return Ok(Some(Cancelled::AlreadyFinished));
    }
    let wished = folder.state().and_then(|state| {
        let grace = grace.unwrap_or(state.grace);
        folder.wish(later(SystemTime::now(), grace))
    });
    Ok(unless_removed(wished)?.map(|()| Cancelled::Requested))
}

/// How far a call of `cleanup` has got.
pub enum Cleaning {
    /// It is over.
    Done(CleanedUp),
    /// The run has not ended, and nobody asked for that.
    NotReady,
    /// Somebody is still at work on the run.
    Ending,
}

/// One try to remove a run.
pub fn clean(runs: &Runs, id: &RunId, force: bool) -> io::Result<Cleaning> {
    let absent = Cleaning::Done(CleanedUp::Absent);
    let Some(mut folder) = runs.open(id)? else {
        return Ok(absent);
    };
    let Some(known) = folder.status(id)? else {
        return Ok(absent);
    };
    let abandoned = known.phase == RunPhase::Pending(Pending::Abandoned);
    match known.phase.is_finished() {
        false if !force => return Ok(Cleaning::NotReady),
        false if !abandoned => {
            cancel(&folder, id, Some(Duration::ZERO))?;
        }
        _ => {}
    }
    // A supervisor that has stored the end may not have ended itself.
    if !folder.claim()? || !folder.is_in_place()? {
        return Ok(Cleaning::Ending);
    }
    folder.settle()?;
    folder.remove()?;
    runs.tell(id)?;
    Ok(Cleaning::Done(CleanedUp::Removed))
}
