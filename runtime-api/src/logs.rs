//! What a run has printed.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Which part of a run's log to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogOptions {
    /// Go on until the run ends, instead of ending at what there is.
    pub follow: bool,
    /// Only what comes after this chunk.
    pub since: Option<LogPosition>,
    /// End the stream after this many bytes; `None` reads all that the engine has kept.
    pub limit_bytes: Option<u64>,
}

impl LogOptions {
    /// Sets [`follow`](Self::follow).
    #[must_use]
    pub fn with_follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Sets [`since`](Self::since).
    #[must_use]
    pub fn with_since(mut self, since: LogPosition) -> Self {
        self.since = Some(since);
        self
    }

    /// Sets [`limit_bytes`](Self::limit_bytes).
    #[must_use]
    pub fn with_limit_bytes(mut self, limit: u64) -> Self {
        self.limit_bytes = Some(limit);
        self
    }
}

/// A piece of a run's log: bytes as printed, not lines and not necessarily UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogChunk {
    /// Where the program wrote it.
    pub stream: LogStream,
    /// The bytes.
    pub bytes: Bytes,
    /// The place after this chunk, for [`LogOptions::since`].
    pub position: LogPosition,
}

impl LogChunk {
    /// A chunk; for backends.
    #[must_use]
    pub fn new(stream: LogStream, bytes: Bytes, position: LogPosition) -> Self {
        Self {
            stream,
            bytes,
            position,
        }
    }
}

/// Where a program wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The engine does not tell them apart.
    Merged,
}

/// A place in a run's log, in the backend's own notation; valid until `cleanup`, also in another
/// process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogPosition(Box<str>);

impl LogPosition {
    /// Wraps a backend's notation.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The backend's notation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
