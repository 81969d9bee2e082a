//! Records: a run is started once, is found again, and is gone when cleaned up.

use std::time::Duration;

use tokio::io::DuplexStream;
use v6_runtime::{
    Accepted, Annotations, CancelOptions, Capabilities, CleanedUp, CleanupOptions, ErrorKind,
    Outcome, Pending, RunId, RunPhase, Runtime,
};

use crate::bench::{Bench, LOOK_AGAIN, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::child::half_made;

/// How many runs [`cleanup_shows_no_other_end`] removes, and how many look at each meanwhile.
const ROUNDS: usize = 6;
const LOOKERS: usize = 16;

case::cases! {
    run_returns_before_the_end ["RUN-1"]: "run returns when the run is accepted, not when it is over";
    the_same_run_is_adopted ["RUN-2", "RUN-5"]: "run with the same spec again adopts, whatever the phase, and starts nothing";
    another_spec_conflicts ["RUN-3", "RUN-5"]: "run with another spec under the same id is Conflict, and changes nothing";
    one_of_many_starters_creates ["RUN-2"]: "of concurrent calls of run with one id, one creates the run and the others adopt it";
    an_unknown_run_is_not_found ["STAT-1"]: "status, cancel, logs and collect of an unknown id are NotFound";
    cleanup_of_a_live_run_needs_force ["CLEAN-1"]: "cleanup refuses an unfinished run as NotReady; forced, it ends and removes it";
    cleanup_twice_is_absent ["CLEAN-3"]: "cleanup of what is not there is Absent, and success";
    cleanup_shows_no_other_end ["CLEAN-2"]: "while cleanup is at work, status gives the run as it ended, or NotFound";
    an_id_can_be_used_again ["CLEAN-2"]: "after cleanup the id is free, and a new run under it is another one";
    every_run_is_listed_whole ["REC-3", "STAT-2"]: "list gives every run whatever its phase, with its annotations as they were given";
    a_restart_adopts_running_runs ["REC-2"]: "a new value of the runtime finds runs that run, and sees their end";
    a_restart_reads_finished_runs ["LIFE-2", "REC-2"]: "a new value of the runtime reads the outcome of runs that ended before";
    owners_do_not_meet ["REC-5"]: "a run of another owner is neither listed, found, nor removed, also under the same id";
    similar_names_do_not_meet ["REC-5"]: "owners and runs whose names begin alike stay apart";
    a_dropped_run_can_be_repeated ["RUN-4", "ANY-1"]: "a dropped call of run leaves a state from which run can be called again";
    #[needs(streams)]
    a_cut_start_is_abandoned ["RUN-4"]: "a call of run that is dropped while it reads its input leaves an Abandoned record or nothing, and the id can be run with another spec";
    #[needs(streams)]
    a_cut_start_can_be_cleaned_up ["CLEAN-3"]: "what a dropped call of run has left can be cleaned up, whole";
    many_at_once ["LIFE-3"]: "thirty runs at once end with thirty outcomes";
    a_lease_is_exclusive ["LEASE-1"]: "one process at a time holds the owner's lease, and dropping it frees it";
}

async fn run_returns_before_the_end(bench: Bench) -> case::Outcome {
    let id = run_id("long");
    let accepted = bench
        .runtime
        .run(&id, &bench.spec("sleep 60000").await?)
        .await?;
    equal("run", accepted, Accepted::Created)?;
    let status = bench.runtime.status(&id).await?;
    holds(
        "the run had ended when run returned",
        !status.phase.is_finished(),
    )?;
    Ok(())
}

async fn the_same_run_is_adopted(bench: Bench) -> case::Outcome {
    let id = run_id("twice");
    let spec = bench.spec("echo once then sleep 300 then exit 5").await?;
    equal(
        "first",
        bench.runtime.run(&id, &spec).await?,
        Accepted::Created,
    )?;
    equal(
        "while it starts",
        bench.runtime.run(&id, &spec).await?,
        Accepted::Adopted,
    )?;
    bench.running(&id).await?;
    equal(
        "while it runs",
        bench.runtime.run(&id, &spec).await?,
        Accepted::Adopted,
    )?;
    let status = bench.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(5)),
    )?;
    equal(
        "after its end",
        bench.runtime.run(&id, &spec).await?,
        Accepted::Adopted,
    )?;
    let log = bench.log(&id).await?;
    equal(
        "what it printed",
        String::from_utf8_lossy(&log).matches("once").count(),
        1,
    )?;
    Ok(())
}

async fn another_spec_conflicts(bench: Bench) -> case::Outcome {
    let id = run_id("taken");
    bench
        .runtime
        .run(&id, &bench.spec("sleep 300 then exit 4").await?)
        .await?;
    let other = bench.spec("exit 0").await?;
    fails(
        "another spec",
        bench.runtime.run(&id, &other).await,
        ErrorKind::Conflict,
    )?;
    let status = bench.ended(&id).await?;
    equal(
        "the first run's end",
        status.outcome().cloned(),
        Some(Outcome::Exited(4)),
    )?;
    fails(
        "another spec, after the end",
        bench.runtime.run(&id, &other).await,
        ErrorKind::Conflict,
    )?;
    Ok(())
}

async fn one_of_many_starters_creates(bench: Bench) -> case::Outcome {
    let id = run_id("raced");
    let spec = bench.spec("echo here then exit 0").await?;
    let calls = (0..6).map(|_| bench.runtime.run(&id, &spec));
    let all = futures_util::future::join_all(calls).await;
    let mut created = 0;
    for accepted in all {
        created += usize::from(accepted? == Accepted::Created);
    }
    equal("calls that created the run", created, 1)?;
    bench.ended(&id).await?;
    let log = bench.log(&id).await?;
    equal(
        "what it printed",
        String::from_utf8_lossy(&log).matches("here").count(),
        1,
    )?;
    Ok(())
}

async fn an_unknown_run_is_not_found(bench: Bench) -> case::Outcome {
    use futures_util::StreamExt;
    let id = run_id("nobody");
    fails(
        "status",
        bench.runtime.status(&id).await,
        ErrorKind::NotFound,
    )?;
    let cancelled = bench.runtime.cancel(&id, Default::default()).await;
    fails("cancel", cancelled, ErrorKind::NotFound)?;
    let logs = bench.runtime.logs(&id, Default::default()).next().await;
    fails("logs", logs.transpose(), ErrorKind::NotFound)?;
    let output = crate::bench::output("result");
    let bytes = bench.runtime.collect(&id, &output).next().await;
    fails("collect", bytes.transpose(), ErrorKind::NotFound)?;
    Ok(())
}

async fn cleanup_of_a_live_run_needs_force(bench: Bench) -> case::Outcome {
    let id = run_id("alive");
    bench
        .runtime
        .run(&id, &bench.spec("sleep 60000").await?)
        .await?;
    bench.running(&id).await?;
    let refused = bench.runtime.cleanup(&id, CleanupOptions::default()).await;
    fails("cleanup", refused, ErrorKind::NotReady)?;
    equal(
        "its phase",
        bench.runtime.status(&id).await?.phase,
        RunPhase::Running,
    )?;
    let forced = bench
        .runtime
        .cleanup(&id, CleanupOptions::default().with_force(true))
        .await?;
    equal("forced", forced, CleanedUp::Removed)?;
    fails(
        "status",
        bench.runtime.status(&id).await,
        ErrorKind::NotFound,
    )?;
    Ok(())
}

async fn cleanup_twice_is_absent(bench: Bench) -> case::Outcome {
    let id = run_id("gone");
    bench.finish(&id, &bench.spec("exit 0").await?).await?;
    let options = CleanupOptions::default();
    equal(
        "first",
        bench.runtime.cleanup(&id, options.clone()).await?,
        CleanedUp::Removed,
    )?;
    equal(
        "second",
        bench.runtime.cleanup(&id, options).await?,
        CleanedUp::Absent,
    )?;
    equal("listed", bench.listed().await?, Vec::new())?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

async fn cleanup_shows_no_other_end(bench: Bench) -> case::Outcome {
    // The moments between the removals of two parts are short: many looks at several runs meet
    // them. What is remembered of a cancel may be one part more.
    for round in 0..ROUNDS {
        let id = run_id(&format!("going{round}"));
        let cancelled = round % 2 == 1;
        let (program, wanted) = if cancelled {
            ("sleep 60000", Outcome::Cancelled)
        } else {
            ("exit 3", Outcome::Exited(3))
        };
        bench.runtime.run(&id, &bench.spec(program).await?).await?;
        if cancelled {
            bench.runtime.cancel(&id, CancelOptions::default()).await?;
        }
        let outcome = bench.ended(&id).await?.outcome().cloned();
        equal("its end", outcome, Some(wanted.clone()))?;
        let looking = futures_util::future::try_join_all((0..LOOKERS).map(|_| async {
            loop {
                match bench.runtime.status(&id).await {
                    Ok(status) => {
                        let wanted = RunPhase::Finished(wanted.clone());
                        equal("its phase during cleanup", status.phase, wanted)?;
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        return Ok::<_, Failure>(());
                    }
                    Err(error) => return Err(error.into()),
                }
                tokio::task::yield_now().await;
            }
        }));
        let cleaning = async {
            let options = CleanupOptions::default();
            Ok::<_, Failure>(bench.runtime.cleanup(&id, options).await?)
        };
        let (_, removed) = tokio::try_join!(looking, cleaning)?;
        equal("cleanup", removed, CleanedUp::Removed)?;
    }
    Ok(())
}

async fn an_id_can_be_used_again(bench: Bench) -> case::Outcome {
    let id = run_id("again");
    for code in [3, 4] {
        let spec = bench.spec(&format!("exit {code}")).await?;
        equal(
            "run",
            bench.runtime.run(&id, &spec).await?,
            Accepted::Created,
        )?;
        let status = bench.ended(&id).await?;
        equal(
            "its end",
            status.outcome().cloned(),
            Some(Outcome::Exited(code)),
        )?;
        bench
            .runtime
            .cleanup(&id, CleanupOptions::default())
            .await?;
    }
    Ok(())
}

async fn every_run_is_listed_whole(bench: Bench) -> case::Outcome {
    let notes: Annotations = [
        ("quotes", "\"'`$(x) \\ {}[]"),
        ("lines", "one\ntwo\r\n\tthree"),
        ("letters", "é病院🏥"),
        ("empty", ""),
        ("long", &"x".repeat(12_000)),
    ]
    .into_iter()
    .collect();
    let done = bench.spec("exit 0").await?.with_annotations(notes.clone());
    bench.finish(&run_id("done"), &done).await?;
    bench
        .runtime
        .run(&run_id("busy"), &bench.spec("sleep 60000").await?)
        .await?;
    bench.running(&run_id("busy")).await?;
    equal(
        "listed",
        bench.listed().await?,
        vec!["busy".to_owned(), "done".to_owned()],
    )?;
    let again = bench.restarted().await?;
    equal(
        "annotations",
        again.runtime.status(&run_id("done")).await?.annotations,
        notes,
    )?;
    Ok(())
}

async fn a_restart_adopts_running_runs(bench: Bench) -> case::Outcome {
    let id = run_id("adopted");
    let spec = bench.spec("sleep 1500 then echo done then exit 6").await?;
    bench.runtime.run(&id, &spec).await?;
    bench.running(&id).await?;
    let again = bench.restarted().await?;
    drop(bench);
    equal(
        "run",
        again.runtime.run(&id, &spec).await?,
        Accepted::Adopted,
    )?;
    let status = again.ended(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(6)),
    )?;
    equal(
        "its log",
        again.log(&id).await?.as_ref(),
        b"done\n".as_ref(),
    )?;
    Ok(())
}

async fn a_restart_reads_finished_runs(bench: Bench) -> case::Outcome {
    let id = run_id("ended");
    bench
        .finish(&id, &bench.spec("echo words then exit 9").await?)
        .await?;
    let again = bench.restarted().await?;
    drop(bench);
    let status = again.runtime.status(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(9)),
    )?;
    holds(
        "the time of its end is not known",
        status.finished.is_some(),
    )?;
    equal(
        "its log",
        again.log(&id).await?.as_ref(),
        b"words\n".as_ref(),
    )?;
    Ok(())
}

async fn owners_do_not_meet(bench: Bench) -> case::Outcome {
    let stranger = bench.stranger().await?;
    let id = run_id("shared");
    bench.finish(&id, &bench.spec("exit 1").await?).await?;
    equal("the other's list", stranger.listed().await?, Vec::new())?;
    fails(
        "the other's status",
        stranger.runtime.status(&id).await,
        ErrorKind::NotFound,
    )?;
    let removed = stranger
        .runtime
        .cleanup(&id, CleanupOptions::default().with_force(true))
        .await?;
    equal("the other's cleanup", removed, CleanedUp::Absent)?;
    stranger
        .finish(&id, &stranger.spec("exit 2").await?)
        .await?;
    stranger.tidy().await?;
    let status = bench.runtime.status(&id).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(1)),
    )?;
    let left = stranger.leftovers().await?;
    holds(&format!("the other left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

async fn similar_names_do_not_meet(bench: Bench) -> case::Outcome {
    for (id, code) in [("a", 1), ("a-b", 2), ("a-b-c", 3), ("b", 4)] {
        bench
            .finish(&run_id(id), &bench.spec(&format!("exit {code}")).await?)
            .await?;
    }
    bench
        .runtime
        .cleanup(&run_id("a-b"), CleanupOptions::default())
        .await?;
    equal(
        "listed",
        bench.listed().await?,
        vec!["a".to_owned(), "a-b-c".to_owned(), "b".to_owned()],
    )?;
    for (id, code) in [("a", 1), ("a-b-c", 3), ("b", 4)] {
        let status = bench.runtime.status(&run_id(id)).await?;
        equal(id, status.outcome().cloned(), Some(Outcome::Exited(code)))?;
    }
    Ok(())
}

async fn a_dropped_run_can_be_repeated(bench: Bench) -> case::Outcome {
    let id = run_id("dropped");
    let spec = bench.spec("echo started then exit 0").await?;
    for step in 0..12_u32 {
        let limit = std::time::Duration::from_millis(u64::from(step) * 8);
        let call = bench.runtime.run(&id, &spec);
        let _ = tokio::time::timeout(limit, call).await;
        let accepted = bench.runtime.run(&id, &spec).await;
        if let Err(error) = accepted {
            return Err(format!("dropped after {limit:?}, then: {error}").into());
        }
        let status = bench.ended(&id).await?;
        equal(
            "its end",
            status.outcome().cloned(),
            Some(Outcome::Exited(0)),
        )?;
        let log = bench.log(&id).await?;
        equal(
            "what it printed",
            String::from_utf8_lossy(&log).matches("started").count(),
            1,
        )?;
        bench
            .runtime
            .cleanup(&id, CleanupOptions::default())
            .await?;
    }
    Ok(())
}

fn streams(c: &Capabilities) -> Result<(), &'static str> {
    c.mounts.stream.then_some(()).ok_or("mounts.stream")
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

async fn many_at_once(bench: Bench) -> case::Outcome {
    let runs = (0..30).map(|number| {
        let bench = bench.clone();
        async move {
            let id = run_id(&format!("many-{number}"));
            let spec = bench
                .spec(&format!("echo {number} then exit {number}"))
                .await?;
            let status = bench.finish(&id, &spec).await?;
            equal(
                "its end",
                status.outcome().cloned(),
                Some(Outcome::Exited(number)),
            )?;
            let log = bench.log(&id).await?;
            equal("its log", log.as_ref(), format!("{number}\n").as_bytes())
        }
    });
    for outcome in futures_util::future::join_all(runs).await {
        outcome?;
    }
    Ok(())
}

async fn a_lease_is_exclusive(bench: Bench) -> case::Outcome {
    let again = bench.restarted().await?;
    let lease = bench.runtime.acquire().await?;
    fails(
        "a second holder",
        again.runtime.acquire().await,
        ErrorKind::Conflict,
    )?;
    let stranger = bench.stranger().await?;
    drop(stranger.runtime.acquire().await?);
    drop(lease);
    drop(again.runtime.acquire().await?);
    Ok(())
}
