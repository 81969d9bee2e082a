//! Following runs.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use v6_runtime::{CleanupOptions, Outcome, RunStatus, Runtime, Tracker, WatchEvent};

use crate::bench::{Bench, run_id};
use crate::case::{self, equal, holds};
use crate::harness::Fault;

case::cases! {
    a_watch_begins_with_everything ["WATCH-1"]: "a watch begins with a snapshot of every run, finished ones too, whenever it is opened";
    every_end_is_seen ["LIFE-3"]: "a watcher sees the end of each run, also of runs that end together and of such that are over at once";
    phases_never_go_back ["LIFE-1"]: "the rank of a run's phase never falls in the eyes of a watcher";
    a_removed_run_is_told ["WATCH-1"]: "a watcher is told of a run that is cleaned up";
    a_broken_connection_is_no_verdict ["LIFE-6", "WATCH-2"]: "after the connection to the engine broke, the watch comes back with a snapshot, and no run has changed for it";
    a_dropped_watch_leaves_runs_alone ["LIFE-4", "ANY-1"]: "dropping a watch has no effect on runs and other watchers";
}

async fn a_watch_begins_with_everything(bench: Bench) -> case::Outcome {
    bench
        .finish(&run_id("done"), &bench.spec("exit 3").await?)
        .await?;
    bench
        .runtime
        .run(&run_id("busy"), &bench.spec("sleep 60000").await?)
        .await?;
    bench.running(&run_id("busy")).await?;
    for bench in [bench.clone(), bench.restarted().await?] {
        let mut events = bench.runtime.watch();
        match events.try_next().await? {
            Some(WatchEvent::Snapshot(runs)) => {
                let ids: Vec<String> = runs.iter().map(|run| run.id.to_string()).collect();
                let mut ids = ids;
                ids.sort();
                equal(
                    "the snapshot",
                    ids,
                    vec!["busy".to_owned(), "done".to_owned()],
                )?;
                let done = runs.iter().find(|run| run.id.as_str() == "done");
                let outcome = done.and_then(RunStatus::outcome).cloned();
                equal("its end", outcome, Some(Outcome::Exited(3)))?;
            }
            other => return Err(format!("wanted a snapshot first, got {other:?}").into()),
        }
    }
    Ok(())
}

async fn every_end_is_seen(bench: Bench) -> case::Outcome {
    let tracker = Tracker::new(bench.runtime.clone());
    let mut waits = Vec::new();
    for number in 0..8 {
        let id = run_id(&format!("end-{number}"));
        bench
            .runtime
            .run(&id, &bench.spec(&format!("exit {number}")).await?)
            .await?;
        let (tracker, id) = (tracker.clone(), id.clone());
        waits.push(async move { (number, tracker.wait(&id).await) });
    }
    let all = futures_util::future::join_all(waits);
    let all = tokio::time::timeout(std::time::Duration::from_secs(60), all).await;
    for (number, status) in all.map_err(|_| "not every end was seen")? {
        equal(
            "its end",
            status?.outcome().cloned(),
            Some(Outcome::Exited(number)),
        )?;
    }
    Ok(())
}

async fn phases_never_go_back(bench: Bench) -> case::Outcome {
    let mut events = bench.runtime.watch();
    for number in 0..6 {
        let id = run_id(&format!("phase-{number}"));
        bench
            .runtime
            .run(&id, &bench.spec("sleep 50").await?)
            .await?;
    }
    let mut ranks: BTreeMap<String, u8> = BTreeMap::new();
    let watching = async {
        while ranks.len() < 6 || ranks.values().any(|rank| *rank < 3) {
            let runs = match events.try_next().await? {
                Some(WatchEvent::Snapshot(runs)) => runs,
                Some(WatchEvent::Changed(run)) => vec![*run],
                Some(_) => continue,
                None => return Err("the watch ended".into()),
            };
            for run in runs {
                let rank = run.phase.rank();
                let before = ranks.insert(run.id.to_string(), rank).unwrap_or(0);
                holds(
                    &format!("{} fell from {before} to {rank}", run.id),
                    rank >= before,
                )?;
            }
        }
        Ok::<_, case::Failure>(())
    };
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, watching)
        .await
        .map_err(|_| "the ends were not seen")??;
    Ok(())
}

async fn a_removed_run_is_told(bench: Bench) -> case::Outcome {
    let id = run_id("leaving");
    bench.finish(&id, &bench.spec("exit 0").await?).await?;
    let mut events = bench.runtime.watch();
    let _ = events.try_next().await?;
    bench
        .runtime
        .cleanup(&id, CleanupOptions::default())
        .await?;
    let watching = async {
        loop {
            match events.try_next().await? {
                Some(WatchEvent::Removed(gone)) if gone == id => return Ok::<_, case::Failure>(()),
                Some(WatchEvent::Snapshot(runs)) if runs.is_empty() => return Ok(()),
                Some(_) => {}
                None => return Err("the watch ended".into()),
            }
        }
    };
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, watching)
        .await
        .map_err(|_| "nothing was told")??;
    Ok(())
}

async fn a_broken_connection_is_no_verdict(bench: Bench) -> case::Outcome {
    let id = run_id("through");
    bench
        .runtime
        .run(&id, &bench.spec("sleep 2500 then exit 4").await?)
        .await?;
    bench.running(&id).await?;
    let mut events = bench.runtime.watch();
    let _ = events.try_next().await?;
    let _cut = bench.inject(Fault::Cut).await?;
    let watching = async {
        loop {
            match events.try_next().await {
                Ok(Some(WatchEvent::Snapshot(runs))) => return Ok::<_, case::Failure>(runs),
                Ok(Some(_)) => {}
                Ok(None) => return Err("the watch ended".into()),
                Err(error) => holds("the watch's error is final", error.is_retryable())?,
            }
        }
    };
    let limit = std::time::Duration::from_secs(30);
    let runs = tokio::time::timeout(limit, watching)
        .await
        .map_err(|_| "no new snapshot came")??;
    equal("runs in it", runs.len(), 1)?;
    // It may be over by now, but only as it was to be.
    let told = runs.first().and_then(RunStatus::outcome);
    holds(
        &format!("the snapshot tells of its end as {told:?}"),
        told.is_none_or(|outcome| *outcome == Outcome::Exited(4)),
    )?;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(4)),
    )?;
    Ok(())
}

async fn a_dropped_watch_leaves_runs_alone(bench: Bench) -> case::Outcome {
    let id = run_id("watched");
    let mut first = bench.runtime.watch();
    let second = bench.runtime.watch();
    bench
        .runtime
        .run(&id, &bench.spec("sleep 500 then exit 2").await?)
        .await?;
    let _ = first.try_next().await?;
    drop(first);
    drop(second);
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(2)),
    )?;
    Ok(())
}
