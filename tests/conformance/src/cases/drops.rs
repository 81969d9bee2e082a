//! Calls that are dropped: at each point at which they wait, the next call repairs what they leave.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tokio::io::DuplexStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use v6_runtime::{
    Accepted, CancelOptions, CleanupOptions, ErrorKind, LogOptions, Outcome, Pending, RunId,
    RunPhase, Runtime,
};

use super::{files, needs};
use crate::bench::{Bench, LOOK_AGAIN, output, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::child::half_made;
use crate::probe::pattern;

/// A call that is polled so often and not done is not followed further.
const POLLS_MOST: usize = 48;
/// So many calls are tried at once,
const AT_ONCE: usize = 8;
/// and no more begun after this time: an engine with which a call waits often takes long for each.
const TIME_MOST: Duration = Duration::from_secs(12);

case::cases! {
    #[needs(needs::streams)]
    a_cut_start_is_abandoned ["RUN-4"]: "a call of run that is dropped while it reads its input leaves an Abandoned record or nothing, and the id can be run with another spec";
    #[needs(needs::streams)]
    a_cut_start_can_be_cleaned_up ["CLEAN-3"]: "what a dropped call of run has left can be cleaned up, whole";
    run_can_be_dropped_anywhere ["RUN-4", "ANY-1"]: "a call of run that is dropped wherever it waits can be repeated, and the program runs once";
    run_dropped_anywhere_leaves_nothing ["CLEAN-3", "ANY-1"]: "what a call of run leaves that is dropped wherever it waits can be cleaned up, whole";
    cancel_can_be_dropped_anywhere ["CAN-1", "ANY-1"]: "a call of cancel that is dropped wherever it waits can be repeated";
    cleanup_can_be_dropped_anywhere ["CLEAN-2", "CLEAN-3", "ANY-1"]: "a call of cleanup that is dropped wherever it waits shows no other end, and finishes when repeated";
    looks_can_be_dropped_anywhere ["STAT-1", "ANY-1"]: "calls of status, list, resolve and ping that are dropped wherever they wait change nothing";
    acquire_can_be_dropped_anywhere ["LEASE-1", "ANY-1"]: "a call of acquire that is dropped wherever it waits leaves the lease free";
    #[needs(needs::files)]
    reading_can_be_dropped_anywhere ["OUT-1", "LOG-1", "ANY-1"]: "outputs and logs are whole after any reading of them was dropped";
}

async fn a_cut_start_is_abandoned(bench: Bench) -> case::Outcome {
    let id = run_id("cut");
    let _input = cut_start(&bench, &id).await?;
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
    match tokio::time::timeout(CUT_LIMIT, told).await {
        Ok(told) => told?,
        Err(_) => return Err("somebody seems to be at work on it still".into()),
    }
    let spec = bench.spec("exit 8").await?;
    let accepted = bench.runtime.run(&id, &spec).await?;
    equal("run with another spec", accepted, Accepted::Created)?;
    let outcome = bench.ended(&id).await?.outcome().cloned();
    equal("its end", outcome, Some(Outcome::Exited(8)))?;
    Ok(())
}

async fn a_cut_start_can_be_cleaned_up(bench: Bench) -> case::Outcome {
    let id = run_id("cut");
    let _input = cut_start(&bench, &id).await?;
    let forced = CleanupOptions::default().with_force(true);
    let removed = tokio::time::timeout(CUT_LIMIT, bench.runtime.cleanup(&id, forced)).await;
    // Removed or Absent: the dropped call may have tidied up itself.
    removed.map_err(|_| "cleanup waits for a call that nobody waits for")??;
    let status = bench.runtime.status(&id).await;
    fails("status", status, ErrorKind::NotFound)?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

/// Polls a future so often, and drops it. What it came to, if it was done by then.
async fn polled<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Tries something with a call that is polled 0, 1, 2… times, until the call is done by itself.
/// `attempt` says whether it was.
async fn everywhere<F>(bench: &Bench, attempt: impl Fn(Bench, usize) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<bool, Failure>> + Send + 'static,
{
    let began = Instant::now();
    for first in (0..POLLS_MOST).step_by(AT_ONCE) {
        let mut attempts = JoinSet::new();
        for polls in first..first + AT_ONCE {
            let attempt = attempt(bench.clone(), polls);
            attempts.spawn(async move {
                let told = |failure| format!("dropped after {polls} polls: {failure}");
                attempt
                    .await
                    .map_err(|failure| Failure::from(told(failure)))
            });
        }
        let mut done = false;
        while let Some(attempt) = attempts.join_next().await {
            done |= attempt.map_err(|error| error.to_string())??;
        }
        if done || began.elapsed() > TIME_MOST {
            break;
        }
    }
    Ok(())
}

async fn run_can_be_dropped_anywhere(bench: Bench) -> case::Outcome {
    let spec = bench.spec("echo started then exit 3").await?;
    everywhere(&bench, move |bench, polls| {
        let spec = spec.clone();
        async move {
            let id = run_id(&format!("dropped-{polls}"));
            let done = polled(polls, bench.runtime.run(&id, &spec)).await;
            let again = bench.runtime.run(&id, &spec).await?;
            if done.is_some() {
                equal("run after one that was done", again, Accepted::Adopted)?;
            }
            let status = bench.ended(&id).await?;
            equal(
                "its end",
                status.outcome().cloned(),
                Some(Outcome::Exited(3)),
            )?;
            let log = bench.text(&id).await?;
            equal("what it printed", log.as_str(), "started\n")?;
            bench.clean(&id).await?;
            Ok(done.is_some())
        }
    })
    .await?;
    Ok(())
}

async fn run_dropped_anywhere_leaves_nothing(bench: Bench) -> case::Outcome {
    let spec = bench.spec("sleep 60000").await?;
    everywhere(&bench, move |bench, polls| {
        let spec = spec.clone();
        async move {
            let id = run_id(&format!("removed-{polls}"));
            let done = polled(polls, bench.runtime.run(&id, &spec)).await;
            let forced = CleanupOptions::default().with_force(true);
            bench.runtime.cleanup(&id, forced).await?;
            let status = bench.runtime.status(&id).await;
            fails("status", status, ErrorKind::NotFound)?;
            Ok(done.is_some())
        }
    })
    .await?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

async fn cancel_can_be_dropped_anywhere(bench: Bench) -> case::Outcome {
    let spec = bench.spec("sleep 60000").await?;
    everywhere(&bench, move |bench, polls| {
        let spec = spec.clone();
        async move {
            let id = run_id(&format!("cancelled-{polls}"));
            bench.runtime.run(&id, &spec).await?;
            bench.running(&id).await?;
            let options = CancelOptions::default();
            let done = polled(polls, bench.runtime.cancel(&id, options.clone())).await;
            bench.runtime.cancel(&id, options).await?;
            let status = bench.ended(&id).await?;
            let outcome = status.outcome().ok_or("it has no outcome")?;
            holds(
                &format!("it ended as {outcome:?}"),
                needs::is_cancelled(&bench, outcome),
            )?;
            Ok(done.is_some())
        }
    })
    .await?;
    Ok(())
}

async fn cleanup_can_be_dropped_anywhere(bench: Bench) -> case::Outcome {
    let spec = bench.spec("exit 3").await?;
    everywhere(&bench, move |bench, polls| {
        let spec = spec.clone();
        async move {
            let id = run_id(&format!("cleaned-{polls}"));
            bench.finish(&id, &spec).await?;
            let options = CleanupOptions::default();
            let done = polled(polls, bench.runtime.cleanup(&id, options.clone())).await;
            match bench.runtime.status(&id).await {
                Ok(status) => {
                    let wanted = RunPhase::Finished(Outcome::Exited(3));
                    equal("its phase meanwhile", status.phase, wanted)?;
                }
                Err(gone) if gone.kind() == ErrorKind::NotFound => {}
                Err(other) => return Err(other.into()),
            }
            bench.runtime.cleanup(&id, options).await?;
            let status = bench.runtime.status(&id).await;
            fails("status", status, ErrorKind::NotFound)?;
            Ok(done.is_some())
        }
    })
    .await?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

async fn looks_can_be_dropped_anywhere(bench: Bench) -> case::Outcome {
    let id = run_id("looked-at");
    bench.finish(&id, &bench.spec("exit 3").await?).await?;
    let image = bench.harness.probe_image();
    let began = Instant::now();
    for polls in 0..POLLS_MOST {
        let runtime = &bench.runtime;
        let all = [
            polled(polls, runtime.status(&id)).await.is_some(),
            polled(polls, runtime.list().next()).await.is_some(),
            polled(polls, runtime.ping()).await.is_some(),
            polled(polls, runtime.resolve(&image, bench.nearest()))
                .await
                .is_some(),
        ];
        let status = runtime.status(&id).await?;
        equal(
            "its end",
            status.outcome().cloned(),
            Some(Outcome::Exited(3)),
        )?;
        equal("listed", bench.listed().await?, vec![id.to_string()])?;
        runtime.resolve(&image, bench.nearest()).await?;
        runtime.ping().await?;
        if all == [true; 4] || began.elapsed() > TIME_MOST {
            break;
        }
    }
    Ok(())
}

async fn acquire_can_be_dropped_anywhere(bench: Bench) -> case::Outcome {
    let again = bench.restarted().await?;
    for polls in 0..POLLS_MOST {
        let done = polled(polls, bench.runtime.acquire()).await;
        let lease = done.transpose()?;
        let held = lease.is_some();
        if held {
            let second = again.runtime.acquire().await;
            fails("a second holder", second, ErrorKind::Conflict)?;
        }
        drop(lease);
        drop(again.runtime.acquire().await.map_err(|error| {
            format!("acquire, after one that was dropped after {polls} polls: {error}")
        })?);
        if held {
            break;
        }
    }
    Ok(())
}

async fn reading_can_be_dropped_anywhere(bench: Bench) -> case::Outcome {
    const SIZE: usize = 300_000;
    let id = run_id("read");
    let words = format!("stdout {SIZE} then write /out/result {SIZE}");
    let spec = files::with_result(bench.spec(&words).await?, SIZE as u64)?;
    bench.finish(&id, &spec).await?;
    for polls in 0..POLLS_MOST {
        let output = bench.runtime.collect(&id, &output("result"));
        let output = polled(polls, output.try_collect::<Vec<_>>()).await;
        let log = bench.runtime.logs(&id, LogOptions::default());
        let log = polled(polls, log.try_collect::<Vec<_>>()).await;
        if output.is_some() && log.is_some() {
            break;
        }
    }
    files::collects(&bench, &id, SIZE).await?;
    holds("the log is another", bench.log(&id).await? == pattern(SIZE))?;
    Ok(())
}

/// How long a call that was dropped may go on at most.
const CUT_LIMIT: Duration = Duration::from_secs(30);

/// Begins a run whose input never comes, waits for its record, and drops the call. The input does
/// not end as long as the result is held.
async fn cut_start(bench: &Bench, id: &RunId) -> Result<DuplexStream, Failure> {
    let (reader, never_written) = tokio::io::duplex(64);
    let spec = half_made(bench.spec("exit 1").await?, reader);
    let call = bench.runtime.run(id, &spec);
    tokio::select! {
        ended = call => Err(format!("run returned without its input: {ended:?}").into()),
        recorded = bench.recorded(id) => recorded.map(|()| never_written),
    }
}
