//! What a program has left, in pieces. It is hostile until it was looked at.
//!
//! An answer is a row of pieces, each a length of four bytes and so many bytes. A length of 0 ends
//! the answer; 0xffff_ffff announces a line that says why there is no more.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::pod_tunnel::Stream;

const PIECE: usize = 64 << 10;
const WHY: u32 = u32::MAX;
/// The longest request: it names what is left out of a folder.
const REQUEST: u64 = 1 << 20;
/// The most files and folders of a folder: each costs a reader something, also if it is empty.
const ENTRIES: u64 = 1_000_000;

/// A reason that the other end understands, and words.
type Refusal = (&'static str, String);

fn broken(error: &io::Error) -> Refusal {
    ("broken", error.to_string())
}

/// Reads the one line of a request.
pub async fn request(stream: &mut Stream) -> io::Result<String> {
    let mut text = String::new();
    let mut one = tokio::io::BufReader::with_capacity(1, stream).take(REQUEST);
    one.read_line(&mut text).await?;
    match text.strip_suffix('\n') {
        Some(text) => Ok(text.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn end(stream: &mut Stream, done: Result<(), Refusal>) -> io::Result<()> {
    match done {
        Ok(()) => stream.write_all(&0_u32.to_be_bytes()).await,
        Err((kind, words)) => {
            let words = words.replace('\n', " ");
            stream.write_all(&WHY.to_be_bytes()).await?;
            stream
                .write_all(format!("{kind} {words}\n").as_bytes())
                .await
        }
    }
}

async fn give(stream: &mut Stream, piece: &[u8]) -> io::Result<()> {
    let len = u32::try_from(piece.len()).map_err(io::Error::other)?;
    stream.write_all(&len.to_be_bytes()).await?;
    stream.write_all(piece).await
}

/// Answers `FILE N OFFSET LIMIT`.
pub async fn file(stream: &mut Stream, out: &str, request: &str) -> io::Result<()> {
    let done = match open_file(out, request) {
        Ok((mut file, mut left)) => {
            let mut piece = vec![0; PIECE];
            loop {
                let room = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                if room == 0 {
                    break Ok(());
                }
                match file.read(&mut piece[..room]) {
                    Ok(0) => break Err(("broken", "it became shorter".to_owned())),
                    Ok(read) => {
                        give(stream, &piece[..read]).await?;
                        left -= read as u64;
                    }
                    Err(error) => break Err(broken(&error)),
                }
            }
        }
        Err(refusal) => Err(refusal),
    };
    end(stream, done).await
}

fn numbers<const N: usize>(request: &str) -> Result<[u64; N], Refusal> {
    let mut all = [0; N];
    let mut words = request.split(' ');
    for number in &mut all {
        let word = words.next().and_then(|word| word.parse().ok());
        *number = word.ok_or_else(|| ("broken", "a number is missing".to_owned()))?;
    }
    Ok(all)
}

/// The file from the offset on, and how many bytes are left there.
fn open_file(out: &str, request: &str) -> Result<(File, u64), Refusal> {
    let [index, offset, limit] = numbers(request)?;
    let path = Path::new(out).join(index.to_string());
    let mut file = open(&path)?;
    let size = file.metadata().map_err(|error| broken(&error))?.len();
    if size > limit {
        let words = format!("the output has {size} bytes, at most {limit} are taken");
        return Err(("quota", words));
    }
    file.seek(io::SeekFrom::Start(offset.min(size)))
        .map_err(|error| broken(&error))?;
    Ok((file, size.saturating_sub(offset)))
}

/// Opens a regular file, and no other thing that has its name.
fn open(path: &Path) -> Result<File, Refusal> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match opened {
        Ok(file) if file.metadata().is_ok_and(|about| about.is_file()) => Ok(file),
        Ok(_) => Err(("kind", "the output is not a regular file".into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(("absent", "the output does not exist".into()))
        }
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err((
            "kind",
            "the output is not a regular file, but a link".into(),
        )),
        Err(error) => Err(broken(&error)),
    }
}

/// Answers `FOLDER N LIMIT [SKIP…]`; paths to leave out are in hexadecimal.
pub async fn folder(stream: &mut Stream, out: &str, request: &str) -> io::Result<()> {
    let [index, limit] = match numbers(request) {
        Ok(numbers) => numbers,
        Err(refusal) => return end(stream, Err(refusal)).await,
    };
    let skip = request.split(' ').skip(2).filter_map(unhex).collect();
    let root = Path::new(out).join(index.to_string());
    let (pieces, mut given) = mpsc::channel(2);
    let packing = tokio::task::spawn_blocking(move || pack(&root, limit, skip, pieces));
    while let Some(piece) = given.recv().await {
        give(stream, &piece).await?;
    }
    let done = packing.await.map_err(io::Error::other)?;
    end(stream, done).await
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

/// Gives what is written to it in pieces.
struct Pieces {
    buffer: Vec<u8>,
    to: mpsc::Sender<Vec<u8>>,
}

impl Write for Pieces {
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
        let piece = std::mem::take(&mut self.buffer);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.to.blocking_send(piece).map_err(gone)
    }
}

struct Packer {
    root: PathBuf,
    skip: Vec<Vec<u8>>,
    bytes: u64,
    limit: u64,
    entries: u64,
    archive: tar::Builder<Pieces>,
}

fn pack(
    root: &Path,
    limit: u64,
    skip: Vec<Vec<u8>>,
    to: mpsc::Sender<Vec<u8>>,
) -> Result<(), Refusal> {
    let buffer = Vec::with_capacity(2 * PIECE);
    let mut packer = Packer {
        root: root.to_owned(),
        skip,
        bytes: limit,
        limit,
        entries: ENTRIES,
        archive: tar::Builder::new(Pieces { buffer, to }),
    };
    match fs::symlink_metadata(root) {
        Ok(about) if about.is_dir() => {}
        Ok(_) => return Err(("kind", "the output is not a folder".into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(("absent", "the output does not exist".into()));
        }
        Err(error) => return Err(broken(&error)),
    }
    packer.walk()?;
    let finished = packer.archive.into_inner().and_then(|mut to| to.flush());
    finished.map_err(|error| broken(&error))
}

impl Packer {
    /// Goes through the folder, without following a link and however deep it is.
    fn walk(&mut self) -> Result<(), Refusal> {
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let listed = fs::read_dir(self.root.join(&folder));
            let mut names = Vec::new();
            for entry in listed.map_err(|error| broken(&error))? {
                names.push(entry.map_err(|error| broken(&error))?.file_name());
                if names.len() as u64 > self.entries {
                    return Err(too_many());
                }
            }
            names.sort();
            for name in names {
                let relative = folder.join(name);
                if self.is_skipped(&relative) {
                    continue;
                }
                let about = fs::symlink_metadata(self.root.join(&relative));
                let about = about.map_err(|error| broken(&error))?;
                if about.is_dir() {
                    self.add_folder(&relative)?;
                    folders.push(relative);
                } else if about.is_file() {
                    self.add_file(&relative)?;
                }
            }
        }
        Ok(())
    }

    fn is_skipped(&self, path: &Path) -> bool {
        let name = path.as_os_str().as_bytes();
        self.skip.iter().any(|skip| {
            let rest = name.strip_prefix(skip.as_slice());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        })
    }

    fn count(&mut self) -> Result<(), Refusal> {
        self.entries = self.entries.checked_sub(1).ok_or_else(too_many)?;
        Ok(())
    }

    fn add_folder(&mut self, path: &Path) -> Result<(), Refusal> {
        self.count()?;
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        let added = self.archive.append_data(&mut header, path, io::empty());
        added.map_err(|error| broken(&error))
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Refusal> {
        self.count()?;
        let file = open(&self.root.join(path))?;
        let size = file.metadata().map_err(|error| broken(&error))?.len();
        self.bytes = self.bytes.checked_sub(size).ok_or_else(|| {
            let words = format!("the output has more than {} bytes", self.limit);
            ("quota", words)
        })?;
        let mut header = header(tar::EntryType::Regular, 0o644, size);
        let added = self.archive.append_data(&mut header, path, file.take(size));
        added.map_err(|error| broken(&error))
    }
}

fn too_many() -> Refusal {
    ("quota", format!("the output has more than {ENTRIES} files"))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}
