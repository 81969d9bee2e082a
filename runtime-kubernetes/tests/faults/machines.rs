//! Another machine of the cluster, that is drained, that is full, and that is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams};
use serde_json::{Value, json};
use v6_runtime::{
    Access, ErrorKind, InputStream, Mount, MountSource, Outcome, Output, Pending, RunPhase,
    Runtime, RuntimeExt, StopCause,
};
use v6_runtime_kubernetes::{KubernetesConfig, KubernetesRuntime, Placement, tolerations};

use crate::common::{
    self, Bench, administrator, bytes, file, id, in_time, keep, output, path, pods, services,
    until_running,
};

const LIMIT: u64 = 150;

/// A machine of the test's own.
struct Machine {
    name: &'static str,
    node: String,
    nodes: Api<Node>,
}

impl Machine {
    async fn new(name: &'static str) -> Self {
        let node = services("machine", &[name]).await;
        let nodes = Api::all(administrator().await);
        Self { name, node, nodes }
    }

    /// A runtime whose pods go there, and tolerate this beside its own taint.
    async fn connect(&self, bench: &Bench, more: Value) -> KubernetesRuntime {
        KubernetesRuntime::connect(self.config(bench, more))
            .await
            .unwrap()
    }

    fn config(&self, bench: &Bench, more: Value) -> KubernetesConfig {
        let own = json!({"key": "v6-tests/machine", "operator": "Exists"});
        let tolerated = tolerations(&json!([own, more])).unwrap();
        let there = BTreeMap::from([("v6-tests/machine".to_owned(), self.node.clone())]);
        let placement = Placement::default()
            .with_node_selector(there)
            .with_tolerations(tolerated);
        bench.config().with_placement(placement)
    }

    async fn change(&self, change: Value) {
        let change = Patch::Merge(change);
        let options = PatchParams::default();
        self.nodes
            .patch(&self.node, &options, &change)
            .await
            .unwrap();
    }

    /// Waits until the cluster says this of the machine's readiness.
    async fn until_ready_is(&self, wanted: &str) {
        in_time(LIMIT, async {
            loop {
                let node = self.nodes.get(&self.node).await.unwrap();
                let said = node.status.and_then(|status| status.conditions);
                let ready = said.into_iter().flatten().find(|it| it.type_ == "Ready");
                if ready.is_some_and(|it| it.status == wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    }

    async fn remove(self) {
        services("remove", &[self.name]).await;
    }
}

async fn phase(cluster: &KubernetesRuntime, name: &str) -> RunPhase {
    cluster.status(&id(name)).await.unwrap().phase
}

/// Waits until a run is in this phase.
async fn until(cluster: &KubernetesRuntime, name: &str, wanted: RunPhase) {
    in_time(LIMIT, async {
        while phase(cluster, name).await != wanted {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}

async fn outcome(cluster: &KubernetesRuntime, name: &str) -> Outcome {
    let status = in_time(LIMIT, cluster.wait(&id(name))).await.unwrap();
    status.outcome().unwrap().clone()
}

fn evicted(outcome: &Outcome, words: &str) -> bool {
    matches!(outcome, Outcome::Evicted(said) if said.contains(words))
}

pub(crate) async fn a_machine_that_is_drained_or_full_loses_what_is_there() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let machine = Machine::new("full").await;
    let nothing = json!({"key": "v6-tests/nothing", "operator": "Exists"});
    let cluster = machine.connect(&bench, nothing).await;
    let api = pods(&bench).await;

    // Whatever comes and goes does so without a disk that both machines have.
    let stream = MountSource::Stream(InputStream::once(7, &b"stream "[..]));
    let seed = MountSource::Inline(Bytes::from_static(b"seed"));
    let waiting = bench
        .probe(
            &cluster,
            "cat /in/stream then text /data/out left then text /work/new made",
        )
        .await
        .with_mount(Mount::new(stream, path("/in/stream")))
        .with_mount(Mount::new(seed, path("/work/seed")).with_access(Access::ReadWrite))
        .with_output(output("result"), file("/data/out", 1000))
        .with_output(
            output("work"),
            Output::folder(path("/work"), bytes(100_000)),
        );
    let sleeping = bench.probe(&cluster, "sleep 600000").await;
    cluster.run(&id("drained"), &sleeping).await.unwrap();
    in_time(LIMIT, cluster.run(&id("drained-waiting"), &waiting))
        .await
        .unwrap();
    until_running(&cluster, &id("drained")).await;
    assert_eq!(
        outcome(&cluster, "drained-waiting").await,
        Outcome::Exited(0)
    );
    for name in ["drained", "drained-waiting"] {
        let pod = api.get(&bench.pod(name)).await.unwrap();
        let on = pod.spec.unwrap().node_name;
        assert_eq!(on.as_deref(), Some(machine.node.as_str()));
    }
    let of = id("drained-waiting");
    let log = cluster.logs_bytes(&of, 1000).await.unwrap();
    assert_eq!(log, "stream ");
    let left = cluster.collect_bytes(&of, &output("result"), 1000).await;
    assert_eq!(left.unwrap(), "left");
    let folder = cluster
        .collect_bytes(&of, &output("work"), 100_000)
        .await
        .unwrap();
    let mut archive = tar::Archive::new(&folder[..]);
    assert_eq!(archive.entries().unwrap().count(), 2);

    // As `kubectl drain` does it.
    machine
        .change(json!({"spec": {"unschedulable": true}}))
        .await;
    for name in ["drained", "drained-waiting"] {
        let params = EvictParams::default();
        api.evict(&bench.pod(name), &params).await.unwrap();
    }
    cluster.run(&id("disk-full"), &sleeping).await.unwrap();
    let ended = outcome(&cluster, "drained").await;
    assert!(evicted(&ended, "evict"), "{ended:?}");
    keep(&bench, &id("drained")).await;
    // That it had ended stays so; what was kept for it in the pod goes with that.
    in_time(LIMIT, async {
        loop {
            match cluster.collect_bytes(&of, &output("result"), 1000).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let said = error.message();
                    break assert!(said.contains("its pod was ended"), "{error}");
                }
                // While it is being ended, the one or the other.
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert_eq!(
        phase(&cluster, "drained-waiting").await,
        RunPhase::Finished(Outcome::Exited(0))
    );
    keep(&bench, &of).await;

    let queued = RunPhase::Pending(Pending::Queued);
    until(&cluster, "disk-full", queued).await;
    machine
        .change(json!({"spec": {"unschedulable": null}}))
        .await;
    until_running(&cluster, &id("disk-full")).await;
    services("fill", &[machine.name]).await;
    let ended = outcome(&cluster, "disk-full").await;
    assert!(evicted(&ended, "low on resource"), "{ended:?}");
    keep(&bench, &id("disk-full")).await;

    for name in ["drained", "drained-waiting", "disk-full"] {
        common::remove(&cluster, &id(name)).await;
    }
    machine.remove().await;
}

pub(crate) async fn a_machine_that_is_lost_takes_its_runs_along_once_that_is_sure() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let machine = Machine::new("lost").await;
    // The cluster gives pods five minutes before it tells a lost machine to end them; this is less.
    let soon = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists",
        "effect": "NoExecute", "tolerationSeconds": 1});
    let impatient = machine.connect(&bench, soon).await;
    let spec = bench.probe(&impatient, "sleep 600000").await;
    impatient.run(&id("machine-lost"), &spec).await.unwrap();
    let other = Bench::for_faults().await.unwrap();
    let anything = json!({"operator": "Exists"});
    let patient = machine.connect(&other, anything).await;
    for name in ["lost-and-forced", "forgotten"] {
        patient.run(&id(name), &spec).await.unwrap();
    }
    let steps = "sleep 20000 then text /data/out left then echo done";
    let back = other.probe(&patient, steps).await;
    let back = back.with_output(output("result"), file("/data/out", 1000));
    until_running(&impatient, &id("machine-lost")).await;
    for name in ["lost-and-forced", "forgotten"] {
        until_running(&patient, &id(name)).await;
    }
    patient.run(&id("back"), &back).await.unwrap();
    until_running(&patient, &id("back")).await;

    services("lose", &[machine.name]).await;
    machine.until_ready_is("Unknown").await;
    // Nobody knows more; the program of one has ended meanwhile.
    assert_eq!(phase(&patient, "lost-and-forced").await, RunPhase::Running);
    assert_eq!(phase(&patient, "back").await, RunPhase::Running);
    // The cluster wants them gone, and nobody is there who could say that they are.
    let stopping = RunPhase::Stopping(StopCause::Engine);
    until(&impatient, "machine-lost", stopping.clone()).await;
    let forced = DeleteParams::default().grace_period(0);
    let api = pods(&other).await;
    api.delete(&other.pod("lost-and-forced"), &forced)
        .await
        .unwrap();
    until(&patient, "lost-and-forced", stopping).await;

    // What an administrator says who is sure that it is off.
    let gone = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    let mut taints = machine.nodes.get(&machine.node).await.unwrap();
    let taints = taints.spec.take().unwrap().taints.unwrap_or_default();
    let mut all = json!(taints);
    all.as_array_mut().unwrap().push(gone);
    machine.change(json!({"spec": {"taints": all}})).await;
    let (lost, forced) = tokio::join!(
        outcome(&impatient, "machine-lost"),
        outcome(&patient, "lost-and-forced"),
    );
    assert!(
        matches!(&lost, Outcome::NodeLost(said) if !said.is_empty()),
        "{lost:?}"
    );
    assert!(
        matches!(&forced, Outcome::NodeLost(said) if said.contains(&machine.node)),
        "{forced:?}"
    );
    keep(&bench, &id("machine-lost")).await;
    keep(&other, &id("lost-and-forced")).await;
    // Although no machine lets go of it.
    common::remove(&impatient, &id("machine-lost")).await;
    assert_eq!(phase(&patient, "back").await, RunPhase::Running);

    // It was not off after all: what was said of a run is not taken back.
    machine.change(json!({"spec": {"taints": taints}})).await;
    services("machine", &[machine.name]).await;
    assert_eq!(outcome(&patient, "back").await, Outcome::Exited(0));
    let log = patient.logs_bytes(&id("back"), 1000).await.unwrap();
    assert_eq!(log, "done\n");
    let (of, result) = (id("back"), output("result"));
    let left = patient.collect_bytes(&of, &result, 1000).await;
    assert_eq!(left.unwrap(), "left");
    assert_eq!(outcome(&patient, "lost-and-forced").await, forced);
    assert_eq!(phase(&patient, "forgotten").await, RunPhase::Running);

    // Another takes its place, under its name, and knows nothing.
    services("remove", &[machine.name]).await;
    services("machine", &[machine.name]).await;
    let forgotten = outcome(&patient, "forgotten").await;
    assert!(
        matches!(&forgotten, Outcome::Lost(said) if !said.is_empty()),
        "{forgotten:?}"
    );
    keep(&other, &id("forgotten")).await;
    for name in ["lost-and-forced", "forgotten", "back"] {
        common::remove(&patient, &id(name)).await;
    }
    machine.remove().await;
}
