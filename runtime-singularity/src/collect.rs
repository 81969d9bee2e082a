//! Outputs. What a run has made is hostile until it was looked at; by now all of its processes are
//! gone.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use v6_runtime::{Error, ErrorKind, Result, ResultStream};

/// Given at once.
const PIECE: usize = 128 << 10;
/// The most files and folders that a folder may have: each costs a reader something, also if it is
/// empty.
const MAX_ENTRIES: u64 = 1_000_000;
/// How deep a folder may be: each step keeps a file open.
const MAX_DEPTH: usize = 200;

/// The bytes of a regular file.
///
/// Errors in the stream: `NotFound`; `InvalidSpec` for a link, device or folder in its place;
/// `Quota` for more than `limit` bytes, before any is given.
pub(crate) async fn file(path: PathBuf, limit: u64) -> Result<ResultStream<Bytes>> {
    let opened = tokio::task::spawn_blocking(move || open_file(&path, limit)).await;
    let (file, size) = opened.map_err(|error| {
        Error::new(ErrorKind::Unexpected, "the output cannot be read").with_source(error)
    })??;
    let start = (tokio::fs::File::from_std(file), size);
    Ok(Box::pin(stream::try_unfold(
        start,
        |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let mut piece = BytesMut::with_capacity(room);
            let read = (&mut file).take(room as u64).read_buf(&mut piece).await;
            match read.map_err(unreadable)? {
                0 => Err(unreadable(io::ErrorKind::UnexpectedEof.into())),
                read => Ok(Some((piece.freeze(), (file, left - read as u64)))),
            }
        },
    )))
}

fn open_file(path: &Path, limit: u64) -> Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOENT => Error::new(ErrorKind::NotFound, "the output does not exist"),
        rustix::io::Errno::LOOP => not_what_was_declared("a link"),
        error => unreadable(error.into()),
    })?;
    let about = fstat(&opened).map_err(|error| unreadable(error.into()))?;
    match FileType::from_raw_mode(about.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(not_what_was_declared("a folder")),
        _ => return Err(not_what_was_declared("a device or pipe")),
    }
    let size = u64::try_from(about.st_size).unwrap_or_default();
    if size > limit {
        let message = format!("the output has {size} bytes, at most {limit} are taken");
        return Err(Error::new(ErrorKind::Quota, message));
    }
    Ok((File::from(opened), size))
}

fn not_what_was_declared(what: &str) -> Error {
    let message = format!("the output is not what was declared, but {what}");
    Error::new(ErrorKind::InvalidSpec, message)
}

fn unreadable(error: io::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "the output cannot be read").with_source(error)
}

/// A folder as a tar archive of its regular files and folders, by their names relative to it, without
/// what is at or below a path in `skip`. All else that is in the folder is left out.
///
/// Errors in the stream: `NotFound`; `InvalidSpec` if it is no folder; `Quota` if its files together
/// have more than `limit` bytes, there are too many, or they are too deep.
pub(crate) fn folder(path: PathBuf, limit: u64, skip: Vec<String>) -> ResultStream<Bytes> {
    let (send, receive) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let to = Sender {
            send: send.clone(),
            buffer: BytesMut::with_capacity(PIECE),
        };
        if let Err(error) = pack(&path, limit, &skip, to) {
            // A reader that is gone has no use for it.
            let _ = send.blocking_send(Err(error));
        }
    });
    Box::pin(stream::unfold(receive, |mut receive| async move {
        Some((receive.recv().await?, receive))
    }))
}

/// Gives on what is written, in pieces.
struct Sender {
    send: mpsc::Sender<Result<Bytes>>,
    buffer: BytesMut,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        let given = self.send.blocking_send(Ok(piece));
        given.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A folder that is being read.
struct Level {
    entries: Dir,
    fd: OwnedFd,
    /// Its name from the top, with a slash at its end unless it is empty.
    name: Vec<u8>,
}

fn pack(path: &Path, limit: u64, skip: &[String], to: Sender) -> Result<()> {
    let missing = |error: rustix::io::Errno| match error {
        rustix::io::Errno::NOENT => Error::new(ErrorKind::NotFound, "the output does not exist"),
        rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => not_what_was_declared("no folder"),
        error => unreadable(error.into()),
    };
    let open = |at: std::os::fd::BorrowedFd<'_>, name: &CStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(at, name, flags, Mode::empty())
    };
    let top =
        CString::new(path.as_os_str().as_bytes()).map_err(|error| unreadable(error.into()))?;
    let level = |fd: OwnedFd, name: Vec<u8>| {
        let entries = Dir::read_from(&fd).map_err(|error| unreadable(error.into()))?;
        Ok::<_, Error>(Level { entries, fd, name })
    };
    let mut levels = vec![level(open(CWD, &top).map_err(missing)?, Vec::new())?];
    let mut archive = tar::Builder::new(to);
    let (mut bytes, mut count) = (limit, MAX_ENTRIES);
    while let Some(current) = levels.last_mut() {
        let Some(entry) = current.entries.read() else {
            levels.pop();
            continue;
        };
        let entry = entry.map_err(|error| unreadable(error.into()))?;
        let own = entry.file_name();
        if matches!(own.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = [&current.name[..], own.to_bytes()].concat();
        if is_skipped(&name, skip) {
            continue;
        }
        // Not by the listing: opened first, then looked at.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match openat(&current.fd, own, flags, Mode::empty()) {
            Ok(fd) => fd,
            // A link, a socket, a device without a driver; what its owner may not read.
            Err(
                rustix::io::Errno::LOOP
                | rustix::io::Errno::NXIO
                | rustix::io::Errno::NODEV
                | rustix::io::Errno::ACCESS,
            ) => continue,
            Err(error) => return Err(unreadable(error.into())),
        };
        let about = fstat(&fd).map_err(|error| unreadable(error.into()))?;
        let kind = FileType::from_raw_mode(about.st_mode);
        let size = match kind {
            FileType::Directory => 0,
            FileType::RegularFile => u64::try_from(about.st_size).unwrap_or_default(),
            _ => continue,
        };
        bytes = bytes.checked_sub(size).ok_or_else(|| {
            let message = format!("the output has more than {limit} bytes");
            Error::new(ErrorKind::Quota, message)
        })?;
        count = count.checked_sub(1).ok_or_else(|| {
            let message = format!("the output has more than {MAX_ENTRIES} files");
            Error::new(ErrorKind::Quota, message)
        })?;
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        let shown = Path::new(OsStr::from_bytes(&name));
        if kind == FileType::Directory {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            archive
                .append_data(&mut header, shown, io::empty())
                .map_err(unreadable)?;
            if levels.len() >= MAX_DEPTH {
                let message = format!("the output is more than {MAX_DEPTH} folders deep");
                return Err(Error::new(ErrorKind::Quota, message));
            }
            let name = [&name[..], b"/"].concat();
            levels.push(level(fd, name)?);
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            let file = File::from(fd).take(size);
            archive
                .append_data(&mut header, shown, file)
                .map_err(unreadable)?;
        }
    }
    archive
        .into_inner()
        .and_then(|mut to| to.flush())
        .map_err(unreadable)
}

fn is_skipped(name: &[u8], skip: &[String]) -> bool {
    skip.iter().any(|skip| {
        let rest = name.strip_prefix(skip.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use futures_util::TryStreamExt;

    use super::*;

    async fn all(stream: ResultStream<Bytes>) -> Result<Vec<u8>> {
        stream.map_ok(|piece| piece.to_vec()).try_concat().await
    }

    async fn file_of(path: PathBuf, limit: u64) -> Result<Vec<u8>> {
        all(file(path, limit).await?).await
    }

    fn listing(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, content)
        });
        let mut found: Vec<_> = entries.collect();
        found.sort();
        found
    }

    #[tokio::test]
    async fn only_a_regular_file_within_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("f"), vec![3; 300_000]).unwrap();
        symlink("/etc/passwd", at("link")).unwrap();
        fs::create_dir(at("d")).unwrap();
        rustix::fs::mkfifoat(CWD, at("pipe"), Mode::RUSR).unwrap();
        assert_eq!(file_of(at("f"), 300_000).await.unwrap(), vec![3; 300_000]);
        let kind = |result: Result<Vec<u8>>| result.unwrap_err().kind();
        assert_eq!(kind(file_of(at("f"), 299_999).await), ErrorKind::Quota);
        assert_eq!(kind(file_of(at("no"), 1).await), ErrorKind::NotFound);
        for other in ["link", "d", "pipe"] {
            let found = kind(file_of(at(other), 1 << 20).await);
            assert_eq!(found, ErrorKind::InvalidSpec, "{other}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_made_clean() {
        let place = tempfile::tempdir().unwrap();
        let top = place.path().to_owned();
        let long = "l".repeat(200);
        fs::create_dir_all(top.join("sub").join(&long)).unwrap();
        fs::create_dir(top.join("mounted")).unwrap();
        fs::write(top.join("a"), "alpha").unwrap();
        fs::write(top.join("sub").join(&long).join("b\nc"), "beta").unwrap();
        fs::write(top.join("mounted/x"), "given").unwrap();
        fs::write(top.join("mounted-not"), "").unwrap();
        symlink("/etc", top.join("link")).unwrap();
        rustix::fs::mkfifoat(CWD, top.join("pipe"), Mode::RUSR).unwrap();
        let skip = vec!["mounted".to_owned()];
        let clean = all(super::folder(top.clone(), 9, skip.clone()))
            .await
            .unwrap();
        let wanted = [
            ("a".to_owned(), b"alpha".to_vec()),
            ("mounted-not".to_owned(), Vec::new()),
            ("sub".to_owned(), Vec::new()),
            (format!("sub/{long}"), Vec::new()),
            (format!("sub/{long}/b\nc"), b"beta".to_vec()),
        ];
        assert_eq!(listing(&clean), wanted);
        let error = all(super::folder(top, 8, skip)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Quota);
    }

    #[tokio::test]
    async fn depth_is_limited() {
        let place = tempfile::tempdir().unwrap();
        let mut deep = place.path().to_owned();
        deep.extend(std::iter::repeat_n("d", MAX_DEPTH));
        fs::create_dir_all(deep).unwrap();
        let packed = all(super::folder(place.path().to_owned(), 1, Vec::new())).await;
        assert_eq!(packed.unwrap_err().kind(), ErrorKind::Quota);
    }
}
