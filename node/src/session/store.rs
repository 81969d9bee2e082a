//! The sessions of a node, on disk.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio_tar::Archive;

use super::error::{At, SessionError};
use super::journal::{self, Journal, Stage, StagedFile};
use super::name::{DataframeName, STATE, SUFFIX};
use super::plan::Plan;
use super::snapshot::{Snapshot, walk};
use super::state::{self, StateRow};
use crate::hq::Action;

/// What a session may hold.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// All files of a session together, in bytes.
    pub bytes: u64,
    /// Private files that one run may leave.
    pub files: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            bytes: 50 << 30,
            files: 10_000,
        }
    }
}

/// What a successful run leaves in its session.
pub struct Merge<'a> {
    /// HQ's id of the run: it is merged once.
    pub run: i64,
    /// What it did, for the log of steps.
    pub action: Action,
    /// The dataframe that it made, and a file with its content, checked to be parquet. The
    /// file must not be changed afterwards; it may be removed.
    pub dataframe: Option<(DataframeName, &'a Path)>,
    /// What was in its session folder at the end.
    pub private: Option<PrivateFiles<'a>>,
}

/// The content of a run's session folder.
pub struct PrivateFiles<'a> {
    /// A tar stream.
    pub tar: Pin<Box<dyn AsyncRead + Send + 'a>>,
    /// Leading parts of the paths that are not the session's, e.g. 1 for `session/x`.
    pub strip: usize,
}

/// What has become of a [`Merge`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    /// The run had been merged before; nothing was done now.
    pub already: bool,
    /// Private files that were not taken, and why. Dataframes and the log of steps, of
    /// which every run has a copy, are not among them.
    pub skipped: Vec<(String, &'static str)>,
}

/// The sessions of a node. Clones share them.
///
/// One process at a time may have a data directory open; the node's lease sees to that.
#[derive(Debug, Clone)]
pub struct Sessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    limits: SessionLimits,
    locks: Mutex<HashMap<i64, Arc<RwLock<()>>>>,
    snapshots: AtomicU64,
}

impl Sessions {
    /// Opens the sessions below `data_dir` with the default limits, making what is missing and
    /// finishing what a crash has cut short.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn open(data_dir: &Path) -> Result<Self, SessionError> {
        Self::open_with(data_dir, SessionLimits::default()).await
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn open_with(data_dir: &Path, limits: SessionLimits) -> Result<Self, SessionError> {
        let inner = Inner {
            root: data_dir.to_owned(),
            limits,
            locks: Mutex::default(),
            snapshots: AtomicU64::new(0),
        };
        let sessions = Self(Arc::new(inner));
        let inner = sessions.0.clone();
        blocking(move || {
            fs::create_dir_all(inner.folder()).at("cannot create", &inner.folder())?;
            fs::create_dir_all(inner.journals()).at("cannot create", &inner.journals())?;
            journal::remove(&inner.snapshot_folder())?;
            for session in numbers(&inner.journals())? {
                inner.journal(session).recover()?;
            }
            Ok(())
        })
        .await?;
        Ok(sessions)
    }

    /// Ids of the sessions that have a folder here.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn list(&self) -> Result<Vec<i64>, SessionError> {
        let inner = self.0.clone();
        blocking(move || numbers(&inner.folder())).await
    }

    /// The dataframes of a session, sorted; none if there is no such session here.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn dataframes(&self, session: i64) -> Result<Vec<DataframeName>, SessionError> {
        let guard = self.0.read(session).await;
        let inner = self.0.clone();
        blocking(move || {
            let _guard = guard;
            let folder = inner.session(session);
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries.at("cannot read", &folder)?,
            };
            let mut names = Vec::new();
            for entry in entries {
                let name = entry.at("cannot read", &folder)?.file_name();
                let name = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
                names.extend(name.and_then(|name| name.parse::<DataframeName>().ok()));
            }
            names.sort();
            Ok(names)
        })
        .await
    }

    /// The session's files as they are now, for a step to work with. Makes the session if it
    /// is new.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn snapshot(&self, session: i64) -> Result<Snapshot, SessionError> {
        let guard = self.0.write(session).await;
        let inner = self.0.clone();
        blocking(move || {
            let _guard = guard;
            inner.make(session)?;
            let number = inner.snapshots.fetch_add(1, Ordering::Relaxed);
            Snapshot::take(
                &inner.session(session),
                inner.snapshot_folder().join(number.to_string()),
            )
        })
        .await
    }

    /// The log of steps of a session; empty if there is no such session here.
    ///
    /// # Errors
    /// [`SessionError::NotParquet`] if the file is damaged.
    pub async fn history(&self, session: i64) -> Result<Vec<StateRow>, SessionError> {
        let guard = self.0.read(session).await;
        let inner = self.0.clone();
        blocking(move || {
            let _guard = guard;
            let path = inner.state(session);
            if !path.exists() {
                return Ok(Vec::new());
            }
            state::read(&path).map_err(|error| SessionError::NotParquet(error.to_string()))
        })
        .await
    }

    /// Takes over what a successful run leaves: its dataframe, its private files and a row in
    /// the log of steps, all or nothing. A second call for the same run changes nothing.
    /// Dropping the future leaves the session unchanged or changed as a whole.
    ///
    /// # Errors
    /// See [`SessionError`]; the session is then as it was.
    pub async fn merge(&self, session: i64, merge: Merge<'_>) -> Result<Merged, SessionError> {
        let Merge {
            run,
            action,
            dataframe,
            private,
        } = merge;
        if self.0.journal(session).is_done(run) {
            return Ok(Merged {
                already: true,
                skipped: Vec::new(),
            });
        }
        let inner = self.0.clone();
        let mut stage = blocking(move || {
            let journals = inner.journal_folder(session);
            fs::create_dir_all(&journals).at("cannot create", &journals)?;
            inner.journal(session).stage(run)
        })
        .await?;
        let mut merged = Merged::default();
        let (files, strip) = match private {
            None => (Vec::new(), 0),
            Some(PrivateFiles { tar, strip }) => {
                let limits = self.0.limits;
                (
                    unpack(tar, &mut stage, limits, &mut merged.skipped).await?,
                    strip,
                )
            }
        };
        let dataframe = match dataframe {
            None => None,
            Some((name, from)) => {
                let (file, from) = (stage.new_file(), from.to_owned());
                let to = file.path.clone();
                blocking(move || bring(&from, &to)).await?;
                Some((name, file))
            }
        };
        let guard = self.0.write(session).await;
        let inner = self.0.clone();
        blocking(move || {
            let _guard = guard;
            inner.make(session)?;
            let folder = inner.session(session);
            let mut plan = Plan::default();
            for (path, file) in files {
                match plan.target(&path, strip, &folder) {
                    Ok(target) => {
                        plan.take(target.clone());
                        stage.assign(file, target);
                    }
                    Err(_) if inner.is_copy(session, &path, strip) => {}
                    Err(reason) => merged
                        .skipped
                        .push((path.to_string_lossy().into_owned(), reason)),
                }
            }
            let row = match &dataframe {
                Some((name, _)) => StateRow::now(
                    action.as_str(),
                    &name.file_name(),
                    "Session updated.",
                    name.as_str(),
                ),
                None => StateRow::now(action.as_str(), "", "Algorithm completed successfully.", ""),
            };
            if let Some((name, file)) = dataframe {
                stage.assign(file, name.file_name().into());
            }
            let state = stage.new_file();
            inner.append(session, row, &state.path)?;
            stage.assign(state, format!("{STATE}{SUFFIX}").into());
            inner.check_quota(session, &stage)?;
            inner.journal(session).commit(stage)?;
            Ok(merged)
        })
        .await
    }

    /// Forgets that a run was merged, once it cannot come again.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn forget_run(&self, session: i64, run: i64) -> Result<(), SessionError> {
        let inner = self.0.clone();
        blocking(move || inner.journal(session).forget(run)).await
    }

    /// Deletes a dataframe and says so in the log of steps. `false` if it was not there, in
    /// which case nothing is logged.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn delete_dataframe(
        &self,
        session: i64,
        name: &DataframeName,
    ) -> Result<bool, SessionError> {
        let guard = self.0.write(session).await;
        let (inner, name) = (self.0.clone(), name.clone());
        blocking(move || {
            let _guard = guard;
            let path = inner.session(session).join(name.file_name());
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                done => done.at("cannot remove", &path)?,
            }
            let row = StateRow::now(
                "delete",
                &name.file_name(),
                "Dataframe deleted",
                name.as_str(),
            );
            let beside = inner.new_state(session)?;
            inner.append(session, row, &beside)?;
            inner.replace_state(session, &beside)?;
            Ok(true)
        })
        .await
    }

    /// Removes a session with all that belongs to it. Nothing happens if it is not here.
    ///
    /// # Errors
    /// [`SessionError::Io`].
    pub async fn purge(&self, session: i64) -> Result<(), SessionError> {
        let guard = self.0.write(session).await;
        let inner = self.0.clone();
        blocking(move || {
            let _guard = guard;
            journal::remove(&inner.session(session))?;
            journal::remove(&inner.journal_folder(session))
        })
        .await
    }
}

impl Inner {
    fn folder(&self) -> PathBuf {
        self.root.join("sessions")
    }

    fn journals(&self) -> PathBuf {
        self.root.join("sessions-journal")
    }

    fn snapshot_folder(&self) -> PathBuf {
        self.root.join("sessions-snapshots")
    }

    fn session(&self, session: i64) -> PathBuf {
        self.folder().join(folder_name(session))
    }

    fn journal_folder(&self, session: i64) -> PathBuf {
        self.journals().join(folder_name(session))
    }

    fn journal(&self, session: i64) -> Journal {
        Journal::new(self.journal_folder(session), self.session(session))
    }

    fn state(&self, session: i64) -> PathBuf {
        self.session(session).join(format!("{STATE}{SUFFIX}"))
    }

    fn lock(&self, session: i64) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(session).or_default().clone()
    }

    async fn read(&self, session: i64) -> OwnedRwLockReadGuard<()> {
        self.lock(session).read_owned().await
    }

    async fn write(&self, session: i64) -> OwnedRwLockWriteGuard<()> {
        self.lock(session).write_owned().await
    }

    fn make(&self, session: i64) -> Result<(), SessionError> {
        // A merge whose end was an error has left what it decided; it is finished first.
        self.journal(session).recover_commits()?;
        if self.state(session).exists() {
            return Ok(());
        }
        let folder = self.session(session);
        fs::create_dir_all(&folder).at("cannot create", &folder)?;
        let beside = self.new_state(session)?;
        write_state(&beside, &[StateRow::beginning()])?;
        self.replace_state(session, &beside)
    }

    /// Where a new log of steps is written before it replaces the old one.
    fn new_state(&self, session: i64) -> Result<PathBuf, SessionError> {
        let folder = self.journal_folder(session);
        fs::create_dir_all(&folder).at("cannot create", &folder)?;
        Ok(folder.join("new-state"))
    }

    fn replace_state(&self, session: i64, beside: &Path) -> Result<(), SessionError> {
        let path = self.state(session);
        fs::rename(beside, &path).at("cannot replace", &path)?;
        journal::sync(&self.session(session))
    }

    /// Writes the log of steps with one more row to `to`.
    fn append(&self, session: i64, row: StateRow, to: &Path) -> Result<(), SessionError> {
        let path = self.state(session);
        let mut rows = match state::read(&path) {
            Ok(rows) => rows,
            Err(error) => {
                // It tells what was done, and is no reason to stop working.
                tracing::error!(%error, session, "the session's log of steps is damaged; it is begun anew");
                let aside = path.with_extension("damaged");
                fs::copy(&path, &aside).at("cannot copy", &path)?;
                vec![StateRow::beginning()]
            }
        };
        rows.push(row);
        write_state(to, &rows)
    }

    /// Whether a file in a run's folder is its copy of what the node keeps.
    fn is_copy(&self, session: i64, path: &Path, strip: usize) -> bool {
        let below: PathBuf = path
            .components()
            .filter(|part| !matches!(part, std::path::Component::CurDir))
            .skip(strip)
            .collect();
        below.components().count() == 1
            && below.to_str().is_some_and(|name| name.ends_with(SUFFIX))
            && self.session(session).join(below).is_file()
    }

    fn check_quota(&self, session: i64, stage: &Stage) -> Result<(), SessionError> {
        let folder = self.session(session);
        let mut found = Vec::new();
        walk(&folder, Path::new(""), &mut found)?;
        let mut sizes: HashMap<PathBuf, u64> = found.into_iter().collect();
        for (target, size) in stage.sizes()? {
            sizes.insert(target, size);
        }
        let total = sizes
            .values()
            .fold(0_u64, |total, size| total.saturating_add(*size));
        let limit = self.limits.bytes;
        if total > limit {
            Err(SessionError::Quota { limit })
        } else {
            Ok(())
        }
    }
}

/// Unpacks the regular files of the stream into the stage. Folders are implied; links,
/// devices and the like are skipped.
async fn unpack(
    tar: Pin<Box<dyn AsyncRead + Send + '_>>,
    stage: &mut Stage,
    limits: SessionLimits,
    skipped: &mut Vec<(String, &'static str)>,
) -> Result<Vec<(PathBuf, StagedFile)>, SessionError> {
    let mut files = Vec::new();
    let mut left = limits.bytes;
    let mut seen = 0_usize;
    let mut archive = Archive::new(tar);
    let mut entries = archive.entries().map_err(SessionError::Tar)?;
    while let Some(entry) = entries.next().await {
        let mut entry = entry.map_err(SessionError::Tar)?;
        seen += 1;
        if seen > limits.files {
            return Err(SessionError::TooManyFiles {
                limit: limits.files,
            });
        }
        let path = entry.path().map_err(SessionError::Tar)?.into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() {
            skipped.push((
                path.to_string_lossy().into_owned(),
                "it is not a regular file",
            ));
            continue;
        }
        let file = stage.new_file();
        let mut out = tokio::fs::File::create(&file.path)
            .await
            .at("cannot create", &file.path)?;
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = entry.read(&mut piece).await.map_err(SessionError::Tar)?;
            if count == 0 {
                break;
            }
            left = left.checked_sub(count as u64).ok_or(SessionError::Quota {
                limit: limits.bytes,
            })?;
            out.write_all(&piece[..count])
                .await
                .at("cannot write", &file.path)?;
        }
        out.sync_all().await.at("cannot write", &file.path)?;
        files.push((path, file));
    }
    Ok(files)
}

/// The same content at `to`, without copying where both are on one file system.
fn bring(from: &Path, to: &Path) -> Result<(), SessionError> {
    let about = from.symlink_metadata().at("cannot look at", from)?;
    if !about.is_file() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).at("not a regular file:", from);
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).at("cannot copy", from)?;
    }
    journal::sync(to)
}

fn write_state(to: &Path, rows: &[StateRow]) -> Result<(), SessionError> {
    state::write(to, rows)
        .map_err(io::Error::other)
        .at("cannot write", to)
}

fn folder_name(session: i64) -> String {
    format!("session{session:09}")
}

fn numbers(folder: &Path) -> Result<Vec<i64>, SessionError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder).at("cannot read", folder)? {
        let name = entry.at("cannot read", folder)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("session")?.parse::<i64>().ok());
        numbers.extend(number.filter(|number| folder_name(*number).as_str() == name));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SessionError> + Send + 'static,
) -> Result<T, SessionError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(SessionError::Internal(error.to_string())),
    }
}
