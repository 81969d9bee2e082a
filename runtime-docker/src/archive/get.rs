//! Files out of a container. What a run has made is hostile until it was looked at.

use std::io;
use std::time::{Duration, Instant};

use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tar::{Archive, EntryType};
use tokio_util::io::StreamReader;
use v6_runtime::{Error, ErrorKind, Result, ResultStream};

use super::{END, Head, PIECE, STALLED, UNLIMITED, is_plain, padding};
use crate::engine::Engine;
use crate::error::Error as Step;
use crate::quirks::{is_half_mounted, is_just_gone};

/// The most files and folders that a folder may have: each costs a reader something, also if it is
/// empty.
const MAX_ENTRIES: u64 = 1_000_000;

/// How long an engine may be at mounting a container's files.
const BEING_MOUNTED: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(50);

type Entry<R> = tokio_tar::Entry<Archive<R>>;

/// The bytes of a regular file in a container, running or not.
///
/// Errors in the stream: `NotFound`; `InvalidSpec` for a link, device or folder in its place;
/// `Quota` for more than `limit` bytes, before any is given.
pub(crate) fn get_file(
    engine: Engine,
    container: String,
    path: String,
    limit: u64,
) -> ResultStream<Bytes> {
    file(download(engine, container, &path), limit)
}

/// A folder in a container as a tar archive of regular files and folders, by their names relative to
/// the folder, without what is at or below a path in `skip`. All else that is in the folder is left
/// out: links, devices, names that are no plain path.
///
/// Errors in the stream: `NotFound`; `InvalidSpec` if it is no folder; `Quota` if its files together
/// have more than `limit` bytes, or there are more than a million of them.
pub(crate) fn get_folder(
    engine: Engine,
    container: String,
    path: String,
    limit: u64,
    skip: Vec<String>,
) -> ResultStream<Bytes> {
    let reader = StreamReader::new(download(engine, container, &path));
    folder(reader, limit, skip)
}

fn file<S>(pieces: S, limit: u64) -> ResultStream<Bytes>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
{
    let opening = async move {
        let mut archive = Archive::new(StreamReader::new(pieces));
        let mut entries = archive.entries().map_err(broken)?;
        let Some(entry) = next(&mut entries).await? else {
            return Err(Error::new(ErrorKind::NotFound, "the output does not exist"));
        };
        let kind = entry.header().entry_type();
        if !is_file(kind) {
            let message = format!("the output is not a regular file, but {}", word(kind));
            return Err(Error::new(ErrorKind::InvalidSpec, message));
        }
        let size = entry.effective_size();
        if size > limit {
            let message = format!("the output has {size} bytes, at most {limit} are taken");
            return Err(Error::new(ErrorKind::Quota, message));
        }
        drop((entry, entries));
        // The archive stands where the file begins: from here on nothing is copied.
        let reader = archive.into_inner().map_err(|_| {
            let message = "the archive is still being read";
            Error::new(ErrorKind::Unexpected, message)
        })?;
        let (rest, first) = reader.into_inner_with_chunk();
        let pieces = stream::iter(first.map(Ok)).chain(rest);
        Ok(stream::try_unfold(
            (pieces, size),
            |(mut pieces, left)| async move {
                if left == 0 {
                    return Ok(None);
                }
                let mut piece = match timeout(STALLED, pieces.next()).await {
                    Ok(Some(piece)) => piece.map_err(broken)?,
                    Ok(None) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                    Err(_) => return Err(stalled()),
                };
                piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - piece.len() as u64;
                Ok(Some((piece, (pieces, left))))
            },
        ))
    };
    Box::pin(stream::once(opening).try_flatten())
}

fn folder<R: AsyncRead + Send + Unpin + 'static>(
    from: R,
    limit: u64,
    skip: Vec<String>,
) -> ResultStream<Bytes> {
    produce(move |to| async move {
        let mut entries = Archive::new(from).entries().map_err(broken)?;
        let Some(root) = next(&mut entries).await? else {
            return Err(Error::new(ErrorKind::NotFound, "the output does not exist"));
        };
        let kind = root.header().entry_type();
        if !kind.is_dir() {
            let message = format!("the output is not a folder, but {}", word(kind));
            return Err(Error::new(ErrorKind::InvalidSpec, message));
        }
        let (mut bytes, mut count) = (limit, MAX_ENTRIES);
        while let Some(mut entry) = next(&mut entries).await? {
            let kind = entry.header().entry_type();
            let (folder, file) = (kind.is_dir(), is_file(kind));
            let path = entry.path_bytes().map_err(broken)?.into_owned();
            let Some(name) = below(&path).filter(|name| !is_skipped(name, &skip)) else {
                continue;
            };
            if !folder && !file {
                continue;
            }
            let size = if folder { 0 } else { entry.effective_size() };
            bytes = bytes.checked_sub(size).ok_or_else(|| {
                let message = format!("the output has more than {limit} bytes");
                Error::new(ErrorKind::Quota, message)
            })?;
            count = count.checked_sub(1).ok_or_else(|| {
                let message = format!("the output has more than {MAX_ENTRIES} files");
                Error::new(ErrorKind::Quota, message)
            })?;
            let head = Head {
                name,
                folder,
                mode: if folder { 0o755 } else { 0o644 },
                uid: 0,
                gid: 0,
                size,
            };
            give(&to, head.encode().map_err(broken)?).await;
            let mut left = size;
            while left > 0 {
                let piece = read(&mut entry, left).await?;
                left -= piece.len() as u64;
                give(&to, piece).await;
            }
            give(&to, padding(size)).await;
        }
        give(&to, END).await;
        Ok(())
    })
}

fn is_file(kind: EntryType) -> bool {
    matches!(kind, EntryType::Regular)
}

fn word(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Regular => "a file",
        EntryType::Directory => "a folder",
        EntryType::Symlink | EntryType::Link => "a link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        _ => "something else",
    }
}

/// A name without its first part, which is the folder's own, if it is a plain relative path.
fn below(path: &[u8]) -> Option<&[u8]> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let slash = path.iter().position(|byte| *byte == b'/')?;
    is_plain(path).then_some(&path[slash + 1..])
}

fn is_skipped(name: &[u8], skip: &[String]) -> bool {
    skip.iter().any(|skip| {
        let rest = name.strip_prefix(skip.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

fn download(
    engine: Engine,
    container: String,
    path: &str,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + use<> {
    let options = DownloadFromContainerOptionsBuilder::default()
        .path(path)
        .build();
    let docker = engine.docker.clone().with_timeout(UNLIMITED);
    let opening = async move {
        let since = Instant::now();
        loop {
            let pieces = docker.download_from_container(&container, Some(options.clone()));
            let (first, rest) = Box::pin(pieces).into_future().await;
            match first {
                Some(Err(error)) if is_half_mounted(&error) && since.elapsed() < BEING_MOUNTED => {
                    engine.unmount(&container).await;
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                first => return stream::iter(first).chain(rest),
            }
        }
    };
    let pieces = stream::once(opening).flatten();
    Box::pin(pieces.map_err(io::Error::other))
}

async fn next<R: AsyncRead + Send + Unpin>(
    entries: &mut tokio_tar::Entries<R>,
) -> Result<Option<Entry<R>>> {
    match timeout(STALLED, entries.next()).await {
        Ok(entry) => entry.transpose().map_err(broken),
        Err(_) => Err(stalled()),
    }
}

/// The next bytes of an entry that has `left` more.
async fn read(entry: &mut (impl AsyncRead + Unpin), left: u64) -> Result<Bytes> {
    let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    let mut piece = BytesMut::with_capacity(room);
    match timeout(STALLED, entry.read_buf(&mut piece)).await {
        Ok(Ok(0)) => Err(broken(io::ErrorKind::UnexpectedEof.into())),
        Ok(Ok(_)) => Ok(piece.freeze()),
        Ok(Err(error)) => Err(broken(error)),
        Err(_) => Err(stalled()),
    }
}

fn stalled() -> Error {
    Error::new(ErrorKind::Timeout, "the engine has stopped giving the file")
}

/// What a broken archive means: the engine's own error if it is one.
fn broken(error: io::Error) -> Error {
    use bollard::errors::Error as Engine;
    match error.downcast::<Engine>() {
        Ok(source) => {
            let error = Step::Engine {
                step: "reading files",
                source,
            };
            if error.status() == Some(404) || is_just_gone(&error) {
                return Error::new(ErrorKind::NotFound, "the output does not exist")
                    .with_source(error);
            }
            error.into()
        }
        Err(error) => {
            let message = "what the engine gave is no whole archive";
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        }
    }
}

/// A reader that is gone ends the whole stream with it: no error here.
async fn give(to: &mpsc::Sender<Result<Bytes>>, piece: Bytes) {
    if !piece.is_empty() {
        let _ = to.send(Ok(piece)).await;
    }
}

/// What `work` gives, as fast as it is read; its error comes last. It is driven by the reader alone.
fn produce<F, Fut>(work: F) -> ResultStream<Bytes>
where
    F: FnOnce(mpsc::Sender<Result<Bytes>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    let (send, mut receive) = mpsc::channel(2);
    let working = async move {
        if let Err(error) = work(send.clone()).await {
            let _ = send.send(Err(error)).await;
        }
    };
    let working = stream::once(working).filter_map(|()| std::future::ready(None));
    let given = stream::poll_fn(move |context| receive.poll_recv(context));
    Box::pin(stream::select(given, working))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use proptest::prelude::*;
    use tokio_tar::{Builder, Header};

    use super::*;

    struct Made<'a> {
        name: &'a str,
        kind: EntryType,
        content: &'a [u8],
    }

    fn made<'a>(name: &'a str, kind: EntryType, content: &'a [u8]) -> Made<'a> {
        Made {
            name,
            kind,
            content,
        }
    }

    async fn archive(entries: &[Made<'_>]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for entry in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(entry.kind);
            header.set_size(entry.content.len() as u64);
            header.set_mode(0o7777);
            // Not through the setter, which refuses what must not be there.
            header.as_mut_bytes()[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
            if entry.kind.is_symlink() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, entry.content).await.unwrap();
        }
        builder.into_inner().await.unwrap()
    }

    async fn all(stream: ResultStream<Bytes>) -> Result<Vec<u8>> {
        stream.map_ok(|piece| piece.to_vec()).try_concat().await
    }

    async fn file_of(bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>> {
        // In pieces that fit nothing.
        let pieces = bytes
            .chunks(333)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)));
        let pieces: Vec<io::Result<Bytes>> = pieces.collect();
        all(file(stream::iter(pieces), limit)).await
    }

    async fn folder_of(bytes: Vec<u8>, limit: u64, skip: &[&str]) -> Result<Vec<u8>> {
        let skip = skip.iter().map(|&skip| skip.to_owned()).collect();
        all(folder(io::Cursor::new(bytes), limit, skip)).await
    }

    async fn listing(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut seen = Vec::new();
        let mut entries = Archive::new(bytes).entries().unwrap();
        while let Some(entry) = entries.next().await {
            let mut entry = entry.unwrap();
            assert!(matches!(entry.header().mode().unwrap(), 0o644 | 0o755));
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).await.unwrap();
            seen.push((name, content));
        }
        seen
    }

    #[tokio::test]
    async fn only_a_regular_file_within_the_limit() {
        let content = vec![3; 200_000];
        let whole = archive(&[made("0", EntryType::Regular, &content)]).await;
        assert_eq!(file_of(whole.clone(), 200_000).await.unwrap(), content);
        let kind = |result: Result<Vec<u8>>| result.unwrap_err().kind();
        assert_eq!(
            kind(file_of(whole.clone(), 199_999).await),
            ErrorKind::Quota
        );
        assert_eq!(
            kind(file_of(whole[..99_999].to_vec(), 200_000).await),
            ErrorKind::Unavailable
        );
        assert_eq!(kind(file_of(Vec::new(), 1).await), ErrorKind::NotFound);
        for other in [
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Fifo,
            EntryType::Char,
            EntryType::Block,
            EntryType::Directory,
        ] {
            let bytes = archive(&[made("0", other, b"")]).await;
            assert_eq!(
                kind(file_of(bytes, 1).await),
                ErrorKind::InvalidSpec,
                "{other:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_folder_is_made_clean() {
        let entries = [
            made("0/", EntryType::Directory, b""),
            made("0/a", EntryType::Regular, b"alpha"),
            made("0/link", EntryType::Symlink, b""),
            made("0/pipe", EntryType::Fifo, b""),
            made("0/null", EntryType::Char, b""),
            made("/0/absolute", EntryType::Regular, b"x"),
            made("0/../up", EntryType::Regular, b"x"),
            made("../up", EntryType::Regular, b"x"),
            made("0/sub/", EntryType::Directory, b""),
            made("0/sub/b", EntryType::Regular, b""),
            made("0/given", EntryType::Regular, b"given"),
            made("0/mounted/", EntryType::Directory, b""),
            made("0/mounted/c", EntryType::Regular, b"given"),
            made("0/mounted-not", EntryType::Regular, &[9; 600]),
        ];
        let bytes = archive(&entries).await;
        let skip = ["given", "mounted"];
        let clean = folder_of(bytes.clone(), 605, &skip).await.unwrap();
        let wanted = [
            ("a".to_owned(), b"alpha".to_vec()),
            ("sub".to_owned(), vec![]),
            ("sub/b".to_owned(), vec![]),
            ("mounted-not".to_owned(), vec![9; 600]),
        ];
        assert_eq!(listing(&clean).await, wanted);
        let error = folder_of(bytes, 604, &skip).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Quota);
        let file = archive(&[made("0", EntryType::Regular, b"x")]).await;
        let error = folder_of(file, 10, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    }

    #[tokio::test]
    async fn a_folder_that_breaks_off_is_an_error() {
        let entries = [
            made("0/", EntryType::Directory, b""),
            made("0/a", EntryType::Regular, &[1; 5000]),
        ];
        let bytes = archive(&entries).await;
        for end in [513, 1024, 1025, 3000] {
            let result = folder_of(bytes[..end].to_vec(), 10_000, &[]).await;
            assert!(result.is_err(), "{end}");
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(work)
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            changes in prop::collection::vec((0_usize..4096, any::<u8>()), 0..40),
            fix in any::<bool>(),
        ) {
            block_on(async {
                let entries = [
                    made("0/", EntryType::Directory, b""),
                    made("0/a", EntryType::Regular, b"alpha"),
                    made("././@PaxHeader", EntryType::XHeader, b"17 path=0/other\n"),
                    made("0/b", EntryType::Regular, b"beta"),
                ];
                let mut bytes = archive(&entries).await;
                for (at, value) in changes {
                    let at = at % bytes.len();
                    bytes[at] = value;
                }
                if fix {
                    for header in bytes.chunks_mut(512) {
                        let sum: u64 = header.iter().enumerate().map(|(at, byte)| {
                            if (148..156).contains(&at) { 32 } else { u64::from(*byte) }
                        }).sum();
                        if header.len() == 512 && header[257..262] == *b"ustar" {
                            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                        }
                    }
                }
                let _ = file_of(bytes.clone(), 1 << 20).await;
                if let Ok(clean) = folder_of(bytes, 1 << 20, &["a"]).await {
                    for (name, _) in listing(&clean).await {
                        assert!(is_plain(name.trim_end_matches('/').as_bytes()), "{name:?}");
                        assert_ne!(name, "a");
                    }
                }
            });
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            block_on(async {
                let _ = file_of(bytes.clone(), 1 << 20).await;
                let _ = folder_of(bytes, 1 << 20, &[]).await;
            });
        }
    }
}
