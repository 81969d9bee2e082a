//! Records: what is kept of a run, and found again.

use v6_runtime::{Accepted, Annotations, ErrorKind, Outcome, RunStatus, Runtime};

use crate::bench::{Bench, run_id};
use crate::case::{self, equal, fails, holds};

case::cases! {
    an_unknown_run_is_not_found ["STAT-1"]: "status, cancel, logs and collect of an unknown id are NotFound";
    every_run_is_listed_whole ["REC-3", "STAT-2"]: "list gives every run whatever its phase, with its annotations as they were given";
    a_restart_adopts_running_runs ["REC-2"]: "a new value of the runtime finds runs that run, and sees their end";
    a_restart_reads_finished_runs ["LIFE-2", "REC-2"]: "a new value of the runtime reads the outcome of runs that ended before";
    annotations_may_be_large ["REC-3"]: "annotations of exactly the limit are kept whole, for status, list and watch";
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

async fn annotations_may_be_large(bench: Bench) -> case::Outcome {
    use futures_util::TryStreamExt;
    // Of many small ones, and of letters that take more than a byte.
    let mut notes: Vec<(String, String)> = (0..200)
        .map(|number| (format!("note-{number:03}"), "é\n\"".to_owned()))
        .collect();
    let size = |notes: &[(String, String)]| -> usize {
        notes
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    };
    let left = Annotations::MAX_BYTES - size(&notes) - "rest".len();
    notes.push(("rest".to_owned(), "x".repeat(left)));
    let notes = Annotations::from_iter(notes);
    equal("their size", notes.size(), Annotations::MAX_BYTES)?;
    let id = run_id("noted");
    let spec = bench.spec("exit 0").await?.with_annotations(notes.clone());
    let seen = bench.finish(&id, &spec).await?;
    equal("in the watch", seen.annotations, notes.clone())?;
    let again = bench.restarted().await?;
    let status = again.runtime.status(&id).await?;
    equal("in the status", status.annotations, notes.clone())?;
    let listed: Vec<RunStatus> = again.runtime.list().try_collect().await?;
    let listed: Vec<Annotations> = listed.into_iter().map(|run| run.annotations).collect();
    equal("in the list", listed, vec![notes])?;
    Ok(())
}
