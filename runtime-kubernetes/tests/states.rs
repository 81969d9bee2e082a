//! The states of a pod that the translation knows, each brought about on a real cluster.
//!
//! `V6_RECORD=1` writes what the cluster says to `tests/data/states`, for the unit tests.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "what a machine has missed is told")]

mod common;

use std::time::{Duration, SystemTime};

use common::{Bench, bytes, id, in_time, keep, until_running};
use kube::api::{DeleteParams, EvictParams};
use v6_runtime::{
    CancelOptions, ImageRef, Mount, MountSource, Outcome, PullPolicy, Resources, RunSpec, Runtime,
    RuntimeExt, StartFailureCause as Cause,
};
use v6_runtime_kubernetes::KubernetesRuntime;

const LIMIT: u64 = 180;

fn failed(outcome: &Outcome, cause: Cause) -> bool {
    matches!(outcome, Outcome::FailedToStart(failure) if failure.cause == cause)
}

type Case = (&'static str, RunSpec, fn(&Outcome) -> bool);

/// Runs all of them at once; each has to end as it says.
async fn all_end_right(bench: &Bench, cluster: &KubernetesRuntime, cases: &[Case]) {
    for (name, spec, _) in cases {
        cluster.run(&id(name), spec).await.unwrap();
    }
    let mut wrong = Vec::new();
    for (name, _, right) in cases {
        let id = id(name);
        let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
        let outcome = status.outcome().unwrap();
        if !right(outcome) {
            wrong.push(format!("{name}: {outcome:?}"));
        }
        keep(bench, &id).await;
        common::remove(cluster, &id).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn every_end_of_a_program_is_recognized() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let base = bench.probe(&cluster, "exit 0").await;
    let steps = |text: &str| base.clone().with_args(text.split(' '));
    let soon = SystemTime::now() + Duration::from_secs(12);
    let cases: [Case; 6] = [
        ("exited-0", steps("exit 0"), |o| *o == Outcome::Exited(0)),
        ("exited-7", steps("exit 7"), |o| *o == Outcome::Exited(7)),
        ("exited-137", steps("exit 137"), |o| {
            *o == Outcome::Exited(137)
        }),
        ("deadline", steps("sleep 600000").with_deadline(soon), |o| {
            *o == Outcome::DeadlineExceeded
        }),
        (
            "command-not-found",
            base.clone().with_command(["/no/such"]),
            |o| failed(o, Cause::CommandNotFound),
        ),
        (
            "command-not-executable",
            base.clone().with_command(["/tmp"]),
            |o| failed(o, Cause::CommandNotExecutable),
        ),
    ];
    all_end_right(&bench, &cluster, &cases).await;
}

/// containerd 1.6 learns from the kernel that a control group was out of memory, and beside that that
/// its program has ended, and then removes the group: on a busy machine the first may come too late, and
/// nobody can tell that end from another 137. So one of a few has to be told.
#[tokio::test]
async fn out_of_memory_is_recognized() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let memory = Resources::default().with_memory_bytes(bytes(32 << 20));
    let spec = bench.probe(&cluster, "allocate 100").await;
    let spec = spec.with_resources(memory);
    for name in ["out-of-memory", "out-of-memory-2", "out-of-memory-3"] {
        let id = id(name);
        cluster.run(&id, &spec).await.unwrap();
        let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
        let outcome = status.outcome().unwrap().clone();
        keep(&bench, &id).await;
        common::remove(&cluster, &id).await;
        if outcome == Outcome::OutOfMemory {
            return;
        }
        assert_eq!(outcome, Outcome::Exited(137), "{name}");
        println!("{name}: the machine has not told why");
    }
    panic!("nobody was told to have been out of memory");
}

#[tokio::test]
async fn what_is_in_the_way_of_a_start_is_recognized() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // Waiting for what does not come is what these are about.
    let config = bench
        .config()
        .with_start_timeout(Duration::from_secs(12))
        .with_pull_timeout(Duration::from_secs(12));
    let cluster = KubernetesRuntime::connect(config).await.unwrap();
    let base = bench.probe(&cluster, "exit 0").await;
    let huge = Resources::default().with_memory_bytes(bytes(1 << 50));
    let absent = |text: &str| {
        let mut image = base.image.clone();
        image.reference = ImageRef::parse(text).unwrap();
        RunSpec::new(image)
    };
    let registry = base.image.reference.registry().to_owned();
    let claim = Mount::new(
        MountSource::Volume("no-such-claim".into()),
        common::path("/data"),
    );
    let cases: [Case; 4] = [
        (
            "image-absent",
            absent(&format!("{registry}/no/such:1")),
            |o| failed(o, Cause::ImageNotFound),
        ),
        (
            "registry-unreachable",
            absent("127.0.0.1:1/no/such:1"),
            |o| failed(o, Cause::RegistryUnreachable),
        ),
        ("no-room", base.clone().with_resources(huge), |o| {
            failed(o, Cause::Unschedulable)
        }),
        ("claim-absent", base.clone().with_mount(claim), |o| {
            failed(o, Cause::MountUnusable)
        }),
    ];
    all_end_right(&bench, &cluster, &cases).await;
}

#[tokio::test]
async fn whoever_ends_a_run_is_told_apart() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let spec = bench.probe(&cluster, "sleep 600000").await;
    let names = [
        "cancelled",
        "cancelled-now",
        "evicted",
        "deleted",
        "deleted-by-force",
    ];
    for name in names {
        cluster.run(&id(name), &spec).await.unwrap();
    }
    let pod = |name: &str| format!("v6-{}.{name}", bench.owner);
    for name in names {
        until_running(&cluster, &id(name)).await;
    }
    let now = CancelOptions::default().with_grace(Duration::ZERO);
    cluster
        .cancel(&id("cancelled"), CancelOptions::default())
        .await
        .unwrap();
    cluster.cancel(&id("cancelled-now"), now).await.unwrap();
    let api = common::pods(&bench).await;
    api.evict(&pod("evicted"), &EvictParams::default())
        .await
        .unwrap();
    let delete = DeleteParams::default();
    api.delete(&pod("deleted"), &delete).await.unwrap();
    api.delete(&pod("deleted-by-force"), &delete.grace_period(0))
        .await
        .unwrap();
    for name in names {
        let id = id(name);
        let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
        let outcome = status.outcome().unwrap();
        let right = if name.starts_with("cancelled") {
            *outcome == Outcome::Cancelled
        } else {
            matches!(outcome, Outcome::Evicted(_))
        };
        assert!(right, "{name}: {outcome:?}");
        keep(&bench, &id).await;
        common::remove(&cluster, &id).await;
    }
}

#[tokio::test]
async fn a_name_is_settled_at_its_registry() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let image = bench.probe(&cluster, "exit 0").await.image;
    let pinned = image.reference.pinned(image.identity.digest().clone());
    let again = cluster.resolve(&pinned, PullPolicy::Always).await.unwrap();
    assert_eq!(again.identity, image.identity);
    let absent = format!("{}/no/such:1", image.reference.registry());
    let absent = ImageRef::parse(&absent).unwrap();
    let error = cluster
        .resolve(&absent, PullPolicy::Always)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), v6_runtime::ErrorKind::NotFound);
}
