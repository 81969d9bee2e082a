//! Following runs.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use v6_runtime::{CleanupOptions, Outcome, ResultStream, RunStatus, Runtime, Tracker, WatchEvent};

use crate::bench::{Bench, run_id};
use crate::case::{self, Failure, equal, holds};

case::cases! {
    a_watch_begins_with_everything ["WATCH-1"]: "a watch begins with a snapshot of every run, finished ones too, whenever it is opened";
    every_end_is_seen ["LIFE-3"]: "a watcher sees the end of each run, also of runs that end together and of such that are over at once";
    phases_never_go_back ["LIFE-1"]: "the rank of a run's phase never falls in the eyes of a watcher";
    a_removed_run_is_told ["WATCH-1"]: "a watcher is told of a run that is cleaned up";
    a_dropped_watch_leaves_runs_alone ["LIFE-4", "ANY-1"]: "dropping a watch has no effect on runs and other watchers";
    two_runs_may_end_in_one_tick ["LIFE-3"]: "two runs that end at the same moment are both seen to end, each with its own outcome";
    a_run_may_be_over_before_the_first_look ["LIFE-1", "LIFE-6", "WATCH-1"]: "a run that ends before anybody looks is simply Finished, for status, list and watch";
    a_slow_watcher_delays_nobody ["WATCH-3"]: "a watcher that does not read delays no run and no other watcher, and learns in the end what there is";
    #[should]
    watching_costs_no_calls_per_run ["ANY-5"]: "while runs run and are watched, the calls to the engine do not grow with their number";
}

/// What a watcher is told next. An interruption is nothing of a run's: after it there are more
/// items (WATCH-2).
pub(super) async fn told(events: &mut ResultStream<WatchEvent>) -> Result<WatchEvent, Failure> {
    loop {
        match events.next().await {
            Some(Ok(event)) => return Ok(event),
            Some(Err(error)) if error.is_retryable() => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Err("the watch ended".into()),
        }
    }
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
        match told(&mut events).await? {
            WatchEvent::Snapshot(runs) => {
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
    let all = tokio::time::timeout(bench.patience(), all).await;
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
            let runs = match told(&mut events).await? {
                WatchEvent::Snapshot(runs) => runs,
                WatchEvent::Changed(run) => vec![*run],
                _ => continue,
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
        Ok::<_, Failure>(())
    };
    tokio::time::timeout(bench.patience(), watching)
        .await
        .map_err(|_| "the ends were not seen")??;
    Ok(())
}

async fn a_removed_run_is_told(bench: Bench) -> case::Outcome {
    let id = run_id("leaving");
    bench.finish(&id, &bench.spec("exit 0").await?).await?;
    let mut events = bench.runtime.watch();
    told(&mut events).await?;
    bench
        .runtime
        .cleanup(&id, CleanupOptions::default())
        .await?;
    let watching = async {
        loop {
            match told(&mut events).await? {
                WatchEvent::Removed(gone) if gone == id => return Ok::<_, Failure>(()),
                WatchEvent::Snapshot(runs) if runs.is_empty() => return Ok(()),
                _ => {}
            }
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, watching)
        .await
        .map_err(|_| "nothing was told")??;
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
    told(&mut first).await?;
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

async fn two_runs_may_end_in_one_tick(bench: Bench) -> case::Outcome {
    let ids = [run_id("left"), run_id("right")];
    let specs = [
        bench.spec("sleep 900 then exit 3").await?,
        bench.spec("sleep 900 then exit 4").await?,
    ];
    for round in 0..3 {
        let mut events = bench.runtime.watch();
        tokio::try_join!(
            bench.runtime.run(&ids[0], &specs[0]),
            bench.runtime.run(&ids[1], &specs[1]),
        )?;
        let watching = async {
            let mut ends = BTreeMap::new();
            while ends.len() < ids.len() {
                let runs = match told(&mut events).await? {
                    WatchEvent::Snapshot(runs) => runs,
                    WatchEvent::Changed(run) => vec![*run],
                    _ => continue,
                };
                for run in runs {
                    if let Some(outcome) = run.outcome() {
                        ends.insert(run.id.to_string(), outcome.clone());
                    }
                }
            }
            Ok::<_, Failure>(ends)
        };
        let ends = tokio::time::timeout(bench.patience(), watching).await;
        let ends = ends.map_err(|_| format!("round {round}: not both ends were seen"))??;
        let wanted = [("left", 3), ("right", 4)]
            .map(|(id, code)| (id.to_owned(), Outcome::Exited(code)))
            .into();
        equal("their ends", ends, wanted)?;
        for id in &ids {
            bench.clean(id).await?;
        }
    }
    Ok(())
}

async fn a_run_may_be_over_before_the_first_look(bench: Bench) -> case::Outcome {
    let id = run_id("over");
    let spec = bench.spec("exit 0").await?;
    bench.runtime.run(&id, &spec).await?;
    // Somebody else waits for it; those who look then have never looked before.
    bench.restarted().await?.ends_with(&id, 0).await?;
    let status = bench.runtime.status(&id).await?;
    equal("status", status.outcome(), Some(&Outcome::Exited(0)))?;
    let lister = bench.restarted().await?;
    let listed: Vec<RunStatus> = lister.runtime.list().try_collect().await?;
    let ends: Vec<_> = listed.iter().map(RunStatus::outcome).collect();
    equal("list", ends, vec![Some(&Outcome::Exited(0))])?;
    let watcher = bench.restarted().await?;
    match told(&mut watcher.runtime.watch()).await? {
        WatchEvent::Snapshot(runs) => {
            let ends: Vec<_> = runs.iter().map(RunStatus::outcome).collect();
            equal("watch", ends, vec![Some(&Outcome::Exited(0))])?;
        }
        other => return Err(format!("wanted a snapshot first, got {other:?}").into()),
    }
    Ok(())
}

async fn a_slow_watcher_delays_nobody(bench: Bench) -> case::Outcome {
    let mut slow = bench.runtime.watch();
    told(&mut slow).await?;
    let runs = (0..10).map(|number| {
        let bench = bench.clone();
        async move {
            let id = run_id(&format!("run-{number}"));
            let spec = bench.spec(&format!("exit {number}")).await?;
            bench.runtime.run(&id, &spec).await?;
            bench.ends_with(&id, number).await?;
            // Every other one is gone before the slow one reads on.
            if number % 2 == 0 {
                bench.clean(&id).await?;
            }
            Ok::<_, case::Stop>(())
        }
    });
    for run in futures_util::future::join_all(runs).await {
        run?;
    }
    let wanted: BTreeMap<String, Outcome> = (0..10)
        .filter(|number| number % 2 == 1)
        .map(|number| (format!("run-{number}"), Outcome::Exited(number)))
        .collect();
    let reading = async {
        let mut known: BTreeMap<String, Option<Outcome>> = BTreeMap::new();
        loop {
            let ends = known
                .iter()
                .map(|(id, end)| Some((id.clone(), end.clone()?)))
                .collect::<Option<BTreeMap<_, _>>>();
            if ends.as_ref() == Some(&wanted) {
                return Ok::<_, Failure>(());
            }
            match told(&mut slow).await? {
                WatchEvent::Snapshot(runs) => {
                    known = runs
                        .iter()
                        .map(|run| (run.id.to_string(), run.outcome().cloned()))
                        .collect();
                }
                WatchEvent::Changed(run) => {
                    known.insert(run.id.to_string(), run.outcome().cloned());
                }
                WatchEvent::Removed(id) => drop(known.remove(id.as_str())),
                _ => {}
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
    read.map_err(|_| "the slow watcher never learns what there is")??;
    Ok(())
}

/// For so long calls are counted.
const SECONDS: usize = 4;

/// The calls made in a second in which runs run and are watched, and nothing happens.
async fn idle_calls(bench: &Bench, from: u32, to: u32) -> Result<u64, case::Stop> {
    for number in from..to {
        let id = run_id(&format!("idle-{number}"));
        let spec = bench.spec("sleep 60000").await?;
        bench.runtime.run(&id, &spec).await?;
    }
    for number in from..to {
        bench.running(&run_id(&format!("idle-{number}"))).await?;
    }
    // The least of several: what the starts were followed by may take a while, and asking for each
    // run again and again shows in every second.
    let mut least = u64::MAX;
    for _ in 0..SECONDS {
        let before = bench.calls()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        least = least.min(bench.calls()? - before);
    }
    Ok(least)
}

async fn watching_costs_no_calls_per_run(bench: Bench) -> case::Outcome {
    bench.calls()?;
    let mut watches = Vec::new();
    for _ in 0..5 {
        let mut events = bench.runtime.watch();
        told(&mut events).await?;
        watches.push(events);
    }
    let few = idle_calls(&bench, 0, 2).await?;
    let many = idle_calls(&bench, 2, 20).await?;
    // A call now and then, of a watch that makes sure, may fall into one second and not the other.
    holds(
        &format!("{few} calls in a second with 2 runs, {many} with 20"),
        many <= few + 3,
    )?;
    Ok(())
}
