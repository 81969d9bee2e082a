//! Faults of `cleanup`.

use std::future;

use futures_util::TryStreamExt;
use v6_runtime::{
    CleanedUp, CleanupOptions, Error, ErrorKind, Outcome, Pending, Result, RunId, RunPhase,
    RunStatus, Runtime,
};

use super::Seed;
use super::looking::A_MOMENT;
use super::runtime::Seeded;

pub(super) async fn cleanup(it: &Seeded, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
    let key = it.key(id);
    let status = it.truth(id);
    let phase = status.as_ref().map(|status| status.phase.clone());
    let forced = CleanupOptions::default().with_force(true);
    let double = it.world.notes().doubles.remove(&key);
    if let Some(double) = double {
        it.inner.cleanup(&double, forced.clone()).await?;
    }
    match it.seed {
        Some(Seed::CleanupNeedsNoForce) => it.inner.cleanup(id, forced).await,
        Some(Seed::NothingToCleanUpIsAnError) if phase.is_none() => Err(Error::no_such_run(id)),
        Some(Seed::NothingIsCalledRemoved) if phase.is_none() => {
            it.inner.cleanup(id, options).await?;
            Ok(CleanedUp::Removed)
        }
        Some(Seed::CleanupShowsAnotherEnd) if phase.as_ref().is_some_and(|p| p.is_finished()) => {
            it.world.notes().going.insert(key.clone());
            tokio::time::sleep(A_MOMENT).await;
            let cleaned = it.inner.cleanup(id, options).await;
            it.world.notes().going.remove(&key);
            cleaned
        }
        Some(Seed::MarksOfACancelStay) if phase == Some(RunPhase::Finished(Outcome::Cancelled)) => {
            left_behind(it, format!("the mark of the cancelled run {id}"));
            it.inner.cleanup(id, options).await
        }
        Some(Seed::KilledRunsLeaveTheirFiles)
            if phase.as_ref().is_some_and(|p| (1..=2).contains(&p.rank())) =>
        {
            let cleaned = it.inner.cleanup(id, options).await?;
            left_behind(it, format!("the files of run {id}"));
            Ok(cleaned)
        }
        Some(Seed::AbandonedRunsLeaveTheirFiles) if phase == Some(ABANDONED) => {
            left_behind(it, format!("the files of run {id}"));
            it.inner.cleanup(id, options).await
        }
        Some(Seed::FailedCleanupIsCalledRemoved) => match it.inner.cleanup(id, options).await {
            Err(error) if error.kind() != ErrorKind::NotReady => Ok(CleanedUp::Removed),
            other => other,
        },
        Some(Seed::CleanupsKeepOthersOut) => {
            if !it.world.notes().going.insert(key.clone()) {
                let message = "it is being cleaned up";
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            tokio::task::yield_now().await;
            let cleaned = it.inner.cleanup(id, options).await;
            it.world.notes().going.remove(&key);
            cleaned
        }
        Some(Seed::StrangersAreRemoved) if phase.is_none() => {
            it.world.engine.uproot(&key.0, id);
            it.inner.cleanup(id, options).await
        }
        Some(Seed::LookAlikesAreRemoved) => {
            it.world
                .engine
                .uproot(&key.0, &RunId::new(format!("{id}-1"))?);
            it.inner.cleanup(id, options).await
        }
        Some(Seed::CleanupWaitsForThePull)
            if phase == Some(RunPhase::Pending(Pending::PullingImage)) =>
        {
            future::pending().await
        }
        Some(Seed::CleanupWaitsForTheStarter) if phase == Some(ABANDONED) => {
            future::pending().await
        }
        Some(Seed::IdsAreUsedOnce | Seed::OldEndsComeBack) => {
            let ended = status.as_ref().and_then(RunStatus::outcome).cloned();
            let cleaned = it.inner.cleanup(id, options).await?;
            if let Some(outcome) = ended {
                it.world.notes().ended.insert(key, outcome);
            }
            Ok(cleaned)
        }
        Some(Seed::CleanupOfAnyOwner) if phase.is_none() => {
            for other in it.others() {
                if other.cleanup(id, options.clone()).await? == CleanedUp::Removed {
                    return Ok(CleanedUp::Removed);
                }
            }
            Ok(CleanedUp::Absent)
        }
        Some(Seed::CleanupByPrefix) => {
            let runs: Vec<RunStatus> = it.inner.list().try_collect().await?;
            for run in runs {
                if run.id != *id && run.id.as_str().starts_with(id.as_str()) {
                    it.inner.cleanup(&run.id, forced.clone()).await?;
                }
            }
            it.inner.cleanup(id, options).await
        }
        Some(Seed::RefusalToCleanUpIsAConflict) => match it.inner.cleanup(id, options).await {
            Err(error) if error.kind() == ErrorKind::NotReady => {
                Err(Error::new(ErrorKind::Conflict, error.message()))
            }
            other => other,
        },
        _ => it.inner.cleanup(id, options).await,
    }
}

const ABANDONED: RunPhase = RunPhase::Pending(Pending::Abandoned);

fn left_behind(it: &Seeded, what: String) {
    let whose = it.inner.owner().clone();
    it.world.notes().left_behind.push((whose, what));
}
