//! Processes that are killed: what they have begun is found, and ended, by the next.

use std::time::{Duration, SystemTime};

use v6_runtime::{Accepted, CleanupOptions, ErrorKind, Outcome, Pending, RunId, RunPhase, Runtime};

use super::{files, needs};
use crate::bench::{Bench, LOOK_AGAIN, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::child::Task;

/// How long a process that was killed may seem to be at work at most.
const GONE_LIMIT: Duration = Duration::from_secs(60);

case::cases! {
    a_killed_starter_leaves_its_run ["REC-2", "RUN-2"]: "a run whose starter was killed goes on; a new process adopts it, follows its log, sees its end, collects and cleans up";
    #[needs(needs::streams)]
    a_killed_start_is_abandoned ["RUN-4", "REC-2"]: "what a process leaves that is killed while it gives input is Abandoned or nothing, and the id can be run with another spec";
    #[needs(needs::streams)]
    a_killed_start_can_be_cleaned_up ["CLEAN-3", "REC-2"]: "what a process leaves that is killed while it gives input can be cleaned up, whole";
    #[needs(needs::cancelled)]
    a_killed_process_has_cancelled ["CAN-3", "REC-2"]: "a run that a killed process had cancelled is Cancelled";
    #[needs(needs::deadline)]
    the_deadline_outlives_its_process ["DEAD-1"]: "the deadline ends a run whose starter was killed, at that time and not when somebody looks again";
    a_killed_holder_frees_the_lease ["LEASE-1"]: "the lease of a process that was killed is free";
}

fn start(id: &RunId, words: &str) -> Task {
    Task::Run {
        id: id.to_string(),
        words: words.to_owned(),
        deadline: None,
        collects: false,
    }
}

async fn a_killed_starter_leaves_its_run(bench: Bench) -> case::Outcome {
    let id = run_id("orphan");
    let collects = needs::files(bench.runtime.capabilities()).is_ok();
    let mut words = "echo begun then sleep 3000".to_owned();
    if collects {
        words.push_str(" then write /out/result 5000");
    }
    words.push_str(" then echo done then exit 6");
    let mut starter = bench
        .child(Task::Run {
            id: id.to_string(),
            words: words.clone(),
            deadline: None,
            collects,
        })
        .await?;
    starter.done().await?;
    starter.kill().await?;
    let status = bench.runtime.status(&id).await?;
    holds(
        &format!(
            "right after its starter was killed it is {:?}",
            status.phase
        ),
        matches!(
            status.phase,
            RunPhase::Running | RunPhase::Finished(Outcome::Exited(6))
        ),
    )?;
    equal("listed", bench.listed().await?, vec![id.to_string()])?;
    let mut spec = bench.spec(&words).await?;
    if collects {
        spec = files::with_result(spec, 1 << 20)?;
    }
    let again = bench.runtime.run(&id, &spec).await?;
    equal("run", again, Accepted::Adopted)?;
    bench.printed(&id, "done").await?;
    bench.ends_with(&id, 6).await?;
    equal("its log", bench.text(&id).await?.as_str(), "begun\ndone\n")?;
    if collects {
        files::collects(&bench, &id, 5000).await?;
    }
    bench.clean(&id).await?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

/// A run that a process had begun to make when it was killed.
async fn half_made(bench: &Bench, id: &RunId) -> case::Outcome {
    let mut maker = bench.child(Task::HalfMake { id: id.to_string() }).await?;
    maker.done().await?;
    maker.kill().await?;
    Ok(())
}

async fn a_killed_start_is_abandoned(bench: Bench) -> case::Outcome {
    let id = run_id("half");
    half_made(&bench, &id).await?;
    let told = async {
        loop {
            match bench.runtime.status(&id).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok::<_, Failure>(()),
                Err(error) => return Err(error.into()),
                Ok(status) if status.phase == RunPhase::Pending(Pending::Abandoned) => {
                    return Ok(());
                }
                Ok(status) => holds(
                    &format!("it went on as {:?}", status.phase),
                    status.phase.rank() == 0,
                )?,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    match tokio::time::timeout(GONE_LIMIT, told).await {
        Ok(told) => told?,
        Err(_) => return Err("a killed process seems to be at work on it still".into()),
    }
    let spec = bench.spec("exit 8").await?;
    let accepted = bench.runtime.run(&id, &spec).await?;
    equal("run with another spec", accepted, Accepted::Created)?;
    bench.ends_with(&id, 8).await
}

async fn a_killed_start_can_be_cleaned_up(bench: Bench) -> case::Outcome {
    let id = run_id("half");
    half_made(&bench, &id).await?;
    let forced = CleanupOptions::default().with_force(true);
    let removed = tokio::time::timeout(GONE_LIMIT, bench.runtime.cleanup(&id, forced)).await;
    removed.map_err(|_| "cleanup waits for a process that was killed")??;
    let status = bench.runtime.status(&id).await;
    fails("status", status, ErrorKind::NotFound)?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

async fn a_killed_process_has_cancelled(bench: Bench) -> case::Outcome {
    let id = run_id("cancelled");
    let mut starter = bench.child(start(&id, "sleep 60000")).await?;
    starter.done().await?;
    starter.kill().await?;
    let mut canceller = bench.child(Task::Cancel { id: id.to_string() }).await?;
    canceller.done().await?;
    canceller.kill().await?;
    let outcome = bench.ended(&id).await?.outcome().cloned();
    equal("its end", outcome, Some(Outcome::Cancelled))?;
    Ok(())
}

async fn the_deadline_outlives_its_process(bench: Bench) -> case::Outcome {
    let id = run_id("late");
    let after = Duration::from_secs(4) + bench.slowness();
    // The child counts from a moment of its own, which is later.
    let earliest = SystemTime::now() + after;
    let mut starter = bench
        .child(Task::Run {
            id: id.to_string(),
            words: bench.endless().to_owned(),
            deadline: u64::try_from(after.as_millis()).ok(),
            collects: false,
        })
        .await?;
    starter.done().await?;
    let latest = SystemTime::now() + after;
    starter.kill().await?;
    // While nobody lives who could end it, and some time more.
    let unseen = latest + Duration::from_secs(4) + bench.slowness();
    let left = unseen.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
    let status = bench.restarted().await?.runtime.status(&id).await?;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::DeadlineExceeded))?;
    let ended = status.finished.ok_or("the time of its end is not known")?;
    let slack = Duration::from_secs(3);
    holds(
        &format!("it ended at {ended:?}, its deadline was between {earliest:?} and {latest:?}"),
        (earliest - slack..latest + slack).contains(&ended),
    )?;
    Ok(())
}

async fn a_killed_holder_frees_the_lease(bench: Bench) -> case::Outcome {
    let mut holder = bench.child(Task::Lease).await?;
    holder.done().await?;
    let second = bench.runtime.acquire().await;
    fails("a second holder", second, ErrorKind::Conflict)?;
    holder.kill().await?;
    // Some engines learn of it by a time-out.
    let freed = async {
        loop {
            match bench.runtime.acquire().await {
                Ok(lease) => {
                    drop(lease);
                    return Ok::<_, Failure>(());
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    match tokio::time::timeout(GONE_LIMIT, freed).await {
        Ok(freed) => Ok(freed?),
        Err(_) => Err("a killed process holds the lease still".into()),
    }
}
