//! What a run has printed: frames in a file, read from a place in it.

use std::collections::HashMap;
use std::io::SeekFrom;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{mpsc, watch};
use v6_helper::{LogFrame, Sight};
use v6_runtime::{
    Error, ErrorKind, LogChunk, LogOptions, LogPosition, LogStream, Result, ResultStream, RunId,
};

use crate::state::Shared;

/// Says when there may be more in a log, to those who follow it.
pub(crate) struct LogNews {
    followers: Mutex<HashMap<RunId, watch::Sender<()>>>,
    wanted: (
        mpsc::UnboundedSender<RunId>,
        tokio::sync::Mutex<mpsc::UnboundedReceiver<RunId>>,
    ),
}

impl Default for LogNews {
    fn default() -> Self {
        // As many as there are calls of `logs`.
        let (send, receive) = mpsc::unbounded_channel();
        Self {
            followers: Mutex::default(),
            wanted: (send, tokio::sync::Mutex::new(receive)),
        }
    }
}

impl LogNews {
    /// From now on, changes of this log are told.
    fn follow(&self, id: &RunId) -> watch::Receiver<()> {
        let mut all = self
            .followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, sender| !sender.is_closed());
        let sender = all
            .entry(id.clone())
            .or_insert_with(|| watch::Sender::new(()));
        let receiver = sender.subscribe();
        // Nobody takes it once the runtime is gone, and then the log is not followed either.
        let _ = self.wanted.0.send(id.clone());
        receiver
    }

    /// The next run whose log somebody begins to follow.
    pub(crate) async fn wanted(&self) -> RunId {
        match self.wanted.1.lock().await.recv().await {
            Some(id) => id,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn tell(&self, id: &RunId) {
        let all = self
            .followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = all.get(id) {
            sender.send_replace(());
        }
    }
}

struct Reading {
    shared: Arc<Shared>,
    id: RunId,
    file: File,
    position: u64,
    left: Option<u64>,
    news: Option<watch::Receiver<()>>,
    /// The run is over: what is there now is all.
    over: bool,
}

/// The chunks of a run's log.
pub(crate) async fn read(
    shared: Arc<Shared>,
    id: RunId,
    options: LogOptions,
) -> Result<ResultStream<LogChunk>> {
    let not_readable =
        |error| Error::new(ErrorKind::Unexpected, "the log cannot be read").with_source(error);
    let position = match &options.since {
        Some(position) => parse(position)?,
        None => 0,
    };
    let look = shared.look(&id).await.map_err(Error::from)?;
    let look = look.ok_or_else(|| Error::no_such_run(&id))?;
    let over = look.status.phase.is_finished();
    let mut file = match File::open(shared.runs.place(&id).0.log()).await {
        Ok(file) => file,
        // It has never printed anything.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && over => {
            return Ok(Box::pin(stream::empty()));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = "the run has not started";
            return Err(Error::new(ErrorKind::NotReady, message));
        }
        Err(error) => return Err(not_readable(error)),
    };
    let length = file.metadata().await.map_err(not_readable)?.len();
    if position > length {
        return Err(bad_position());
    }
    file.seek(SeekFrom::Start(position))
        .await
        .map_err(not_readable)?;
    let news = (options.follow && !over).then(|| shared.log_news.follow(&id));
    if news.is_some() {
        shared.start_watching().await;
    }
    let reading = Reading {
        shared,
        id,
        file,
        position,
        left: options.limit_bytes,
        news,
        over,
    };
    Ok(Box::pin(stream::try_unfold(
        reading,
        |mut reading| async move {
            let chunk = reading.next().await?;
            Ok(chunk.map(|chunk| (chunk, reading)))
        },
    )))
}

impl Reading {
    async fn next(&mut self) -> Result<Option<LogChunk>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        loop {
            if let Some(news) = &mut self.news {
                // What comes from here on is told again.
                news.mark_unchanged();
            }
            if let Some(chunk) = self.frame().await? {
                return Ok(Some(chunk));
            }
            if self.over || self.news.is_none() {
                return Ok(None);
            }
            let look = self.shared.look(&self.id).await.map_err(Error::from)?;
            // Gone is over, too; what was printed until then is in the file that is open.
            self.over = look.is_none_or(|look| {
                look.status.phase.is_finished() || matches!(look.sight, Sight::Lost { .. })
            });
            if self.over {
                // Once more: what came before the end.
                continue;
            }
            let Some(news) = &mut self.news else {
                return Ok(None);
            };
            if news.changed().await.is_err() {
                let message = "the log is not watched any more";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
    }

    /// The next frame, if it is there whole.
    async fn frame(&mut self) -> Result<Option<LogChunk>> {
        let broken = || Error::new(ErrorKind::Protocol, "the log's file is damaged");
        let mut header = [0; LogFrame::HEADER];
        if !self.fill(&mut header).await? {
            return Ok(None);
        }
        let frame = LogFrame::parse(header).ok_or_else(broken)?;
        let mut bytes = BytesMut::zeroed(frame.len as usize);
        if !self.fill(&mut bytes).await? {
            return Ok(None);
        }
        self.position += (LogFrame::HEADER + bytes.len()) as u64;
        let mut bytes: Bytes = bytes.freeze();
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            bytes.truncate(room);
            *left -= bytes.len() as u64;
        }
        let stream = if frame.is_stderr {
            LogStream::Stderr
        } else {
            LogStream::Stdout
        };
        let position = LogPosition::new(self.position.to_string());
        Ok(Some(LogChunk::new(stream, bytes, position)))
    }

    /// Fills a buffer; where the file has not so much yet, goes back to the frame's begin.
    async fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let not_readable =
            |error| Error::new(ErrorKind::Unexpected, "the log cannot be read").with_source(error);
        match self.file.read_exact(buffer).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let begin = SeekFrom::Start(self.position);
                self.file.seek(begin).await.map_err(not_readable)?;
                Ok(false)
            }
            Err(error) => Err(not_readable(error)),
        }
    }
}

fn parse(position: &LogPosition) -> Result<u64> {
    position.as_str().parse().map_err(|_| bad_position())
}

fn bad_position() -> Error {
    Error::invalid("since", "is no place in this log")
}
