//! Whose runs are whose, and what is nobody's.

use v6_runtime::{CleanedUp, CleanupOptions, ErrorKind, Outcome, Owner, Runtime};

use crate::bench::{Bench, run_id};
use crate::case::{self, Stop, equal, fails, holds};
use crate::harness::{Planted, Stranger};

case::cases! {
    owners_do_not_meet ["REC-5"]: "a run of another owner is neither listed, found, nor removed, also under the same id";
    similar_names_do_not_meet ["REC-5"]: "owners and runs whose names begin alike stay apart";
    a_lease_is_exclusive ["LEASE-1"]: "one process at a time holds the owner's lease, and dropping it or giving it back frees it";
    one_name_may_begin_another ["REC-5"]: "owners and runs whose names together read the same stay apart";
    look_alikes_are_spared ["REC-4"]: "objects with similar names and labels that are not the owner's are neither listed, found nor removed";
    a_taken_name_conflicts ["REC-4"]: "a name that a stranger's object has is Conflict, and the object stays as it is";
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
    again.runtime.acquire().await?.give_back().await;
    drop(bench.runtime.acquire().await?);
    Ok(())
}

async fn one_name_may_begin_another(bench: Bench) -> case::Outcome {
    // Joined by any of the usual signs, the names of these pairs are equal.
    let short = bench.runtime.owner().clone();
    let longer = Owner::new(format!("{short}-a"))?;
    let other = bench.stranger_named(longer).await?;
    let (mine, theirs) = (run_id("a-b"), run_id("b"));
    bench
        .runtime
        .run(&mine, &bench.spec("exit 1").await?)
        .await?;
    other
        .runtime
        .run(&theirs, &other.spec("exit 2").await?)
        .await?;
    bench.ends_with(&mine, 1).await?;
    other.ends_with(&theirs, 2).await?;
    equal("listed", bench.listed().await?, vec!["a-b".to_owned()])?;
    equal("the other's", other.listed().await?, vec!["b".to_owned()])?;
    for (bench, foreign) in [(&bench, &theirs), (&other, &mine)] {
        let found = bench.runtime.status(foreign).await;
        fails("status of the other's run", found, ErrorKind::NotFound)?;
    }
    bench.clean(&mine).await?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    other.ends_with(&theirs, 2).await?;
    other.tidy().await?;
    let left = other.leftovers().await?;
    holds(&format!("the other left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

/// Whatever the case came to, the stranger's object is removed.
async fn removed(stranger: Stranger, outcome: case::Outcome) -> case::Outcome {
    let there = stranger.is_there().await;
    stranger.remove().await?;
    outcome?;
    holds("the stranger's object is gone, or another", there?)?;
    Ok(())
}

async fn look_alikes_are_spared(bench: Bench) -> case::Outcome {
    let id = run_id("mine");
    let stranger = bench.plant(&id, Planted::Beside).await?;
    let outcome = beside(&bench, &id).await;
    removed(stranger, outcome).await
}

async fn beside(bench: &Bench, id: &v6_runtime::RunId) -> case::Outcome {
    equal("listed at first", bench.listed().await?, Vec::new())?;
    let status = bench.runtime.status(id).await;
    fails("status at first", status, ErrorKind::NotFound)?;
    bench.finish(id, &bench.spec("exit 3").await?).await?;
    equal("listed", bench.listed().await?, vec![id.to_string()])?;
    bench.clean(id).await?;
    equal("listed after cleanup", bench.listed().await?, Vec::new())?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    let again = bench.restarted().await?;
    again.tidy().await?;
    Ok(())
}

async fn a_taken_name_conflicts(bench: Bench) -> case::Outcome {
    let id = run_id("taken");
    let stranger = bench.plant(&id, Planted::InPlace).await?;
    let outcome = in_place(&bench, &id).await;
    removed(stranger, outcome).await?;
    // The name is free now.
    bench.finish(&id, &bench.spec("exit 6").await?).await?;
    bench.ends_with(&id, 6).await
}

async fn in_place(bench: &Bench, id: &v6_runtime::RunId) -> case::Outcome {
    let taken = bench.runtime.run(id, &bench.spec("exit 6").await?).await;
    fails("run", taken, ErrorKind::Conflict)?;
    equal("listed", bench.listed().await?, Vec::new())?;
    let status = bench.runtime.status(id).await;
    fails("status", status, ErrorKind::NotFound)?;
    let forced = CleanupOptions::default().with_force(true);
    match bench.runtime.cleanup(id, forced).await {
        Ok(CleanedUp::Absent) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        other => Err(Stop::from(format!(
            "cleanup of a stranger's object: {other:?}"
        ))),
    }
}
