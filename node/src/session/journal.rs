//! Making a change of several files all or nothing.
//!
//! New files are first written into a folder `stage-…`, with a list of where they belong.
//! Renaming that folder to `commit-…` decides: before, the change never was; from then on
//! it is carried out, by moving each file to its place, again after a crash if need be.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{At, SessionError};

/// Where each staged file belongs, relative to the session's folder.
#[derive(Debug, Serialize, Deserialize)]
struct Moves {
    run: i64,
    moves: Vec<(String, PathBuf)>,
}

const LIST: &str = "moves.json";

/// The journal of one session.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    folder: PathBuf,
    session: PathBuf,
}

/// A change under preparation. Dropped, it never was.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
    files: usize,
    moves: Moves,
}

impl Stage {
    /// The path of a new file in the stage.
    pub(super) fn new_file(&mut self) -> StagedFile {
        let name = self.files.to_string();
        self.files += 1;
        StagedFile {
            path: self.folder.join(&name),
            name,
        }
    }

    /// Where the file belongs. One without a place is forgotten with the stage.
    pub(super) fn assign(&mut self, file: StagedFile, target: PathBuf) {
        self.moves.moves.push((file.name, target));
    }

    /// Target and size of each file that has a place.
    pub(super) fn sizes(&self) -> Result<Vec<(PathBuf, u64)>, SessionError> {
        let size = |(name, target): &(String, PathBuf)| {
            let path = self.folder.join(name);
            Ok((
                target.clone(),
                path.metadata().at("cannot look at", &path)?.len(),
            ))
        };
        self.moves.moves.iter().map(size).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // After a commit there is no such folder any more.
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(%error, "a part of a merge is left behind until the next start");
        }
    }
}

/// A file in a stage.
#[derive(Debug)]
pub(super) struct StagedFile {
    pub(super) path: PathBuf,
    name: String,
}

impl Journal {
    pub(super) fn new(folder: PathBuf, session: PathBuf) -> Self {
        Self { folder, session }
    }

    fn done(&self, run: i64) -> PathBuf {
        self.folder.join(format!("done-{run}"))
    }

    /// Whether the change of this run was carried out.
    pub(super) fn is_done(&self, run: i64) -> bool {
        self.done(run).exists()
    }

    /// Forgets that a run was merged.
    pub(super) fn forget(&self, run: i64) -> Result<(), SessionError> {
        let path = self.done(run);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).at("cannot remove", &path)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn stage(&self, run: i64) -> Result<Stage, SessionError> {
        let folder = self.folder.join(format!("stage-{run}"));
        remove(&folder)?;
        fs::create_dir_all(&folder).at("cannot create", &folder)?;
        Ok(Stage {
            folder,
            files: 0,
            moves: Moves {
                run,
                moves: Vec::new(),
            },
        })
    }

    /// The point of no return, and then the change itself.
    pub(super) fn commit(&self, stage: Stage) -> Result<(), SessionError> {
        let list = stage.folder.join(LIST);
        let json = serde_json::to_vec(&stage.moves)
            .map_err(|error| SessionError::Internal(error.to_string()))?;
        fs::write(&list, json).at("cannot write", &list)?;
        sync(&list)?;
        sync(&stage.folder)?;
        let commit = self.folder.join(format!("commit-{}", stage.moves.run));
        fs::rename(&stage.folder, &commit).at("cannot commit", &commit)?;
        sync(&self.folder)?;
        self.carry_out(&commit)
    }

    fn carry_out(&self, commit: &Path) -> Result<(), SessionError> {
        let list = commit.join(LIST);
        let json = fs::read(&list).at("cannot read", &list)?;
        let Moves { run, moves } = serde_json::from_slice(&json)
            .map_err(|error| SessionError::Internal(error.to_string()))?;
        for (name, target) in moves {
            let (from, to) = (commit.join(name), self.session.join(&target));
            // Gone: moved before a crash.
            if !from.exists() {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).at("cannot create", parent)?;
            }
            fs::rename(&from, &to).at("cannot replace", &to)?;
        }
        sync(&self.session)?;
        let done = self.done(run);
        File::create(&done).at("cannot create", &done)?;
        sync(&self.folder)?;
        remove(commit)
    }

    /// Finishes what was decided before a crash, and removes what was not. Only while no
    /// stage of this session is in use.
    pub(super) fn recover(&self) -> Result<(), SessionError> {
        self.recover_with(true)
    }

    /// Finishes what was decided.
    pub(super) fn recover_commits(&self) -> Result<(), SessionError> {
        self.recover_with(false)
    }

    fn recover_with(&self, stages: bool) -> Result<(), SessionError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.at("cannot read", &self.folder)?,
        };
        for entry in entries {
            let entry = entry.at("cannot read", &self.folder)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("commit-") {
                // Without its list it was carried out, and its removal was cut short.
                if entry.path().join(LIST).exists() {
                    self.carry_out(&entry.path())?;
                } else {
                    remove(&entry.path())?;
                }
            } else if stages && name.starts_with("stage-") {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Makes a file or folder durable.
pub(super) fn sync(path: &Path) -> Result<(), SessionError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .at("cannot write", path)
}

/// Removes a folder with all that is in it, if it is there.
pub(super) fn remove(folder: &Path) -> Result<(), SessionError> {
    // The list goes first: a half-removed commit must not be carried out again.
    let _ = fs::remove_file(folder.join(LIST));
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).at("cannot remove", folder)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A journal with a change of two files, decided and not carried out, as a crash right
    /// after the commit leaves it.
    fn decided(root: &Path) -> (Journal, PathBuf) {
        let (folder, session) = (root.join("journal"), root.join("session"));
        fs::create_dir_all(&session).unwrap();
        let journal = Journal::new(folder.clone(), session);
        let mut stage = journal.stage(7).unwrap();
        for (content, target) in [("one", "a.parquet"), ("two", "deep/er/b")] {
            let file = stage.new_file();
            fs::write(&file.path, content).unwrap();
            stage.assign(file, target.into());
        }
        fs::write(
            stage.folder.join(LIST),
            serde_json::to_vec(&stage.moves).unwrap(),
        )
        .unwrap();
        let commit = folder.join("commit-7");
        fs::rename(&stage.folder, &commit).unwrap();
        (journal, commit)
    }

    fn check(journal: &Journal) {
        journal.recover().unwrap();
        assert_eq!(
            fs::read_to_string(journal.session.join("a.parquet")).unwrap(),
            "one"
        );
        assert_eq!(
            fs::read_to_string(journal.session.join("deep/er/b")).unwrap(),
            "two"
        );
        assert!(journal.is_done(7));
        assert_eq!(fs::read_dir(&journal.folder).unwrap().count(), 1);
    }

    #[test]
    fn a_crash_after_the_decision_is_made_good() {
        let root = tempfile::tempdir().unwrap();
        let (journal, _) = decided(root.path());
        check(&journal);
        // And once more, with nothing left to do.
        check(&journal);
        journal.forget(7).unwrap();
        journal.forget(7).unwrap();
        assert!(!journal.is_done(7));
    }

    #[test]
    fn so_is_one_between_two_files() {
        let root = tempfile::tempdir().unwrap();
        let (journal, commit) = decided(root.path());
        fs::rename(commit.join("0"), journal.session.join("a.parquet")).unwrap();
        check(&journal);
    }

    #[test]
    fn so_is_one_while_the_commit_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let (journal, commit) = decided(root.path());
        journal.recover().unwrap();
        fs::create_dir(&commit).unwrap();
        check(&journal);
    }

    #[test]
    fn before_the_decision_nothing_happened() {
        let root = tempfile::tempdir().unwrap();
        let journal = Journal::new(root.path().join("journal"), root.path().join("session"));
        let mut stage = journal.stage(7).unwrap();
        let file = stage.new_file();
        fs::write(&file.path, "x").unwrap();
        stage.assign(file, "a.parquet".into());
        // As a crash would: no destructor.
        let folder = stage.folder.clone();
        std::mem::forget(stage);
        assert!(folder.exists());
        journal.recover_commits().unwrap();
        assert!(folder.exists());
        journal.recover().unwrap();
        assert!(!folder.exists() && !journal.is_done(7));
        drop(journal.stage(8).unwrap());
        assert_eq!(
            fs::read_dir(root.path().join("journal")).unwrap().count(),
            0
        );
    }
}
