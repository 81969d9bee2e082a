//! The files of a session at one moment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{At, SessionError};
use super::journal;
use super::name::{DataframeName, STATE, SUFFIX};

/// What a file of a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A dataframe: a step may read it.
    Dataframe(DataframeName),
    /// The log of steps: a step may read it.
    State,
    /// A private file of algorithms: a step gets a copy of its own that it may change.
    Private,
}

/// A file of a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    /// Its path below the session's folder, with `/` between the parts.
    pub path: String,
    /// In bytes.
    pub length: u64,
    /// What it is.
    pub kind: FileKind,
    place: PathBuf,
    _kept: Arc<Kept>,
}

impl SnapshotFile {
    /// Opens it for reading; as often as one likes, as long as this value lives.
    ///
    /// # Errors
    /// As opening a file.
    pub async fn open(&self) -> io::Result<tokio::fs::File> {
        tokio::fs::File::open(&self.place).await
    }
}

/// All files of a session at one moment. Later merges do not change them; the disk space
/// of files that were replaced meanwhile is freed when the last [`SnapshotFile`] is dropped.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Sorted by path.
    pub files: Vec<SnapshotFile>,
}

impl Snapshot {
    /// Which of the names are no dataframes of the session.
    pub fn missing<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let has = |name: &str| {
            self.files
                .iter()
                .any(|file| matches!(&file.kind, FileKind::Dataframe(own) if own.as_str() == name))
        };
        names.into_iter().filter(|name| !has(name)).collect()
    }

    /// Hard links every file of `session` into the new folder `links`.
    pub(super) fn take(session: &Path, links: PathBuf) -> Result<Self, SessionError> {
        fs::create_dir_all(&links).at("cannot create", &links)?;
        let kept = Arc::new(Kept(links));
        let mut found = Vec::new();
        walk(session, Path::new(""), &mut found)?;
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut files = Vec::new();
        for (number, (path, length)) in found.into_iter().enumerate() {
            let (from, place) = (session.join(&path), kept.0.join(number.to_string()));
            fs::hard_link(&from, &place).at("cannot link", &from)?;
            let kind = kind(&path);
            let path = path.to_string_lossy().into_owned();
            files.push(SnapshotFile {
                path,
                length,
                kind,
                place,
                _kept: kept.clone(),
            });
        }
        Ok(Self { files })
    }
}

/// The folder of links, removed at the end.
#[derive(Debug)]
struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Err(error) = journal::remove(&self.0) {
            tracing::warn!(%error, "a snapshot of a session is left behind until the next start");
        }
    }
}

fn kind(path: &Path) -> FileKind {
    let name = path.to_str().and_then(|name| name.strip_suffix(SUFFIX));
    match name.map(|name| (name, name.parse())) {
        Some((STATE, _)) => FileKind::State,
        Some((_, Ok(name))) => FileKind::Dataframe(name),
        _ => FileKind::Private,
    }
}

/// Path and length of each regular file below `root`; anything else is passed over.
pub(super) fn walk(
    root: &Path,
    below: &Path,
    found: &mut Vec<(PathBuf, u64)>,
) -> Result<(), SessionError> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).at("cannot read", &folder)? {
        let entry = entry.at("cannot read", &folder)?;
        let path = below.join(entry.file_name());
        let about = entry.metadata().at("cannot look at", &entry.path())?;
        if about.is_dir() {
            walk(root, &path, found)?;
        } else if about.is_file() {
            found.push((path, about.len()));
        }
    }
    Ok(())
}
