//! Faults of cancel, grace and deadline.

use std::time::Duration;

use tokio::time::Instant;
use v6_runtime::{
    CancelOptions, Cancelled, DEFAULT_GRACE, Error, ErrorKind, Pending, Result, RunId, RunPhase,
    RunSpec, Runtime,
};

use super::Seed;
use super::runtime::Seeded;

pub(super) async fn cancel(
    it: &Seeded,
    id: &RunId,
    mut options: CancelOptions,
) -> Result<Cancelled> {
    let key = it.key(id);
    let phase = it.truth(id).map(|status| status.phase);
    let rank = phase.as_ref().map(RunPhase::rank);
    let before = match rank {
        Some(_) => it
            .world
            .notes()
            .cancelled
            .insert(key.clone(), Instant::now()),
        None => None,
    };
    it.own().cancelled.insert(id.clone());
    match (it.seed, rank) {
        (Some(Seed::CancelDoesNothing), Some(0..=2)) => Ok(Cancelled::Requested),
        (Some(Seed::SecondCancelIsAConflict), Some(_)) if before.is_some() => {
            Err(Error::new(ErrorKind::Conflict, "it is being cancelled"))
        }
        (Some(Seed::PullsAreNotCancelled), Some(0))
            if phase == Some(RunPhase::Pending(Pending::PullingImage)) =>
        {
            Ok(Cancelled::Requested)
        }
        (Some(Seed::DroppedCancelIsForgotten), Some(_)) => {
            if !it.world.notes().cancelling.insert(key.clone()) {
                return Ok(Cancelled::Requested);
            }
            tokio::task::yield_now().await;
            let cancelled = it.inner.cancel(id, options).await;
            it.world.notes().cancelling.remove(&key);
            cancelled
        }
        (Some(Seed::ZeroGraceIsTheDefault), Some(_)) => {
            options.grace = options.grace.filter(|grace| !grace.is_zero());
            it.inner.cancel(id, options).await
        }
        (Some(Seed::LastGraceCounts), Some(1..=2)) => {
            let asked = it.world.notes().asked.get(&key).cloned();
            let grace = asked.map_or(DEFAULT_GRACE, |asked| asked.spec.grace);
            let grace = options.grace.unwrap_or(grace);
            let (inner, id) = (it.inner.clone(), id.clone());
            let kill = tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                let now = CancelOptions::default().with_grace(Duration::ZERO);
                let _ = inner.cancel(&id, now).await;
            });
            // The kill that was to come before is put off.
            if let Some(earlier) = it.world.notes().kills.insert(key.clone(), kill) {
                earlier.abort();
            }
            let asked_only = options.with_grace(Duration::from_secs(1 << 20));
            it.inner.cancel(&key.1, asked_only).await
        }
        (Some(Seed::CancelBeforeTheStartIsLost), Some(0)) => Ok(Cancelled::Requested),
        (Some(Seed::SecondCancelIsIgnored), Some(0..=2)) if before.is_some() => {
            Ok(Cancelled::Requested)
        }
        (Some(Seed::FinishedRunsAreAskedToEnd), Some(3)) => Ok(Cancelled::Requested),
        (Some(Seed::UnknownIsCancelled), None) => Ok(Cancelled::AlreadyFinished),
        (Some(Seed::CancelOnlyKills), Some(1..=2)) if before.is_none() => {
            let (inner, id) = (it.inner.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(options.grace.unwrap_or(DEFAULT_GRACE)).await;
                let now = CancelOptions::default().with_grace(Duration::ZERO);
                let _ = inner.cancel(&id, now).await;
            });
            Ok(Cancelled::Requested)
        }
        _ => it.inner.cancel(id, options).await,
    }
}

/// A deadline that the process keeps which started the run: without it nobody does.
pub(super) fn keep_deadline(it: &Seeded, id: &RunId, asked: &RunSpec) {
    if !it.has(Seed::DeadlineNeedsTheCaller) {
        return;
    }
    let Some(deadline) = asked.deadline else {
        return;
    };
    let left = deadline.duration_since(it.world.engine.now());
    let (key, id) = (it.key(id), id.clone());
    let (inner, world) = (it.inner.clone(), it.world.clone());
    it.own().tasks.spawn(async move {
        tokio::time::sleep(left.unwrap_or_default()).await;
        world.notes().late.insert(key);
        let _ = inner.cancel(&id, CancelOptions::default()).await;
    });
}
