//! What a namespace may have at most, and what no machine has.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{LimitRange, Namespace, ResourceQuota};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;
use v6_runtime::{
    Accepted, CancelOptions, ErrorKind, Outcome, RunPhase, RunSpec, Runtime, RuntimeExt,
    StartFailureCause as Cause,
};
use v6_runtime_kubernetes::{KubernetesConfig, KubernetesRuntime, Placement};

use crate::common::{self, Bench, administrator, file, id, in_time, output};

const LIMIT: u64 = 90;

/// A namespace of a test's own.
struct Room {
    name: String,
    namespaces: Api<Namespace>,
}

impl Room {
    async fn new(bench: &Bench) -> Self {
        let namespaces = Api::all(administrator().await);
        let name = format!("v6-{}", bench.owner);
        let body = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        namespaces
            .create(&PostParams::default(), &body)
            .await
            .unwrap();
        Self { name, namespaces }
    }

    /// With an administrator's rights: a node's account is in another.
    fn config(&self, bench: &Bench) -> KubernetesConfig {
        let file = PathBuf::from(std::env::var("KUBECONFIG").unwrap());
        bench
            .config()
            .with_kubeconfig(Some(file))
            .with_namespace(Some(self.name.clone()))
    }

    async fn quota(&self, name: &str, hard: serde_json::Value) {
        let body = json!({"metadata": {"name": name}, "spec": {"hard": hard}});
        let quotas: Api<ResourceQuota> = Api::namespaced(administrator().await, &self.name);
        let body = serde_json::from_value(body).unwrap();
        quotas.create(&PostParams::default(), &body).await.unwrap();
        // It is in force once the cluster has counted.
        in_time(LIMIT, async {
            let counted = |quota: ResourceQuota| quota.status?.used;
            while counted(quotas.get(name).await.unwrap()).is_none() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }

    async fn lift(&self, name: &str) {
        let quotas: Api<ResourceQuota> = Api::namespaced(administrator().await, &self.name);
        quotas.delete(name, &DeleteParams::default()).await.unwrap();
    }

    async fn limits(&self, limits: serde_json::Value) {
        let body = json!({"metadata": {"name": "limits"}, "spec": {"limits": [limits]}});
        let ranges: Api<LimitRange> = Api::namespaced(administrator().await, &self.name);
        let body = serde_json::from_value(body).unwrap();
        ranges.create(&PostParams::default(), &body).await.unwrap();
    }

    async fn remove(self) {
        let _ = self
            .namespaces
            .delete(&self.name, &DeleteParams::default())
            .await
            .unwrap();
    }
}

/// Asks for a run until the answer is another than the cluster's last one.
async fn run_once_there_is_room(cluster: &KubernetesRuntime, name: &str, spec: &RunSpec) {
    in_time(LIMIT, async {
        loop {
            match cluster.run(&id(name), spec).await {
                Ok(accepted) => break assert_eq!(accepted, Accepted::Created),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Quota, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}

pub(crate) async fn a_quota_that_is_full_refuses_and_leaves_nothing() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let room = Room::new(&bench).await;
    let cluster = KubernetesRuntime::connect(room.config(&bench))
        .await
        .unwrap();
    let spec = bench.probe(&cluster, "sleep 600000").await;

    // The pod is not even made.
    room.quota("pods", json!({"pods": "1"})).await;
    run_once_there_is_room(&cluster, "first", &spec).await;
    let full = cluster.run(&id("second"), &spec).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Quota, "{full}");
    assert!(full.message().contains("exceeded quota: pods"), "{full}");
    assert!(!full.may_have_started(), "{full}");
    let absent = cluster.status(&id("second")).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    common::remove(&cluster, &id("first")).await;
    run_once_there_is_room(&cluster, "second", &spec).await;
    common::remove(&cluster, &id("second")).await;
    room.lift("pods").await;

    // The pod is made, and what it needs is not.
    room.quota("secrets", json!({"count/secrets": "0"})).await;
    let full = cluster.run(&id("third"), &spec).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Quota, "{full}");
    assert!(full.message().contains("exceeded quota: secrets"), "{full}");
    assert!(!full.may_have_started(), "{full}");
    let absent = cluster.status(&id("third")).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    let pods: Api<k8s_openapi::api::core::v1::Pod> =
        Api::namespaced(administrator().await, &room.name);
    let left = pods.list(&Default::default()).await.unwrap();
    assert!(left.items.is_empty(), "{:?}", left.items);
    room.lift("secrets").await;

    // Of everything that is booked, the helper's containers included.
    room.quota(
        "booked",
        json!({
            "requests.cpu": "2", "limits.cpu": "4", "requests.memory": "8Gi", "limits.memory": "8Gi",
            "requests.ephemeral-storage": "1Gi", "limits.ephemeral-storage": "1Gi",
        }),
    )
    .await;
    let silent = cluster.run(&id("fourth"), &spec).await.unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::Denied, "{silent}");
    let words = "must specify limits.cpu";
    assert!(silent.message().contains(words), "{silent}");
    let config = room
        .config(&bench)
        .with_helper_cpu_milli(NonZeroU32::new(500))
        .with_ephemeral_storage_bytes(NonZeroU64::new(600 << 20));
    let told = KubernetesRuntime::connect(config).await.unwrap();
    let spec = bench.probe(&told, "exit 7").await;
    told.run(&id("fourth"), &spec).await.unwrap();
    let full = told.run(&id("fifth"), &spec).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Quota, "{full}");
    assert!(full.message().contains("ephemeral-storage"), "{full}");
    let status = in_time(LIMIT, told.wait(&id("fourth"))).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(7)));
    common::remove(&told, &id("fourth")).await;

    // Less than it may have of each volume, and more than it may have of all.
    let spec = bench
        .probe(&told, "write /data/out 700000000 then sleep 600000")
        .await
        .with_output(output("much"), file("/data/out", 1 << 30));
    run_once_there_is_room(&told, "sixth", &spec).await;
    let status = in_time(LIMIT, told.wait(&id("sixth"))).await.unwrap();
    let Some(Outcome::Evicted(said)) = status.outcome() else {
        panic!("{status:?}");
    };
    assert!(
        said.contains("exceeds the total limit of containers"),
        "{said}"
    );
    common::remove(&told, &id("sixth")).await;
    room.remove().await;
}

pub(crate) async fn limits_of_a_namespace_are_told_and_kept() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let room = Room::new(&bench).await;
    let cluster = KubernetesRuntime::connect(room.config(&bench))
        .await
        .unwrap();
    let spec = bench.probe(&cluster, "exit 7").await;
    room.limits(json!({"type": "Container", "max": {"memory": "1Gi"}, "default": {"cpu": "500m"}}))
        .await;
    // What has no limit gets this one.
    cluster.run(&id("within"), &spec).await.unwrap();
    let large = v6_runtime::Resources::default().with_memory_bytes(common::bytes(2 << 30));
    let too_much = spec.with_resources(large);
    let refused = cluster.run(&id("beyond"), &too_much).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    let words = "maximum memory usage per Container is 1Gi";
    assert!(refused.message().contains(words), "{refused}");
    assert!(!refused.may_have_started(), "{refused}");
    let status = in_time(LIMIT, cluster.wait(&id("within"))).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(7)));
    common::remove(&cluster, &id("within")).await;
    room.remove().await;
}

pub(crate) async fn what_no_machine_has_is_told_in_the_schedulers_words() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let nowhere = BTreeMap::from([("v6-tests/machine".to_owned(), "none".to_owned())]);
    let config = bench
        .config()
        .with_placement(Placement::default().with_node_selector(nowhere))
        .with_start_timeout(Duration::from_secs(4));
    let cluster = KubernetesRuntime::connect(config).await.unwrap();
    let spec = bench.probe(&cluster, "exit 0").await;
    cluster.run(&id("nowhere"), &spec).await.unwrap();
    let status = in_time(LIMIT, cluster.wait(&id("nowhere"))).await.unwrap();
    let Some(Outcome::FailedToStart(failure)) = status.outcome() else {
        panic!("{status:?}");
    };
    assert_eq!(failure.cause, Cause::Unschedulable);
    let said = &failure.message;
    assert!(
        said.contains("node(s) didn't match Pod's node affinity/selector"),
        "{said}"
    );
    common::remove(&cluster, &id("nowhere")).await;

    // One that is cancelled while it waits never ran.
    let patient = bench.connect().await;
    let huge = v6_runtime::Resources::default().with_memory_bytes(common::bytes(1 << 50));
    let spec = spec.with_resources(huge);
    patient.run(&id("waits"), &spec).await.unwrap();
    patient
        .cancel(&id("waits"), CancelOptions::default())
        .await
        .unwrap();
    let status = in_time(LIMIT, patient.wait(&id("waits"))).await.unwrap();
    assert_eq!(status.phase, RunPhase::Finished(Outcome::Cancelled));
    assert_eq!(status.started, None);
    common::remove(&patient, &id("waits")).await;
}
