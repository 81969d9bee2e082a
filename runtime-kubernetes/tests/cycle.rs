//! One run from its start to its cleanup, on a real cluster.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use bytes::Bytes;
use common::{Bench, bytes, file, id, in_time, output, path};
use futures_util::StreamExt;
use v6_runtime::{
    Accepted, Access, CancelOptions, Cancelled, CleanedUp, EgressGrant, ErrorKind, GrantName,
    InputStream, Mount, MountSource, Outcome, Output, RunPhase, Runtime, RuntimeExt, Secret,
};
use v6_runtime_kubernetes::KubernetesRuntime;

const LIMIT: u64 = 120;

#[tokio::test]
async fn files_go_in_and_out() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let given = |source, at| Mount::new(source, path(at));
    let steps = "cat /in/plain then cat /in/secret then cat /in/stream then env SECRET \
                 then copy /in/stream /data/out then mkdir /work/sub then text /work/sub/new made \
                 then text /work/deep/seed changed then identity";
    let spec = bench
        .probe(&cluster, steps)
        .await
        .with_env("SECRET", Secret::new("s3$(HOME)cr3t"))
        .with_mount(given(
            MountSource::Inline(Bytes::from_static(b"plain ")),
            "/in/plain",
        ))
        .with_mount(given(
            MountSource::Secret(Secret::new("secret ")),
            "/in/secret",
        ))
        .with_mount(given(
            MountSource::Stream(InputStream::once(4, &b"str "[..])),
            "/in/stream",
        ))
        .with_mount(
            given(
                MountSource::Inline(Bytes::from_static(b"seed")),
                "/work/deep/seed",
            )
            .with_access(Access::ReadWrite),
        )
        .with_output(output("result"), file("/data/out", 1000))
        .with_output(output("work"), Output::folder(path("/work"), bytes(10_000)));
    let id = id("files");
    let accepted = in_time(LIMIT, cluster.run(&id, &spec)).await.unwrap();
    assert_eq!(accepted, Accepted::Created);
    assert_eq!(cluster.run(&id, &spec).await.unwrap(), Accepted::Adopted);
    let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    let logs = cluster.logs_bytes(&id, 100_000).await.unwrap();
    let logs = String::from_utf8_lossy(&logs).into_owned();
    assert_eq!(
        status.phase,
        RunPhase::Finished(Outcome::Exited(0)),
        "{logs}"
    );
    assert!(logs.starts_with("plain secret str s3$(HOME)cr3t"), "{logs}");
    let result = cluster.collect_bytes(&id, &output("result"), 1000).await;
    assert_eq!(result.unwrap(), "str ", "{logs}");
    let folder = cluster
        .collect_bytes(&id, &output("work"), 100_000)
        .await
        .unwrap();
    let mut archive = tar::Archive::new(&folder[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    for wanted in ["sub/new", "deep/seed"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    assert_eq!(
        cluster.cleanup(&id, Default::default()).await.unwrap(),
        CleanedUp::Removed
    );
    let gone = cluster.status(&id).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn connections_come_out() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let grant = EgressGrant::new(GrantName::new("db").unwrap(), "db.example", 443).unwrap();
    let spec = bench
        .probe(&cluster, "connect db.example 443 hello")
        .await
        .with_egress(grant);
    let id = id("connections");
    let mut connections = cluster.connections();
    cluster.run(&id, &spec).await.unwrap();
    let connection = in_time(LIMIT, connections.next()).await.unwrap().unwrap();
    assert_eq!(
        (&connection.run, connection.grant.name.as_str()),
        (&id, "db")
    );
    common::answer(connection.io).await;
    common::ends_well(&cluster, &id, "answer").await;
}

#[tokio::test]
async fn a_cancelled_run_keeps_its_log_and_outputs() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let spec = bench
        .probe(
            &cluster,
            "text /data/out left then echo ready then sleep 600000",
        )
        .await
        .with_output(output("result"), file("/data/out", 1000));
    let id = id("cancelled");
    cluster.run(&id, &spec).await.unwrap();
    let mut log = cluster.watch();
    in_time(LIMIT, async {
        while cluster.status(&id).await.unwrap().phase != RunPhase::Running {
            log.next().await;
        }
    })
    .await;
    let follow = v6_runtime::LogOptions::default().with_follow(true);
    let first = in_time(LIMIT, cluster.logs(&id, follow).next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.bytes, "ready\n");
    let cancelled = cluster.cancel(&id, CancelOptions::default()).await.unwrap();
    assert_eq!(cancelled, Cancelled::Requested);
    let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    assert_eq!(status.phase, RunPhase::Finished(Outcome::Cancelled));
    let result = cluster
        .collect_bytes(&id, &output("result"), 1000)
        .await
        .unwrap();
    assert_eq!(result, "left");
    assert_eq!(cluster.logs_bytes(&id, 1000).await.unwrap(), "ready\n");
    common::remove(&cluster, &id).await;
}

/// Of a run that waits to be collected, the cluster books next to nothing any more.
#[tokio::test]
async fn who_waits_gives_back_what_was_booked() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let config = bench.config().with_keep_booked(std::time::Duration::ZERO);
    let cluster = KubernetesRuntime::connect(config).await.unwrap();
    let spec = bench
        .probe(&cluster, "text /data/out left")
        .await
        .with_output(output("result"), file("/data/out", 1000));
    let id = id("waiting");
    cluster.run(&id, &spec).await.unwrap();
    in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    let pods = common::pods(&bench).await;
    let name = format!("v6-{}.{id}", bench.owner);
    let booked = in_time(LIMIT, async {
        loop {
            let pod = pods.get(&name).await.unwrap();
            let all = pod.spec.unwrap().containers;
            let program = all.iter().find(|one| one.name == "program").unwrap();
            let booked = program.resources.clone().unwrap().requests.unwrap();
            if booked["cpu"].0 != "20m" {
                return booked;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    let booked = booked.await;
    assert_eq!(
        (booked["cpu"].0.as_str(), booked["memory"].0.as_str()),
        ("1m", "1Mi")
    );
    let result = cluster.collect_bytes(&id, &output("result"), 1000).await;
    assert_eq!(result.unwrap(), "left");
    common::remove(&cluster, &id).await;
}
