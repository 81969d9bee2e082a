//! Cleaning up: what is removed is gone, and nothing is left.

use v6_runtime::{
    Accepted, CancelOptions, CleanedUp, CleanupOptions, ErrorKind, Outcome, RunPhase, Runtime,
};

use super::needs;
use crate::bench::{Bench, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::harness::Fault;

/// How many runs [`cleanup_shows_no_other_end`] removes, and how many look at each meanwhile.
const ROUNDS: usize = 6;

const LOOKERS: usize = 16;

case::cases! {
    cleanup_of_a_live_run_needs_force ["CLEAN-1"]: "cleanup refuses an unfinished run as NotReady; forced, it ends and removes it";
    cleanup_twice_is_absent ["CLEAN-3"]: "cleanup of what is not there is Absent, and success";
    cleanup_shows_no_other_end ["CLEAN-2"]: "while cleanup is at work, status gives the run as it ended, or NotFound";
    an_id_can_be_used_again ["CLEAN-2"]: "after cleanup the id is free, and a new run under it is another one";
    concurrent_cleanups_all_succeed ["CLEAN-3"]: "concurrent calls of cleanup for one run, also in two processes, all succeed";
    a_stuck_part_does_not_stop_cleanup ["CLEAN-2", "CLEAN-3"]: "cleanup fails while a part cannot be removed, the run shows no other end meanwhile, and when that is mended cleanup finishes";
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
        let program = if cancelled { "sleep 60000" } else { "exit 3" };
        bench.runtime.run(&id, &bench.spec(program).await?).await?;
        if cancelled {
            bench.runtime.cancel(&id, CancelOptions::default()).await?;
        }
        let status = bench.ended(&id).await?;
        let wanted = status.outcome().ok_or("it has no outcome")?;
        let right = match cancelled {
            true => needs::is_cancelled(&bench, wanted),
            false => *wanted == Outcome::Exited(3),
        };
        holds(&format!("its end is {wanted:?}"), right)?;
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

async fn concurrent_cleanups_all_succeed(bench: Bench) -> case::Outcome {
    let again = bench.restarted().await?;
    for (id, words, force) in [("ended", "exit 0", false), ("alive", "sleep 60000", true)] {
        let id = run_id(id);
        bench.runtime.run(&id, &bench.spec(words).await?).await?;
        if force {
            bench.running(&id).await?;
        } else {
            bench.ended(&id).await?;
        }
        let options = CleanupOptions::default().with_force(force);
        let calls = (0..6).map(|number| {
            let bench = if number % 2 == 0 { &bench } else { &again };
            bench.runtime.cleanup(&id, options.clone())
        });
        for removed in futures_util::future::join_all(calls).await {
            removed?;
        }
        let status = again.runtime.status(&id).await;
        fails("status", status, ErrorKind::NotFound)?;
        let left = bench.leftovers().await?;
        holds(&format!("left behind: {left:?}"), left.is_empty())?;
    }
    Ok(())
}

async fn a_stuck_part_does_not_stop_cleanup(bench: Bench) -> case::Outcome {
    let id = run_id("stuck");
    let mut spec = bench.spec("exit 4").await?;
    if needs::files(bench.runtime.capabilities()).is_ok() {
        spec = super::files::with_result(spec, 1000)?;
    }
    bench.finish(&id, &spec).await?;
    let wanted = RunPhase::Finished(Outcome::Exited(4));
    {
        let _stuck = bench.inject(Fault::Stuck).await?;
        let options = CleanupOptions::default();
        let error = match bench.runtime.cleanup(&id, options).await {
            Ok(removed) => {
                return Err(format!("cleanup said {removed:?} of what it cannot remove").into());
            }
            Err(error) => error,
        };
        match bench.runtime.status(&id).await {
            Ok(status) => equal("its phase meanwhile", status.phase, wanted)?,
            Err(gone) if gone.kind() == ErrorKind::NotFound => {}
            Err(other) => return Err(format!("after {error}: {other}").into()),
        }
    }
    bench.clean(&id).await?;
    let status = bench.runtime.status(&id).await;
    fails("status", status, ErrorKind::NotFound)?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}
