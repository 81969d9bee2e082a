//! Whether another user could read a path, told from mode bits alone.
//!
//! Access control lists and security modules are not looked at; where they allow or
//! forbid more, the answer is off.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The user as whom runs read, where the node itself is root.
pub const NOBODY: u32 = 65532;

/// Entries of a folder that are looked at before the rest is believed to be alike.
const MAX_ENTRIES: usize = 10_000;

const READ: u32 = 4;
const SEARCH: u32 = 1;

/// A user with its groups.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The user id.
    pub uid: u32,
    /// All group ids.
    pub groups: Vec<u32>,
}

/// What stands in the way.
#[derive(Debug)]
pub enum Obstacle {
    /// The file, the folder or something in it can't be read; with the group that could.
    Unreadable(PathBuf, Option<u32>),
    /// A folder above it can't be passed.
    Closed(PathBuf),
    /// This process itself can't look.
    Unseen(PathBuf, io::Error),
}

impl Reader {
    /// The user of runs: this process's own, or [`NOBODY`] if that is root.
    pub fn of_runs(group: Option<u32>) -> Self {
        let own = rustix::process::geteuid();
        let uid = if own.is_root() { NOBODY } else { own.as_raw() };
        let mut groups = vec![if own.is_root() {
            NOBODY
        } else {
            rustix::process::getegid().as_raw()
        }];
        groups.extend(group);
        Self { uid, groups }
    }

    /// Whether this user may read `path`, a file or a folder with all it holds.
    ///
    /// # Errors
    ///
    /// The first obstacle on the way; those of the path itself before those above it.
    pub fn can_read(&self, path: &Path) -> Result<(), Obstacle> {
        let path =
            fs::canonicalize(path).map_err(|error| Obstacle::Unseen(path.to_owned(), error))?;
        self.can_read_tree(&path)?;
        for parent in path.ancestors().skip(1) {
            let metadata = metadata(parent)?;
            if !self.may(&metadata, SEARCH) {
                return Err(Obstacle::Closed(parent.to_owned()));
            }
        }
        Ok(())
    }

    fn can_read_tree(&self, root: &Path) -> Result<(), Obstacle> {
        let mut todo = vec![root.to_owned()];
        let mut seen = 0;
        while let Some(path) = todo.pop() {
            seen += 1;
            if seen > MAX_ENTRIES {
                return Ok(());
            }
            let metadata = metadata(&path)?;
            let needed = if metadata.is_dir() {
                READ | SEARCH
            } else {
                READ
            };
            if !self.may(&metadata, needed) {
                let group = ((metadata.mode() >> 3) & needed == needed).then(|| metadata.gid());
                return Err(Obstacle::Unreadable(path, group));
            }
            if metadata.is_dir() {
                let unseen = |error| Obstacle::Unseen(path.clone(), error);
                for entry in fs::read_dir(&path).map_err(unseen)? {
                    let entry = entry.map_err(unseen)?;
                    // A link leads somewhere else in the container; it proves nothing here.
                    if !entry.file_type().map_err(unseen)?.is_symlink() {
                        todo.push(entry.path());
                    }
                }
            }
        }
        Ok(())
    }

    /// POSIX: the first class that fits decides, even if a later one allows more.
    fn may(&self, metadata: &Metadata, needed: u32) -> bool {
        let shift = if self.uid == metadata.uid() {
            6
        } else if self.groups.contains(&metadata.gid()) {
            3
        } else {
            0
        };
        (metadata.mode() >> shift) & needed == needed
    }
}

fn metadata(path: &Path) -> Result<Metadata, Obstacle> {
    fs::metadata(path).map_err(|error| Obstacle::Unseen(path.to_owned(), error))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn mode_bits_decide() {
        let folder = tempfile::tempdir().unwrap();
        chmod(folder.path(), 0o755);
        let file = folder.path().join("a.csv");
        fs::write(&file, "x").unwrap();
        let own = fs::metadata(&file).unwrap();
        let stranger = Reader {
            uid: own.uid() + 1,
            groups: vec![own.gid() + 1],
        };
        let fellow = Reader {
            uid: own.uid() + 1,
            groups: vec![own.gid()],
        };
        for (mode, of_stranger, of_fellow) in [
            (0o644, true, true),
            (0o640, false, true),
            (0o604, true, false),
            (0o600, false, false),
        ] {
            chmod(&file, mode);
            assert_eq!(stranger.can_read(&file).is_ok(), of_stranger, "{mode:o}");
            assert_eq!(fellow.can_read(&file).is_ok(), of_fellow, "{mode:o}");
        }
        assert!(
            matches!(stranger.can_read(folder.path()), Err(Obstacle::Unreadable(path, _)) if path.ends_with("a.csv"))
        );
        chmod(&file, 0o644);
        assert!(stranger.can_read(folder.path()).is_ok());
        chmod(folder.path(), 0o700);
        assert!(
            matches!(stranger.can_read(&file), Err(Obstacle::Closed(path)) if path == folder.path())
        );
        assert!(matches!(
            stranger.can_read(&folder.path().join("no")),
            Err(Obstacle::Unseen(..))
        ));
    }
}
