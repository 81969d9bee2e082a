//! A registry that comes back while a machine tries again and again.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use v6_runtime::{ImageRef, Outcome, Pending, RunPhase, Runtime, RuntimeExt};

use crate::common::{self, Bench, id, in_time, pods};

const LIMIT: u64 = 120;

pub(crate) async fn a_machine_that_backs_off_from_a_registry_tries_again() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let cluster = bench.connect().await;
    let mut spec = bench.probe(&cluster, "exit 7").await;
    let at = spec.image.reference.registry().to_owned();
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let moved = spec
        .image
        .reference
        .to_string()
        .replace(&at, &address.to_string());
    spec.image.reference = ImageRef::parse(&moved).unwrap();
    cluster.run(&id("backs-off"), &spec).await.unwrap();
    let api = pods(&bench).await;
    let said = in_time(LIMIT, async {
        loop {
            let pod = api.get(&bench.pod("backs-off")).await.unwrap();
            let all = pod.status.and_then(|status| status.container_statuses);
            let waiting = all.into_iter().flatten().find_map(|it| it.state?.waiting);
            if let Some(waiting) =
                waiting.filter(|it| it.reason.as_deref() == Some("ImagePullBackOff"))
            {
                break waiting.message.unwrap_or_default();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(said.contains("Back-off pulling image"), "{said}");
    let status = cluster.status(&id("backs-off")).await.unwrap();
    assert_eq!(status.phase, RunPhase::Pending(Pending::PullingImage));

    let back = TcpListener::bind(address).await.unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut machine, _) = back.accept().await.unwrap();
            let at = at.clone();
            tokio::spawn(async move {
                let mut registry = TcpStream::connect(at).await.unwrap();
                // Each end closes as it likes.
                let _ = tokio::io::copy_bidirectional(&mut machine, &mut registry).await;
            });
        }
    });
    let status = in_time(LIMIT, cluster.wait(&id("backs-off")))
        .await
        .unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(7)));
    serving.abort();
    common::remove(&cluster, &id("backs-off")).await;
}
