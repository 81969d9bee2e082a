//! Files into and out of containers, as tar streams of the engine's API, in constant memory.

use std::io;
use std::path::{Component, Path};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_tar::{Archive, EntryType};
use tokio_util::io::StreamReader;
use v6_runtime::{Error, ErrorKind, InputStream, Result, ResultStream};

use crate::error::Error as Step;

const BLOCK: usize = 512;
const PIECE: usize = 64 << 10;
/// No byte for so long, in either direction, is the end of a transfer.
const STALLED: Duration = Duration::from_secs(120);

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
/// # Errors
/// `InvalidSpec` for a stream that is longer or shorter than it said; those of the engine.
pub(crate) async fn put(
    docker: &Docker,
    container: &str,
    path: &str,
    entries: Vec<Entry>,
) -> Result<()> {
    let mut plan = Vec::with_capacity(entries.len());
    for entry in &entries {
        plan.push(Planned::of(entry).await?);
    }
    let (send, mut receive) = mpsc::channel::<io::Result<Bytes>>(4);
    let writing = tokio::spawn(async move {
        let written = write_all(plan, &send).await;
        if written.is_err() {
            // The request is broken off, so that the engine sees no well-formed archive.
            let _ = send.send(Err(io::ErrorKind::Interrupted.into())).await;
        }
        written
    });
    let body = bollard::body_try_stream(stream::poll_fn(move |context| receive.poll_recv(context)));
    let options = UploadToContainerOptionsBuilder::default()
        .path(path)
        .build();
    let uploaded = docker
        .upload_to_container(container, Some(options), body)
        .await;
    // The writer ends by itself: its receiver is gone with the request.
    match writing.await {
        Ok(Err(error)) => return Err(error),
        Err(error) => {
            return Err(Error::new(ErrorKind::Unexpected, "the upload broke").with_source(error));
        }
        Ok(Ok(())) => {}
    }
    uploaded.map_err(|source| {
        Step::Engine {
            step: "storing files",
            source,
        }
        .into()
    })
}

/// An entry whose source is open, so that what is wrong with it is known before the upload.
struct Planned {
    header: Bytes,
    path: String,
    length: u64,
    body: Body,
}

enum Body {
    Bytes(Bytes),
    Reader(v6_runtime::InputReader),
}

impl Planned {
    async fn of(entry: &Entry) -> Result<Self> {
        let (length, body) = match &entry.content {
            Content::Folder => (0, Body::Bytes(Bytes::new())),
            Content::Bytes(bytes) => (bytes.len() as u64, Body::Bytes(bytes.clone())),
            Content::Stream(stream) => (stream.len(), Body::Reader(stream.open().await?)),
        };
        let folder = matches!(entry.content, Content::Folder);
        let header = header(
            &entry.path,
            folder,
            entry.mode,
            (entry.uid, entry.gid),
            length,
        )?;
        Ok(Self {
            header,
            path: entry.path.clone(),
            length,
            body,
        })
    }
}

async fn write_all(plan: Vec<Planned>, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
    for Planned {
        header,
        path,
        length,
        body,
    } in plan
    {
        give(to, header).await?;
        match body {
            Body::Bytes(bytes) => give(to, bytes).await?,
            Body::Reader(reader) => copy(reader, &path, length, to).await?,
        }
        let over = usize::try_from(length % BLOCK as u64).unwrap_or(0);
        if over > 0 {
            give(to, Bytes::from_static(&[0; BLOCK]).slice(over..)).await?;
        }
    }
    give(to, Bytes::from_static(&[0; 2 * BLOCK])).await
}

async fn copy(
    mut reader: v6_runtime::InputReader,
    path: &str,
    length: u64,
    to: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<()> {
    let wrong = |what: &str| {
        Error::invalid(
            "mounts",
            format!("{path}: the input {what} than the {length} bytes it said"),
        )
    };
    let mut left = length;
    loop {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = tokio::time::timeout(STALLED, reader.read_buf(&mut piece)).await;
        let count = match read {
            Ok(Ok(count)) => count as u64,
            Ok(Err(error)) => {
                let message = format!("{path}: the input could not be read");
                return Err(Error::new(ErrorKind::Unexpected, message).with_source(error));
            }
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("{path}: the input has stalled"),
                ));
            }
        };
        if count > left {
            return Err(wrong("is longer"));
        }
        if count == 0 {
            return if left == 0 {
                Ok(())
            } else {
                Err(wrong("is shorter"))
            };
        }
        left -= count;
        give(to, piece.freeze()).await?;
    }
}

/// A receiver that is gone is no error here: the request itself tells why it ended.
async fn give(to: &mpsc::Sender<io::Result<Bytes>>, bytes: Bytes) -> Result<()> {
    match tokio::time::timeout(STALLED, to.send(Ok(bytes))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            "the engine has stopped taking files",
        )),
    }
}

fn header(path: &str, folder: bool, mode: u32, owner: (u32, u32), length: u64) -> Result<Bytes> {
    let mut header = tar::Header::new_gnu();
    let kind = if folder {
        tar::EntryType::Directory
    } else {
        tar::EntryType::Regular
    };
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0.into());
    header.set_gid(owner.1.into());
    header.set_size(length);
    header.set_mtime(0);
    let mut bytes = BytesMut::new();
    if path.len() >= 100 {
        // A longer name goes before, in an entry of its own.
        let mut long = tar::Header::new_gnu();
        long.set_entry_type(tar::EntryType::GNULongName);
        long.set_size(path.len() as u64 + 1);
        let named = long.set_path("././@LongLink");
        named.map_err(|error| Error::invalid("mounts", error))?;
        long.set_cksum();
        bytes.extend_from_slice(long.as_bytes());
        bytes.extend_from_slice(path.as_bytes());
        let padded = (path.len() + 1).next_multiple_of(BLOCK);
        bytes.resize(BLOCK + padded, 0);
    } else {
        header
            .set_path(path)
            .map_err(|error| Error::invalid("mounts", format!("{path:?}: {error}")))?;
    }
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    Ok(bytes.freeze())
}

/// The bytes of a regular file in a container, running or not. A link, device or folder in its
/// place is refused, and so is more than `limit` bytes, before any is given.
pub(crate) fn get_file(
    docker: Docker,
    container: String,
    path: String,
    limit: u64,
) -> ResultStream<Bytes> {
    produce(move |to| async move {
        let mut archive = Archive::new(download(&docker, &container, &path));
        let mut entries = archive.entries().map_err(broken)?;
        let Some(entry) = entries.next().await else {
            return Err(Error::new(ErrorKind::NotFound, "the output does not exist"));
        };
        let mut entry = entry.map_err(broken)?;
        let header = entry.header();
        if header.entry_type() != EntryType::Regular {
            let what = format!(
                "the output is not a regular file ({:?})",
                header.entry_type()
            );
            return Err(Error::new(ErrorKind::InvalidSpec, what));
        }
        let size = entry.effective_size();
        if size > limit {
            let what = format!("the output has {size} bytes, at most {limit} are taken");
            return Err(Error::new(ErrorKind::Quota, what));
        }
        loop {
            let mut piece = BytesMut::with_capacity(PIECE);
            if read(&mut entry, &mut piece).await? == 0 {
                return Ok(());
            }
            if to.send(Ok(piece.freeze())).await.is_err() {
                return Ok(());
            }
        }
    })
}

/// A folder in a container as a clean tar stream: regular files and folders by their relative
/// names, without what is in `skip`. Everything else is left out.
pub(crate) fn get_folder(
    docker: Docker,
    container: String,
    path: String,
    limit: u64,
    skip: Vec<String>,
) -> ResultStream<Bytes> {
    produce(move |to| async move {
        let mut archive = Archive::new(download(&docker, &container, &path));
        let mut entries = archive.entries().map_err(broken)?;
        let mut left = limit;
        while let Some(entry) = entries.next().await {
            let mut entry = entry.map_err(broken)?;
            let kind = entry.header().entry_type();
            let name = entry.path().map_err(broken)?.into_owned();
            // The engine puts the folder's own name first.
            let Some(name) = relative(&name) else {
                continue;
            };
            if !matches!(kind, EntryType::Regular | EntryType::Directory) || skip.contains(&name) {
                continue;
            }
            let folder = kind == EntryType::Directory;
            let size = if folder { 0 } else { entry.effective_size() };
            left = left.checked_sub(size).ok_or_else(|| {
                Error::new(
                    ErrorKind::Quota,
                    format!("the output folder has more than {limit} bytes"),
                )
            })?;
            let mode = if folder { 0o755 } else { 0o644 };
            let mut pieces = vec![header(&name, folder, mode, (0, 0), size)?];
            loop {
                for piece in pieces.drain(..) {
                    if to.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                }
                let mut piece = BytesMut::with_capacity(PIECE);
                if read(&mut entry, &mut piece).await? == 0 {
                    break;
                }
                pieces.push(piece.freeze());
            }
            let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
            if over > 0
                && to
                    .send(Ok(Bytes::from_static(&[0; BLOCK]).slice(over..)))
                    .await
                    .is_err()
            {
                return Ok(());
            }
        }
        let _ = to.send(Ok(Bytes::from_static(&[0; 2 * BLOCK]))).await;
        Ok(())
    })
}

/// A name without its first part, if it is a plain relative path.
fn relative(name: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    let below = parts.get(1..).filter(|parts| !parts.is_empty())?;
    Some(below.join("/"))
}

fn download(
    docker: &Docker,
    container: &str,
    path: &str,
) -> impl AsyncRead + Send + Unpin + 'static {
    let options = DownloadFromContainerOptionsBuilder::default()
        .path(path)
        .build();
    let bytes = docker.download_from_container(container, Some(options));
    StreamReader::new(Box::pin(bytes.map_err(io::Error::other)))
}

async fn read(from: &mut (impl AsyncRead + Unpin), into: &mut BytesMut) -> Result<usize> {
    match tokio::time::timeout(STALLED, from.read_buf(into)).await {
        Ok(read) => read.map_err(broken),
        Err(_) => Err(Error::new(
            ErrorKind::Timeout,
            "the engine has stopped giving the file",
        )),
    }
}

/// What a broken archive means: the engine's own error if it is one.
fn broken(error: io::Error) -> Error {
    match error.downcast::<bollard::errors::Error>() {
        Ok(
            source @ bollard::errors::Error::DockerResponseServerError {
                status_code: 404, ..
            },
        ) => Error::new(ErrorKind::NotFound, "the output does not exist").with_source(source),
        Ok(source) => Step::Engine {
            step: "reading files",
            source,
        }
        .into(),
        Err(error) => {
            let message = "what the engine gave is no whole archive";
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        }
    }
}

/// A stream that a task of its own fills, as fast as it is read.
fn produce<F, Fut>(work: F) -> ResultStream<Bytes>
where
    F: FnOnce(mpsc::Sender<Result<Bytes>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let (send, mut receive) = mpsc::channel(4);
    let failed = send.clone();
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = work(send).await {
            let _ = failed.send(Err(error)).await;
        }
    }));
    Box::pin(stream::poll_fn(move |context| {
        let _running = &task;
        receive.poll_recv(context)
    }))
}

#[cfg(test)]
mod tests {
    use super::relative;
    use std::path::Path;

    #[test]
    fn only_plain_names_below_the_folder() {
        let of = |name: &str| relative(Path::new(name));
        assert_eq!(of("0/a/b"), Some("a/b".into()));
        assert_eq!(of("./0/a"), Some("a".into()));
        for no in ["0", "0/", "/0/a", "0/../a", "..", ""] {
            assert_eq!(of(no), None, "{no}");
        }
    }
}
