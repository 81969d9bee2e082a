//! What a program has printed, from the machine's log of its container.
//!
//! Each line comes with the time at which it was printed, which makes a place in the log that lasts
//! when the machine begins a new file.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::io::AsyncRead;
use futures_util::{AsyncReadExt, TryStreamExt, stream};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::LogParams;
use v6_runtime::{
    Error, ErrorKind, LogChunk, LogOptions, LogPosition, LogStream, Result, ResultStream, RunId,
};

use crate::error::Error as Step;
use crate::look::Look;
use crate::pod::PROGRAM;
use crate::state::Shared;
use crate::translate;

/// The most bytes of one chunk.
const PIECE: usize = 64 << 10;
/// A time stamp is never longer.
const STAMP: usize = 64;

/// By how much the times of two lines may be out of order at most, where they are of two streams.
const DISORDER: SignedDuration = SignedDuration::from_millis(100);

/// Between two readings of a log that is followed, at first and at most.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A run's log.
pub(crate) fn read(shared: Arc<Shared>, id: RunId, options: LogOptions) -> ResultStream<LogChunk> {
    let opening = async move {
        let told = |error: Error| error.with_operation("logs").with_run(&id);
        let look = shared.look(&id).await.map_err(|error| told(error.into()))?;
        let look = look.ok_or_else(|| told(Error::no_such_run(&id)))?;
        if !translate::has_run(&look.pod) {
            if look.status.phase.is_finished() {
                // It has never printed anything.
                return Ok(Box::pin(stream::empty()) as ResultStream<LogChunk>);
            }
            let message = "the run has not started";
            return Err(told(Error::new(ErrorKind::NotReady, message)));
        }
        let log = Log::open(shared, look, options).await.map_err(told)?;
        let id = id.clone();
        let chunks = stream::try_unfold(log, |mut log| async move {
            let chunk = Box::pin(log.next()).await?;
            Ok(chunk.map(|chunk| (chunk, log)))
        });
        let chunks = chunks.map_err(move |error: Error| error.with_operation("logs").with_run(&id));
        Ok(Box::pin(chunks) as ResultStream<LogChunk>)
    };
    Box::pin(stream::once(opening).try_flatten())
}

/// A log that is being read, in one reading or in several.
///
/// The cluster ends a reading that follows also when the machine's kubelet or the API server is restarted, and in the
/// same way as when the program has ended. So it is read on until a reading that began after the end has come to its own.
struct Log {
    shared: Arc<Shared>,
    look: Look,
    follow: bool,
    lines: Lines,
    pause: Duration,
}

impl Log {
    async fn open(shared: Arc<Shared>, look: Look, options: LogOptions) -> Result<Self> {
        let since = options.since.as_ref().map(Place::parse).transpose()?;
        let left = options.limit_bytes.unwrap_or(u64::MAX);
        let lines = reading(&shared, &look, options.follow, since, left).await?;
        Ok(Self {
            shared,
            look,
            follow: options.follow,
            lines,
            pause: PAUSE,
        })
    }

    async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.lines.next().await? {
                self.pause = PAUSE;
                return Ok(Some(chunk));
            }
            let is_whole = !self.follow || self.look.status.phase.is_finished();
            if is_whole || self.lines.left == 0 {
                return Ok(None);
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            let Some(look) = self.shared.look(&self.look.record.id).await? else {
                // Removed with its log.
                return Ok(None);
            };
            self.look = look;
            let (since, left) = (self.lines.reached.clone(), self.lines.left);
            match reading(&self.shared, &self.look, true, since, left).await {
                Ok(lines) => self.lines = lines,
                Err(error) => {
                    let left = self.shared.look(&self.look.record.id).await?;
                    return left.map_or(Ok(None), |_| Err(error));
                }
            }
        }
    }
}

async fn reading(
    shared: &Shared,
    look: &Look,
    follow: bool,
    since: Option<Place>,
    left: u64,
) -> Result<Lines> {
    let parameters = LogParams {
        container: Some(PROGRAM.into()),
        follow,
        timestamps: true,
        since_time: since.as_ref().map(Place::ask_from),
        ..LogParams::default()
    };
    let name = look.pod.metadata.name.as_deref().unwrap_or_default();
    let cluster = &shared.cluster;
    let open = || cluster.pods.log_stream(name, &parameters);
    let log = cluster.read("reading a log", open).await;
    let log = log.map_err(Error::from)?;
    Ok(Lines::new(Box::pin(log), since, left))
}

/// A place in a log: in the line of this time, the how many of that time, behind so many bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    at: Timestamp,
    nth: u32,
    bytes: u64,
}

impl Place {
    fn parse(position: &LogPosition) -> Result<Self> {
        let parse = || {
            let mut parts = position.as_str().split(' ');
            let place = Self {
                at: parts.next()?.parse().ok()?,
                nth: parts.next()?.parse().ok()?,
                bytes: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(place)
        };
        parse().ok_or_else(|| Error::invalid("since", format!("{position} is no place in a log")))
    }

    /// From when on to ask for lines: surely before this place, and in whole seconds.
    ///
    /// `kube` rounds to the next second, up or down, and so would leave out what was printed between
    /// the place and the second (kube-core 5.0.0, `subresource.rs`). What comes
    /// before the place is passed over by [`Lines::passed_over`].
    fn ask_from(&self) -> Timestamp {
        Timestamp::from_second(self.at.as_second() - 1).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn position(&self) -> LogPosition {
        LogPosition::new(format!("{} {} {}", self.at, self.nth, self.bytes))
    }
}

struct Lines {
    from: Pin<Box<dyn AsyncRead + Send>>,
    buffer: BytesMut,
    ended: bool,
    /// Where in which line we are; `None` before a line's time stamp.
    place: Option<Place>,
    /// The line before: lines of one time are counted.
    before: Option<(Timestamp, u32)>,
    /// The place behind which the log is wanted, as long as it has not been met.
    since: Option<Place>,
    /// The place behind all that was given.
    reached: Option<Place>,
    left: u64,
}

impl Lines {
    fn new(from: Pin<Box<dyn AsyncRead + Send>>, since: Option<Place>, limit: u64) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            ended: false,
            place: None,
            before: None,
            reached: since.clone(),
            since,
            left: limit,
        }
    }

    async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            if self.place.is_none() {
                match self.begin_line().await? {
                    Some(place) => self.place = Some(place),
                    None => return Ok(None),
                }
            }
            if self.buffer.is_empty() && !self.fill().await? {
                return Ok(None);
            }
            let Some(place) = self.place.as_mut() else {
                continue;
            };
            let end = self.buffer.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(self.buffer.len(), |end| end + 1).min(PIECE);
            let mut bytes: Bytes = self.buffer.split_to(len).freeze();
            let before = place.bytes;
            place.bytes += len as u64;
            let now = place.clone();
            if end.is_some_and(|end| end + 1 == len) {
                self.before = Some((now.at, now.nth));
                self.place = None;
            }
            let skipped = self.passed_over(&now, before);
            bytes.advance(usize::try_from(skipped).unwrap_or(len).min(len));
            if bytes.is_empty() {
                continue;
            }
            let room = usize::try_from(self.left).unwrap_or(usize::MAX);
            let position = if bytes.len() > room {
                let cut = (bytes.len() - room) as u64;
                bytes.truncate(room);
                Place {
                    bytes: now.bytes - cut,
                    ..now
                }
            } else {
                now
            };
            self.left -= bytes.len() as u64;
            let chunk = LogChunk::new(LogStream::Merged, bytes, position.position());
            self.reached = Some(position);
            return Ok(Some(chunk));
        }
    }

    /// How many bytes of a piece are before the place from which on the log is wanted: a piece that
    /// began behind `before` bytes of its line and is read up to `now`.
    ///
    /// The place is found again by the time of its line and not passed by order: the machine takes
    /// the time of a line before it writes it, for each of a program's two streams by itself.
    fn passed_over(&mut self, now: &Place, before: u64) -> u64 {
        let Some(since) = &self.since else {
            return 0;
        };
        if (now.at, now.nth) == (since.at, since.nth) {
            let skipped = since.bytes.saturating_sub(before);
            if self.place.is_none() || now.bytes > since.bytes {
                self.since = None;
            }
            return skipped;
        }
        // The machine has thrown the file with that line away.
        if now.at.duration_since(since.at) > DISORDER {
            self.since = None;
            return 0;
        }
        u64::MAX
    }

    /// Reads the time stamp of the next line; `None` at the end of the log.
    async fn begin_line(&mut self) -> Result<Option<Place>> {
        loop {
            if let Some(space) = self.buffer.iter().take(STAMP).position(|b| *b == b' ') {
                let stamp = self.buffer.split_to(space + 1);
                let at = std::str::from_utf8(&stamp[..space])
                    .ok()
                    .and_then(|text| text.parse::<Timestamp>().ok());
                let Some(at) = at else {
                    return Err(not_understood());
                };
                let nth = match self.before {
                    Some((then, nth)) if then == at => nth + 1,
                    _ => 0,
                };
                return Ok(Some(Place { at, nth, bytes: 0 }));
            }
            if self.buffer.len() >= STAMP {
                return Err(not_understood());
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(not_understood())
                };
            }
        }
    }

    /// Reads on; `false` at the end.
    async fn fill(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let old = self.buffer.len();
        self.buffer.resize(old + PIECE, 0);
        let read = self.from.read(&mut self.buffer[old..]).await;
        let read = read
            .inspect_err(|_| self.buffer.truncate(old))
            .map_err(|source| {
                Error::from(Step::Tunnel {
                    step: "reading a log",
                    source,
                })
            })?;
        self.buffer.truncate(old + read);
        self.ended = read == 0;
        Ok(read > 0)
    }
}

fn not_understood() -> Error {
    let message = "a line of the log does not begin with its time";
    Error::new(ErrorKind::Protocol, message)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed test panics")]

    use futures_util::FutureExt;

    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(&LogPosition::new(text)).unwrap()
    }

    /// What is given of a log from a place on, as text with the position behind each chunk.
    fn given(log: &str, since: Option<&str>, limit: u64) -> Vec<(String, String)> {
        let log = Box::pin(futures_util::io::Cursor::new(log.as_bytes().to_vec()));
        let mut lines = Lines::new(log, since.map(place), limit);
        let mut chunks = Vec::new();
        while let Some(chunk) = lines.next().now_or_never().unwrap().unwrap() {
            let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
            assert_eq!(lines.reached.as_ref().unwrap().position(), chunk.position);
            chunks.push((text, chunk.position.as_str().to_owned()));
        }
        chunks
    }

    const LOG: &str = "2026-11-29T10:00:00.400000001Z one\n\
                       2026-11-29T10:00:00.600000002Z two\n\
                       2026-11-29T10:00:00.600000002Z three\n\
                       2026-11-29T10:00:00.600000001Z four, of the other stream\n\
                       2026-11-29T10:00:00.999999999Z five\n\
                       2026-11-29T10:00:03Z six";

    #[test]
    fn from_each_place_follows_exactly_the_rest() {
        for limit in [1, 2, 3, 5, 8, u64::MAX] {
            // Read bit by bit, each time from where the time before ended.
            let (mut got, mut since) = (String::new(), None::<String>);
            loop {
                let chunks = given(LOG, since.as_deref(), limit);
                if chunks.is_empty() {
                    break;
                }
                for (text, position) in chunks {
                    got.push_str(&text);
                    since = Some(position);
                }
            }
            assert_eq!(got, "one\ntwo\nthree\nfour, of the other stream\nfive\nsix");
        }
    }

    #[test]
    fn a_place_that_is_gone_is_passed_by_its_time() {
        let since = Some("2026-11-29T10:00:01.5Z 0 4");
        let rest = given(LOG, since, u64::MAX);
        assert_eq!(
            rest,
            [("six".to_owned(), "2026-11-29T10:00:03Z 0 3".to_owned())]
        );
    }

    #[test]
    fn lines_are_asked_for_from_before_the_place() {
        // `kube` rounds what it is given.
        for at in [
            "2026-11-29T10:00:00.400000001Z",
            "2026-11-29T10:00:00.999999999Z",
        ] {
            let from = place(&format!("{at} 0 4")).ask_from();
            assert_eq!(from.to_string(), "2026-11-29T09:59:59Z");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "1",
            "2026-11-29T10:00:00Z 0",
            "2026-11-29T10:00:00Z 0 0 0",
            "x 0 0",
        ] {
            let error = Place::parse(&LogPosition::new(text)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{text}");
        }
    }
}
