//! Many runs in one namespace: what each costs of requests, and what it takes to find them again.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "what was measured is told")]

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::way::Way;
use common::{Bench, file, id, in_time, output};
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use v6_fault_proxy::{Answer, Fault, Requests, Rule};
use v6_runtime::{
    CancelOptions, Outcome, RunPhase, RunStatus, Runtime, RuntimeExt, Tracker, WatchEvent,
};
use v6_runtime_kubernetes::{KubernetesRuntime, Placement};

const LIMIT: u64 = 600;
/// Calls at once.
const ROW: usize = 16;
/// The pods of one answer.
const PAGE: usize = 250;

/// No machine takes these runs: they wait, for as long as the test does.
async fn connect(bench: &Bench, way: &Way) -> KubernetesRuntime {
    let nowhere = BTreeMap::from([("v6-tests/machine".to_owned(), "none".to_owned())]);
    let config = bench
        .config()
        .with_kubeconfig(Some(way.kubeconfig(bench)))
        .with_start_timeout(Duration::from_secs(3600))
        .with_placement(Placement::default().with_node_selector(nowhere));
    KubernetesRuntime::connect(config).await.unwrap()
}

fn requests(way: &Way) -> usize {
    way.proxy.log(&Requests::any()).len()
}

/// The memory of this process in MiB, as it is resident.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: usize = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

#[tokio::test]
async fn many_runs_are_found_again_by_a_listing_in_pages() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let many = match std::env::var_os("V6_TESTS_LONG") {
        Some(_) => 1000,
        None => 50,
    };
    let api = std::env::var("V6_KUBERNETES_API").unwrap();
    let names: Vec<_> = (0..many)
        .map(|number| id(&format!("many-{number}")))
        .collect();

    let way = Way::new(&api);
    let cluster = connect(&bench, &way).await;
    let spec = bench.probe(&cluster, "exit 0").await;
    let (before, began) = (requests(&way), Instant::now());
    let all = stream::iter(&names).map(|name| cluster.run(name, &spec));
    let started = in_time(LIMIT, all.buffer_unordered(ROW).try_collect::<Vec<_>>());
    assert_eq!(started.await.unwrap().len(), many);
    let each = (requests(&way) - before) as f64 / many as f64;
    println!(
        "{many} runs: accepted in {:?}, {each:.1} requests each",
        began.elapsed()
    );
    // Whether there is one, the pod, a Secret, the release.
    assert!(each <= 5.0, "{each} requests for a run");
    drop(cluster);

    let way = Way::new(&api);
    let (memory_before, began) = (memory(), Instant::now());
    let cluster = connect(&bench, &way).await;
    let (connected, before) = (began.elapsed(), requests(&way));
    let began = Instant::now();
    let mut watch = cluster.watch();
    let first = in_time(LIMIT, watch.next()).await.unwrap().unwrap();
    let WatchEvent::Snapshot(found) = first else {
        panic!("{first:?} came first");
    };
    let adopted = began.elapsed();
    assert_eq!(found.len(), many);
    let of_watch = requests(&way) - before;
    // The pages, and the watch itself, if it has begun by now.
    assert!(of_watch <= many.div_ceil(PAGE) + 1, "{of_watch} requests");
    let began = Instant::now();
    let listed: Vec<RunStatus> = in_time(LIMIT, cluster.list().try_collect()).await.unwrap();
    assert_eq!(listed.len(), many);
    println!(
        "found again: connected in {connected:?}, all of a watch's first news after {adopted:?}, \
         {of_watch} requests (and {before} before); a listing {:?}; {} MiB more memory",
        began.elapsed(),
        memory().saturating_sub(memory_before),
    );

    // The scheduler's word on each is news, and none of them is asked for.
    let (before, window) = (requests(&way), Duration::from_secs(5));
    tokio::time::sleep(window).await;
    let idle = requests(&way) - before;
    println!("idle with {many} runs: {idle} requests in {window:?}");
    assert!(idle <= 1, "{idle} requests while nothing happened");

    let (before, began) = (requests(&way), Instant::now());
    let all = stream::iter(&names).map(|name| common::remove(&cluster, name));
    in_time(LIMIT, all.buffer_unordered(ROW).collect::<Vec<_>>()).await;
    let each = (requests(&way) - before) as f64 / many as f64;
    println!("removed in {:?}, {each:.1} requests each", began.elapsed());
    let left: Vec<RunStatus> = cluster.list().try_collect().await.unwrap();
    assert_eq!(left.len(), 0);
}

#[tokio::test]
async fn requests_keep_to_their_number_a_second() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let config = bench
        .config()
        .with_requests_per_second(NonZeroU32::new(10).unwrap());
    let cluster = KubernetesRuntime::connect(config).await.unwrap();
    let began = Instant::now();
    let ping = |_| async { cluster.ping().await.unwrap() };
    // Each of these is two requests: six seconds of them, of which the first may have begun before.
    in_time(LIMIT, join_all((0..30).map(ping))).await;
    assert!(began.elapsed() >= Duration::from_secs(4));
}

#[tokio::test]
async fn a_server_that_has_too_much_to_do_is_given_the_time_that_it_asks_for() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let way = Way::new(&std::env::var("V6_KUBERNETES_API").unwrap());
    let cluster = way.connect(&bench).await;
    let wait = Answer::new(429).header("Retry-After", "2");
    let pods = Requests::any().method("GET").path_contains("/pods");
    let rule = way.proxy.add(Rule::new(pods, Fault::Answer(wait)).times(1));
    let began = Instant::now();
    let listed: Vec<RunStatus> = in_time(LIMIT, cluster.list().try_collect()).await.unwrap();
    assert_eq!((listed.len(), rule.fired()), (0, 1));
    assert!(began.elapsed() >= Duration::from_secs(2));
}

/// Every pod that one machine takes by default, but for ten.
#[tokio::test]
async fn a_hundred_run_at_once() {
    if !common::is_long() {
        return;
    }
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let way = Way::new(&std::env::var("V6_KUBERNETES_API").unwrap());
    // With what the helper books, a hundred fit on two processors.
    let config = bench
        .config()
        .with_kubeconfig(Some(way.kubeconfig(&bench)))
        .with_cpu_request_milli(NonZeroU32::new(1));
    let cluster = Arc::new(KubernetesRuntime::connect(config).await.unwrap());
    let tracker = Tracker::new(cluster.clone());
    let spec = bench
        .probe(&cluster, "text /data/out made then sleep 600000")
        .await
        .with_output(output("result"), file("/data/out", 1000))
        .with_grace(Duration::from_secs(60));
    let names: Vec<_> = (0..100)
        .map(|number| id(&format!("at-once-{number}")))
        .collect();
    let each = |requests: usize| requests as f64 / names.len() as f64;
    let (cluster, tracker, spec) = (&*cluster, &tracker, &spec);

    let (before, memory_before, began) = (requests(&way), memory(), Instant::now());
    let run = |name| async move {
        cluster.run(name, spec).await.unwrap();
        let running = |status: &RunStatus| status.phase == RunPhase::Running;
        tracker.wait_until(name, running).await.unwrap();
    };
    in_time(LIMIT, join_all(names.iter().map(run))).await;
    println!(
        "100 pods run after {:?}, {:.1} requests each, {} MiB more memory",
        began.elapsed(),
        each(requests(&way) - before),
        memory().saturating_sub(memory_before)
    );

    let (before, window) = (requests(&way), Duration::from_secs(10));
    tokio::time::sleep(window).await;
    let idle = requests(&way) - before;
    println!("all running: {idle} requests in {window:?}");

    let (before, began) = (requests(&way), Instant::now());
    let end = |name| async move {
        // With the grace of its spec: a pod that has less is deleted, and its output with it.
        cluster
            .cancel(name, CancelOptions::default())
            .await
            .unwrap();
        let ended = tracker.wait(name).await.unwrap();
        assert_eq!(ended.outcome(), Some(&Outcome::Cancelled), "{name}");
        let made = cluster.collect_bytes(name, &output("result"), 1000).await;
        assert_eq!(made.unwrap(), "made", "{name}");
    };
    in_time(LIMIT, join_all(names.iter().map(end))).await;
    println!(
        "cancelled and collected after {:?}, {:.1} requests each",
        began.elapsed(),
        each(requests(&way) - before)
    );

    let (before, began) = (requests(&way), Instant::now());
    let all = stream::iter(&names).map(|name| common::remove(cluster, name));
    in_time(LIMIT, all.buffer_unordered(ROW).collect::<Vec<_>>()).await;
    println!(
        "removed after {:?}, {:.1} requests each; {} MiB more memory",
        began.elapsed(),
        each(requests(&way) - before),
        memory().saturating_sub(memory_before)
    );
}
