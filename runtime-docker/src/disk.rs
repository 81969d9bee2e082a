//! What a run has written, read where the engine keeps it, if that is on a disk of this machine and
//! this process may read it.
//!
//! Through the engine's API even an empty file takes 40 ms or more: it mounts the container anew and
//! starts a program of its own to pack the file (measured with Docker 20.10, `docs/measurements.md`).

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use v6_runtime::{Error, ErrorKind, Result, ResultStream};

use crate::archive;
use crate::container::collected_at;
use crate::record::Record;
use crate::state::Shared;

/// The file in a run's volume that holds the attempt's number, out of the run's reach.
pub(crate) const ATTEMPT: &str = "attempt";

const PIECE: usize = 256 << 10;
/// Whoever made it on another machine, this file has the length of a number of ours.
const ATTEMPT_BYTES: u64 = 32;

impl Shared {
    /// The bytes of a file that was made beforehand, for a run that has ended: an output by its number,
    /// or the claim.
    ///
    /// Errors in the stream are those of [`archive::get_file`].
    pub(crate) fn collected(
        &self,
        container: &str,
        record: &Record,
        volume: &str,
        name: &str,
        limit: u64,
    ) -> ResultStream<Bytes> {
        let (engine, container) = (self.engine.clone(), container.to_owned());
        let (volume, attempt) = (volume.to_owned(), record.attempt.clone());
        let (name, local) = (name.to_owned(), self.config.local_files);
        let opening = async move {
            if local && let Some(bytes) = read(&volume, &attempt, &name, limit).await? {
                return Ok::<_, Error>(bytes);
            }
            let path = collected_at(&name);
            Ok(archive::get_file(engine, container, path, limit))
        };
        Box::pin(stream::once(opening).try_flatten())
    }
}

/// The bytes of the file `out/NAME` in the volume at this path of the engine.
///
/// `None` if it cannot be read here: the engine is on another machine, or this process is in a
/// container, or not allowed to. It is the same disk if the number of this attempt, which nobody can
/// guess, lies beside it. The run cannot have put anything else in the file's place.
///
/// # Errors
/// `InvalidSpec` for what is no regular file; `Quota` for more than `limit` bytes.
async fn read(
    volume: &str,
    attempt: &str,
    name: &str,
    limit: u64,
) -> Result<Option<ResultStream<Bytes>>> {
    let (volume, attempt, name) = (volume.to_owned(), attempt.to_owned(), name.to_owned());
    let open = move || open(Path::new(&volume), &attempt, &name);
    let opened = tokio::task::spawn_blocking(open).await;
    let opened = opened.map_err(|error| {
        Error::new(ErrorKind::Unexpected, "a file was not opened").with_source(error)
    })?;
    let Some((file, size)) = opened? else {
        return Ok(None);
    };
    if size > limit {
        let message = format!("the output has {size} bytes, at most {limit} are taken");
        return Err(Error::new(ErrorKind::Quota, message));
    }
    let file = tokio::fs::File::from_std(file).take(size);
    let pieces = ReaderStream::with_capacity(file, PIECE).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the output could not be read").with_source(error)
    });
    Ok(Some(Box::pin(pieces)))
}

fn open(volume: &Path, attempt: &str, name: &str) -> Result<Option<(File, u64)>> {
    let Ok(volume) = folder(rustix::fs::CWD, volume) else {
        return Ok(None);
    };
    let has_attempt = || -> io::Result<bool> {
        use std::io::Read;
        let mut found = String::new();
        let file = file(&volume, ATTEMPT)?;
        file.take(ATTEMPT_BYTES + 1).read_to_string(&mut found)?;
        Ok(found == attempt)
    };
    if !has_attempt().unwrap_or(false) {
        return Ok(None);
    }
    let Ok(file) = folder(&volume, Path::new("out")).and_then(|out| file(&out, name)) else {
        return Ok(None);
    };
    let about = file.metadata().map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the output could not be looked at").with_source(error)
    })?;
    if !about.is_file() {
        let message = "the output is not a regular file";
        return Err(Error::new(ErrorKind::InvalidSpec, message));
    }
    Ok(Some((file, about.len())))
}

fn folder(at: impl std::os::fd::AsFd, path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

fn file(at: impl std::os::fd::AsFd, name: &str) -> io::Result<File> {
    // Not blocking: nobody should have put a FIFO there, and if somebody has, we do not wait for it.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    const NUMBER: &str = "0123456789abcdef0123456789abcdef";

    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("out")).unwrap();
            std::fs::write(folder.path().join(ATTEMPT), NUMBER).unwrap();
            Self(folder)
        }

        fn path(&self) -> &Path {
            self.0.path()
        }

        async fn read(&self, attempt: &str, limit: u64) -> Result<Option<Vec<u8>>> {
            let volume = self.path().to_str().unwrap();
            match read(volume, attempt, "0", limit).await? {
                Some(pieces) => {
                    let pieces: Vec<Bytes> = pieces.try_collect().await?;
                    Ok(Some(pieces.concat()))
                }
                None => Ok(None),
            }
        }
    }

    #[tokio::test]
    async fn a_file_is_read_whole() {
        let volume = Volume::new();
        let content: Vec<u8> = (0..3 * PIECE + 7).map(|n| n as u8).collect();
        std::fs::write(volume.path().join("out/0"), &content).unwrap();
        let limit = content.len() as u64;
        assert_eq!(volume.read(NUMBER, limit).await.unwrap(), Some(content));
        let error = volume.read(NUMBER, limit - 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Quota);
    }

    #[tokio::test]
    async fn another_disk_is_noticed() {
        let volume = Volume::new();
        std::fs::write(volume.path().join("out/0"), "x").unwrap();
        let other = NUMBER.replace('0', "1");
        assert_eq!(volume.read(&other, 9).await.unwrap(), None);
        std::fs::write(volume.path().join(ATTEMPT), NUMBER.repeat(2)).unwrap();
        assert_eq!(volume.read(NUMBER, 9).await.unwrap(), None);
        std::fs::remove_file(volume.path().join(ATTEMPT)).unwrap();
        assert_eq!(volume.read(NUMBER, 9).await.unwrap(), None);
        let gone = read("/no/such/volume", NUMBER, "0", 9).await.unwrap();
        assert!(gone.is_none());
    }

    #[tokio::test]
    async fn nothing_is_followed_and_nothing_waited_for() {
        let volume = Volume::new();
        let at = volume.path().join("out/0");
        std::os::unix::fs::symlink("/etc/passwd", &at).unwrap();
        assert_eq!(volume.read(NUMBER, 1 << 20).await.unwrap(), None);
        std::fs::remove_file(&at).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &at, Mode::from(0o600)).unwrap();
        let error = volume.read(NUMBER, 9).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    }
}
