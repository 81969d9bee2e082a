//! The states of a container that the translation knows, each brought about on a real engine.
//!
//! `V6_RECORD=1` writes what the engine says to `tests/data/engines`, for the unit tests.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::time::{Duration, SystemTime};

use bollard::query_parameters::{KillContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use common::{Bench, bytes, id, record, shell};
use v6_runtime::{
    Mount, MountSource, Outcome, Resources, RunPhase, RunSpec, Runtime, RuntimeExt,
    StartFailureCause,
};

#[tokio::test]
async fn every_end_is_recognized() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let base = shell(&docker, "true").await;
    let sh = |text: &str| base.clone().with_command(["sh", "-c", text]);
    let failed = |outcome: &Outcome, cause| matches!(outcome, Outcome::FailedToStart(failure) if failure.cause == cause);
    type Check<'a> = &'a dyn Fn(&Outcome) -> bool;
    let memory = Resources::default().with_memory_bytes(bytes(32 << 20));
    let soon = SystemTime::now() + Duration::from_secs(8);
    let absent = Mount::new(
        MountSource::HostPath("/no/such/folder".into()),
        common::path("/data"),
    );
    let cases: [(&str, RunSpec, Check<'_>); 10] = [
        ("exited-0", sh("exit 0"), &|o| *o == Outcome::Exited(0)),
        ("exited-7", sh("exit 7"), &|o| *o == Outcome::Exited(7)),
        ("exited-127", sh("exit 127"), &|o| {
            *o == Outcome::Exited(127)
        }),
        ("exited-137", sh("exit 137"), &|o| {
            *o == Outcome::Exited(137)
        }),
        ("signal-9", sh("kill -KILL $$"), &|o| {
            *o == Outcome::Signaled(9)
        }),
        (
            "out-of-memory",
            sh("tail /dev/zero").with_resources(memory),
            &|o| *o == Outcome::OutOfMemory,
        ),
        (
            "deadline",
            sh("sleep 600")
                .with_deadline(soon)
                .with_grace(Duration::from_secs(1)),
            &|o| *o == Outcome::DeadlineExceeded,
        ),
        (
            "command-not-found",
            base.clone().with_command(["/no/such"]),
            &|o| failed(o, StartFailureCause::CommandNotFound),
        ),
        (
            "command-not-executable",
            base.clone().with_command(["/etc"]),
            &|o| failed(o, StartFailureCause::CommandNotExecutable),
        ),
        ("mount-absent", sh("true").with_mount(absent), &|o| {
            failed(o, StartFailureCause::MountUnusable)
        }),
    ];
    // What an engine does not limit it does not end.
    let limited = docker.capabilities().resources.memory;
    let cases = cases
        .iter()
        .filter(|(name, ..)| limited || *name != "out-of-memory");
    for (name, spec, _) in cases.clone() {
        docker.run(&id(name), spec).await.unwrap();
    }
    for (name, _, right) in cases {
        let status = docker.wait(&id(name)).await.unwrap();
        let outcome = status.outcome().unwrap();
        assert!(right(outcome), "{name}: {outcome:?}");
        // Another process, which has seen none of it, says the same.
        let fresh = bench.connect().await.status(&id(name)).await.unwrap();
        assert_eq!(fresh.phase, status.phase, "{name}");
        if *name != "mount-absent" {
            record(&bench, &id(name), name).await;
        }
    }
    bench.finish(&docker).await;
}

#[tokio::test]
async fn what_others_do_to_a_container() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let sleeper = shell(&docker, "sleep 600").await;
    for name in [
        "running",
        "killed-outside",
        "stopped-outside",
        "removed-outside",
    ] {
        docker.run(&id(name), &sleeper).await.unwrap();
    }
    let tracker = v6_runtime::Tracker::new(std::sync::Arc::new(bench.connect().await));
    for name in [
        "running",
        "killed-outside",
        "stopped-outside",
        "removed-outside",
    ] {
        let run = id(name);
        tracker
            .wait_until(&run, |seen| seen.phase.rank() >= 1)
            .await
            .unwrap();
    }
    let status = docker.status(&id("running")).await.unwrap();
    assert_eq!(status.phase, RunPhase::Running);
    record(&bench, &id("running"), "running").await;
    for (name, signal) in [
        ("killed-outside", "SIGKILL"),
        ("stopped-outside", "SIGTERM"),
    ] {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let container = bench.name(&id(name));
        bench
            .docker
            .kill_container(&container, Some(options))
            .await
            .unwrap();
        let status = docker.wait(&id(name)).await.unwrap();
        let outcome = status.outcome().unwrap();
        assert!(
            matches!(outcome, Outcome::Evicted(_)),
            "{name}: {outcome:?}"
        );
        record(&bench, &id(name), name).await;
    }
    let force = RemoveContainerOptionsBuilder::new().force(true).build();
    let container = bench.name(&id("removed-outside"));
    bench
        .docker
        .remove_container(&container, Some(force))
        .await
        .unwrap();
    let status = docker.wait(&id("removed-outside")).await.unwrap();
    let gone = matches!(
        status.outcome(),
        Some(Outcome::Lost(_) | Outcome::Evicted(_))
    );
    assert!(gone, "{status:?}");
    // Whoever has not seen it die knows only that it was started and is gone.
    let fresh = bench
        .connect()
        .await
        .status(&id("removed-outside"))
        .await
        .unwrap();
    assert!(
        matches!(fresh.outcome(), Some(Outcome::Lost(_))),
        "{fresh:?}"
    );
    bench.finish(&docker).await;
}
