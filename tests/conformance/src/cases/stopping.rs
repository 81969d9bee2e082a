//! Ending runs: cancel, grace, deadline.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use v6_runtime::{CancelOptions, Cancelled, Capabilities, Outcome, Runtime};

use crate::bench::{Bench, run_id};
use crate::case::{self, equal, holds};

fn deadline(c: &Capabilities) -> Result<(), &'static str> {
    c.deadline.then_some(()).ok_or("deadline")
}

fn grace(c: &Capabilities) -> Result<(), &'static str> {
    c.grace.then_some(()).ok_or("grace")
}

case::cases! {
    a_running_run_is_cancelled ["CAN-1"]: "cancel asks a run to end; one that does, ends at once as Cancelled";
    cancelling_the_finished_does_nothing ["CAN-2"]: "cancel of a run that is over is AlreadyFinished, and its outcome stays";
    #[needs(grace)]
    who_ignores_the_request_is_killed ["CAN-1"]: "a program that ignores the request to end is killed after the grace, not before";
    #[needs(grace)]
    a_shorter_grace_shortens ["CAN-4"]: "cancelling again with a shorter grace kills earlier";
    a_run_is_cancelled_before_it_starts ["CAN-1"]: "a run that is cancelled as soon as it is accepted ends as Cancelled, whether it had begun or not";
    #[needs(|c: &Capabilities| c.outcomes.cancelled.then_some(()).ok_or("outcomes.cancelled"))]
    a_restart_remembers_the_cancel ["REC-2", "CAN-3"]: "a cancelled run is Cancelled also for a later process";
    #[needs(deadline)]
    the_deadline_ends_a_run ["DEAD-1"]: "a run past its deadline is ended as DeadlineExceeded";
    #[needs(deadline)]
    the_deadline_holds_alone ["DEAD-1"]: "the deadline ends a run also while no process of the caller is there";
    #[needs(deadline)]
    the_deadline_kills_the_stubborn ["DEAD-1"]: "a program that ignores the deadline's request is killed after the grace";
}

const STUBBORN: &str = "trap-term ignore then echo ready then sleep 60000";

async fn stubborn(
    bench: &Bench,
    id: &str,
    grace: Duration,
) -> Result<v6_runtime::RunId, case::Failure> {
    let id = run_id(id);
    bench
        .runtime
        .run(&id, &bench.spec(STUBBORN).await?.with_grace(grace))
        .await?;
    bench.running(&id).await?;
    bench.printed(&id, "ready").await?;
    Ok(id)
}

async fn a_running_run_is_cancelled(bench: Bench) -> case::Outcome {
    let id = run_id("cancelled");
    bench
        .runtime
        .run(&id, &bench.spec("echo ready then sleep 60000").await?)
        .await?;
    bench.running(&id).await?;
    bench.printed(&id, "ready").await?;
    let begun = Instant::now();
    let told = bench.runtime.cancel(&id, CancelOptions::default()).await?;
    equal("cancel", told, Cancelled::Requested)?;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Cancelled),
    )?;
    let took = begun.elapsed();
    holds(
        &format!("it took {took:?}, as if it had been killed"),
        took < Duration::from_secs(8),
    )?;
    Ok(())
}

async fn cancelling_the_finished_does_nothing(bench: Bench) -> case::Outcome {
    let id = run_id("over");
    bench.finish(&id, &bench.spec("exit 5").await?).await?;
    let told = bench.runtime.cancel(&id, CancelOptions::default()).await?;
    equal("cancel", told, Cancelled::AlreadyFinished)?;
    let status = bench.restarted().await?.runtime.status(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(5)),
    )?;
    Ok(())
}

async fn who_ignores_the_request_is_killed(bench: Bench) -> case::Outcome {
    let id = stubborn(&bench, "stubborn", Duration::from_secs(2)).await?;
    let begun = Instant::now();
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Cancelled),
    )?;
    let took = begun.elapsed();
    let right = (Duration::from_millis(1900)..Duration::from_secs(12)).contains(&took);
    holds(&format!("with a grace of 2 s it took {took:?}"), right)?;
    Ok(())
}

async fn a_shorter_grace_shortens(bench: Bench) -> case::Outcome {
    let id = stubborn(&bench, "hurried", Duration::from_secs(50)).await?;
    let begun = Instant::now();
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    bench
        .runtime
        .cancel(&id, CancelOptions::default().with_grace(Duration::ZERO))
        .await?;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Cancelled),
    )?;
    holds(
        "the second request changed nothing",
        begun.elapsed() < Duration::from_secs(20),
    )?;
    Ok(())
}

async fn a_run_is_cancelled_before_it_starts(bench: Bench) -> case::Outcome {
    let id = run_id("at-once");
    bench
        .runtime
        .run(&id, &bench.spec("sleep 60000").await?)
        .await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Cancelled),
    )?;
    Ok(())
}

async fn a_restart_remembers_the_cancel(bench: Bench) -> case::Outcome {
    let id = run_id("remembered");
    bench
        .runtime
        .run(&id, &bench.spec("sleep 60000").await?)
        .await?;
    bench.running(&id).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    bench.ended(&id).await?;
    let status = bench.restarted().await?.runtime.status(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Cancelled),
    )?;
    Ok(())
}

async fn the_deadline_ends_a_run(bench: Bench) -> case::Outcome {
    let id = run_id("late");
    let spec = bench.spec("sleep 60000").await?;
    let begun = Instant::now();
    let spec = spec.with_deadline(SystemTime::now() + Duration::from_secs(3));
    let status = bench.finish(&id, &spec).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::DeadlineExceeded),
    )?;
    let took = begun.elapsed();
    holds(
        &format!("with a deadline in 3 s it took {took:?}"),
        took > Duration::from_millis(2900),
    )?;
    Ok(())
}

async fn the_deadline_holds_alone(bench: Bench) -> case::Outcome {
    let id = run_id("alone");
    let deadline = SystemTime::now() + Duration::from_secs(3);
    {
        // The value that starts the run goes; the one that is left has never been asked anything.
        let starter = bench.restarted().await?;
        let spec = starter.spec("sleep 60000").await?.with_deadline(deadline);
        starter.runtime.run(&id, &spec).await?;
        starter.running(&id).await?;
    }
    let left = deadline
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    tokio::time::sleep(left + Duration::from_secs(2)).await;
    let status = bench.restarted().await?.runtime.status(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::DeadlineExceeded),
    )?;
    Ok(())
}

async fn the_deadline_kills_the_stubborn(bench: Bench) -> case::Outcome {
    let id = run_id("stubborn");
    let spec = bench
        .spec(STUBBORN)
        .await?
        .with_grace(Duration::from_secs(1));
    let spec = spec.with_deadline(SystemTime::now() + Duration::from_secs(3));
    let status = bench.finish(&id, &spec).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::DeadlineExceeded),
    )?;
    Ok(())
}
