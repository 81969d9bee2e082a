//! Mode `monitor`: one process for each run, that outlives whoever started it.
//!
//! A run has a folder. Whoever works on it holds the folder's lock: first the starter, then, by the
//! same open file, the monitor. All that is known of a run is read from the folder by
//! [`RunFolder::look`], by any process and at any time; nobody has to remember anything.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::job::TunnelOptions;
use crate::monitor_state::{self, Ended, Recorded, State};

/// How long a lock may be held by somebody who only looks whether it is.
const LOOKERS: Duration = Duration::from_secs(2);
const LOOKERS_PAUSE: Duration = Duration::from_millis(2);
/// The most that is read of a file of ours.
const MAX_FILE: u64 = 64 << 10;

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopCause {
    /// By itself.
    End,
    /// Its caller has cancelled it.
    Cancel,
    /// Its deadline has passed.
    Deadline,
    /// The monitor was told to end, as by a machine that is shut down.
    Signal,
}

impl StopCause {
    const ALL: [Self; 4] = [Self::End, Self::Cancel, Self::Deadline, Self::Signal];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Cancel => "cancel",
            Self::Deadline => "deadline",
            Self::Signal => "signal",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == word)
    }
}

/// The decision that a run ends. It is made once; only the moment of the kill can come nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stop {
    /// Why.
    pub cause: StopCause,
    /// When it is killed if it has not ended.
    pub kill_at: SystemTime,
}

impl Stop {
    fn parse(text: &str) -> Option<Self> {
        let (cause, nanos) = text.trim_end().split_once(' ')?;
        Some(Self {
            cause: StopCause::parse(cause)?,
            kill_at: monitor_state::time(nanos.parse().ok()?)?,
        })
    }

    fn text(&self) -> String {
        let since = self.kill_at.duration_since(SystemTime::UNIX_EPOCH);
        let nanos = since.unwrap_or_default().as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        format!("{} {nanos}\n", self.cause.as_str())
    }
}

/// What can be seen of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sight {
    /// No monitor has taken it over.
    NotBegun {
        /// Whether somebody is at work on it.
        held: bool,
        /// Whether it has been told to end nevertheless.
        stop: Option<Stop>,
    },
    /// The command is being started.
    Starting,
    /// The command runs.
    Running {
        /// Since when.
        started: SystemTime,
        /// What has been decided, whether or not the monitor has acted on it yet.
        stop: Option<Stop>,
    },
    /// It is over.
    Ended(Ended),
    /// It was started, or about to be, and is gone without a word of how it ended.
    Lost {
        /// When the command was started, if it was.
        started: Option<SystemTime>,
        /// What is known of the circumstances.
        why: &'static str,
    },
}

/// How a monitor is to hold a run.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MonitorOptions {
    /// Folders in memory of limited size that the command finds mounted, and nobody else.
    pub tmpfs: Vec<(PathBuf, u64)>,
    /// When the run is asked to end, by the wall clock.
    pub deadline: Option<SystemTime>,
    /// From there to the kill; ten seconds if not given.
    pub grace: Option<Duration>,
    /// The most that is kept of what the run prints; 64 MiB if not given.
    pub log_bytes: Option<u64>,
    /// The control group that the run is put into, made by the caller for it; the monitor removes it at
    /// the end, if it can.
    pub cgroup: Option<PathBuf>,
    /// As a job: where its granted connections go.
    pub tunnel: Option<TunnelOptions>,
}

impl MonitorOptions {
    /// Adds to [`Self::tmpfs`].
    #[must_use]
    pub fn with_tmpfs(mut self, folder: impl Into<PathBuf>, bytes: u64) -> Self {
        self.tmpfs.push((folder.into(), bytes));
        self
    }

    /// Sets [`Self::deadline`].
    #[must_use]
    pub fn with_deadline(mut self, deadline: SystemTime) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets [`Self::grace`].
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Sets [`Self::log_bytes`].
    #[must_use]
    pub fn with_log_bytes(mut self, bytes: u64) -> Self {
        self.log_bytes = Some(bytes);
        self
    }

    /// Sets [`Self::cgroup`].
    #[must_use]
    pub fn with_cgroup(mut self, group: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(group.into());
        self
    }

    /// Sets [`Self::tunnel`].
    #[must_use]
    pub fn with_tunnel(mut self, tunnel: TunnelOptions) -> Self {
        self.tunnel = Some(tunnel);
        self
    }

    pub(crate) fn arguments(&self, folder: &Path) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec!["monitor".into(), "--folder".into(), folder.into()];
        let mut option = |name: &str, value: OsString| line.extend([name.into(), value]);
        for (folder, bytes) in &self.tmpfs {
            let mut value = OsString::from(format!("{bytes}="));
            value.push(folder);
            option("--tmpfs", value);
        }
        if let Some(deadline) = self.deadline {
            // Before 1970 is over as well.
            let since = deadline.duration_since(SystemTime::UNIX_EPOCH);
            option("--deadline", seconds(since.unwrap_or_default()));
        }
        if let Some(grace) = self.grace {
            option("--grace", seconds(grace));
        }
        if let Some(bytes) = self.log_bytes {
            option("--log-bytes", bytes.to_string().into());
        }
        if let Some(group) = &self.cgroup {
            option("--cgroup", group.clone().into());
        }
        if let Some(tunnel) = &self.tunnel {
            let mut value = OsString::from(format!("{},{}=", tunnel.grants, tunnel.run));
            value.push(&tunnel.address);
            option("--tunnel", value);
        }
        line
    }
}

fn seconds(time: Duration) -> OsString {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos()).into()
}

/// The lock of a run's folder. Dropped, it is given back, unless a monitor was started with it, which
/// then has it alone.
#[derive(Debug)]
pub struct RunLock(File);

/// A monitor could not be started. The run has not begun.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The program could not be executed.
    #[error("the monitor {program} cannot be started")]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It gave up.
    #[error("the monitor gave up: {0}")]
    GaveUp(String),
}

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// The folder at this path, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder in it that the run may see, read-only: it prints into the pipes `stdout` and
    /// `stderr` there, and does not begin if there is a file `stop`.
    #[must_use]
    pub fn inside(&self) -> PathBuf {
        self.0.join("box")
    }

    /// Makes what a monitor needs in the folder, which is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prepare(&self) -> io::Result<()> {
        let made = fs::DirBuilder::new().mode(0o700).create(self.inside());
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the lock, if nobody works on the run.
    ///
    /// # Errors
    /// Those of the file system, `NotFound` if there is no folder.
    pub fn lock(&self) -> io::Result<Option<RunLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.0.join("lock"))?;
        let until = Instant::now() + LOOKERS;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(RunLock(file))),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) => {}
            }
            // Those who look share the lock for a moment. Who works on the run does not.
            let is_shared = file.try_lock_shared().is_ok();
            if is_shared {
                file.unlock()?;
            }
            if !is_shared || Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(LOOKERS_PAUSE);
        }
    }

    /// Whether somebody works on the run: its starter, or its monitor.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn is_held(&self) -> io::Result<bool> {
        let file = match File::open(self.0.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Starts a monitor, which shares the lock from then on and starts the command. Returns when it has, or
    /// has written down why not. Blocks, for some milliseconds.
    ///
    /// `environment` is all that the command gets.
    ///
    /// # Errors
    /// [`LaunchError`]; the run has not begun then.
    pub fn launch(
        &self,
        program: &Path,
        options: &MonitorOptions,
        command: &[OsString],
        environment: &[(OsString, OsString)],
        lock: &RunLock,
    ) -> Result<(), LaunchError> {
        let failed = |source| LaunchError::Spawn {
            program: program.to_owned(),
            source,
        };
        let lock = lock.0.try_clone().map_err(failed)?;
        let mut child = Command::new(program)
            .args(options.arguments(&self.0))
            .arg("--")
            .args(command)
            .env_clear()
            .envs(environment.iter().cloned())
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut said = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            // It has no end before the monitor has closed it, which it does when all is well.
            let _ = stderr.take(MAX_FILE).read_to_end(&mut said);
        }
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(LaunchError::GaveUp(if said.is_empty() {
            status.to_string()
        } else {
            said
        }))
    }

    /// What can be seen of the run now.
    ///
    /// # Errors
    /// Those of the file system, and `InvalidData` for a state that cannot be read.
    pub fn look(&self) -> io::Result<Sight> {
        if let Some(State::Ended(ended)) = self.state()?.map(|recorded| recorded.state) {
            return Ok(Sight::Ended(ended));
        }
        // In this order: who was just ending has written its end before the lock was free.
        let held = self.is_held()?;
        self.sight(held, Some(&this_boot()?))
    }

    /// The same where the monitor is a job, maybe on another host: whether the job was in the batch
    /// system's hands before this call, is the caller's to know.
    ///
    /// # Errors
    /// Those of the file system, and `InvalidData` for a state that cannot be read.
    pub fn look_at_job(&self, alive: bool) -> io::Result<Sight> {
        self.sight(alive, None)
    }

    /// `here` is this boot of this machine, where the monitor is on it.
    fn sight(&self, held: bool, here: Option<&str>) -> io::Result<Sight> {
        let recorded = self.state()?;
        let stop = self.decision()?;
        let Some(Recorded { state, boot }) = recorded else {
            return Ok(Sight::NotBegun { held, stop });
        };
        let started = match state {
            State::Ended(ended) => return Ok(Sight::Ended(ended)),
            State::Starting => None,
            State::Running { started } => Some(started),
        };
        let lost = |why| Ok(Sight::Lost { started, why });
        if here.is_some_and(|here| here != boot) {
            return lost("the machine was restarted while it ran");
        }
        if !held {
            return lost("its monitor was killed, and it with it");
        }
        Ok(match started {
            None => Sight::Starting,
            Some(started) => {
                let stop = stop.filter(|stop| stop.cause != StopCause::End);
                Sight::Running { started, stop }
            }
        })
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.0.join(name))?;
        file.write_all(content)?;
        file.sync_data()
    }

    fn state(&self) -> io::Result<Option<Recorded>> {
        let Some(bytes) = self.read("state")? else {
            return Ok(None);
        };
        monitor_state::parse(&bytes).map(Some).ok_or_else(|| {
            let message = format!("{} is not readable", self.0.join("state").display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    /// What has been decided about the run's end, if anything.
    ///
    /// # Errors
    /// Those of the file system, and `InvalidData` for a decision that cannot be read.
    pub fn decision(&self) -> io::Result<Option<Stop>> {
        let Some(bytes) = self.read("stop")? else {
            return Ok(None);
        };
        let stop = str::from_utf8(&bytes).ok().and_then(Stop::parse);
        stop.map(Some).ok_or_else(|| {
            let message = format!("{} is not readable", self.0.join("stop").display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    /// Decides that the run ends, unless it is decided already; where it is to end anyhow, an
    /// earlier `kill_at` is taken over. Gives what holds now: with another cause than the given one,
    /// the run ends for that. Written through to the disk, and the monitor told.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn stop(&self, cause: StopCause, kill_at: SystemTime) -> io::Result<Stop> {
        let ours = Stop { cause, kill_at };
        // Others may be at it, in this process or another one.
        let unique = format!(
            "stop.{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let temporary = self.0.join(unique.replace(['(', ')'], "-"));
        let write = |stop: &Stop| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&temporary)?;
            file.write_all(stop.text().as_bytes())?;
            file.sync_data()
        };
        let decided = self.decide(ours, &temporary, write);
        let _ = fs::remove_file(&temporary);
        let decided = decided?;
        File::open(&self.0)?.sync_all()?;
        self.ring();
        Ok(decided)
    }

    fn decide(
        &self,
        ours: Stop,
        temporary: &Path,
        write: impl Fn(&Stop) -> io::Result<()>,
    ) -> io::Result<Stop> {
        let place = self.0.join("stop");
        write(&ours)?;
        match fs::hard_link(temporary, &place) {
            Ok(()) => return Ok(ours),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let there = self.decision()?.unwrap_or(ours);
        if there.cause == StopCause::End || there.kill_at <= ours.kill_at {
            return Ok(there);
        }
        let nearer = Stop {
            cause: there.cause,
            kill_at: ours.kill_at,
        };
        write(&nearer)?;
        fs::rename(temporary, &place)?;
        Ok(nearer)
    }

    /// Has the monitor look at the decision. Where there is none, there is nobody to tell.
    fn ring(&self) {
        /// Opening for writing does not wait for a reader. The same on every architecture of Linux
        /// that this crate is built for.
        const O_NONBLOCK: i32 = 0o4000;
        let mut options = OpenOptions::new();
        let bell = options
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open(self.0.join("bell"));
        if let Ok(mut bell) = bell {
            // A pipe that is full will wake the monitor, too.
            let _ = bell.write(b"!");
        }
    }

    /// What the command itself has said, as far as it was kept: words for people.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn words(&self) -> io::Result<String> {
        let bytes = self.read("engine.log")?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The log's file: frames that [`LogFrame`](crate::LogFrame) reads.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(crate) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.0.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

impl fmt::Display for RunFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

fn this_boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}
