//! Images from registries. The registries are shared by all cases, so each is alone.

use std::time::{Duration, SystemTime};

use v6_runtime::{
    CancelOptions, Capabilities, CleanupOptions, Digest, ErrorKind, ImageIdentity, ImageRef,
    Outcome, Pending, PullPolicy, ResolvedImage, RunId, RunPhase, RunSpec, Runtime,
    StartFailureCause,
};

use super::needs::{self, pull};
use crate::bench::{Bench, run_id};
use crate::case::{self, Failure, equal, fails, holds};
use crate::harness::Tagged;

/// What a run comes to whose image never arrives: long before that.
const SOON: Duration = Duration::from_secs(30);

fn pull_and_store(c: &Capabilities) -> Result<(), &'static str> {
    let both = c.pull && c.image_store;
    both.then_some(()).ok_or("pull with image_store")
}

fn pull_and_deadline(c: &Capabilities) -> Result<(), &'static str> {
    pull_and_store(c)?;
    c.deadline.then_some(()).ok_or("deadline")
}

case::cases! {
    #[needs(pull)]
    #[alone]
    an_image_is_pulled_and_run ["IMG-1", "IMG-2"]: "an image that only a registry has is resolved without being fetched, fetched for its run, and is what the run tells; what the engine has is told from what it has not";
    #[needs(pull_and_store)]
    #[alone]
    a_prefetched_image_is_there ["IMG-1"]: "after prefetch the engine has the image, and prefetching it again does nothing";
    #[needs(pull)]
    #[alone]
    a_private_image_is_pulled ["IMG-1"]: "an image that wants credentials is fetched with those that the runtime has";
    #[needs(pull)]
    #[alone]
    registries_fail_in_their_own_ways ["IMG-3"]: "resolve and prefetch tell apart: no such image, refused, registry out of reach";
    #[needs(pull)]
    #[alone]
    a_failed_pull_is_an_outcome ["RUN-7", "LIFE-7", "IMG-3"]: "an image that cannot be fetched for a run is that run's outcome, with the registry's cause";
    #[needs(pull)]
    #[alone]
    a_slow_pull_delays_no_other_run ["RUN-9"]: "while the image of one run does not arrive, others start and end";
    #[needs(pull)]
    #[alone]
    one_image_is_fetched_for_many ["IMG-1", "RUN-9"]: "runs of two processes that need the same image at the same time all get it";
    #[needs(pull_and_store)]
    #[alone]
    a_pull_can_be_cancelled ["CAN-1"]: "a run whose image is being fetched is cancelled at once";
    #[needs(pull_and_store)]
    #[alone]
    a_pulling_run_can_be_cleaned_up ["CLEAN-2"]: "a run whose image is being fetched can be cleaned up by force, whole";
    #[needs(pull_and_deadline)]
    #[alone]
    the_deadline_ends_a_pull ["DEAD-1"]: "the deadline ends a run whose image is being fetched";
    a_moved_tag_changes_no_run ["IMG-2"]: "a run uses the content that was resolved, though the name has been moved since";
}

async fn an_image_is_pulled_and_run(bench: Bench) -> case::Outcome {
    let name = bench.registries().await?.open;
    let runtime = &bench.runtime;
    let image = runtime.resolve(&name, PullPolicy::IfNotPresent).await?;
    let has_store = runtime.capabilities().image_store;
    if has_store {
        let here = runtime.resolve(&name, PullPolicy::Never).await;
        fails(
            "before the pull, the engine's own",
            here,
            ErrorKind::NotFound,
        )?;
    }
    let id = run_id("pulled");
    let spec = RunSpec::new(image.clone()).with_args(["exit", "4"]);
    runtime.run(&id, &spec).await?;
    bench.ends_with(&id, 4).await?;
    let status = runtime.status(&id).await?;
    equal("the image", status.image, image.clone())?;
    let here = runtime.resolve(&name, bench.nearest()).await?;
    let again = RunSpec::new(here).with_args(["exit", "5"]);
    let id = run_id("present");
    runtime.run(&id, &again).await?;
    bench.ends_with(&id, 5).await
}

async fn a_prefetched_image_is_there(bench: Bench) -> case::Outcome {
    let name = bench.registries().await?.open;
    let runtime = &bench.runtime;
    let image = runtime.resolve(&name, PullPolicy::Always).await?;
    runtime.prefetch(&image).await?;
    runtime.resolve(&name, PullPolicy::Never).await?;
    runtime.prefetch(&image).await?;
    let id = run_id("prefetched");
    let spec = RunSpec::new(image).with_args(["exit", "4"]);
    runtime.run(&id, &spec).await?;
    bench.ends_with(&id, 4).await
}

async fn one_image_is_fetched_for_many(bench: Bench) -> case::Outcome {
    let name = bench.registries().await?.open;
    let other = bench.restarted().await?;
    let benches = [&bench, &other];
    let image = bench.runtime.resolve(&name, PullPolicy::Always).await?;
    let spec = RunSpec::new(image).with_args(["exit", "4"]);
    let runs = (0..6).map(|number| {
        let (bench, spec) = (benches[number % 2], &spec);
        async move {
            let id = run_id(&format!("run-{number}"));
            bench.runtime.run(&id, spec).await?;
            bench.ends_with(&id, 4).await
        }
    });
    futures_util::future::try_join_all(runs).await?;
    Ok(())
}

async fn a_private_image_is_pulled(bench: Bench) -> case::Outcome {
    let name = bench.registries().await?.private;
    let image = bench.runtime.resolve(&name, PullPolicy::Always).await?;
    let id = run_id("private");
    let spec = RunSpec::new(image).with_args(["exit", "4"]);
    bench.runtime.run(&id, &spec).await?;
    bench.ends_with(&id, 4).await
}

/// An image under this name that the engine does not have.
fn unknown(name: &ImageRef) -> Result<ResolvedImage, Failure> {
    let digest = Digest::new(format!("sha256:{}", "0".repeat(64)))?;
    let identity = ImageIdentity::Manifest(digest);
    Ok(ResolvedImage::new(name.clone(), identity, "linux/amd64"))
}

async fn registries_fail_in_their_own_ways(bench: Bench) -> case::Outcome {
    let registries = bench.registries().await?;
    let cases = [
        ("absent", registries.absent, &[ErrorKind::NotFound][..]),
        ("refused", registries.refused, &[ErrorKind::Denied]),
        (
            "unreachable",
            registries.unreachable,
            &[ErrorKind::Unavailable, ErrorKind::Timeout],
        ),
    ];
    for (what, name, kinds) in cases {
        let resolved = bench.runtime.resolve(&name, PullPolicy::Always).await;
        let fetched = bench.runtime.prefetch(&unknown(&name)?).await;
        for (call, result) in [("resolve", resolved.map(drop)), ("prefetch", fetched)] {
            let error = match result {
                Err(error) => error,
                Ok(()) => return Err(format!("{call} of an image that is {what} succeeded").into()),
            };
            let text = Failure::from(error);
            holds(
                &format!("{call} of an image that is {what}: {text}"),
                kinds
                    .iter()
                    .any(|kind| text.to_string().contains(kind.as_str())),
            )?;
        }
    }
    Ok(())
}

async fn a_failed_pull_is_an_outcome(bench: Bench) -> case::Outcome {
    let registries = bench.registries().await?;
    for (what, name, cause) in [
        (
            "absent",
            registries.absent,
            StartFailureCause::ImageNotFound,
        ),
        (
            "refused",
            registries.refused,
            StartFailureCause::ImageDenied,
        ),
        (
            "unreachable",
            registries.unreachable,
            StartFailureCause::RegistryUnreachable,
        ),
    ] {
        let spec = RunSpec::new(unknown(&name)?);
        let status = bench.finish(&run_id(what), &spec).await?;
        match status.outcome() {
            Some(Outcome::FailedToStart(failure)) => {
                let what = format!("the cause of one that is {what} ({})", failure.message);
                equal(&what, failure.cause, cause)?;
                holds(&format!("{what}: no words"), !failure.message.is_empty())?;
            }
            other => return Err(format!("{what}: wanted FailedToStart, got {other:?}").into()),
        }
    }
    Ok(())
}

/// A run whose image is being fetched, and will never be there.
async fn pulling(bench: &Bench, deadline: Option<SystemTime>) -> Result<RunId, case::Stop> {
    let name = bench.registries().await?.stalled;
    let image = bench.runtime.resolve(&name, PullPolicy::Always).await?;
    let id = run_id("pulling");
    let mut spec = RunSpec::new(image).with_args(["exit", "9"]);
    if let Some(deadline) = deadline {
        spec = spec.with_deadline(deadline);
    }
    bench.runtime.run(&id, &spec).await?;
    let begun = |phase: &RunPhase| *phase == RunPhase::Pending(Pending::PullingImage);
    let what = "its image is being fetched";
    bench
        .until(&id, what, |phase| begun(phase) || phase.is_finished())
        .await?;
    Ok(id)
}

async fn a_slow_pull_delays_no_other_run(bench: Bench) -> case::Outcome {
    let slow = pulling(&bench, None).await?;
    let id = run_id("quick");
    bench.runtime.run(&id, &bench.spec("exit 3").await?).await?;
    bench.ends_with(&id, 3).await?;
    let phase = bench.runtime.status(&slow).await?.phase;
    let waits = RunPhase::Pending(Pending::PullingImage);
    equal("the one whose image is slow", phase, waits)?;
    Ok(())
}

async fn a_pull_can_be_cancelled(bench: Bench) -> case::Outcome {
    let id = pulling(&bench, None).await?;
    bench.runtime.cancel(&id, CancelOptions::default()).await?;
    let status = tokio::time::timeout(SOON, bench.ended(&id)).await;
    let status = status.map_err(|_| "it waits for its image still")??;
    let outcome = status.outcome().ok_or("it has no outcome")?;
    let what = format!("it was cancelled, and ended as {outcome:?}");
    holds(&what, needs::is_cancelled(&bench, outcome))?;
    Ok(())
}

async fn a_pulling_run_can_be_cleaned_up(bench: Bench) -> case::Outcome {
    let id = pulling(&bench, None).await?;
    let forced = CleanupOptions::default().with_force(true);
    let removed = tokio::time::timeout(SOON, bench.runtime.cleanup(&id, forced)).await;
    removed.map_err(|_| "cleanup waits for the image")??;
    let status = bench.runtime.status(&id).await;
    fails("status", status, ErrorKind::NotFound)?;
    let left = bench.leftovers().await?;
    holds(&format!("left behind: {left:?}"), left.is_empty())?;
    Ok(())
}

async fn the_deadline_ends_a_pull(bench: Bench) -> case::Outcome {
    let deadline = bench.in_seconds(5);
    let id = pulling(&bench, Some(deadline)).await?;
    let status = tokio::time::timeout(SOON, bench.ended(&id)).await;
    let status = status.map_err(|_| "it waits for its image still")??;
    let outcome = status.outcome().cloned();
    equal("its end", outcome, Some(Outcome::DeadlineExceeded))?;
    Ok(())
}

async fn a_moved_tag_changes_no_run(bench: Bench) -> case::Outcome {
    let runtime = &bench.runtime;
    let name = bench.move_tag(Tagged::Probe).await?;
    let first = runtime.resolve(&name, PullPolicy::IfNotPresent).await?;
    let name = bench.move_tag(Tagged::Other).await?;
    let id = run_id("before");
    let spec = RunSpec::new(first.clone()).with_args(["exit", "4"]);
    runtime.run(&id, &spec).await?;
    bench.ends_with(&id, 4).await?;
    let status = runtime.status(&id).await?;
    equal("the image that it tells", status.image, first.clone())?;
    let second = runtime.resolve(&name, PullPolicy::IfNotPresent).await?;
    let moved = first.identity != second.identity;
    holds("the moved name stands for the same content", moved)?;
    let id = run_id("after");
    let spec = RunSpec::new(second).with_args(["exit", "4"]);
    runtime.run(&id, &spec).await?;
    bench.ends_with(&id, 99).await
}
