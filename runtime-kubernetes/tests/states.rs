//! The states of a pod that the translation knows, each brought about on a real cluster.
//!
//! `V6_RECORD=1` writes what the cluster says to `tests/data/states`, for the unit tests.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

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

#[tokio::test]
async fn every_end_is_recognized() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let config = bench
        .config()
        .with_start_timeout(Duration::from_secs(12))
        .with_pull_timeout(Duration::from_secs(12));
    let cluster = KubernetesRuntime::connect(config).await.unwrap();
    let base = bench.probe(&cluster, "exit 0").await;
    let steps = |text: &str| base.clone().with_args(text.split(' '));
    let memory = Resources::default().with_memory_bytes(bytes(32 << 20));
    let huge = Resources::default().with_memory_bytes(bytes(1 << 50));
    let soon = SystemTime::now() + Duration::from_secs(12);
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
    type Check = fn(&Outcome) -> bool;
    let cases: Vec<(&str, RunSpec, Check)> = vec![
        ("exited-0", steps("exit 0"), |o| *o == Outcome::Exited(0)),
        ("exited-7", steps("exit 7"), |o| *o == Outcome::Exited(7)),
        ("exited-137", steps("exit 137"), |o| {
            *o == Outcome::Exited(137)
        }),
        (
            "out-of-memory",
            steps("allocate 100").with_resources(memory),
            |o| *o == Outcome::OutOfMemory,
        ),
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
        ("no-room", steps("exit 0").with_resources(huge), |o| {
            failed(o, Cause::Unschedulable)
        }),
        ("claim-absent", steps("exit 0").with_mount(claim), |o| {
            failed(o, Cause::MountUnusable)
        }),
    ];
    for (name, spec, _) in &cases {
        cluster.run(&id(name), spec).await.unwrap();
    }
    for (name, _, right) in &cases {
        let id = id(name);
        let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
        let outcome = status.outcome().unwrap();
        assert!(right(outcome), "{name}: {outcome:?}");
        keep(&bench, &id).await;
        common::remove(&cluster, &id).await;
    }
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
