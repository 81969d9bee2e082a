//! Faults of logs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use v6_runtime::{
    Error, ErrorKind, LogChunk, LogOptions, LogPosition, LogStream, ResultStream, RunId, Runtime,
};

use super::Seed;
use super::runtime::Seeded;

/// How long a stream without news is kept open.
const SILENCE: Duration = Duration::from_millis(500);
/// How much of a log an engine keeps that rotates its files too early.
const KEPT: usize = 512 << 10;

pub(super) fn logs(it: &Seeded, id: &RunId, mut options: LogOptions) -> ResultStream<LogChunk> {
    let follow = options.follow;
    let key = it.key(id);
    match it.seed {
        Some(Seed::UndeclaredIsIgnored) => {
            let declared = it.inner.capabilities().logs;
            options.follow &= declared.follow;
            options.since = options.since.filter(|_| declared.since);
        }
        Some(Seed::UndeclaredIsInvalid) => {
            if let Err(error) = it.inner.capabilities().admit_logs(&options) {
                let invalid = Error::new(ErrorKind::InvalidSpec, error.message());
                return Box::pin(stream::once(future::ready(Err(invalid))));
            }
        }
        Some(Seed::LogsAreReadOnce) if !follow && is_alive(it, id) => {
            options.since = it.world.notes().read.get(&key).cloned();
        }
        Some(Seed::SinceIsIgnored) => options.since = None,
        Some(Seed::SinceIsOffByOne) => {
            options.since = options.since.map(|position| moved(&position, 1));
        }
        Some(Seed::PositionsAreOfOneProcess)
            if options.since.is_some() && !it.own().started.contains(id) =>
        {
            let unknown = Error::invalid("since", "it is not a position of this process");
            return Box::pin(stream::once(future::ready(Err(unknown))));
        }
        Some(Seed::LogLimitIsIgnored) => options.limit_bytes = None,
        _ => {}
    }
    let limit = options.limit_bytes;
    let chunks = it.inner.logs(id, options);
    match it.seed {
        Some(Seed::RunTwiceRunsTwice) => {
            let double = it.world.notes().doubles.get(&it.key(id)).cloned();
            match double {
                Some(double) => {
                    Box::pin(chunks.chain(it.inner.logs(&double, LogOptions::default())))
                }
                None => chunks,
            }
        }
        Some(Seed::LogsAreReadOnce) if !follow && is_alive(it, id) => {
            let world = it.world.clone();
            Box::pin(chunks.inspect_ok(move |chunk| {
                let position = chunk.position.clone();
                world.notes().read.insert(key.clone(), position);
            }))
        }
        Some(Seed::StandardErrorIsLost) => {
            Box::pin(chunks.try_filter(|chunk| future::ready(chunk.stream != LogStream::Stderr)))
        }
        Some(Seed::UnknownLogsAreEmpty) => {
            let known = |chunk: &Result<LogChunk, Error>| !matches!(chunk, Err(error) if error.kind() == ErrorKind::NotFound);
            Box::pin(chunks.filter(move |chunk| future::ready(known(chunk))))
        }
        Some(Seed::LogsAreRotated) => {
            let begin = stream::unfold((chunks, 0), |(mut chunks, given)| async move {
                match chunks.next().await? {
                    Ok(chunk) if given + chunk.bytes.len() > KEPT => None,
                    Ok(chunk) => {
                        let given = given + chunk.bytes.len();
                        Some((Ok(chunk), (chunks, given)))
                    }
                    Err(error) => Some((Err(error), (chunks, given))),
                }
            });
            Box::pin(begin)
        }
        Some(Seed::LongLinesAreSplit) => each(chunks, |mut chunk| {
            chunk.bytes = split_lines(&chunk.bytes);
            chunk
        }),
        Some(Seed::BinaryLogsAreText) => each(chunks, |mut chunk| {
            let text = String::from_utf8_lossy(&chunk.bytes).into_owned();
            chunk.bytes = text.into();
            chunk
        }),
        Some(Seed::CutLogLooksEnded) => {
            let broken = |chunk: &Result<LogChunk, Error>| matches!(chunk, Err(error) if error.kind() == ErrorKind::Unavailable);
            Box::pin(chunks.take_while(move |chunk| future::ready(!broken(chunk))))
        }
        Some(Seed::StreamsAreMerged) => each(chunks, |mut chunk| {
            chunk.stream = LogStream::Merged;
            chunk
        }),
        Some(Seed::StreamsAreSwapped) => each(chunks, |mut chunk| {
            chunk.stream = match chunk.stream {
                LogStream::Stdout => LogStream::Stderr,
                _ => LogStream::Stdout,
            };
            chunk
        }),
        Some(Seed::LogLimitIsRoundedUp) => match limit {
            Some(limit) if limit < 1 << 20 => {
                let whole = LogOptions::default().with_limit_bytes(limit.next_multiple_of(4096));
                it.inner.logs(id, whole)
            }
            _ => chunks,
        },
        Some(Seed::FollowingEndsInSilence) if follow => {
            let impatient = stream::unfold(chunks, |mut chunks| async move {
                let next = tokio::time::timeout(SILENCE, chunks.next()).await;
                next.ok().flatten().map(|chunk| (chunk, chunks))
            });
            Box::pin(impatient)
        }
        Some(Seed::FollowingNeverEnds) if follow => Box::pin(chunks.chain(stream::pending())),
        Some(Seed::ReaderHoldsTheProgram) if follow => {
            it.world.notes().readers += 1;
            let reading = Reading(it.clone());
            Box::pin(chunks.inspect_err(move |_| {
                // Held as long as the stream is.
                let _ = &reading;
            }))
        }
        _ => chunks,
    }
}

fn is_alive(it: &Seeded, id: &RunId) -> bool {
    it.truth(id).is_some_and(|run| !run.phase.is_finished())
}

fn each(
    chunks: ResultStream<LogChunk>,
    change: fn(LogChunk) -> LogChunk,
) -> ResultStream<LogChunk> {
    Box::pin(chunks.map_ok(change))
}

/// Positions of the in-memory runtime are numbers of bytes.
fn moved(position: &LogPosition, by: u64) -> LogPosition {
    let at: u64 = position.as_str().parse().unwrap_or(0);
    LogPosition::new((at + by).to_string())
}

/// As container engines store them: 16 KiB at most.
fn split_lines(bytes: &Bytes) -> Bytes {
    const LINE: usize = 16 << 10;
    let mut all = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let mut pieces = line.chunks(LINE).peekable();
        while let Some(piece) = pieces.next() {
            all.extend_from_slice(piece);
            if pieces.peek().is_some_and(|next| *next != b"\n") {
                all.push(b'\n');
            }
        }
    }
    all.into()
}

struct Reading(Seeded);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.world.notes().readers -= 1;
    }
}
