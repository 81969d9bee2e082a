//! A run's folder: its record, and a lock that tells whether somebody is at work on it.
//!
//! ```text
//! OWNER/RUN/           locked by whoever is at work on the run: `run`, then its supervisor
//!   state.json         replaced as a whole, by the one who holds the lock
//!   order.json         what is to be started, secrets included; gone when it has been read
//!   cancel-MILLIS      somebody wants the run to end now, and to be killed at this time
//!   bell               a pipe: a byte in it asks the supervisor to look for such wishes
//!   in/N, out/NAME     inputs in the spec's order, outputs by name
//!   stdout, stderr     what the program printed
//! OWNER/.PID-N/        a record that is being made or removed
//! ```
//!
//! A record appears and disappears as a whole, by a rename. The lock is the kernel's, on the
//! folder itself: it ends with the last process that holds it, however that ends.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, mknodat, openat, renameat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use v6_runtime::{
    Annotations, Outcome, OutputName, Pending, ResolvedImage, RunId, RunPhase, RunStatus,
    SpecDigest,
};

const STATE: &str = "state.json";
const ORDER: &str = "order.json";
const CANCEL: &str = "cancel-";
const BELL: &str = "bell";

/// All that is kept of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The digest of its spec.
    pub spec: SpecDigest,
    /// What it runs.
    pub image: ResolvedImage,
    /// The caller's notes.
    pub annotations: Annotations,
    /// Its outputs, and the most bytes of each.
    pub outputs: BTreeMap<OutputName, NonZeroU64>,
    /// When it is ended at the latest.
    pub deadline: Option<SystemTime>,
    /// Between the request to end and the kill.
    pub grace: Duration,
    /// When this record was made.
    pub created: SystemTime,
    /// When the program started.
    pub started: Option<SystemTime>,
    /// When the run ended.
    pub finished: Option<SystemTime>,
    /// Where it is, in the words of the one who is at work on it: Accepted while input is being
    /// stored, and nothing earlier than Starting once there is a supervisor.
    pub phase: RunPhase,
}

/// The folder of one attempt, held open: it stays this one when another takes its place.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    handle: File,
    /// Whether the lock is held, and this value is to give it up.
    locked: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just starting has a copy of the
        // handle until it executes its program.
        if self.locked {
            let _ = self.handle.unlock();
        }
    }
}

impl Folder {
    /// Opens what is at this path, if anything is.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(handle) => Ok(Some(Self::of(path, handle.into()))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A folder that has been opened.
    pub fn of(path: &Path, handle: File) -> Self {
        let path = path.to_owned();
        Self {
            path,
            handle,
            locked: false,
        }
    }

    /// Makes a record that nobody else sees yet, and holds its lock.
    pub fn make(owner: &Path, state: &State) -> io::Result<Self> {
        let path = aside(owner);
        fs::create_dir(&path)?;
        let mut folder = Self::of(&path, File::open(&path)?);
        folder.handle.lock()?;
        folder.locked = true;
        for part in ["in", "out", "root"] {
            fs::create_dir(path.join(part))?;
        }
        for stream in ["stdout", "stderr"] {
            File::create_new(path.join(stream))?;
        }
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(&folder.handle, BELL, FileType::Fifo, mode, 0)?;
        folder.store(state)?;
        Ok(folder)
    }

    /// Where it is, as far as this value knows.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open folder itself, which carries the lock to another process.
    pub fn handle(&self) -> io::Result<File> {
        self.handle.try_clone()
    }

    /// Leaves the lock to whoever has the handle.
    pub fn leave_lock(mut self) {
        self.locked = false;
    }

    /// Puts a new record in its place, and says whether that was free.
    pub fn put(&mut self, place: &Path) -> io::Result<bool> {
        match renameat_with(CWD, &self.path, CWD, place, RenameFlags::NOREPLACE) {
            Ok(()) => self.path = place.to_owned(),
            Err(Errno::EXIST) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Puts a new record in the place of an abandoned one, of which the lock is held.
    pub fn replace(&mut self, mut old: Self) -> io::Result<()> {
        renameat_with(CWD, &self.path, CWD, &old.path, RenameFlags::EXCHANGE)?;
        std::mem::swap(&mut self.path, &mut old.path);
        remove_whole(&old.path)
    }

    /// Removes what belongs to a run, its record last. What cannot be removed keeps the record.
    pub fn remove(self) -> io::Result<()> {
        let mut first = Ok(());
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() != STATE {
                let removed = if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())
                } else {
                    fs::remove_file(entry.path())
                };
                first = first.and(removed);
            }
        }
        first?;
        let owner = self.path.parent().unwrap_or(Path::new("/"));
        let aside = aside(owner);
        fs::rename(&self.path, &aside)?;
        remove_whole(&aside)
    }

    /// Whether nobody is at work on the run.
    fn is_idle(&self) -> io::Result<bool> {
        match self.handle.try_lock_shared() {
            Ok(()) => self.handle.unlock().map(|()| true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock, unless somebody is at work on the run or has a look at it just now.
    pub fn claim(&mut self) -> io::Result<bool> {
        match self.handle.try_lock() {
            Ok(()) => self.locked = true,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(self.locked)
    }

    /// Whether this is still what is at its path: a lock may have been taken on what was there.
    pub fn is_in_place(&self) -> io::Result<bool> {
        let mine = self.handle.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (mine.dev(), mine.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat(&self.handle, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Opens one of its files for reading.
    pub fn read(&self, name: &str) -> io::Result<File> {
        self.file(name, OFlags::RDONLY)
    }

    /// Opens one of its files for writing at its end.
    pub fn append(&self, name: &str) -> io::Result<File> {
        self.file(name, OFlags::WRONLY | OFlags::APPEND)
    }

    /// A new file, which only its owner can read.
    pub fn create(&self, name: &str) -> io::Result<File> {
        self.file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    /// Reads the state; `NotFound` if the record has been removed meanwhile.
    pub fn state(&self) -> io::Result<State> {
        Ok(serde_json::from_reader(io::BufReader::new(
            self.read(STATE)?,
        ))?)
    }

    /// Replaces the state, and tells those who watch the owner's folder.
    pub fn store(&self, state: &State) -> io::Result<()> {
        const NEW: &str = "state.new";
        let mut file = self.file(NEW, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        // Or a loss of power might leave a record without a word in it.
        file.sync_all()?;
        renameat(&self.handle, NEW, &self.handle, STATE)?;
        self.handle.set_modified(SystemTime::now())
    }

    /// Leaves an order for the supervisor.
    pub fn leave_order(&self, order: &[u8]) -> io::Result<()> {
        self.create(ORDER)?.write_all(order)
    }

    /// Takes the order: it has secrets in it, and is needed once.
    pub fn take_order(&self) -> io::Result<Vec<u8>> {
        let mut order = Vec::new();
        self.read(ORDER)?.read_to_end(&mut order)?;
        unlinkat(&self.handle, ORDER, AtFlags::empty())?;
        Ok(order)
    }

    /// Notes the wish that the run end now, and be killed at this time. Any number may be noted;
    /// the earliest holds, whoever comes first or last.
    pub fn wish(&self, kill: SystemTime) -> io::Result<()> {
        let since = kill.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("{CANCEL}{:020}", since.as_millis());
        match self.create(&name) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Nobody may be there to hear it: a supervisor that starts looks by itself, and where the
        // bell is gone the run is just being removed.
        match self.file(BELL, OFlags::WRONLY | OFlags::NONBLOCK) {
            Ok(mut bell) => drop(bell.write(b"!")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Hears the bell from now on. Needs a Tokio runtime.
    pub fn listen(&self) -> io::Result<pipe::Receiver> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        // For writing too, so that it is never at its end.
        pipe::Receiver::from_file(self.file(BELL, flags)?)
    }

    /// The time of the kill by the wish that holds, if there is one.
    pub fn wished(&self) -> io::Result<Option<SystemTime>> {
        let mut earliest: Option<u64> = None;
        for entry in Dir::read_from(&self.handle)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            let millis = name.strip_prefix(CANCEL).and_then(|rest| rest.parse().ok());
            earliest = [earliest, millis].into_iter().flatten().min();
        }
        Ok(earliest.and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis))))
    }

    /// What a phase means once nobody is at work on the run any more.
    fn left_at(&self, phase: RunPhase) -> io::Result<RunPhase> {
        Ok(match phase {
            RunPhase::Finished(outcome) => RunPhase::Finished(outcome),
            RunPhase::Pending(Pending::Accepted) => match self.wished()? {
                Some(_) => RunPhase::Finished(Outcome::Cancelled),
                None => RunPhase::Pending(Pending::Abandoned),
            },
            _ => RunPhase::Finished(Outcome::Lost("its supervisor is gone".into())),
        })
    }

    /// Stores how a run ended that nobody is at work on, before it is removed: as long as the
    /// lock is held for that, a look cannot tell. One that was abandoned is as good as cancelled.
    pub fn settle(&self) -> io::Result<()> {
        let mut state = self.state()?;
        if !state.phase.is_finished() {
            state.phase = match self.left_at(state.phase)? {
                RunPhase::Pending(_) => RunPhase::Finished(Outcome::Cancelled),
                ended => ended,
            };
            self.store(&state)?;
        }
        Ok(())
    }

    /// What there is to say of the run; `None` if its record has been removed meanwhile.
    pub fn status(&self, id: &RunId) -> io::Result<Option<RunStatus>> {
        // Asked first: who ends work stores what came of it, and gives up the lock then.
        let idle = self.is_idle()?;
        let seen = self.state().and_then(|mut state| {
            if idle {
                state.phase = self.left_at(state.phase)?;
            }
            Ok(state)
        });
        let Some(state) = unless_removed(seen)? else {
            return Ok(None);
        };
        let mut status = RunStatus::new(
            id.clone(),
            state.phase,
            state.spec,
            state.image,
            state.annotations,
        );
        status.deadline = state.deadline;
        status.created = Some(state.created);
        status.started = state.started;
        status.finished = state.finished;
        Ok(Some(status))
    }
}

/// What was done with a record, or `None` if somebody has removed it meanwhile.
pub fn unless_removed<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

/// Removes a record that is out of sight. Whoever has it open still may just put a wish into it.
fn remove_whole(path: &Path) -> io::Result<()> {
    const TRIES: u32 = 10;
    let mut tried = 0;
    loop {
        tried += 1;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && tried < TRIES => {}
            done => return done,
        }
    }
}

/// The time after this one, or the end of time.
pub fn later(time: SystemTime, by: Duration) -> SystemTime {
    const LONG: Duration = Duration::from_secs(1 << 34);
    time.checked_add(by).unwrap_or(UNIX_EPOCH + LONG)
}

/// A place in an owner's folder that no run has: ids do not begin with a dot.
pub fn aside(owner: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    owner.join(format!(".{}-{number}", std::process::id()))
}

/// Removes what a process that is gone was making or removing.
pub fn sweep(owner: &Path) -> io::Result<()> {
    for entry in fs::read_dir(owner)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(b".")
            && let Some(mut folder) = Folder::open(&path)?
            && folder.claim()?
        {
            remove_whole(&path)?;
        }
    }
    Ok(())
}
