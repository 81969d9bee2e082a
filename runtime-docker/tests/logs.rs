//! Logs as the engine really keeps and sends them.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Bench, id, path, shell};
use futures_util::{StreamExt, TryStreamExt};
use v6_runtime::{
    ErrorKind, InputStream, LogChunk, LogOptions, LogPosition, LogStream, Mount, MountSource,
    RunId, RunSpec, Runtime, RuntimeExt,
};
use v6_runtime_docker::DockerRuntime;

fn part(chunks: &[LogChunk], stream: LogStream) -> Vec<u8> {
    let of_stream = chunks.iter().filter(|chunk| chunk.stream == stream);
    of_stream.flat_map(|chunk| chunk.bytes.to_vec()).collect()
}

async fn read(docker: &DockerRuntime, id: &RunId, options: LogOptions) -> Vec<LogChunk> {
    docker.logs(id, options).try_collect().await.unwrap()
}

async fn started(docker: &DockerRuntime, id: &RunId) {
    let mut events = docker.watch();
    while docker.status(id).await.unwrap().phase.rank() == 0 {
        events.next().await.unwrap().unwrap();
    }
}

fn given(spec: RunSpec, at: &str, content: &[u8]) -> RunSpec {
    let content = content.to_vec();
    let stream = InputStream::once(content.len() as u64, std::io::Cursor::new(content));
    spec.with_mount(Mount::new(MountSource::Stream(stream), path(at)))
}

/// Lines around the sizes at which the engine splits them, with every byte that text can have, and
/// no line end at the end.
fn awkward() -> Vec<u8> {
    let mut all: Vec<u8> = (0..128).collect();
    all.extend_from_slice("\u{80}é€😀\n\n\r\n".as_bytes());
    for length in [16_383, 16_384, 16_385, 40_000, 1 << 20] {
        all.extend((0..length).map(|at| b'0' + (at % 75) as u8));
        all.push(b'\n');
    }
    all.extend_from_slice(b"the end\0");
    all
}

#[tokio::test]
async fn bytes_come_back_as_they_were_printed() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let out = awkward();
    let err: Vec<u8> = out.iter().rev().copied().filter(u8::is_ascii).collect();
    let spec = shell(&docker, "cat /in/out & cat /in/err >&2; wait").await;
    let spec = given(given(spec, "/in/out", &out), "/in/err", &err);
    let run = id("exact");
    docker.run(&run, &spec).await.unwrap();
    docker.wait(&run).await.unwrap();
    let chunks = read(&docker, &run, LogOptions::default()).await;
    assert!(
        part(&chunks, LogStream::Stdout) == out,
        "standard output differs"
    );
    assert!(
        part(&chunks, LogStream::Stderr) == err,
        "standard error differs"
    );

    // From every so many chunks on, there is exactly the rest, also for another reader.
    let other = bench.connect().await;
    for at in (0..chunks.len()).step_by(chunks.len() / 12) {
        let since = LogOptions::default().with_since(chunks[at].position.clone());
        assert!(
            read(&other, &run, since).await == chunks[at + 1..],
            "after chunk {at}"
        );
    }
    for limit in [0, 1, 128, 16_384, 100_001] {
        let limited = read(&docker, &run, LogOptions::default().with_limit_bytes(limit)).await;
        let count: usize = limited.iter().map(|chunk| chunk.bytes.len()).sum();
        assert_eq!(count as u64, limit);
        if let Some(last) = limited.last() {
            let since = LogOptions::default().with_since(last.position.clone());
            let rest = read(&docker, &run, since).await;
            let both: Vec<LogChunk> = limited.into_iter().chain(rest).collect();
            assert!(part(&both, LogStream::Stdout) == out, "limit {limit}");
            assert!(part(&both, LogStream::Stderr) == err, "limit {limit}");
        }
    }
    bench.finish(&docker).await;
}

#[tokio::test]
async fn a_follower_sees_the_end() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    // A line that goes on after others were printed: its later parts have an older time.
    let script = "head -c 20000 /dev/zero | tr '\\0' a; echo err >&2; sleep 1.5; \
                  head -c 20000 /dev/zero | tr '\\0' b; echo; for i in $(seq 300); do echo $i; done";
    let run = id("follow");
    docker
        .run(&run, &shell(&docker, script).await)
        .await
        .unwrap();
    started(&docker, &run).await;
    let follow = || LogOptions::default().with_follow(true);
    let mut early = docker.logs(&run, follow());
    let mut before = Vec::new();
    while !part(&before, LogStream::Stderr).ends_with(b"\n") {
        before.push(early.next().await.unwrap().unwrap());
    }
    // A reader that breaks off here and goes on with the position misses nothing.
    drop(early);
    let since: LogPosition = before.last().unwrap().position.clone();
    let rest = tokio::time::timeout(
        Duration::from_secs(30),
        read(&docker, &run, follow().with_since(since)),
    );
    before.extend(rest.await.unwrap());
    let numbers: String = (1..=300).map(|n| format!("{n}\n")).collect();
    let wanted = format!("{}{}\n{numbers}", "a".repeat(20_000), "b".repeat(20_000));
    assert!(part(&before, LogStream::Stdout) == wanted.as_bytes());
    assert_eq!(part(&before, LogStream::Stderr), b"err\n");
    assert_eq!(docker.status(&run).await.unwrap().phase.rank(), 3);
    let after = read(&docker, &run, follow()).await;
    assert!(part(&after, LogStream::Stdout) == wanted.as_bytes());
    bench.finish(&docker).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_said() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let mut unknown = docker.logs(&id("nothing"), LogOptions::default());
    let error = unknown.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let run = id("quiet");
    docker
        .run(&run, &shell(&docker, "true").await)
        .await
        .unwrap();
    docker.wait(&run).await.unwrap();
    assert_eq!(
        read(&docker, &run, LogOptions::default().with_follow(true)).await,
        []
    );
    let wrong = LogOptions::default().with_since(LogPosition::new("yesterday"));
    let error = docker.logs(&run, wrong).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    bench.finish(&docker).await;
}

/// Standard output is not lost when nobody reads it, nor does it hold a run up.
#[tokio::test]
async fn a_flood_is_bounded() {
    let Some(mut bench) = Bench::new().await else {
        return;
    };
    bench.config = bench.config.with_log_bytes(common::bytes(8 << 20));
    let docker = bench.connect().await;
    let run = id("flood");
    let spec = shell(
        &docker,
        // The engine keeps each of these lines with some 80 bytes of its own.
        "yes 0123456789abcdef | head -c 4250000; exit 3",
    )
    .await;
    docker.run(&run, &spec).await.unwrap();
    let status = docker.wait(&run).await.unwrap();
    assert_eq!(status.outcome(), Some(&v6_runtime::Outcome::Exited(3)));
    let chunks = read(&docker, &run, LogOptions::default()).await;
    let kept = chunks
        .iter()
        .map(|chunk| chunk.bytes.len() as u64)
        .sum::<u64>();
    assert!(kept <= bench.config.log_bytes.get(), "{kept}");
    // What is kept are whole lines.
    let out = part(&chunks, LogStream::Stdout);
    assert!(out.starts_with(b"0123456789abcdef\n"));
    assert!(
        Bytes::from(out)
            .chunks(17)
            .rev()
            .skip(1)
            .all(|line| line == b"0123456789abcdef\n")
    );
    bench.finish(&docker).await;
}
