//! What a container has printed, with positions that hold across processes.
//!
//! The engine keeps entries of at most 16 KiB, each with a time; asked for times, it puts one and a
//! space before every entry. Entries of one stream are in the order of their times, entries of both
//! are not: all of one long line have the time of its beginning. So a position tells for each stream
//! which entry was the last: by its time, and its number among those of that time.

use std::fmt;
use std::pin::Pin;
use std::time::{Duration, UNIX_EPOCH};

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::ContainerStateStatusEnum as Status;
use bollard::query_parameters::LogsOptionsBuilder;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use v6_runtime::{
    Error, ErrorKind, LogChunk, LogOptions, LogPosition, LogStream, Result, ResultStream,
};

use crate::engine::Engine;
use crate::error::Error as Step;
use crate::quirks::Quirks;

/// How long to wait before looking again at a log that ended although its container seems to run.
const AGAIN: Duration = Duration::from_millis(25);
/// How often.
const TIMES: u32 = 80;

/// Reads a container's log: whole, or what comes after a position.
///
/// A retryable error may come at any time; what was not given is after the last chunk's position.
pub(crate) fn read(
    engine: Engine,
    quirks: &Quirks,
    container: String,
    options: LogOptions,
) -> ResultStream<LogChunk> {
    let given = match options.since.as_ref().map(Cursor::parse).transpose() {
        Ok(given) => given.unwrap_or_default(),
        Err(error) => return Box::pin(stream::once(std::future::ready(Err(error)))),
    };
    let reader = Reader {
        engine,
        container,
        follow: options.follow,
        again_at_end: quirks.follow_loses_end,
        left: options.limit_bytes,
        given,
        entries: None,
        idle: 0,
    };
    let chunks = stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await.transpose()? {
            Ok(chunk) => Some((Ok(chunk), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Box::pin(chunks)
}

type Outputs = Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>;

struct Reader {
    engine: Engine,
    container: String,
    follow: bool,
    /// What is followed may lack something that comes before the end: a log that has ended is read
    /// without following, and one that was followed to its end once more.
    again_at_end: bool,
    /// How many bytes may still be given.
    left: Option<u64>,
    given: Cursor,
    entries: Option<Entries>,
    /// How often in a row the log has ended without anything new.
    idle: u32,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            if self.left == Some(0) {
                return Ok(None);
            }
            if self.entries.is_none()
                && self.follow
                && self.again_at_end
                && has_ended(&self.engine, &self.container).await?
            {
                self.follow = false;
            }
            let entries = match &mut self.entries {
                Some(entries) => entries,
                None => self.entries.insert(Entries::open(
                    &self.engine.docker,
                    &self.container,
                    self.follow,
                    self.given,
                )),
            };
            match entries.outputs.next().await {
                Some(Ok(output)) => {
                    if let Some((stream, place, bytes)) = entries.sort(output)? {
                        self.idle = 0;
                        return Ok(Some(self.give(stream, place, bytes)));
                    }
                }
                Some(Err(source)) => return Err(failed(source)),
                None if !self.follow => return Ok(None),
                None => {
                    if has_ended(&self.engine, &self.container).await? {
                        if !self.again_at_end {
                            return Ok(None);
                        }
                        self.follow = false;
                        self.entries = None;
                        continue;
                    }
                    // The engine lets go of a log a moment before it calls its container ended, and
                    // of all logs when it stops.
                    if self.idle == TIMES {
                        let message = "the log has ended before the run";
                        return Err(Error::new(ErrorKind::Unavailable, message));
                    }
                    self.idle += 1;
                    self.entries = None;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn give(&mut self, stream: LogStream, mut place: Place, mut bytes: Bytes) -> LogChunk {
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left).unwrap_or(usize::MAX);
            if take < bytes.len() {
                let before = place.part.unwrap_or(0);
                bytes.truncate(take);
                place.part = Some(before + take as u64);
            } else {
                place.part = None;
            }
            *left -= bytes.len() as u64;
        } else {
            place.part = None;
        }
        *self.given.of(stream) = Some(place);
        LogChunk::new(stream, bytes, self.given.position())
    }
}

async fn has_ended(engine: &Engine, container: &str) -> Result<bool> {
    let found = engine.container(container).await.map_err(Error::from)?;
    let Some(found) = found else {
        let message = "the run is gone";
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    let status = found.state.and_then(|state| state.status);
    match status {
        Some(Status::CREATED) => {
            let message = "the run has not started";
            Err(Error::new(ErrorKind::NotReady, message))
        }
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING) => Ok(false),
        _ => Ok(true),
    }
}

fn failed(source: bollard::errors::Error) -> Error {
    Step::Engine {
        step: "reading the log",
        source,
    }
    .into()
}

/// The engine's entries from a point on, numbered.
struct Entries {
    outputs: Outputs,
    /// The last entry of each stream.
    last: Cursor,
    /// What was given before; `None` for a stream that is past it.
    skip: Cursor,
}

impl Entries {
    fn open(docker: &Docker, container: &str, follow: bool, skip: Cursor) -> Self {
        let query = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .follow(follow)
            .since(skip.since());
        Self {
            outputs: Box::pin(docker.logs(container, Some(query.build()))),
            last: Cursor::default(),
            skip,
        }
    }

    /// What an entry has to add, if anything; `part` tells how much of it was given before.
    fn sort(&mut self, output: LogOutput) -> Result<Option<(LogStream, Place, Bytes)>> {
        let (stream, message) = match output {
            LogOutput::StdOut { message } => (LogStream::Stdout, message),
            LogOutput::StdErr { message } => (LogStream::Stderr, message),
            LogOutput::StdIn { message } | LogOutput::Console { message } => {
                (LogStream::Merged, message)
            }
        };
        let Some((nanos, mut bytes)) = split(&message) else {
            let message = "an entry of the log has no time before it";
            return Err(Error::new(ErrorKind::Protocol, message));
        };
        let last = self.last.of(stream);
        let number = match *last {
            Some(last) if last.nanos == nanos => last.number + 1,
            _ => 1,
        };
        let mut place = Place {
            nanos,
            number,
            part: None,
        };
        *last = Some(place);
        if let Some(skip) = *self.skip.of(stream) {
            let (here, there) = ((nanos, number), (skip.nanos, skip.number));
            if here < there || (here == there && skip.part.is_none()) {
                return Ok(None);
            }
            *self.skip.of(stream) = None;
            if here == there {
                let part = usize::try_from(skip.part.unwrap_or(0)).unwrap_or(usize::MAX);
                bytes = bytes.slice(part.min(bytes.len())..);
                place.part = skip.part;
            }
        }
        Ok((!bytes.is_empty()).then_some((stream, place, bytes)))
    }
}

/// The time before an entry, and the entry.
fn split(message: &Bytes) -> Option<(u64, Bytes)> {
    let space = message.iter().take(64).position(|byte| *byte == b' ')?;
    let text = std::str::from_utf8(&message[..space]).ok()?;
    let time = crate::time::from_engine(text)?;
    let nanos = time.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    Some((u64::try_from(nanos).ok()?, message.slice(space + 1..)))
}

/// An entry of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Its time, since 1970.
    nanos: u64,
    /// Its number among those of this time, from 1.
    number: u64,
    /// How many of its bytes; `None` is all.
    part: Option<u64>,
}

impl Place {
    fn parse(text: &str) -> Option<Option<Self>> {
        if text == "-" {
            return Some(None);
        }
        let mut parts = text.split(':').map(str::parse);
        let (nanos, number) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let part = parts.next().transpose().ok()?;
        let whole = parts.next().is_none();
        whole.then_some(Some(Self {
            nanos,
            number,
            part,
        }))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.nanos, self.number)?;
        match self.part {
            Some(part) => write!(f, ":{part}"),
            None => Ok(()),
        }
    }
}

/// A position: the last entry of each stream, if there was one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    out: Option<Place>,
    err: Option<Place>,
}

impl Cursor {
    fn of(&mut self, stream: LogStream) -> &mut Option<Place> {
        match stream {
            LogStream::Stderr => &mut self.err,
            _ => &mut self.out,
        }
    }

    fn parse(position: &LogPosition) -> Result<Self> {
        let text = position.as_str();
        let cursor = text.split_once('/').and_then(|(out, err)| {
            Some(Self {
                out: Place::parse(out)?,
                err: Place::parse(err)?,
            })
        });
        cursor.ok_or_else(|| {
            Error::invalid("since", format!("{text:?} is no position of this runtime"))
        })
    }

    fn position(self) -> LogPosition {
        let show = |place: Option<Place>| match place {
            Some(place) => place.to_string(),
            None => "-".to_owned(),
        };
        LogPosition::new(format!("{}/{}", show(self.out), show(self.err)))
    }

    /// The second from which on the engine is asked: with one to spare, as the first entry of the
    /// other stream may have been timed and not yet written.
    fn since(self) -> i32 {
        let first = self.out.iter().chain(&self.err).map(|place| place.nanos);
        let second = first.min().unwrap_or(0) / 1_000_000_000;
        i32::try_from(second.saturating_sub(1)).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    fn out(time: &str, text: &str) -> LogOutput {
        let message = format!("2026-11-24T23:00:{time}Z {text}").into();
        LogOutput::StdOut { message }
    }

    fn err(time: &str, text: &str) -> LogOutput {
        let LogOutput::StdOut { message } = out(time, text) else {
            unreachable!()
        };
        LogOutput::StdErr { message }
    }

    /// A long line whose later parts come after what was printed meanwhile, and entries of one time.
    fn log() -> Vec<LogOutput> {
        vec![
            out("01.5", "a"),
            out("01.5", "b"),
            err("02.25", "c"),
            out("01.5", "d"),
            err("02.25", "e f"),
            out("03", "g"),
        ]
    }

    fn reader(given: Cursor, left: Option<u64>) -> Reader {
        let docker = Docker::connect_with_http("127.0.0.1:1", 1, bollard::API_DEFAULT_VERSION);
        let items: Vec<Result<LogOutput, bollard::errors::Error>> =
            log().into_iter().map(Ok).collect();
        Reader {
            engine: Engine::of(docker.unwrap()),
            container: String::new(),
            follow: false,
            again_at_end: false,
            left,
            given,
            entries: Some(Entries {
                outputs: Box::pin(stream::iter(items)),
                last: Cursor::default(),
                skip: given,
            }),
            idle: 0,
        }
    }

    async fn all(mut reader: Reader) -> Vec<(String, LogPosition)> {
        let mut seen = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
            seen.push((text, chunk.position));
        }
        seen
    }

    #[tokio::test]
    async fn every_position_goes_on_where_it_was() {
        let whole = all(reader(Cursor::default(), None)).await;
        let texts: Vec<&str> = whole.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["a", "b", "c", "d", "e f", "g"]);
        for (index, (_, position)) in whole.iter().enumerate() {
            let given = Cursor::parse(position).unwrap();
            assert_eq!(given.position(), *position);
            assert_eq!(all(reader(given, None)).await, whole[index + 1..]);
        }
    }

    #[tokio::test]
    async fn a_limit_within_an_entry_loses_nothing() {
        let whole = "abcde fg";
        for limit in 0..=whole.len() as u64 {
            let first = all(reader(Cursor::default(), Some(limit))).await;
            let mut text: String = first.iter().map(|(text, _)| text.as_str()).collect();
            assert_eq!(text.len() as u64, limit);
            if let Some((_, position)) = first.last() {
                let given = Cursor::parse(position).unwrap();
                // A byte at a time, through positions within entries.
                let mut position = given;
                loop {
                    let next = all(reader(position, Some(1))).await;
                    let Some((piece, after)) = next.into_iter().next() else {
                        break;
                    };
                    text.push_str(&piece);
                    position = Cursor::parse(&after).unwrap();
                }
                assert_eq!(text, whole, "{limit}");
            }
        }
    }

    #[test]
    fn other_positions_are_refused() {
        for bad in [
            "",
            "1",
            "1:2",
            "-",
            "1:2/",
            "/",
            "1:2/3",
            "1:2:3:4/-",
            "a:1/-",
            "-1:1/-",
        ] {
            let error = Cursor::parse(&LogPosition::new(bad)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{bad}");
        }
    }

    #[test]
    fn what_the_engine_sends_need_not_have_times() {
        for bad in ["", "x", "no time", "2026-11-24T23:00:00Z"] {
            assert!(split(&Bytes::from(bad)).is_none(), "{bad}");
        }
        let (nanos, rest) = split(&Bytes::from("1970-01-01T00:00:01.5Z  \0")).unwrap();
        assert_eq!((nanos, &rest[..]), (1_500_000_000, &b" \0"[..]));
    }
}
