//! Files into a container.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bollard::query_parameters::UploadToContainerOptionsBuilder;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use v6_runtime::{Error, ErrorKind, InputReader, InputStream, Result};

use super::{END, Head, PIECE, STALLED, UNLIMITED, padding};
use crate::engine::Engine;
use crate::error::Error as Step;

/// A file or folder to be made.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Below the folder that is uploaded to.
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) content: Content,
}

/// What an entry holds.
#[derive(Debug)]
pub(crate) enum Content {
    Folder,
    Bytes(Bytes),
    Stream(InputStream),
}

/// Uploads entries, in order, below `path` of a container.
///
/// Dropping it, or an error, leaves a part of the files there: the caller removes the container.
///
/// # Errors
/// `InvalidSpec` for a stream that is longer or shorter than it said, `Timeout` if nothing moves;
/// those of the sources and of the engine.
pub(crate) async fn put(
    engine: &Engine,
    container: &str,
    path: &str,
    entries: Vec<Entry>,
) -> Result<()> {
    let put = || upload(engine, container, path, &entries);
    Ok(engine.with_files(container, put).await?)
}

async fn upload(
    engine: &Engine,
    container: &str,
    path: &str,
    entries: &[Entry],
) -> Result<(), Step> {
    let mut plan = Vec::with_capacity(entries.len());
    for entry in entries {
        plan.push(Planned::of(entry).await?);
    }
    let progress = Arc::new(Progress::default());
    let body = bollard::body_try_stream(encode(plan, progress.clone()));
    let options = UploadToContainerOptionsBuilder::default()
        .path(path)
        .build();
    let docker = engine.docker.clone().with_timeout(UNLIMITED);
    let uploading = docker.upload_to_container(container, Some(options), body);
    let mut uploading = pin!(uploading);
    let uploaded = loop {
        let before = progress.moved.load(Ordering::Relaxed);
        match timeout(STALLED, &mut uploading).await {
            Ok(uploaded) => break uploaded,
            Err(_) if progress.moved.load(Ordering::Relaxed) != before => {}
            Err(_) => {
                let message = "the engine has stopped taking files";
                return Err(Error::new(ErrorKind::Timeout, message).into());
            }
        }
    };
    // What was wrong with a source has broken the request off.
    if let Some(error) = progress.failure() {
        return Err(error.into());
    }
    uploaded.map_err(|source| Step::Engine {
        step: "storing files",
        source,
    })
}

/// What the caller sees of an upload, which the client drives.
#[derive(Default)]
struct Progress {
    moved: AtomicU64,
    failed: Mutex<Option<Error>>,
}

impl Progress {
    fn fail(&self, error: Error) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn failure(&self) -> Option<Error> {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// An entry whose source is open, so that what is wrong with it is known before the upload.
struct Planned {
    head: Bytes,
    path: String,
    size: u64,
    body: Body,
}

enum Body {
    Bytes(Bytes),
    Reader(InputReader),
}

impl Planned {
    async fn of(entry: &Entry) -> Result<Self> {
        let (size, body) = match &entry.content {
            Content::Folder => (0, Body::Bytes(Bytes::new())),
            Content::Bytes(bytes) => (bytes.len() as u64, Body::Bytes(bytes.clone())),
            Content::Stream(stream) => (stream.len(), Body::Reader(stream.open().await?)),
        };
        let head = Head {
            name: entry.path.as_bytes(),
            folder: matches!(entry.content, Content::Folder),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            size,
        };
        let head = head
            .encode()
            .map_err(|error| Error::invalid("mounts", format!("{:?}: {error}", entry.path)))?;
        Ok(Self {
            head,
            path: entry.path.clone(),
            size,
            body,
        })
    }
}

/// The archive. A source that fails breaks it off, so that the engine never sees its end.
fn encode(
    plan: Vec<Planned>,
    progress: Arc<Progress>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let writer = Writer {
        plan: plan.into_iter(),
        next: Next::Entry,
    };
    stream::try_unfold((writer, progress), |(mut writer, progress)| async move {
        match writer.piece().await {
            Ok(None) => Ok(None),
            Ok(Some(piece)) => {
                progress.moved.fetch_add(1, Ordering::Relaxed);
                Ok(Some((piece, (writer, progress))))
            }
            Err(error) => {
                progress.fail(error);
                Err(io::ErrorKind::Interrupted.into())
            }
        }
    })
}

struct Writer {
    plan: std::vec::IntoIter<Planned>,
    next: Next,
}

/// What comes next in the archive.
enum Next {
    Entry,
    Bytes(Bytes, u64),
    Reader {
        reader: InputReader,
        path: String,
        size: u64,
        left: u64,
    },
    Padding(u64),
    Nothing,
}

impl Writer {
    /// The next bytes, never none; `None` at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>> {
        loop {
            match std::mem::replace(&mut self.next, Next::Entry) {
                Next::Entry => {
                    let Some(planned) = self.plan.next() else {
                        self.next = Next::Nothing;
                        return Ok(Some(END));
                    };
                    let Planned {
                        head,
                        path,
                        size,
                        body,
                    } = planned;
                    self.next = match body {
                        Body::Bytes(bytes) => Next::Bytes(bytes, size),
                        Body::Reader(reader) => Next::Reader {
                            reader,
                            path,
                            size,
                            left: size,
                        },
                    };
                    return Ok(Some(head));
                }
                Next::Bytes(bytes, size) => {
                    self.next = Next::Padding(size);
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
                Next::Reader {
                    mut reader,
                    path,
                    size,
                    left,
                } => {
                    let piece = read(&mut reader, &path, size, left).await?;
                    if piece.is_empty() {
                        self.next = Next::Padding(size);
                        continue;
                    }
                    self.next = Next::Reader {
                        reader,
                        path,
                        size,
                        left: left - piece.len() as u64,
                    };
                    return Ok(Some(piece));
                }
                Next::Padding(size) => {
                    let padding = padding(size);
                    if !padding.is_empty() {
                        return Ok(Some(padding));
                    }
                }
                Next::Nothing => {
                    self.next = Next::Nothing;
                    return Ok(None);
                }
            }
        }
    }
}

/// Some of the `left` bytes that an input still has; none at its end.
async fn read(reader: &mut InputReader, path: &str, size: u64, left: u64) -> Result<Bytes> {
    let wrong = |what: &str| {
        let why = format!("{path}: the input {what} than the {size} bytes it said");
        Error::invalid("mounts", why)
    };
    let mut piece = BytesMut::with_capacity(PIECE);
    let count = match timeout(STALLED, reader.read_buf(&mut piece)).await {
        Ok(Ok(count)) => count as u64,
        Ok(Err(error)) => {
            let message = format!("{path}: the input could not be read");
            return Err(Error::new(ErrorKind::Unexpected, message).with_source(error));
        }
        Err(_) => {
            let message = format!("{path}: the input has stalled");
            return Err(Error::new(ErrorKind::Timeout, message));
        }
    };
    if count > left {
        Err(wrong("is longer"))
    } else if count == 0 && left > 0 {
        Err(wrong("is shorter"))
    } else {
        Ok(piece.freeze())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use futures_util::{StreamExt, TryStreamExt};
    use tokio_tar::Archive;

    use super::*;

    fn entry(path: &str, content: Content) -> Entry {
        Entry {
            path: path.into(),
            mode: 0o640,
            uid: 7,
            gid: 8,
            content,
        }
    }

    async fn archive(entries: &[Entry]) -> (io::Result<Vec<u8>>, Option<Error>) {
        let mut plan = Vec::new();
        for entry in entries {
            plan.push(Planned::of(entry).await.unwrap());
        }
        let progress = Arc::new(Progress::default());
        let pieces = encode(plan, progress.clone());
        let bytes = pieces.map_ok(|piece| piece.to_vec()).try_concat().await;
        (bytes, progress.failure())
    }

    #[tokio::test]
    async fn what_goes_in_is_what_a_reader_sees() {
        let long = format!("in/{}", "x".repeat(200));
        let large = vec![7_u8; 3 * PIECE + 1];
        let given = large.clone();
        let stream = InputStream::once(large.len() as u64, io::Cursor::new(given));
        let entries = [
            entry("in", Content::Folder),
            entry("in/empty", Content::Bytes(Bytes::new())),
            entry("in/block", Content::Bytes(Bytes::from(vec![1; 512]))),
            entry(&long, Content::Bytes(Bytes::from_static(b"long"))),
            entry("in/large", Content::Stream(stream)),
        ];
        let (bytes, failure) = archive(&entries).await;
        assert!(failure.is_none());
        let bytes = bytes.unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let mut seen = Vec::new();
        let mut archive = Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        while let Some(entry) = entries.next().await {
            let mut entry = entry.unwrap();
            let header = entry.header();
            let facts = (
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
            );
            assert_eq!(facts, (0o640, 7, 8));
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).await.unwrap();
            seen.push((path, content));
        }
        let wanted = [
            ("in".to_owned(), vec![]),
            ("in/empty".to_owned(), vec![]),
            ("in/block".to_owned(), vec![1; 512]),
            (long, b"long".to_vec()),
            ("in/large".to_owned(), large),
        ];
        assert_eq!(seen, wanted);
    }

    #[tokio::test]
    async fn a_source_of_another_length_breaks_it_off() {
        for (said, has) in [(10, 9), (10, 11), (0, 1), (1, 0), (70_000, 69_999)] {
            let stream = InputStream::once(said, io::Cursor::new(vec![0; has]));
            let (bytes, failure) = archive(&[entry("in", Content::Stream(stream))]).await;
            assert!(bytes.is_err(), "{said} {has}");
            let failure = failure.unwrap();
            assert_eq!(failure.kind(), ErrorKind::InvalidSpec, "{said} {has}");
        }
    }

    #[tokio::test]
    async fn names_stay_where_they_are_put() {
        for bad in ["", "/a", "a/../b", "..", "a//b", "a/", "./a", "a\0"] {
            let planned = Planned::of(&entry(bad, Content::Folder)).await;
            let error = planned.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{bad:?}");
        }
    }
}
