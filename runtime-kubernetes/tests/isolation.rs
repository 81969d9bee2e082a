//! That a run is denied the network from its program's first instruction, on a real cluster.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Bench, id, in_time};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use v6_runtime::{ErrorKind, Outcome, RunPhase, Runtime, RuntimeExt, StartFailureCause};
use v6_runtime_kubernetes::{Gate, KubernetesRuntime};

const LIMIT: u64 = 300;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Runs at once.
const ROW: usize = 10;

/// Where every pod reaches the cluster's own API, unless that is denied.
async fn api() -> (String, i32) {
    let client = kube::Client::try_default().await.unwrap();
    let services: Api<Service> = Api::namespaced(client, "default");
    let spec = services.get("kubernetes").await.unwrap().spec.unwrap();
    (spec.cluster_ip.unwrap(), spec.ports.unwrap()[0].port)
}

#[tokio::test]
async fn nothing_gets_out_from_the_first_instruction_on() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let rows = if std::env::var_os("V6_TESTS_LONG").is_some() {
        20
    } else {
        1
    };
    let cluster = bench.connect().await;
    let (host, port) = api().await;
    let spec = bench
        .probe(&cluster, &format!("try connect {host} {port}"))
        .await;
    for row in 0..rows {
        let runs = (0..ROW).map(|number| {
            let (cluster, spec) = (&cluster, &spec);
            async move {
                let id = id(&format!("out-{row}-{number}"));
                cluster.run(&id, spec).await.unwrap();
                let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
                let log = cluster.logs_bytes(&id, 1000).await.unwrap();
                let log = String::from_utf8_lossy(&log).into_owned();
                common::remove(cluster, &id).await;
                assert_eq!(
                    status.phase,
                    RunPhase::Finished(Outcome::Exited(0)),
                    "{log}"
                );
                assert!(log.contains("\"ok\":false"), "{id}: {log}");
            }
        });
        join_all(runs).await;
    }
}

#[tokio::test]
async fn where_nothing_is_denied_no_program_starts() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let client = kube::Client::try_default().await.unwrap();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let name = format!("v6-open-{}", bench.owner);
    let namespace = Namespace {
        metadata: named(&name),
        ..Namespace::default()
    };
    let options = PostParams::default();
    namespaces.create(&options, &namespace).await.unwrap();
    // Of the right name, and for other pods.
    let others = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let policy = NetworkPolicy {
        metadata: named("v6-runtime-deny-all"),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(others),
                match_expressions: None,
            }),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ..NetworkPolicySpec::default()
        }),
    };
    let policies: Api<NetworkPolicy> = Api::namespaced(client, &name);
    policies.create(&options, &policy).await.unwrap();

    let config = bench
        .config()
        // An administrator's, since the node's account has no rights there.
        .with_kubeconfig(None)
        .with_namespace(Some(name.clone()))
        .with_gate(Gate::Denial {
            control: None,
            settle: Duration::from_millis(1500),
            limit: Duration::from_secs(5),
        });
    let cluster = KubernetesRuntime::connect(config.clone()).await.unwrap();
    let told = cluster.notices().iter().any(|it| it.contains("deny"));
    assert!(told, "{:?}", cluster.notices());
    let spec = bench.probe(&cluster, "echo started").await;
    let id = id("open");
    cluster.run(&id, &spec).await.unwrap();
    let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    let told = match status.outcome() {
        Some(Outcome::FailedToStart(failure)) => failure.cause == StartFailureCause::NotIsolated,
        _ => false,
    };
    assert!(told, "{:?}", status.phase);
    assert_eq!(cluster.logs_bytes(&id, 1000).await.unwrap(), "");
    common::remove(&cluster, &id).await;

    let looking = config.with_canary_every(Some(DAY));
    let cluster = KubernetesRuntime::connect(looking).await.unwrap();
    let refused = in_time(LIMIT, cluster.run(&id, &spec)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    let words = refused.to_string();
    assert!(words.contains("does not deny runs the network"), "{words}");
    assert!(!refused.may_have_started(), "{words}");
    assert_eq!(canaries(&name).await, Vec::<String>::new());
    namespaces
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

#[tokio::test]
async fn a_denial_that_nothing_can_show_is_none() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // Nobody listens there.
    let looking = bench.config().with_canary_every(Some(DAY));
    let nowhere = looking.clone().with_gate(Gate::Denial {
        control: Some(([127, 0, 0, 1], 9).into()),
        settle: Duration::from_millis(1500),
        limit: Duration::from_secs(60),
    });
    let cluster = KubernetesRuntime::connect(nowhere).await.unwrap();
    let spec = bench.probe(&cluster, "echo started").await;
    let refused = in_time(LIMIT, cluster.run(&id("nowhere"), &spec)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    let words = refused.to_string();
    assert!(words.contains("another address as the control"), "{words}");

    // With the one that there is, the network is seen to deny.
    let cluster = KubernetesRuntime::connect(looking).await.unwrap();
    let accepted = in_time(LIMIT, cluster.run(&id("denied"), &spec)).await;
    accepted.unwrap();
    common::remove(&cluster, &id("denied")).await;
}

/// The canaries of a namespace that are left.
async fn canaries(namespace: &str) -> Vec<String> {
    let client = kube::Client::try_default().await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let canaries = ListParams::default().labels("v6-runtime.canary");
    let found = pods.list(&canaries).await.unwrap().items.into_iter();
    let found = found.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    found.filter_map(|pod| pod.metadata.name).collect()
}

#[tokio::test]
async fn an_examination_sees_what_it_is_to_see() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let seen = in_time(LIMIT, cluster.examine()).await.unwrap();
    assert!(seen.len() > 15, "{seen:?}");
    let wrong: Vec<_> = seen.iter().filter(|one| !one.holds).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
