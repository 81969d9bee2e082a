//! Watches that end, and what they say that begin again later than the cluster remembers.

use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{WatchEvent, WatchParams};
use v6_fault_proxy::{Fault, Requests, Rule, RuleGuard};
use v6_runtime::{Outcome, Runtime, Tracker};

use crate::common::way::Way;
use crate::common::{self, Bench, id, in_time, services, until_running};

const LIMIT: u64 = 120;

fn on_watches(way: &Way, fault: Fault) -> RuleGuard {
    way.proxy.add(Rule::new(watches(), fault))
}

fn watches() -> Requests {
    Requests::any()
        .path_ends_with("/pods")
        .query_contains("watch=true")
}

fn listings() -> Requests {
    Requests::any()
        .method("GET")
        .path_ends_with("/pods")
        .query_contains("limit=250")
}

pub(crate) async fn watches_that_end_each_second_lose_nothing() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let way = Way::new(&std::env::var("V6_KUBERNETES_API").unwrap());
    let mut ending = on_watches(&way, Fault::EndReplyAtRelease);
    let cluster = way.connect(&bench).await;
    let names = ["ends-0", "ends-1", "ends-2", "ends-3"];
    let tracker = Tracker::new(cluster.clone());
    let runs = async {
        for (index, name) in names.iter().enumerate() {
            let steps = format!("sleep {} then exit {index}", 700 * (index + 1));
            let spec = bench.probe(&cluster, &steps).await;
            cluster.run(&id(name), &spec).await.unwrap();
        }
        for (index, name) in (0..).zip(names) {
            let status = in_time(LIMIT, tracker.wait(&id(name))).await.unwrap();
            assert_eq!(status.outcome(), Some(&Outcome::Exited(index)));
        }
    };
    let end_watches = async {
        let mut each_second = tokio::time::interval(Duration::from_secs(1));
        loop {
            each_second.tick().await;
            ending = on_watches(&way, Fault::EndReplyAtRelease);
        }
    };
    tokio::select! {
        () = runs => {}
        () = end_watches => {}
    }
    let made = way.proxy.log(&watches()).len();
    assert!(made >= 4, "there were {made} watches only");
    for name in names {
        common::remove(&cluster, &id(name)).await;
    }
}

/// What of an API server that has a memory of its own takes its restart.
pub(crate) async fn a_version_that_the_cluster_has_forgotten_is_no_loss() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let second = services("second-api", &[]).await;
    let way = Way::new(&second);
    let cluster = way.connect(&bench).await;
    let names = ["goes-on", "is-over"];
    let tracker = Tracker::new(cluster.clone());
    let ending = on_watches(&way, Fault::EndReplyAtRelease);
    for (name, steps) in names.iter().zip(["sleep 600000", "sleep 1000 then exit 7"]) {
        let spec = bench.probe(&cluster, steps).await;
        cluster.run(&id(name), &spec).await.unwrap();
    }
    until_running(&cluster, &id("goes-on")).await;
    in_time(LIMIT, ending.until_fired(1)).await;

    // The watch ends as watches do, and begins again later than the cluster remembers.
    let held = on_watches(&way, Fault::Hold);
    drop(ending);
    in_time(LIMIT, held.until_fired(1)).await;
    let seen = way.proxy.log(&watches()).pop().unwrap().query.unwrap();
    let version = seen
        .split('&')
        .find_map(|it| it.strip_prefix("resourceVersion="));
    let version = version.unwrap().to_owned();
    let api = common::pods(&bench).await;
    in_time(LIMIT, async {
        let ended = |pod: Pod| {
            let all = pod.status?.container_statuses?;
            let program = all.into_iter().find(|it| it.name == "program")?;
            program.state?.terminated
        };
        while ended(api.get(&bench.pod("is-over")).await.unwrap()).is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    services("compact", &[]).await;
    assert_eq!(answer_to(&second, &bench, &version).await, 410);
    let before = way.proxy.log(&listings()).len();
    drop(held);
    let status = in_time(LIMIT, tracker.wait(&id("is-over"))).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(7)));
    let listed = way.proxy.log(&listings()).len();
    assert!(listed > before, "nothing was listed anew");
    // What comes after it is heard, too.
    cluster
        .cancel(&id("goes-on"), Default::default())
        .await
        .unwrap();
    let status = in_time(LIMIT, tracker.wait(&id("goes-on"))).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Cancelled));
    for name in names {
        common::remove(&cluster, &id(name)).await;
    }
    services("second-api", &["stop"]).await;
}

/// What an API server says to who watches from a version on.
async fn answer_to(api: &str, bench: &Bench, version: &str) -> u16 {
    let mut config = kube::Config::new(format!("http://{api}").parse().unwrap());
    config.default_namespace.clone_from(&bench.namespace);
    let pods: Api<Pod> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
    let options = WatchParams::default();
    let events = match pods.watch(&options, version).await {
        Ok(events) => events,
        Err(kube::Error::Api(status)) => return status.code,
        Err(error) => panic!("{error}"),
    };
    match in_time(LIMIT, Box::pin(events).next()).await {
        Some(Ok(WatchEvent::Error(status))) => status.code,
        other => panic!("{other:?}"),
    }
}
