//! Cancelling runs, in each phase.

use std::time::Duration;

use tokio::time::Instant;
use v6_runtime::{CancelOptions, Cancelled, ErrorKind, Outcome, RunId, Runtime};

use super::needs;
use crate::bench::{Bench, run_id};
use crate::case::{self, Failure, equal, fails, holds};

case::cases! {
    #[needs(needs::init)]
    a_running_run_is_cancelled ["CAN-1"]: "cancel asks a run to end; one that does nothing about it ends at once as Cancelled";
    who_ends_on_request_was_cancelled ["CAN-1"]: "a program that ends with a code of its own when it is asked to was Cancelled all the same";
    cancelling_the_finished_does_nothing ["CAN-2"]: "cancel of a run that is over is AlreadyFinished, and its outcome stays";
    cancelling_the_removed_is_not_found ["CAN-2", "STAT-1"]: "cancel of a run that was cleaned up is NotFound";
    #[needs(needs::grace)]
    who_ignores_the_request_is_killed ["CAN-1"]: "a program that ignores the request to end is killed after the grace, not before";
    #[needs(needs::grace)]
    a_shorter_grace_shortens ["CAN-4"]: "cancelling again with a shorter grace kills earlier";
    #[needs(needs::grace)]
    #[should]
    a_longer_grace_does_not_lengthen ["CAN-4"]: "cancelling again with a longer grace does not put the kill off";
    a_grace_of_zero_kills ["CAN-4"]: "cancelling with no grace kills at once a program that would ignore the request";
    cancelling_twice_is_no_error ["CAN-1"]: "a second cancel, also by another process and at the same time, is no error and changes nothing";
    a_run_is_cancelled_before_it_starts ["CAN-1"]: "a run that is cancelled as soon as it is accepted ends as Cancelled, whether it had begun or not";
    a_start_can_be_cancelled_at_any_moment ["CAN-1", "CAN-2"]: "whenever it comes after run, cancel ends a run as Cancelled, or finds it ended by itself";
    #[needs(needs::cancelled)]
    a_restart_remembers_the_cancel ["REC-2", "CAN-3"]: "a cancelled run is Cancelled also for a later process";
}

pub(crate) const STUBBORN: &str = "trap-term ignore then echo ready then sleep 60000";

/// A run that says `ready` when it has come so far.
async fn ready(bench: &Bench, id: &str, words: &str, grace: Option<u64>) -> Result<RunId, Failure> {
    let id = run_id(id);
    let mut spec = bench.spec(words).await?;
    if let Some(seconds) = grace {
        spec = spec.with_grace(Duration::from_secs(seconds));
    }
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    bench.printed(&id, "ready").await?;
    Ok(id)
}

/// A grace, and a time that is less: who ends within it was not waited for so long.
fn unused_grace(bench: &Bench) -> (Option<u64>, Duration) {
    let slowness = bench.slowness();
    // The default is ten seconds.
    let grace = (!slowness.is_zero()).then(|| 10 + 2 * slowness.as_secs());
    (grace, Duration::from_secs(8) + slowness)
}

async fn was_cancelled(bench: &Bench, id: &RunId) -> Result<(), Failure> {
    let status = bench.ended(id).await?;
    let outcome = status.outcome().ok_or("it has no outcome")?;
    holds(
        &format!("it was cancelled, and ended as {outcome:?}"),
        needs::is_cancelled(bench, outcome),
    )
}

async fn a_running_run_is_cancelled(bench: Bench) -> case::Outcome {
    let (grace, limit) = unused_grace(&bench);
    let id = ready(&bench, "cancelled", "echo ready then sleep 60000", grace).await?;
    let begun = Instant::now();
    let told = bench.runtime.cancel(&id, CancelOptions::default()).await?;
    equal("cancel", told, Cancelled::Requested)?;
    was_cancelled(&bench, &id).await?;
    let took = begun.elapsed();
    holds(
        &format!("it took {took:?}, as if it had been killed"),
        took < limit,
    )?;
    Ok(())
}

async fn who_ends_on_request_was_cancelled(bench: Bench) -> case::Outcome {
    let words = "trap-term exit 7 then echo ready then sleep 60000";
    let id = ready(&bench, "polite", words, None).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let outcome = bench.ended(&id).await?.outcome().cloned();
    let wanted = match bench.runtime.capabilities() {
        declared if declared.outcomes.cancelled => Outcome::Cancelled,
        // Without grace it is killed and has no time to end by itself.
        declared if !declared.grace => return was_cancelled(&bench, &id).await.map_err(Into::into),
        _ => Outcome::Exited(7),
    };
    equal("its end", outcome, Some(wanted))?;
    Ok(())
}

async fn cancelling_the_finished_does_nothing(bench: Bench) -> case::Outcome {
    let id = run_id("over");
    bench.finish(&id, &bench.spec("exit 5").await?).await?;
    for bench in [&bench, &bench.restarted().await?] {
        let told = bench.runtime.cancel(&id, CancelOptions::default()).await?;
        equal("cancel", told, Cancelled::AlreadyFinished)?;
    }
    let status = bench.restarted().await?.runtime.status(&id).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::Exited(5)))?;
    Ok(())
}

async fn cancelling_the_removed_is_not_found(bench: Bench) -> case::Outcome {
    let id = run_id("removed");
    bench.finish(&id, &bench.spec("exit 5").await?).await?;
    bench.clean(&id).await?;
    let told = bench.runtime.cancel(&id, CancelOptions::default()).await;
    fails("cancel", told, ErrorKind::NotFound)?;
    let left = bench.leftovers().await?;
    holds(&format!("cancel left behind {left:?}"), left.is_empty())?;
    Ok(())
}

async fn who_ignores_the_request_is_killed(bench: Bench) -> case::Outcome {
    let id = ready(&bench, "stubborn", STUBBORN, Some(2)).await?;
    let begun = Instant::now();
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    was_cancelled(&bench, &id).await?;
    let took = begun.elapsed();
    let most = Duration::from_secs(12) + bench.slowness();
    let right = (Duration::from_millis(1900)..most).contains(&took);
    holds(&format!("with a grace of 2 s it took {took:?}"), right)?;
    Ok(())
}

async fn a_shorter_grace_shortens(bench: Bench) -> case::Outcome {
    let id = ready(&bench, "hurried", STUBBORN, Some(50)).await?;
    let begun = Instant::now();
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let shorter = CancelOptions::default().with_grace(Duration::ZERO);
    bench.runtime.cancel(&id, shorter).await?;
    was_cancelled(&bench, &id).await?;
    let took = begun.elapsed();
    holds(
        &format!("the second request changed nothing: it took {took:?}"),
        took < Duration::from_secs(20),
    )?;
    Ok(())
}

async fn a_longer_grace_does_not_lengthen(bench: Bench) -> case::Outcome {
    let id = ready(&bench, "unhurried", STUBBORN, Some(3)).await?;
    let begun = Instant::now();
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let longer = CancelOptions::default().with_grace(Duration::from_secs(50));
    bench.runtime.cancel(&id, longer).await?;
    was_cancelled(&bench, &id).await?;
    let took = begun.elapsed();
    holds(
        &format!("the second request put the kill off: it took {took:?}"),
        took < Duration::from_secs(20),
    )?;
    Ok(())
}

async fn a_grace_of_zero_kills(bench: Bench) -> case::Outcome {
    let (grace, limit) = unused_grace(&bench);
    let id = ready(&bench, "killed", STUBBORN, grace).await?;
    let begun = Instant::now();
    let at_once = CancelOptions::default().with_grace(Duration::ZERO);
    bench.runtime.cancel(&id, at_once).await?;
    was_cancelled(&bench, &id).await?;
    let took = begun.elapsed();
    holds(&format!("it took {took:?}"), took < limit)?;
    Ok(())
}

async fn cancelling_twice_is_no_error(bench: Bench) -> case::Outcome {
    let id = ready(&bench, "twice", "echo ready then sleep 60000", None).await?;
    let again = bench.restarted().await?;
    let calls = (0..6).map(|number| {
        let bench = if number % 2 == 0 { &bench } else { &again };
        bench.runtime.cancel(&id, CancelOptions::default())
    });
    let mut requested = 0;
    for told in futures_util::future::join_all(calls).await {
        requested += usize::from(told? == Cancelled::Requested);
    }
    holds("nobody has requested it", requested > 0)?;
    was_cancelled(&bench, &id).await?;
    let told = again.runtime.cancel(&id, CancelOptions::default()).await?;
    equal("cancel after its end", told, Cancelled::AlreadyFinished)?;
    was_cancelled(&again, &id).await?;
    Ok(())
}

async fn a_run_is_cancelled_before_it_starts(bench: Bench) -> case::Outcome {
    let id = run_id("at-once");
    let spec = bench.spec("sleep 60000").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    was_cancelled(&bench, &id).await?;
    Ok(())
}

async fn a_start_can_be_cancelled_at_any_moment(bench: Bench) -> case::Outcome {
    let spec = bench.spec("sleep 400 then exit 3").await?;
    // Each later than the one before: before, while and after its container is made and started.
    let moments = (0..16_u64).map(|number| {
        let (bench, spec) = (bench.clone(), spec.clone());
        let after = Duration::from_millis(number * number * 4);
        async move {
            let id = run_id(&format!("moment-{number}"));
            bench.runtime.run(&id, &spec).await?;
            tokio::time::sleep(after).await;
            let told = bench.runtime.cancel(&id, CancelOptions::default()).await?;
            let status = bench.ended(&id).await?;
            let outcome = status.outcome().ok_or("it has no outcome")?;
            let by_itself = *outcome == Outcome::Exited(3);
            let what =
                format!("{after:?} after run, cancel said {told:?}; it ended as {outcome:?}");
            holds(
                &what,
                match told {
                    Cancelled::AlreadyFinished => by_itself,
                    // It may have ended by itself while it was being asked.
                    Cancelled::Requested => by_itself || needs::is_cancelled(&bench, outcome),
                },
            )?;
            let later = bench.restarted().await?.runtime.status(&id).await?;
            equal("what a later process sees", later.phase, status.phase)
        }
    });
    for outcome in futures_util::future::join_all(moments).await {
        outcome?;
    }
    Ok(())
}

async fn a_restart_remembers_the_cancel(bench: Bench) -> case::Outcome {
    let id = run_id("remembered");
    let spec = bench.spec("sleep 60000").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    bench.ended(&id).await?;
    let status = bench.restarted().await?.runtime.status(&id).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::Cancelled))?;
    Ok(())
}
