//! Deadlines. They are times of the engine's clock, so real time passes here.

use std::time::{Duration, SystemTime};

use v6_runtime::{CancelOptions, Outcome, Runtime};

use super::cancelling::STUBBORN;
use super::needs::deadline;
use crate::bench::{Bench, run_id};
use crate::case::{self, equal, holds};

case::cases! {
    #[needs(deadline)]
    the_deadline_ends_a_run ["DEAD-1"]: "a run past its deadline is ended as DeadlineExceeded, and not before";
    #[needs(deadline)]
    the_deadline_holds_alone ["DEAD-1"]: "the deadline ends a run also while no process of the caller is there";
    #[needs(deadline)]
    the_deadline_kills_the_stubborn ["DEAD-1"]: "a program that ignores the deadline's request is killed after the grace";
    #[needs(deadline)]
    a_past_deadline_starts_nothing ["DEAD-1"]: "a run whose deadline has passed when it is accepted ends as DeadlineExceeded, and its program comes to nothing";
    #[needs(deadline)]
    who_ends_in_time_has_met_it ["DEAD-1"]: "a run that ends before its deadline keeps its outcome when that passes";
    #[needs(deadline)]
    a_deadline_changes_no_cancel ["DEAD-1", "CAN-1"]: "a run with a deadline that is cancelled before it is told as cancelled, also later";
}

/// Waits until a time of the engine's clock.
async fn passed(moment: SystemTime) {
    let left = moment.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
}

async fn the_deadline_ends_a_run(bench: Bench) -> case::Outcome {
    let id = run_id("late");
    let deadline = bench.in_seconds(3);
    let spec = bench.spec(bench.endless()).await?.with_deadline(deadline);
    let status = bench.finish(&id, &spec).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::DeadlineExceeded))?;
    // Seconds are as exact as some engines are.
    let early = status
        .finished
        .and_then(|finished| deadline.duration_since(finished).ok());
    holds(
        &format!("it was ended {early:?} before its deadline"),
        early.is_none_or(|early| early <= Duration::from_secs(1)),
    )?;
    Ok(())
}

async fn the_deadline_holds_alone(bench: Bench) -> case::Outcome {
    let id = run_id("alone");
    let deadline = bench.in_seconds(3);
    {
        // The value that starts the run goes; the one that is left has never been asked anything.
        let starter = bench.restarted().await?;
        let spec = starter.spec(bench.endless()).await?.with_deadline(deadline);
        starter.runtime.run(&id, &spec).await?;
        starter.running(&id).await?;
    }
    passed(deadline + Duration::from_secs(2) + bench.slowness()).await;
    let status = bench.restarted().await?.runtime.status(&id).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::DeadlineExceeded))?;
    Ok(())
}

async fn the_deadline_kills_the_stubborn(bench: Bench) -> case::Outcome {
    let id = run_id("stubborn");
    let mut spec = bench
        .spec(STUBBORN)
        .await?
        .with_deadline(bench.in_seconds(3));
    if bench.runtime.capabilities().grace {
        spec = spec.with_grace(Duration::from_secs(1));
    }
    let status = bench.finish(&id, &spec).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::DeadlineExceeded))?;
    Ok(())
}

async fn a_past_deadline_starts_nothing(bench: Bench) -> case::Outcome {
    let id = run_id("too-late");
    let past = SystemTime::now() - Duration::from_secs(60);
    let spec = bench.spec("sleep 2000 then echo done").await?;
    let status = bench.finish(&id, &spec.with_deadline(past)).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::DeadlineExceeded))?;
    // One that never started may have no log at all.
    let log = bench.text(&id).await.unwrap_or_default();
    holds(&format!("it printed {log}"), log.is_empty())?;
    Ok(())
}

async fn who_ends_in_time_has_met_it(bench: Bench) -> case::Outcome {
    let id = run_id("in-time");
    let deadline = bench.in_seconds(4);
    let spec = bench.spec("exit 5").await?.with_deadline(deadline);
    let status = bench.finish(&id, &spec).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::Exited(5)))?;
    passed(deadline + Duration::from_secs(1)).await;
    for bench in [&bench, &bench.restarted().await?] {
        let status = bench.runtime.status(&id).await?;
        let outcome = status.outcome().cloned();
        equal("its end, later", outcome, Some(Outcome::Exited(5)))?;
    }
    Ok(())
}

async fn a_deadline_changes_no_cancel(bench: Bench) -> case::Outcome {
    let id = run_id("cancelled");
    let deadline = bench.in_seconds(4);
    let spec = bench.spec(bench.endless()).await?.with_deadline(deadline);
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let first = bench.ended(&id).await?;
    let outcome = first.outcome().ok_or("it has no outcome")?;
    holds(
        &format!("it ended as {outcome:?}"),
        super::needs::is_cancelled(&bench, outcome),
    )?;
    passed(deadline + Duration::from_secs(1)).await;
    let later = bench.restarted().await?.runtime.status(&id).await?;
    equal("its end, later", later.phase, first.phase)?;
    Ok(())
}
