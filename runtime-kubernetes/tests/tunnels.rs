//! What may befall the way into a pod while a program uses it.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use std::time::Duration;

use common::{Bench, id, in_time, services};
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use v6_runtime::{Connection, EgressGrant, GrantName, ResultStream, RunSpec, Runtime};
use v6_runtime_kubernetes::KubernetesRuntime;

const LIMIT: u64 = 120;
/// Longer than the machine lets a forwarded port be silent (`stream_idle_timeout` in
/// tests/services/kubernetes/node.sh).
const SILENCE: Duration = Duration::from_secs(100);

async fn caller(bench: &Bench, cluster: &KubernetesRuntime, steps: &str) -> RunSpec {
    let grant = EgressGrant::new(GrantName::new("db").unwrap(), "db.example", 443);
    let spec = bench.probe(cluster, steps).await;
    spec.with_egress(grant.unwrap())
}

/// The next connection, and the line that was sent with it.
async fn next(
    connections: &mut ResultStream<Connection>,
) -> (BufReader<Box<dyn v6_runtime::Io>>, String) {
    let connection = in_time(LIMIT, async {
        loop {
            match connections.next().await.unwrap() {
                Ok(connection) => break connection,
                Err(error) => println!("meanwhile: {error}"),
            }
        }
    });
    let mut io = BufReader::new(connection.await.io);
    let mut line = String::new();
    in_time(LIMIT, io.read_line(&mut line)).await.unwrap();
    (io, line.trim_end().to_owned())
}

async fn answer(mut io: impl AsyncWrite + Unpin) {
    io.write_all(b"answer\n").await.unwrap();
    io.flush().await.unwrap();
}

#[tokio::test]
async fn a_restarted_api_server_ends_a_connection_and_not_its_run() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let cluster = bench.connect().await;
    let steps = "try connect db.example 443 first then connect db.example 443 second";
    let spec = caller(&bench, &cluster, steps).await;
    let id = id("restarted");
    let mut connections = cluster.connections();
    cluster.run(&id, &spec).await.unwrap();
    let (mut first, line) = next(&mut connections).await;
    assert_eq!(line, "first");

    services("crash", &[]).await;
    services("up", &[]).await;
    let mut rest = Vec::new();
    // An error or an end: in any case it is over for both sides.
    let _ = in_time(LIMIT, first.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:?}");

    let (second, line) = next(&mut connections).await;
    assert_eq!(line, "second");
    answer(second).await;
    common::ends_well(&cluster, &id, "answer").await;
}

#[tokio::test]
async fn a_silent_connection_stays() {
    if !common::is_long() {
        return;
    }
    let Some(bench) = Bench::new().await else {
        return;
    };
    let cluster = bench.connect().await;
    let spec = caller(&bench, &cluster, "connect db.example 443 hello").await;
    let id = id("silent");
    let mut connections = cluster.connections();
    cluster.run(&id, &spec).await.unwrap();
    let (io, line) = next(&mut connections).await;
    assert_eq!(line, "hello");
    // Not to wait for something: that nothing happens is what is tried.
    tokio::time::sleep(SILENCE).await;
    answer(io).await;
    common::ends_well(&cluster, &id, "answer").await;
}
