//! Files into runs and out of them, on a real engine.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::io;

use bytes::Bytes;
use common::{Bench, bytes, file, id, output, path, shell};
use futures_util::TryStreamExt;
use tokio::io::AsyncReadExt;
use v6_runtime::{
    Access, ErrorKind, InputStream, Mount, MountSource, Outcome, Output, OutputName, RunId,
    Runtime, RuntimeExt,
};
use v6_runtime_docker::DockerRuntime;

const LARGE: u64 = 48 << 20;

async fn kind(docker: &DockerRuntime, id: &RunId, name: &OutputName) -> ErrorKind {
    let all: Result<Vec<Bytes>, _> = docker.collect(id, name).try_collect().await;
    all.unwrap_err().kind()
}

#[tokio::test]
async fn large_files_pass_in_small_pieces() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let stream = InputStream::reopenable(LARGE, || async {
        Ok(Box::pin(tokio::io::repeat(b'v').take(LARGE)) as v6_runtime::InputReader)
    });
    let spec = shell(&docker, "cat /in /in > /out && wc -c < /in")
        .await
        .with_mount(Mount::new(MountSource::Stream(stream), path("/in")))
        .with_output(output("whole"), file("/out", 2 * LARGE));
    let run = id("large");
    docker.run(&run, &spec).await.unwrap();
    let status = docker.wait(&run).await.unwrap();
    let log = docker.logs_bytes(&run, 1000).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)), "{log:?}");
    assert_eq!(log, format!("{LARGE}\n"));
    let mut pieces = docker.collect(&run, &output("whole"));
    let mut total = 0;
    while let Some(piece) = pieces.try_next().await.unwrap() {
        assert!(piece.iter().all(|byte| *byte == b'v') && piece.len() <= 1 << 20);
        total += piece.len() as u64;
    }
    assert_eq!(total, 2 * LARGE);
    bench.finish(&docker).await;
}

#[tokio::test]
async fn an_input_that_is_not_what_it_said_leaves_nothing() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let base = shell(&docker, "true").await;
    let broken = tokio_util::io::StreamReader::new(futures_util::stream::iter([
        Ok(Bytes::from_static(b"half")),
        Err(io::Error::other("the disk is gone")),
    ]));
    let sources = [
        (
            "short",
            InputStream::once(70_000, io::Cursor::new(vec![0; 69_999])),
            ErrorKind::InvalidSpec,
        ),
        (
            "long",
            InputStream::once(70_000, io::Cursor::new(vec![0; 70_001])),
            ErrorKind::InvalidSpec,
        ),
        (
            "broken",
            InputStream::once(8, broken),
            ErrorKind::Unexpected,
        ),
    ];
    for (name, stream, wanted) in sources {
        let spec = base
            .clone()
            .with_mount(Mount::new(MountSource::Stream(stream), path("/in")));
        let error = docker.run(&id(name), &spec).await.unwrap_err();
        assert_eq!(error.kind(), wanted, "{error}");
        assert!(!error.may_have_started());
        let error = docker.status(&id(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    assert_eq!(bench.leftovers().await, Vec::<String>::new());
    bench.finish(&docker).await;
}

#[tokio::test]
async fn a_folder_comes_back_without_traps() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let script = format!(
        "cd /work && mkdir -p sub {parent} && echo -n a > sub/a && echo -n l > {long} \
         && ln -s /etc/passwd link && ln -s / sub/root && mkfifo pipe && ln sub/a hard \
         && echo -n n > \"$(printf 'new\\nline \\303\\251')\" && echo -n x > seed && test -s read/only \
         && echo -n $HOME > /single",
        parent = "d".repeat(120)
    );
    let inline = |text: &'static str, at| {
        let source = MountSource::Inline(Bytes::from_static(text.as_bytes()));
        Mount::new(source, path(at))
    };
    let spec = shell(&docker, &script)
        .await
        .with_mount(inline("seed", "/work/seed").with_access(Access::ReadWrite))
        .with_mount(inline("only", "/work/read/only"))
        .with_output(output("work"), Output::folder(path("/work"), bytes(1000)))
        .with_output(output("single"), file("/single", 3))
        .with_output(output("never"), file("/never", 10));
    let run = id("folder");
    docker.run(&run, &spec).await.unwrap();
    let status = docker.wait(&run).await.unwrap();
    let log = docker.logs_bytes(&run, 1000).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)), "{log:?}");
    let folder = docker
        .collect_bytes(&run, &output("work"), 100_000)
        .await
        .unwrap();
    let mut seen = Vec::new();
    let mut archive = tar::Archive::new(&folder[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        io::Read::read_to_string(&mut entry, &mut text).unwrap();
        let kind = entry.header().entry_type();
        assert!(kind.is_file() || kind.is_dir(), "{name}: {kind:?}");
        if kind.is_file() {
            seen.push((name, text));
        }
    }
    seen.sort();
    let mut wanted = vec![
        (long, "l".to_owned()),
        ("new\nline é".to_owned(), "n".to_owned()),
        ("seed".to_owned(), "x".to_owned()),
        ("sub/a".to_owned(), "a".to_owned()),
    ];
    // Of two names of one file the engine gives the first it meets, and the other as a link.
    if let Some(at) = seen.iter().position(|(name, _)| name == "hard") {
        seen[at].0 = "sub/a".to_owned();
        seen.sort();
    }
    wanted.sort();
    assert_eq!(seen, wanted);
    // "/tmp" is longer than allowed; what nobody wrote is empty; what is not declared is not there.
    assert_eq!(
        kind(&docker, &run, &output("single")).await,
        ErrorKind::Quota
    );
    let never = docker
        .collect_bytes(&run, &output("never"), 10)
        .await
        .unwrap();
    assert!(never.is_empty());
    assert_eq!(
        kind(&docker, &run, &output("other")).await,
        ErrorKind::NotFound
    );
    bench.finish(&docker).await;
}
