//! What is wrong between a runtime and its engine, and is no verdict about any run.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;
use v6_runtime::{
    Accepted, CancelOptions, Capabilities, CleanupOptions, Error, ErrorKind, ImageRef, LogOptions,
    LogStream, Outcome, PullPolicy, RunId, RunPhase, RunStatus, Runtime, RuntimeExt, WatchEvent,
};

use super::watching::told;
use super::{files, needs};
use crate::bench::{Bench, LOOK_AGAIN, output, run_id};
use crate::case::{self, Failure, equal, holds};
use crate::harness::Fault;
use crate::probe::pattern;

const PATIENCE: Duration = Duration::from_secs(60);

fn reads_on(c: &Capabilities) -> Result<(), &'static str> {
    let both = c.logs.follow && c.logs.since;
    both.then_some(()).ok_or("logs.follow with logs.since")
}

case::cases! {
    a_broken_connection_is_no_verdict ["LIFE-6", "WATCH-2"]: "after the connection to the engine broke, the watch comes back with a snapshot or misses nothing, and no run has changed for it";
    an_ended_event_stream_is_no_verdict ["LIFE-6", "WATCH-1", "WATCH-2"]: "after the engine ended its stream of events, the watch goes on, and sees the ends that come then";
    #[needs(reads_on)]
    a_cut_log_can_be_read_on ["LOG-2", "LIFE-6"]: "a followed log whose connection broke does not look ended, and read on from its last position it is whole";
    #[needs(needs::files)]
    a_cut_output_is_not_taken_for_whole ["OUT-1", "LIFE-6"]: "an output whose connection broke ends with a retryable error or comes whole, and can be collected again";
    an_engine_that_is_away_gives_no_verdict ["LIFE-6", "WATCH-2", "ANY-3"]: "while the engine is away every call fails as Unavailable or Timeout and can be repeated; when it is back, nothing has happened to any run";
    failed_calls_can_be_repeated ["ANY-3", "LIFE-6"]: "calls at which the engine fails succeed, or fail with an error that can be repeated, and repeating does the rest";
    delayed_calls_can_be_repeated ["ANY-3", "LIFE-6"]: "calls that the engine wants later succeed, or fail with an error that can be repeated, and repeating does the rest";
    a_lost_answer_starts_nothing_twice ["RUN-2", "ANY-3"]: "a run whose answer was lost runs once, whatever run said, and is there when run is repeated";
    odd_pieces_change_nothing ["LOG-1", "WATCH-1"]: "answers in pieces that are cut anywhere give the same events, logs and outputs";
    a_slow_engine_changes_nothing ["ANY-2", "LIFE-6"]: "an engine that takes its time gives the same ends";
    #[alone]
    a_restarted_engine_keeps_what_was ["LIFE-2", "LIFE-6", "WATCH-2"]: "after the engine was restarted, ended runs have their outcome; one that ran goes on, or ended with an outcome that says so; and new ones start";
}

/// Reads a watch until its next snapshot. Errors on the way must be retryable.
async fn next_snapshot(
    events: &mut v6_runtime::ResultStream<WatchEvent>,
) -> Result<Vec<RunStatus>, Failure> {
    let reading = async {
        loop {
            match events.try_next().await {
                Ok(Some(WatchEvent::Snapshot(runs))) => return Ok::<_, Failure>(runs),
                Ok(Some(_)) => {}
                Ok(None) => return Err("the watch ended".into()),
                Err(error) => {
                    holds(
                        &format!("the watch's error is final: {error:?}"),
                        error.is_retryable(),
                    )?;
                }
            }
        }
    };
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(runs) => runs,
        Err(_) => Err("no new snapshot came".into()),
    }
}

async fn a_broken_connection_is_no_verdict(bench: Bench) -> case::Outcome {
    let id = run_id("through");
    let spec = bench.spec("sleep 2500 then exit 4").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    let mut events = bench.runtime.watch();
    let _ = events.try_next().await?;
    let _cut = bench.inject(Fault::Cut).await?;
    let told = tokio::time::timeout(PATIENCE, told_after_a_cut(&mut events, &id));
    told.await.map_err(|_| "nothing came after it")??;
    bench.ends_with(&id, 4).await
}

/// Reads a watch whose connection was cut. Where it tells of an interruption a snapshot has to follow; one that
/// goes on behind the last that it told need not have one, and then tells the end of the run, 4.
async fn told_after_a_cut(
    events: &mut v6_runtime::ResultStream<WatchEvent>,
    id: &RunId,
) -> Result<(), Failure> {
    let mut interrupted = false;
    loop {
        match events.try_next().await {
            Ok(Some(WatchEvent::Snapshot(runs))) => {
                let phases: Vec<&RunPhase> = runs.iter().map(|run| &run.phase).collect();
                return holds(
                    &format!("the snapshot after it: {phases:?}"),
                    matches!(
                        phases[..],
                        [RunPhase::Running | RunPhase::Finished(Outcome::Exited(4))]
                    ),
                );
            }
            Ok(Some(WatchEvent::Changed(run))) if !interrupted && run.id == *id => {
                if let Some(outcome) = run.outcome() {
                    return equal("the end that it tells", outcome, &Outcome::Exited(4));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err("the watch ended".into()),
            Err(error) => {
                let what = format!("the watch's error is final: {error:?}");
                holds(&what, error.is_retryable())?;
                interrupted = true;
            }
        }
    }
}

async fn an_ended_event_stream_is_no_verdict(bench: Bench) -> case::Outcome {
    let id = run_id("through");
    let spec = bench.spec("sleep 1500 then exit 4").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    let mut events = bench.runtime.watch();
    let _ = events.try_next().await?;
    let _ended = bench.inject(Fault::WatchEnds).await?;
    let later = run_id("later");
    let spec = bench.spec("exit 5").await?;
    bench.runtime.run(&later, &spec).await?;
    let watching = async {
        let mut open = vec![(&id, 4), (&later, 5)];
        while !open.is_empty() {
            let runs = match events.try_next().await {
                Ok(Some(WatchEvent::Snapshot(runs))) => runs,
                Ok(Some(WatchEvent::Changed(run))) => vec![*run],
                Ok(Some(_)) => continue,
                Ok(None) => return Err("the watch ended".into()),
                Err(error) => {
                    holds(
                        &format!("the watch's error is final: {error:?}"),
                        error.is_retryable(),
                    )?;
                    continue;
                }
            };
            for run in runs {
                let Some(outcome) = run.outcome() else {
                    continue;
                };
                if let Some(at) = open.iter().position(|(id, _)| **id == run.id) {
                    let (_, code) = open.remove(at);
                    equal("its end", outcome, &Outcome::Exited(code))?;
                }
            }
        }
        Ok::<_, Failure>(())
    };
    let watched = tokio::time::timeout(PATIENCE, watching).await;
    watched.map_err(|_| "not every end was seen")??;
    Ok(())
}

async fn a_cut_log_can_be_read_on(bench: Bench) -> case::Outcome {
    const LINES: usize = 150;
    let id = run_id("cut");
    let spec = bench.spec(&format!("tick {LINES} 10 then exit 0")).await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    let reading = async {
        let mut all: Vec<u8> = Vec::new();
        let mut options = LogOptions::default().with_follow(true);
        let mut cut = None;
        loop {
            let mut chunks = bench.runtime.logs(&id, options.clone());
            let ended = loop {
                match chunks.try_next().await {
                    Ok(Some(chunk)) => {
                        all.extend_from_slice(&chunk.bytes);
                        options = options.with_since(chunk.position);
                        if cut.is_none() && all.len() > 100 {
                            cut = Some(bench.inject(Fault::Cut).await?);
                        }
                    }
                    Ok(None) => break true,
                    Err(error) if error.is_retryable() => break false,
                    Err(error) => return Err(error.into()),
                }
            };
            if ended {
                return Ok::<_, case::Stop>(all);
            }
        }
    };
    let all = tokio::time::timeout(PATIENCE, reading).await;
    let all = all.map_err(|_| "the log did not end")??;
    let status = bench.runtime.status(&id).await?;
    holds(
        &format!("the log ended while the run is {:?}", status.phase),
        status.phase.is_finished(),
    )?;
    let wanted: String = (0..LINES).map(|n| format!("tick {n}\n")).collect();
    holds(
        &format!("{} bytes of log, not {}", all.len(), wanted.len()),
        all == wanted.as_bytes(),
    )?;
    Ok(())
}

async fn a_cut_output_is_not_taken_for_whole(bench: Bench) -> case::Outcome {
    let size = bench.large() / 4;
    let id = run_id("cut");
    let spec = bench.spec(&format!("write /out/result {size}")).await?;
    let spec = files::with_result(spec, size as u64)?;
    bench.done(&id, &spec).await?;
    let mut chunks = bench.runtime.collect(&id, &output("result"));
    let first = chunks.try_next().await?.ok_or("the output is empty")?;
    let cut = bench.inject(Fault::Cut).await?;
    let mut got = first.len();
    loop {
        match chunks.try_next().await {
            Ok(Some(chunk)) => got += chunk.len(),
            Ok(None) => {
                equal("bytes that were given as the whole", got, size)?;
                break;
            }
            Err(error) => {
                let what = format!("the error cannot be repeated: {error:?}");
                holds(&what, error.is_retryable())?;
                break;
            }
        }
    }
    drop(cut);
    let whole = persist("collect", || files::collected(&bench, &id)).await?;
    equal("the output, collected again", whole, (size, true))?;
    Ok(())
}

/// The error of a call to an engine that does not answer.
async fn unreachable<T: Debug>(
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<(), Failure> {
    match tokio::time::timeout(PATIENCE, call).await {
        Err(_) => Err(format!("{what}: no answer within {PATIENCE:?}").into()),
        Ok(Ok(value)) => Err(format!("{what}: {value:?} of an engine that is away").into()),
        Ok(Err(error)) => holds(
            &format!("{what}: {error:?}"),
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
                && error.is_retryable(),
        ),
    }
}

async fn an_engine_that_is_away_gives_no_verdict(bench: Bench) -> case::Outcome {
    let (id, ended, later) = (run_id("through"), run_id("ended"), run_id("later"));
    bench.finish(&ended, &bench.spec("exit 3").await?).await?;
    let spec = bench.spec("sleep 1500 then exit 4").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    let spec = bench.spec("echo once then exit 5").await?;
    let mut events = bench.runtime.watch();
    let _ = events.try_next().await?;
    let away = bench.inject(Fault::Away).await?;
    let runtime = &bench.runtime;
    let image = bench.harness.probe_image();
    let (options, forced) = (
        CancelOptions::default(),
        CleanupOptions::default().with_force(true),
    );
    let first = |stream: v6_runtime::ResultStream<RunStatus>| async move {
        let (item, _) = stream.into_future().await;
        item.transpose()
    };
    // At once, as each may take its time to find out.
    tokio::try_join!(
        unreachable("ping", runtime.ping()),
        unreachable("status", runtime.status(&id)),
        unreachable("status of an ended run", runtime.status(&ended)),
        unreachable("list", first(runtime.list())),
        unreachable("run", runtime.run(&later, &spec)),
        unreachable("cancel", runtime.cancel(&ended, options)),
        unreachable("cleanup", runtime.cleanup(&ended, forced)),
        no_image(bench.runtime.as_ref(), &image),
        unreachable("logs", runtime.logs_bytes(&ended, 1000)),
    )?;
    drop(away);
    let runs = next_snapshot(&mut events).await?;
    for run in &runs {
        if let Some(outcome) = run.outcome() {
            let told = matches!(outcome, Outcome::Exited(3..=5));
            holds(&format!("{} ended as {outcome:?}", run.id), told)?;
        }
    }
    persist("ping", || bench.runtime.ping()).await?;
    bench.ends_with(&ended, 3).await?;
    bench.ends_with(&id, 4).await?;
    persist("run", || bench.runtime.run(&later, &spec)).await?;
    bench.ends_with(&later, 5).await?;
    equal(
        "what it printed",
        bench.text(&later).await?.as_str(),
        "once\n",
    )?;
    Ok(())
}

/// An engine that is away cannot say which images it has. Where nobody can, a registry is asked, which is
/// not away.
async fn no_image(runtime: &dyn Runtime, image: &ImageRef) -> Result<(), Failure> {
    if !runtime.capabilities().image_store {
        return Ok(());
    }
    unreachable("resolve", runtime.resolve(image, PullPolicy::Never)).await
}

/// Repeats a call until it succeeds. Its errors must say that this can help.
async fn persist<T, F>(what: &str, mut call: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Error>>,
{
    let began = Instant::now();
    loop {
        match call().await {
            Ok(done) => return Ok(done),
            Err(error) => {
                let retryable = error.is_retryable() && began.elapsed() < PATIENCE;
                holds(&format!("{what}: {error:?}"), retryable)?;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

async fn failed_calls_can_be_repeated(bench: Bench) -> case::Outcome {
    is_repaired(&bench, Fault::Errors).await
}

async fn delayed_calls_can_be_repeated(bench: Bench) -> case::Outcome {
    is_repaired(&bench, Fault::Throttled).await
}

/// Repeats a call that begins with a fault until it succeeds.
async fn through<T, F>(
    bench: &Bench,
    fault: Fault,
    what: &str,
    call: impl FnMut() -> F,
) -> Result<T, case::Stop>
where
    F: Future<Output = Result<T, Error>>,
{
    let fault = bench.inject(fault).await?;
    let done = persist(what, call).await;
    drop(fault);
    Ok(done?)
}

/// A life of a run, each call of which meets one to four faults.
async fn is_repaired(bench: &Bench, fault: fn(u32) -> Fault) -> case::Outcome {
    let runtime = &bench.runtime;
    let image = bench.harness.probe_image();
    for calls in 1..=4 {
        let fault = fault(calls);
        let (id, doomed) = (
            run_id(&format!("ended-{calls}")),
            run_id(&format!("doomed-{calls}")),
        );
        let spec = bench.spec("echo once then exit 3").await?;
        let long = bench.spec("sleep 60000").await?;
        let resolve = || runtime.resolve(&image, bench.nearest());
        through(bench, fault, "resolve", resolve).await?;
        through(bench, fault, "ping", || runtime.ping()).await?;
        through(bench, fault, "run", || runtime.run(&id, &spec)).await?;
        bench.ends_with(&id, 3).await?;
        let status = through(bench, fault, "status", || runtime.status(&id)).await?;
        equal("its end", status.outcome(), Some(&Outcome::Exited(3)))?;
        let logs = || runtime.logs_bytes(&id, 1000);
        let log = through(bench, fault, "logs", logs).await?;
        equal("what it printed", &log[..], b"once\n")?;
        let list = || runtime.list().try_collect::<Vec<RunStatus>>();
        let listed = through(bench, fault, "list", list).await?;
        equal("listed", listed.len(), 1)?;
        runtime.run(&doomed, &long).await?;
        bench.running(&doomed).await?;
        let cancel = || runtime.cancel(&doomed, CancelOptions::default());
        through(bench, fault, "cancel", cancel).await?;
        let status = bench.ended(&doomed).await?;
        let outcome = status.outcome().ok_or("it has no outcome")?;
        let what = format!("it was cancelled, and ended as {outcome:?}");
        holds(&what, needs::is_cancelled(bench, outcome))?;
        for id in [&id, &doomed] {
            let cleanup = || runtime.cleanup(id, CleanupOptions::default());
            through(bench, fault, "cleanup", cleanup).await?;
        }
        let left = bench.leftovers().await?;
        holds(&format!("left behind: {left:?}"), left.is_empty())?;
    }
    Ok(())
}

async fn a_lost_answer_starts_nothing_twice(bench: Bench) -> case::Outcome {
    for round in 0..3 {
        let id = run_id(&format!("lost-{round}"));
        let spec = bench.spec("echo once then exit 3").await?;
        let lost = bench.inject(Fault::ReplyLost).await?;
        if let Err(error) = bench.runtime.run(&id, &spec).await {
            holds(
                &format!("it cannot be repeated: {error:?}"),
                error.is_retryable(),
            )?;
            if !error.may_have_started() {
                // A fresh look: whatever is there, its program has not begun.
                if let Ok(status) = bench.runtime.status(&id).await {
                    let what = format!("{error:?}, and the run is {:?}", status.phase);
                    holds(&what, status.phase.rank() == 0)?;
                }
            }
        }
        drop(lost);
        persist("run", || bench.runtime.run(&id, &spec)).await?;
        let again = bench.runtime.run(&id, &spec).await?;
        equal("run, repeated", again, Accepted::Adopted)?;
        bench.ends_with(&id, 3).await?;
        equal("what it printed", bench.text(&id).await?.as_str(), "once\n")?;
        bench.clean(&id).await?;
        let left = bench.leftovers().await?;
        holds(&format!("left behind: {left:?}"), left.is_empty())?;
    }
    Ok(())
}

async fn odd_pieces_change_nothing(bench: Bench) -> case::Outcome {
    const SIZE: usize = 200_000;
    let _odd = bench.inject(Fault::OddPieces).await?;
    let id = run_id("pieces");
    let collects = needs::files(bench.runtime.capabilities()).is_ok();
    let split = bench.runtime.capabilities().logs.split;
    let mut words = format!("stdout {SIZE}");
    if split {
        // Where they are not told apart, nobody says which comes first.
        words.push_str(" then stderr 5000");
    }
    let mut spec = bench.spec("").await?;
    if collects {
        words.push_str(&format!(" then write /out/result {SIZE}"));
        spec = files::with_result(spec, SIZE as u64)?;
    }
    words.push_str(" then exit 3");
    let spec = spec.with_args(words.split(' '));
    let mut events = bench.runtime.watch();
    bench.runtime.run(&id, &spec).await?;
    let watching = async {
        loop {
            let runs = match told(&mut events).await? {
                WatchEvent::Snapshot(runs) => runs,
                WatchEvent::Changed(run) => vec![*run],
                _ => continue,
            };
            let mut ends = runs.iter().filter_map(RunStatus::outcome);
            if let Some(outcome) = ends.next() {
                return Ok::<_, Failure>(outcome.clone());
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, watching).await;
    let outcome = outcome.map_err(|_| "its end was not seen")??;
    equal("its end", outcome, Outcome::Exited(3))?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut chunks = bench.runtime.logs(&id, LogOptions::default());
    while let Some(chunk) = chunks.try_next().await? {
        match chunk.stream {
            LogStream::Stderr => err.extend_from_slice(&chunk.bytes),
            LogStream::Stdout | LogStream::Merged => out.extend_from_slice(&chunk.bytes),
        }
    }
    holds("standard output is another", out == pattern(SIZE))?;
    if split {
        holds("standard error is another", err == pattern(5000))?;
    }
    if collects {
        files::collects(&bench, &id, SIZE).await?;
    }
    bench.clean(&id).await?;
    Ok(())
}

async fn a_slow_engine_changes_nothing(bench: Bench) -> case::Outcome {
    let _slow = bench
        .inject(Fault::Slow(Duration::from_millis(150)))
        .await?;
    let runs = (1..5).map(|code| {
        let bench = bench.clone();
        async move {
            let id = run_id(&format!("slow-{code}"));
            let spec = bench.spec(&format!("echo words then exit {code}")).await?;
            bench.runtime.run(&id, &spec).await?;
            bench.ends_with(&id, code).await?;
            equal("its log", bench.text(&id).await?.as_str(), "words\n")?;
            Ok::<_, case::Stop>(bench.clean(&id).await?)
        }
    });
    for run in futures_util::future::join_all(runs).await {
        run?;
    }
    let id = run_id("cancelled");
    let spec = bench.spec("sleep 60000").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let status = bench.ended(&id).await?;
    let outcome = status.outcome().ok_or("it has no outcome")?;
    let what = format!("it was cancelled, and ended as {outcome:?}");
    holds(&what, needs::is_cancelled(&bench, outcome))?;
    Ok(())
}

async fn a_restarted_engine_keeps_what_was(bench: Bench) -> case::Outcome {
    let (ended, running, later) = (run_id("ended"), run_id("running"), run_id("later"));
    let spec = bench.spec("echo words then exit 3").await?;
    bench.finish(&ended, &spec).await?;
    let spec = bench.spec("sleep 60000").await?;
    bench.runtime.run(&running, &spec).await?;
    bench.running(&running).await?;
    let mut events = bench.runtime.watch();
    let _ = events.try_next().await?;
    bench.restart_engine().await?;
    let interrupted = snapshot_if_interrupted(&mut events).await?;
    if let Some(runs) = &interrupted {
        let mut ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
        ids.sort_unstable();
        equal("the snapshot after it", ids, vec!["ended", "running"])?;
    }
    persist("ping", || bench.runtime.ping()).await?;
    bench.ends_with(&ended, 3).await?;
    equal("its log", bench.text(&ended).await?.as_str(), "words\n")?;
    let status = bench.runtime.status(&running).await?;
    holds(
        &format!("the run that ran is {:?}", status.phase),
        match status.phase {
            RunPhase::Running | RunPhase::Stopping(_) => true,
            RunPhase::Finished(Outcome::FailedToStart(_) | Outcome::Cancelled) => false,
            RunPhase::Finished(outcome) => outcome != Outcome::Exited(0),
            _ => false,
        },
    )?;
    let forced = CleanupOptions::default().with_force(true);
    let cleanup = || bench.runtime.cleanup(&running, forced.clone());
    persist("cleanup", cleanup).await?;
    let spec = bench.spec("exit 5").await?;
    bench.runtime.run(&later, &spec).await?;
    bench.ends_with(&later, 5).await?;
    if interrupted.is_none() {
        told_afterwards(&mut events, &later).await?;
    }
    Ok(())
}

/// The snapshot after an interruption; `None` for a watch that has none, since it has nothing to do with
/// the engine that was restarted.
async fn snapshot_if_interrupted(
    events: &mut v6_runtime::ResultStream<WatchEvent>,
) -> Result<Option<Vec<RunStatus>>, Failure> {
    /// A connection that breaks is noticed at once.
    const NOTICED: Duration = Duration::from_secs(2);
    loop {
        match tokio::time::timeout(NOTICED, events.try_next()).await {
            Err(_) => return Ok(None),
            Ok(Ok(Some(WatchEvent::Snapshot(runs)))) => return Ok(Some(runs)),
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err("the watch ended".into()),
            Ok(Err(error)) => {
                let what = format!("the watch's error is final: {error:?}");
                holds(&what, error.is_retryable())?;
                return next_snapshot(events).await.map(Some);
            }
        }
    }
}

/// Reads a watch that was open before an engine was restarted, until it tells of the end of a run that was
/// made afterwards.
async fn told_afterwards(
    events: &mut v6_runtime::ResultStream<WatchEvent>,
    after: &RunId,
) -> case::Outcome {
    let reading = async {
        while let Some(event) = events.try_next().await? {
            let WatchEvent::Changed(run) = event else {
                continue;
            };
            if run.id == *after && run.outcome() == Some(&Outcome::Exited(5)) {
                return Ok::<_, case::Stop>(());
            }
        }
        Err(Failure::from("the watch ended").into())
    };
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(told) => told,
        Err(_) => Err(Failure::from("the end of a later run was not told").into()),
    }
}
