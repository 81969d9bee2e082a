//! What a container has printed, with positions that hold across processes.
//!
//! The engine keeps entries of at most 16 KiB, each with a time; asked for times, it puts one and a
//! space before every entry. A position is the time of an entry and its number among those of the
//! same time.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use v6_runtime::{
    Error, ErrorKind, LogChunk, LogOptions, LogPosition, LogStream, Result, ResultStream,
};

use crate::error::Error as Step;

/// A place in a log: nanoseconds since the epoch, and how many entries of that time come before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    nanos: u64,
    number: u64,
}

impl Place {
    fn parse(position: &LogPosition) -> Result<Self> {
        let parsed = position
            .as_str()
            .split_once(':')
            .and_then(|(nanos, number)| {
                Some(Self {
                    nanos: nanos.parse().ok()?,
                    number: number.parse().ok()?,
                })
            });
        parsed.ok_or_else(|| {
            Error::invalid(
                "since",
                format!("{:?} is no position of this runtime", position.as_str()),
            )
        })
    }

    fn position(self) -> LogPosition {
        LogPosition::new(format!("{}:{}", self.nanos, self.number))
    }
}

/// Reads a container's log.
pub(crate) fn read(
    docker: Docker,
    container: String,
    options: LogOptions,
) -> ResultStream<LogChunk> {
    let since = match options.since.as_ref().map(Place::parse).transpose() {
        Ok(since) => since,
        Err(error) => return Box::pin(stream::once(std::future::ready(Err(error)))),
    };
    let mut query = LogsOptionsBuilder::default()
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .follow(options.follow);
    if let Some(place) = since {
        // Whole seconds are all that the client takes; what comes too early is skipped below.
        query = query.since(i32::try_from(place.nanos / 1_000_000_000).unwrap_or(i32::MAX));
    }
    let entries = docker.logs(&container, Some(query.build()));
    let reader = Reader {
        since,
        last: None,
        left: options.limit_bytes,
    };
    let chunks = stream::unfold(
        (Box::pin(entries), Some(reader)),
        |(mut entries, reader)| async move {
            let mut reader = reader?;
            loop {
                if reader.left == Some(0) {
                    return None;
                }
                let chunk = match entries.next().await? {
                    Ok(output) => reader.take(output),
                    Err(source) => Err(Step::Engine {
                        step: "reading the log",
                        source,
                    }
                    .into()),
                };
                match chunk {
                    Ok(None) => {}
                    Ok(Some(chunk)) => return Some((Ok(chunk), (entries, Some(reader)))),
                    Err(error) => return Some((Err(error), (entries, None))),
                }
            }
        },
    );
    Box::pin(chunks)
}

struct Reader {
    since: Option<Place>,
    last: Option<Place>,
    left: Option<u64>,
}

impl Reader {
    fn take(&mut self, output: LogOutput) -> Result<Option<LogChunk>> {
        let (stream, message) = match output {
            LogOutput::StdOut { message } => (LogStream::Stdout, message),
            LogOutput::StdErr { message } => (LogStream::Stderr, message),
            LogOutput::StdIn { message } | LogOutput::Console { message } => {
                (LogStream::Merged, message)
            }
        };
        let (nanos, mut bytes) = split(&message).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                "an entry of the log has no time before it",
            )
        })?;
        let number = match self.last {
            Some(last) if last.nanos == nanos => last.number + 1,
            _ => 1,
        };
        let place = Place { nanos, number };
        self.last = Some(place);
        if self.since.is_some_and(|since| place <= since) {
            return Ok(None);
        }
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            bytes.truncate(take);
            *left -= take as u64;
        }
        Ok(Some(LogChunk::new(stream, bytes, place.position())))
    }
}

/// The time before an entry, and the entry.
fn split(message: &Bytes) -> Option<(u64, Bytes)> {
    let space = message.iter().position(|byte| *byte == b' ')?;
    let text = std::str::from_utf8(&message[..space]).ok()?;
    let time = crate::time::from_engine(text)?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    let nanos = u64::try_from(since.as_nanos()).ok()?;
    Some((nanos, message.slice(space + 1..)))
}
