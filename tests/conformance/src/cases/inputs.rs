//! Files in.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use v6_runtime::{Accepted, ErrorKind, InputStream, Mount, MountSource, Outcome, Runtime, Secret};

use super::needs;
use crate::bench::{Bench, path, run_id};
use crate::case::{self, equal, fails, holds};
use crate::child::{Task, can_measure};
use crate::probe::{Pattern, pattern};

const MIB: usize = 1 << 20;
/// How much larger a process may become that gives, or takes, 64 MiB.
pub(crate) const GROWTH: u64 = 24 << 20;

/// Time for a program to start that should not.
const A_WHILE: Duration = Duration::from_millis(500);

case::cases! {
    inputs_are_byte_exact ["RUN-1"]: "given files, inline, secret and streamed, have exactly the bytes that were given";
    inputs_cannot_be_changed ["OUT-2"]: "a given file can be neither written, replaced nor removed by the run";
    #[needs(needs::streams)]
    a_wrong_stream_is_refused ["RUN-1"]: "a stream that is longer or shorter than it said fails the call of run, and no run starts";
    #[needs(needs::scratch)]
    scratch_is_writable ["FLOOR-5"]: "a scratch folder is empty and can be written";
    #[needs(needs::streams)]
    a_large_input_is_byte_exact ["RUN-1", "ANY-2"]: "a streamed file of 64 MiB has exactly the bytes that were given";
    #[needs(needs::streams)]
    giving_takes_constant_memory ["ANY-2"]: "the memory of a process that gives a file of 64 MiB does not grow with it";
    #[needs(needs::streams)]
    a_broken_stream_starts_nothing ["RUN-1", "ANY-3"]: "a stream that fails half-way fails the call of run, no program starts, and the id can be used again";
}

async fn inputs_are_byte_exact(bench: Bench) -> case::Outcome {
    let id = run_id("inputs");
    let streams = bench.runtime.capabilities().mounts.stream;
    let inline = Mount::new(MountSource::Inline(pattern(1000)), path("/in/inline"));
    let empty = Mount::new(MountSource::Inline(Bytes::new()), path("/in/empty"));
    let text = String::from_utf8_lossy(&pattern(777)).into_owned();
    let secret = Mount::new(
        MountSource::Secret(Secret::new(text)),
        path("/in/deep/er/secret"),
    );
    let mut words =
        "verify /in/inline 1000 then verify /in/empty 0 then verify /in/deep/er/secret 777"
            .to_owned();
    let large = 5 * MIB + 13;
    if streams {
        words.push_str(&format!(" then verify /in/stream {large}"));
    }
    let mut spec = bench
        .spec(&words)
        .await?
        .with_mount(inline)
        .with_mount(empty)
        .with_mount(secret);
    if streams {
        let stream = InputStream::once(large as u64, std::io::Cursor::new(pattern(large)));
        spec = spec.with_mount(Mount::new(MountSource::Stream(stream), path("/in/stream")));
    }
    let status = bench.finish(&id, &spec).await?;
    let log = bench.log(&id).await?;
    let what = format!("its end ({})", String::from_utf8_lossy(&log));
    equal(&what, status.outcome().cloned(), Some(Outcome::Exited(0)))?;
    Ok(())
}

async fn inputs_cannot_be_changed(bench: Bench) -> case::Outcome {
    let id = run_id("fixed");
    let words = "try write /in/file 3 then try remove /in/file then try rename /in/file /in/other \
                 then verify /in/file 1000";
    let mount = Mount::new(MountSource::Inline(pattern(1000)), path("/in/file"));
    let status = bench
        .finish(&id, &bench.spec(words).await?.with_mount(mount))
        .await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    holds(
        &format!("something was allowed: {log}"),
        !log.contains("\"ok\":true"),
    )?;
    Ok(())
}

async fn a_wrong_stream_is_refused(bench: Bench) -> case::Outcome {
    for (id, said) in [("longer", 999), ("shorter", 1001)] {
        let stream = InputStream::once(said, std::io::Cursor::new(pattern(1000)));
        let mount = Mount::new(MountSource::Stream(stream), path("/in/file"));
        let spec = bench.spec("exit 0").await?.with_mount(mount);
        let refused = bench.runtime.run(&run_id(id), &spec).await;
        fails(id, refused, ErrorKind::InvalidSpec)?;
        // One that has started all the same does not show at once.
        tokio::time::sleep(A_WHILE).await;
        if let Ok(status) = bench.runtime.status(&run_id(id)).await {
            holds("the run has started", status.phase.rank() == 0)?;
        }
    }
    Ok(())
}

async fn scratch_is_writable(bench: Bench) -> case::Outcome {
    let id = run_id("scratch");
    let mount = Mount::new(MountSource::Scratch(None), path("/work"));
    let spec = bench
        .spec("write /work/file 4096 then verify /work/file 4096")
        .await?
        .with_mount(mount);
    let status = bench.finish(&id, &spec).await?;
    equal(
        "its end",
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    Ok(())
}

/// A stream of this many bytes of the pattern, of which it holds one line.
pub(crate) fn patterned(length: usize) -> InputStream {
    InputStream::reopenable(length as u64, move || async move {
        let reader = PatternReader {
            pattern: Pattern::new(),
            left: length,
        };
        Ok(Box::pin(reader) as v6_runtime::InputReader)
    })
}

struct PatternReader {
    pattern: Pattern,
    left: usize,
}

impl AsyncRead for PatternReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.left.min(buffer.remaining());
        self.pattern.fill(buffer.initialize_unfilled_to(n));
        buffer.advance(n);
        self.left -= n;
        Poll::Ready(Ok(()))
    }
}

async fn a_large_input_is_byte_exact(bench: Bench) -> case::Outcome {
    let id = run_id("large");
    let size = bench.large();
    let stream = MountSource::Stream(patterned(size));
    let spec = bench.spec(&format!("verify /in/stream {size}")).await?;
    let spec = spec.with_mount(Mount::new(stream, path("/in/stream")));
    bench.done(&id, &spec).await?;
    Ok(())
}

async fn giving_takes_constant_memory(bench: Bench) -> case::Outcome {
    bench.outlives_us()?;
    can_measure()?;
    let id = run_id("given");
    let size = 64 * MIB;
    let task = Task::Give {
        id: id.to_string(),
        size,
    };
    let mut giver = bench.child(task).await?;
    let grown: u64 = giver.done().await?.parse().map_err(|_| "no number")?;
    giver.kill().await?;
    bench.ends_with(&id, 0).await?;
    holds(
        &format!("it became {grown} bytes larger with a file of {size}"),
        grown <= GROWTH,
    )?;
    Ok(())
}

/// Gives some bytes and then an error.
struct Broken(usize);

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0 == 0 {
            return Poll::Ready(Err(io::Error::other("the source is broken")));
        }
        let n = self.0.min(buffer.remaining());
        buffer.initialize_unfilled_to(n);
        buffer.advance(n);
        self.0 -= n;
        Poll::Ready(Ok(()))
    }
}

async fn a_broken_stream_starts_nothing(bench: Bench) -> case::Outcome {
    let id = run_id("broken");
    let stream = InputStream::once(MIB as u64, Broken(MIB / 2));
    let mount = Mount::new(MountSource::Stream(stream), path("/in/file"));
    let spec = bench.spec("exit 1").await?.with_mount(mount);
    let error = match bench.runtime.run(&id, &spec).await {
        Err(error) => error,
        Ok(accepted) => return Err(format!("run said {accepted:?}").into()),
    };
    holds(
        &format!("it may have started without its input: {error:?}"),
        !error.may_have_started(),
    )?;
    if let Ok(status) = bench.runtime.status(&id).await {
        let what = format!("without its input it is {:?}", status.phase);
        holds(&what, status.phase.rank() == 0)?;
    }
    let other = bench.spec("exit 2").await?;
    let accepted = bench.runtime.run(&id, &other).await?;
    equal("run with another spec", accepted, Accepted::Created)?;
    bench.ends_with(&id, 2).await
}
