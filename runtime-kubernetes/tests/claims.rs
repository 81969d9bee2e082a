//! Outputs on claims, on a real cluster: they outlive the pod, the machine's grip on it, and the node.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Bench, bytes, file, id, in_time, output, path};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use v6_runtime::{
    CleanedUp, CleanupOptions, ErrorKind, InputStream, Mount, MountSource, Outcome, Output, RunId,
    RunPhase, RunSpec, Runtime, RuntimeExt,
};
use v6_runtime_kubernetes::KubernetesRuntime;

const LIMIT: u64 = 120;

async fn api<K>(bench: &Bench) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    let client = kube::Client::try_default().await.unwrap();
    Api::namespaced(client, &bench.namespace)
}

/// The names of all that an owner has.
async fn objects(bench: &Bench) -> Vec<String> {
    let mine = ListParams::default().labels(&format!("v6-runtime.owner={}", bench.owner));
    let mut names = Vec::new();
    let pods = api::<Pod>(bench).await.list(&mine).await.unwrap();
    names.extend(pods.iter().map(|it| format!("pod {}", it.name_any())));
    let claims = api::<PersistentVolumeClaim>(bench).await;
    let claims = claims.list(&mine).await.unwrap();
    names.extend(claims.iter().map(|it| format!("claim {}", it.name_any())));
    let secrets = api::<Secret>(bench).await.list(&mine).await.unwrap();
    names.extend(secrets.iter().map(|it| format!("secret {}", it.name_any())));
    names
}

/// The pods that read outputs of this owner.
async fn readers(bench: &Bench) -> Vec<Pod> {
    let labels = format!("v6-runtime.owner={},v6-runtime.reader=true", bench.owner);
    let pods: Api<Pod> = api(bench).await;
    let found = pods.list(&ListParams::default().labels(&labels)).await;
    found.unwrap().items
}

/// Waits for something that the cluster does.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let limit = Duration::from_secs(LIMIT);
    let done = tokio::time::timeout(limit, waiting).await;
    assert!(done.is_ok(), "in vain: {what}");
}

fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status.and_then(|it| it.phase.as_deref()).unwrap_or("")
}

fn pod_name(bench: &Bench, id: &RunId) -> String {
    format!("v6-{}.{id}", bench.owner)
}

fn with_outputs(spec: RunSpec) -> RunSpec {
    spec.with_output(output("result"), file("/data/out", 1000))
        .with_output(output("work"), Output::folder(path("/work"), bytes(10_000)))
}

async fn result(runtime: &KubernetesRuntime, id: &RunId) -> v6_runtime::Result<Bytes> {
    let result = output("result");
    in_time(LIMIT, runtime.collect_bytes(id, &result, 1000)).await
}

#[tokio::test]
async fn what_is_on_a_claim_outlives_its_pod() {
    let Some(bench) = Bench::with_claims().await else {
        return;
    };
    let first = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    let waiting = bench.connect().await;
    let steps = "text /data/out left then mkdir /work/deep then text /work/deep/one more";
    let spec = with_outputs(bench.probe(&first, steps).await);
    let (kept, lost) = (id("on-a-claim"), id("in-the-pod"));
    first.run(&kept, &spec).await.unwrap();
    waiting.run(&lost, &spec).await.unwrap();
    for id in [&kept, &lost] {
        let status = in_time(LIMIT, first.wait(id)).await.unwrap();
        let log = first.logs_bytes(id, 10_000).await.unwrap();
        let over = RunPhase::Finished(Outcome::Exited(0));
        assert_eq!(status.phase, over, "{id}: {log:?}");
    }

    // Nothing has asked for it: what was booked is the cluster's again.
    let pods = common::pods(&bench).await;
    let (kept_pod, lost_pod) = (pod_name(&bench, &kept), pod_name(&bench, &lost));
    until("the pod ends with its program", || async {
        phase(&pods.get(&kept_pod).await.unwrap()) == "Succeeded"
    })
    .await;
    assert_eq!(phase(&pods.get(&lost_pod).await.unwrap()), "Running");

    // The node goes, and a drain comes.
    drop(first);
    drop(waiting);
    for name in [&kept_pod, &lost_pod] {
        pods.evict(name, &EvictParams::default()).await.unwrap();
    }
    until("both pods are ended", || async {
        let both = [pods.get(&kept_pod).await, pods.get(&lost_pod).await];
        both.iter().all(|pod| {
            let pod = pod.as_ref().unwrap();
            pod.metadata.deletion_timestamp.is_some()
                && ["Succeeded", "Failed"].contains(&phase(pod))
        })
    })
    .await;

    let second = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    for id in [&kept, &lost] {
        let status = second.status(id).await.unwrap();
        let over = RunPhase::Finished(Outcome::Exited(0));
        assert_eq!(status.phase, over, "{id}");
    }
    let error = result(&second, &lost).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.message().contains("gone"), "{error}");
    assert_eq!(result(&second, &kept).await.unwrap(), "left");
    let folder = second
        .collect_bytes(&kept, &output("work"), 100_000)
        .await
        .unwrap();
    let mut archive = tar::Archive::new(&folder[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(names.contains(&"deep/one".to_owned()), "{names:?}");

    // One pod reads for all outputs, and for the next node, too.
    let made = readers(&bench).await;
    assert_eq!(made.len(), 1);
    drop(second);
    let third = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    assert_eq!(result(&third, &kept).await.unwrap(), "left");
    let found = readers(&bench).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].uid(), made[0].uid());
    // Also where its own pod is ended under it.
    pods.delete(&found[0].name_any(), &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(result(&third, &kept).await.unwrap(), "left");

    for id in [&kept, &lost] {
        let removed = third.cleanup(id, CleanupOptions::default()).await;
        assert_eq!(removed.unwrap(), CleanedUp::Removed);
    }
    assert_eq!(objects(&bench).await, [""; 0]);
}

#[tokio::test]
async fn a_run_that_is_evicted_leaves_what_it_has_written() {
    let Some(bench) = Bench::with_claims().await else {
        return;
    };
    let cluster = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    let steps = "text /data/out part then echo ready then sleep 600000";
    let spec = with_outputs(bench.probe(&cluster, steps).await).with_grace(Duration::from_secs(1));
    let (evicted, cancelled) = (id("evicted"), id("cancelled"));
    for id in [&evicted, &cancelled] {
        cluster.run(id, &spec).await.unwrap();
    }
    for id in [&evicted, &cancelled] {
        until("the program runs", || async {
            cluster.status(id).await.unwrap().phase == RunPhase::Running
        })
        .await;
        let follow = v6_runtime::LogOptions::default().with_follow(true);
        let first = in_time(LIMIT, cluster.logs(id, follow).next()).await;
        assert_eq!(first.unwrap().unwrap().bytes, "ready\n");
    }
    let pods = common::pods(&bench).await;
    let name = pod_name(&bench, &evicted);
    pods.evict(&name, &EvictParams::default()).await.unwrap();
    cluster
        .cancel(&cancelled, Default::default())
        .await
        .unwrap();
    let status = in_time(LIMIT, cluster.wait(&evicted)).await.unwrap();
    let outcome = status.outcome().unwrap();
    assert!(matches!(outcome, Outcome::Evicted(_)), "{outcome:?}");
    let status = in_time(LIMIT, cluster.wait(&cancelled)).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Cancelled));
    assert_eq!(
        cluster.logs_bytes(&cancelled, 1000).await.unwrap(),
        "ready\n"
    );
    for id in [&evicted, &cancelled] {
        assert_eq!(result(&cluster, id).await.unwrap(), "part");
        cluster.cleanup(id, Default::default()).await.unwrap();
    }
    assert_eq!(objects(&bench).await, [""; 0]);
}

/// Starts a run in a process of its own, as far as one can be killed within a test, and kills it as
/// soon as something is seen in the cluster.
async fn killed<F: Future<Output = bool>>(
    bench: &Bench,
    id: &RunId,
    spec: &RunSpec,
    seen: impl Fn() -> F,
) {
    let (config, id, spec) = (bench.claims(), id.clone(), spec.clone());
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    process.spawn(async move {
        let runtime = KubernetesRuntime::connect(config).await.unwrap();
        runtime.run(&id, &spec).await
    });
    until("something is there when the node is killed", seen).await;
    // Its tasks end where they are, and nothing is said to anybody.
    process.shutdown_background();
}

#[tokio::test]
async fn a_killed_start_leaves_nothing_behind() {
    let Some(bench) = Bench::with_claims().await else {
        return;
    };
    let cluster = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    let claims = api::<PersistentVolumeClaim>(&bench).await;
    let pods = common::pods(&bench).await;
    let mine = ListParams::default().labels(&format!("v6-runtime.owner={}", bench.owner));
    let spec = with_outputs(bench.probe(&cluster, "exit 0").await);
    for (run, what) in [(id("at-its-pod"), "pod"), (id("at-its-claim"), "claim")] {
        // Input that never comes whole: the start does not end by itself.
        let (_open, stuck) = tokio::io::duplex(16);
        let stuck = MountSource::Stream(InputStream::once(4, stuck));
        let spec = spec.clone().with_mount(Mount::new(stuck, path("/in")));
        killed(&bench, &run, &spec, || async {
            match what {
                "pod" => pods
                    .get_opt(&pod_name(&bench, &run))
                    .await
                    .unwrap()
                    .is_some(),
                _ => !claims.list(&mine).await.unwrap().items.is_empty(),
            }
        })
        .await;
        // Whatever there is, is found by its record.
        let listed: Vec<_> = cluster.list().collect().await;
        let listed: Vec<RunId> = listed.into_iter().map(|it| it.unwrap().id).collect();
        assert_eq!(listed, std::slice::from_ref(&run));
        common::remove(&cluster, &run).await;
        assert_eq!(objects(&bench).await, [""; 0], "{what}");
    }
}

/// Somebody takes a record away by hand, and with it all that says whose the claim is.
#[tokio::test]
async fn a_claim_without_its_run_is_removed_and_others_are_not() {
    let Some(bench) = Bench::with_claims().await else {
        return;
    };
    let cluster = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    let (lost, stays) = (id("lost"), id("stays"));
    let spec = with_outputs(bench.probe(&cluster, "text /data/out left").await);
    for id in [&lost, &stays] {
        cluster.run(id, &spec).await.unwrap();
    }
    for id in [&lost, &stays] {
        in_time(LIMIT, cluster.wait(id)).await.unwrap();
    }
    let claims = api::<PersistentVolumeClaim>(&bench).await;
    // Of the owner, by its labels, and not of a name that we give.
    let mine = ListParams::default().labels(&format!("v6-runtime.owner={}", bench.owner));
    let mut stranger = claims.list(&mine).await.unwrap().items.remove(0);
    let name = format!("strangers-{}", bench.owner);
    stranger.metadata.name = Some(name.clone());
    stranger.metadata.resource_version = None;
    stranger.metadata.uid = None;
    let of_claim = stranger.spec.as_mut().unwrap();
    of_claim.volume_name = None;
    claims
        .create(&PostParams::default(), &stranger)
        .await
        .unwrap();

    let pods = common::pods(&bench).await;
    let pod = pod_name(&bench, &lost);
    let bare = serde_json::json!({ "metadata": { "finalizers": null } });
    pods.patch(&pod, &PatchParams::default(), &Patch::Merge(&bare))
        .await
        .unwrap();
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    until("the pod is gone", || async {
        pods.get_opt(&pod).await.unwrap().is_none()
    })
    .await;

    let next = KubernetesRuntime::connect(bench.claims()).await.unwrap();
    let mut watch = next.watch();
    watch.next().await.unwrap().unwrap();
    until("the claim of the run that is lost is gone", || async {
        let all = claims.list(&mine).await.unwrap();
        !all.iter().any(|it| it.name_any().contains(".lost."))
    })
    .await;
    assert_eq!(result(&next, &stays).await.unwrap(), "left");
    next.cleanup(&stays, Default::default()).await.unwrap();
    assert_eq!(objects(&bench).await, [format!("claim {name}")]);
    claims
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn rights_for_claims_are_asked_for_where_they_are_wanted() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    bench.connect().await;
    let error = KubernetesRuntime::connect(bench.claims())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    for verb in ["create", "get", "list", "delete"] {
        let wanted = format!("{verb} persistentvolumeclaims");
        assert!(error.message().contains(&wanted), "{wanted}: {error}");
    }
    assert!(error.message().contains("with claims"), "{error}");
}
