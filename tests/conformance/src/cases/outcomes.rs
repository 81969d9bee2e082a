//! How runs end, told apart.

use std::num::NonZeroU64;
use std::time::Duration;

use v6_runtime::{
    Capabilities, Digest, ErrorKind, ImageIdentity, ImageRef, Mount, MountSource, Outcome,
    PullPolicy, ResolvedImage, Resources, RunSpec, RunStatus, Runtime, StartFailureCause,
};

use crate::bench::{Bench, path, run_id};
use crate::case::{self, equal, fails, holds};

case::cases! {
    exit_codes_are_exact ["LIFE-7"]: "the exit code of the program is the run's, all eight bits of it";
    #[needs(|c: &Capabilities| c.outcomes.signaled.then_some(()).ok_or("outcomes.signaled"))]
    a_signal_is_told_from_a_code ["LIFE-7"]: "a program that a signal ends is Signaled, one that exits with 128+n is Exited";
    #[needs(|c: &Capabilities| (c.outcomes.out_of_memory && c.resources.memory).then_some(()).ok_or("outcomes.out_of_memory"))]
    out_of_memory_is_told ["LIFE-7", "FLOOR-7"]: "a run that takes more memory than its limit ends as OutOfMemory";
    #[needs(|c: &Capabilities| c.outcomes.command_not_found.then_some(()).ok_or("outcomes.command_not_found"))]
    a_missing_command_is_told_from_127 ["LIFE-7"]: "a command that is not in the image is FailedToStart, a program that exits with 127 is not";
    an_end_has_its_times ["LIFE-2", "REC-3"]: "a run that ended tells when it was made, began and ended, in that order, and the same to a later process";
    a_missing_image_is_an_outcome ["LIFE-5", "RUN-7"]: "an image that is gone when the run starts is an outcome of that run, not an error of the call";
    an_unknown_name_is_not_found ["IMG-3"]: "resolve says NotFound for a name that the engine does not have and may not ask for";
    exactly_the_resolved_image_is_told ["REC-3", "IMG-2"]: "a run's status tells the image that was resolved, digest included";
}

async fn exit_codes_are_exact(bench: Bench) -> case::Outcome {
    let codes = [
        0, 1, 2, 77, 121, 125, 126, 127, 128, 129, 137, 139, 143, 254, 255,
    ];
    let runs = codes.map(|code| {
        let bench = bench.clone();
        async move {
            let words = format!("exit {code}");
            let outcome = bench.outcome(&format!("exit-{code}"), &words).await?;
            equal(&words, outcome, Outcome::Exited(code))
        }
    });
    for run in futures_util::future::join_all(runs).await {
        run?;
    }
    Ok(())
}

async fn a_signal_is_told_from_a_code(bench: Bench) -> case::Outcome {
    let killed = bench.outcome("killed", "kill-self 9").await?;
    equal("kill-self 9", killed, Outcome::Signaled(9))?;
    let aborted = bench.outcome("aborted", "kill-self 6").await?;
    equal("kill-self 6", aborted, Outcome::Signaled(6))?;
    Ok(())
}

async fn out_of_memory_is_told(bench: Bench) -> case::Outcome {
    // containerd learns from the kernel that a control group was out of memory, and beside that that its
    // program has ended: on a busy machine the first was seen to be lost. Nobody can tell that end from
    // another kill, so it may be told as one, but never as something else, and not again and again.
    const TRIES: usize = 5;
    let limit = NonZeroU64::new(32 << 20).ok_or("32 MiB is not zero")?;
    let spec = bench.spec("allocate 256 then exit 0").await?;
    let spec = spec.with_resources(Resources::default().with_memory_bytes(limit));
    let mut told = None;
    for number in 0..TRIES {
        let id = run_id(&format!("greedy{number}"));
        told = bench.finish(&id, &spec).await?.outcome().cloned();
        if !matches!(told, Some(Outcome::Exited(137) | Outcome::Signaled(9))) {
            break;
        }
    }
    equal(
        "256 MiB with a limit of 32",
        told,
        Some(Outcome::OutOfMemory),
    )?;
    Ok(())
}

async fn a_missing_command_is_told_from_127(bench: Bench) -> case::Outcome {
    for (id, command, wanted) in [
        (
            "absent",
            "/no/such/program",
            StartFailureCause::CommandNotFound,
        ),
        ("folder", "/tmp", StartFailureCause::CommandNotExecutable),
        ("file", "/in/data", StartFailureCause::CommandNotExecutable),
    ] {
        let data = Mount::new(MountSource::Inline("data".into()), path("/in/data"));
        let spec = bench.spec("").await?.with_command([command]);
        let spec = spec.with_mount(data);
        let status = bench.finish(&run_id(id), &spec).await?;
        match status.outcome() {
            Some(Outcome::FailedToStart(failure)) => equal(command, failure.cause, wanted)?,
            other => return Err(format!("{command}: wanted FailedToStart, got {other:?}").into()),
        }
    }
    Ok(())
}

async fn a_missing_image_is_an_outcome(bench: Bench) -> case::Outcome {
    let digest = Digest::new(format!("sha256:{}", "0".repeat(64)))?;
    let name = ImageRef::parse("localhost/v6-conformance/no-such-image:1")?;
    let image = ResolvedImage::new(name, ImageIdentity::ImageId(digest), "linux/amd64");
    let status = bench
        .finish(&run_id("no-image"), &RunSpec::new(image))
        .await?;
    match status.outcome() {
        Some(Outcome::FailedToStart(failure)) => {
            equal("its cause", failure.cause, StartFailureCause::ImageNotFound)?;
        }
        other => return Err(format!("wanted FailedToStart, got {other:?}").into()),
    }
    Ok(())
}

async fn an_unknown_name_is_not_found(bench: Bench) -> case::Outcome {
    let name = ImageRef::parse("localhost/v6-conformance/no-such-image:1")?;
    fails(
        "resolve",
        bench.runtime.resolve(&name, PullPolicy::Never).await,
        ErrorKind::NotFound,
    )?;
    Ok(())
}

async fn exactly_the_resolved_image_is_told(bench: Bench) -> case::Outcome {
    let spec = bench.spec("exit 0").await?;
    let status = bench.finish(&run_id("told"), &spec).await?;
    equal("the image", status.image, spec.image.clone())?;
    let pinned = spec.image.clone();
    bench.runtime.prefetch(&pinned).await?;
    Ok(())
}

async fn an_end_has_its_times(bench: Bench) -> case::Outcome {
    let id = run_id("timed");
    let spec = bench.spec("sleep 1200 then exit 3").await?;
    let status = bench.finish(&id, &spec).await?;
    let finished = status.finished.ok_or("the time of its end is not told")?;
    let started = status.started.ok_or("the time of its start is not told")?;
    let took = finished.duration_since(started).unwrap_or_default();
    // Some engines tell whole seconds.
    holds(
        &format!("a program of 1.2 s took {took:?}"),
        (Duration::from_millis(200)..Duration::from_secs(60)).contains(&took),
    )?;
    if let Some(created) = status.created {
        let slack = started + Duration::from_secs(1);
        holds(
            &format!("it was made at {created:?} and began at {started:?}"),
            created <= slack,
        )?;
    }
    let later = bench.restarted().await?.runtime.status(&id).await?;
    let times = |status: &RunStatus| (status.created, status.started, status.finished);
    equal("its times, later", times(&later), times(&status))?;
    Ok(())
}
