//! What a run has printed: two files, read side by side.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use v6_runtime::{Error, LogChunk, LogOptions, LogPosition, LogStream, Result, RunId};

use crate::notices::Notices;
use crate::record::Folder;
use crate::runtime::{blocking, broken};

/// The most bytes of one chunk.
const CHUNK: u64 = 64 << 10;

/// A place in the log of one run, from which it is read on.
pub(crate) struct Log {
    files: Arc<Files>,
    /// How much of each stream has been read.
    at: [u64; 2],
    /// How many bytes are still wanted.
    left: u64,
    notices: Option<Notices>,
}

struct Files {
    id: RunId,
    folder: Folder,
    streams: [std::fs::File; 2],
}

impl Log {
    pub(crate) fn open(id: RunId, folder: Folder, options: &LogOptions) -> Result<Self> {
        let open = |name| folder.read(name).map_err(|error| broken("logs", error));
        let streams = [open("stdout")?, open("stderr")?];
        let at = options.since.as_ref().map_or(Ok([0, 0]), place)?;
        let watch = |folder: &Folder| Notices::of(folder.path());
        let notices = options.follow.then(|| watch(&folder)).transpose();
        Ok(Self {
            notices: notices.map_err(|error| broken("logs", error))?,
            files: Arc::new(Files {
                id,
                folder,
                streams,
            }),
            at,
            left: options.limit_bytes.unwrap_or(u64::MAX),
        })
    }

    /// The next chunk, and the place after it; `None` at the end.
    pub(crate) async fn next(mut self) -> Result<Option<(LogChunk, Self)>> {
        loop {
            let (files, at, left) = (self.files.clone(), self.at, self.left);
            let (chunk, over) = blocking("logs", move || {
                // Asked before reading: what was printed before the end is read after it.
                let over = files.over()?;
                Ok((files.read(at, left)?, over))
            })
            .await?;
            if let Some((number, bytes)) = chunk {
                let length = bytes.len() as u64;
                self.at[number] += length;
                self.left -= length;
                let stream = [LogStream::Stdout, LogStream::Stderr][number];
                let position = LogPosition::new(format!("{}+{}", self.at[0], self.at[1]));
                return Ok(Some((LogChunk::new(stream, bytes, position), self)));
            }
            match &self.notices {
                Some(notices) if !over && self.left > 0 => {
                    notices
                        .next()
                        .await
                        .map_err(|error| broken("logs", error))?;
                }
                _ => return Ok(None),
            }
        }
    }
}

impl Files {
    fn over(&self) -> std::io::Result<bool> {
        let status = self.folder.status(&self.id)?;
        Ok(status.is_none_or(|status| status.phase.is_finished()))
    }

    /// Something of either stream, if there is anything more.
    fn read(&self, at: [u64; 2], left: u64) -> std::io::Result<Option<(usize, Bytes)>> {
        for (number, file) in self.streams.iter().enumerate() {
            let mut bytes = vec![0; CHUNK.min(left) as usize];
            let length = file.read_at(&mut bytes, at[number])?;
            if length > 0 {
                bytes.truncate(length);
                return Ok(Some((number, bytes.into())));
            }
        }
        Ok(None)
    }
}

fn place(position: &LogPosition) -> Result<[u64; 2]> {
    let parts = position.as_str().split_once('+');
    parts
        .and_then(|(out, err)| Some([out.parse().ok()?, err.parse().ok()?]))
        .ok_or_else(|| Error::invalid("since", "this is no position in a log of this runtime"))
}
