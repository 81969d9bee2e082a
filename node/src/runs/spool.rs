//! An output on its way from the engine to HQ: its length has to be known, and it may have to be
//! read several times, before HQ has taken it.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWriteExt};
use v6_runtime::{Error, ErrorKind, Result, ResultStream};

use crate::hq::ResultSource;

/// Up to so many bytes an output stays in memory; most results are smaller.
const IN_MEMORY: usize = 256 << 10;

/// A collected output. Gone from disk when it is dropped, also by a crash.
#[derive(Debug)]
pub enum Spool {
    /// A small one.
    Memory(Bytes),
    /// A large one, in a file without a name.
    File {
        /// The only way to it.
        file: std::fs::File,
        /// In bytes.
        length: u64,
    },
}

impl Spool {
    /// Reads an output to its end. Large ones go to a file in `folder`.
    ///
    /// # Errors
    /// Those of the stream; [`ErrorKind::Unexpected`] if the folder cannot be written.
    pub async fn collect(mut chunks: ResultStream<Bytes>, folder: &Path) -> Result<Self> {
        let mut memory = BytesMut::new();
        while let Some(chunk) = chunks.try_next().await? {
            memory.extend_from_slice(&chunk);
            if memory.len() > IN_MEMORY {
                return Self::to_file(memory, chunks, folder).await;
            }
        }
        Ok(Self::Memory(memory.freeze()))
    }

    async fn to_file(
        first: BytesMut,
        mut chunks: ResultStream<Bytes>,
        folder: &Path,
    ) -> Result<Self> {
        let place = folder.to_owned();
        let file = blocking(folder, move || {
            std::fs::create_dir_all(&place)?;
            tempfile::tempfile_in(&place)
        })
        .await?;
        let failed = |error| not_kept(folder, error);
        let handle = file.try_clone().map_err(failed)?;
        let mut writer = tokio::fs::File::from_std(handle);
        writer.write_all(&first).await.map_err(failed)?;
        let mut length = first.len() as u64;
        while let Some(chunk) = chunks.try_next().await? {
            writer.write_all(&chunk).await.map_err(failed)?;
            length += chunk.len() as u64;
        }
        writer.flush().await.map_err(failed)?;
        Ok(Self::File { file, length })
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length() == 0
    }
}

#[async_trait]
impl ResultSource for Spool {
    fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    async fn open(&self) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        match self {
            Self::Memory(bytes) => Ok(Box::pin(io::Cursor::new(bytes.clone()))),
            Self::File { file, .. } => {
                // Opened anew, so that each reader has a position of its own.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(Box::pin(tokio::fs::File::open(path).await?))
            }
        }
    }
}

/// Reads an output to its end into a file that has a name while the value lives.
///
/// # Errors
/// As [`Spool::collect`].
pub async fn to_named_file(
    mut chunks: ResultStream<Bytes>,
    folder: &Path,
) -> Result<NamedTempFile> {
    let place = folder.to_owned();
    let file = blocking(folder, move || {
        std::fs::create_dir_all(&place)?;
        NamedTempFile::new_in(&place)
    })
    .await?;
    let failed = |error| not_kept(folder, error);
    let mut writer = tokio::fs::File::from_std(file.as_file().try_clone().map_err(failed)?);
    while let Some(chunk) = chunks.try_next().await? {
        writer.write_all(&chunk).await.map_err(failed)?;
    }
    writer.flush().await.map_err(failed)?;
    Ok(file)
}

async fn blocking<T: Send + 'static>(
    folder: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| not_kept(folder, error)),
        Err(error) => Err(not_kept(folder, io::Error::other(error))),
    }
}

fn not_kept(folder: &Path, error: io::Error) -> Error {
    let message = format!("the output could not be kept in {}", folder.display());
    Error::new(ErrorKind::Unexpected, message).with_source(error)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use futures_util::stream;
    use tokio::io::AsyncReadExt;

    async fn read(spool: &Spool) -> Vec<u8> {
        let mut bytes = Vec::new();
        spool
            .open()
            .await
            .unwrap()
            .read_to_end(&mut bytes)
            .await
            .unwrap();
        bytes
    }

    #[tokio::test]
    async fn gives_back_what_it_took_as_often_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 1, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY + 7] {
            let all: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let chunks: Vec<_> = all
                .chunks(10_000)
                .map(|c| Ok(Bytes::copy_from_slice(c)))
                .collect();
            let spool = Spool::collect(Box::pin(stream::iter(chunks)), folder.path())
                .await
                .unwrap();
            assert_eq!(spool.length(), size as u64);
            assert_eq!(matches!(spool, Spool::File { .. }), size > IN_MEMORY);
            for _ in 0..2 {
                assert!(read(&spool).await == all);
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
