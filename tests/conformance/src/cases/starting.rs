//! Starting runs: once each, whoever asks and how often.

use std::time::{Duration, SystemTime};

use v6_runtime::{Accepted, Annotations, ErrorKind, Outcome, Runtime};

use crate::bench::{Bench, run_id};
use crate::case::{self, equal, fails, holds};

case::cases! {
    run_returns_before_the_end ["RUN-1"]: "run returns when the run is accepted, not when it is over";
    the_same_run_is_adopted ["RUN-2", "RUN-5"]: "run with the same spec again adopts, whatever the phase, and starts nothing";
    another_spec_conflicts ["RUN-3", "RUN-5"]: "run with another spec under the same id is Conflict, and changes nothing";
    one_of_many_starters_creates ["RUN-2"]: "of concurrent calls of run with one id, one creates the run and the others adopt it";
    many_at_once ["LIFE-3"]: "fifty runs at once end with fifty outcomes";
    of_two_specs_one_wins ["RUN-3"]: "of concurrent calls of run with one id and two specs, one creates the run, and who has the other gets Conflict";
    notes_and_deadline_do_not_count ["RUN-5", "REC-3"]: "the same spec with other annotations or another deadline is Adopted, and those of the first call stay";
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
    let calls = (0..8).map(|_| bench.runtime.run(&id, &spec));
    let mut created = 0;
    for accepted in futures_util::future::join_all(calls).await {
        created += usize::from(accepted? == Accepted::Created);
    }
    equal("calls that created the run", created, 1)?;
    bench.ends_with(&id, 0).await?;
    equal("what it printed", bench.text(&id).await?.as_str(), "here\n")?;
    Ok(())
}

async fn many_at_once(bench: Bench) -> case::Outcome {
    let runs = (0..50).map(|number| {
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

async fn of_two_specs_one_wins(bench: Bench) -> case::Outcome {
    let id = run_id("contended");
    let specs = [bench.spec("exit 5").await?, bench.spec("exit 6").await?];
    let calls = (0..8).map(|number| bench.runtime.run(&id, &specs[number % 2]));
    let all = futures_util::future::join_all(calls).await;
    let mut winner = None;
    for (number, accepted) in all.iter().enumerate() {
        if matches!(accepted, Ok(Accepted::Created)) {
            let first = winner.replace(number % 2);
            holds("two calls created the run", first.is_none())?;
        }
    }
    let winner = winner.ok_or_else(|| format!("nobody created the run: {all:?}"))?;
    for (number, accepted) in all.into_iter().enumerate() {
        if number % 2 == winner {
            accepted?;
        } else {
            fails("the other spec", accepted, ErrorKind::Conflict)?;
        }
    }
    bench.ends_with(&id, [5, 6][winner]).await
}

async fn notes_and_deadline_do_not_count(bench: Bench) -> case::Outcome {
    let id = run_id("noted");
    let notes = |text: &str| Annotations::from_iter([("note", text)]);
    let spec = bench.spec("sleep 300 then exit 2").await?;
    let first = spec.clone().with_annotations(notes("first"));
    let accepted = bench.runtime.run(&id, &first).await?;
    equal("the first call", accepted, Accepted::Created)?;
    let mut second = spec.with_annotations(notes("second"));
    if bench.runtime.capabilities().deadline {
        second = second.with_deadline(SystemTime::now() + Duration::from_secs(3600));
    }
    let accepted = bench.runtime.run(&id, &second).await?;
    equal("with other notes", accepted, Accepted::Adopted)?;
    let status = bench.ended(&id).await?;
    equal("the annotations", status.annotations, notes("first"))?;
    equal("the deadline", status.deadline, None)?;
    Ok(())
}
