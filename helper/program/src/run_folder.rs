//! What `monitor` keeps in the folder of its run, which is its working folder: paths are relative.
//!
//! `stop` is made once, by a hard link: whoever makes it, this program or its caller, has decided
//! why the run ends. `state` is replaced atomically. What must not be forgotten by a loss of power
//! is written through to the disk: that the run may have been started, and how it ended.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use crate::claim::quote;
use crate::sys::End;

/// The file of the caller's and our marks.
pub const STOP: &str = "stop";
/// Which attempt at the run this folder is of, and the mark of the job that has begun it.
const ATTEMPT: &str = "attempt";
const BEGUN: &str = "begun";
/// What the run sees of it.
const STOP_INSIDE: &str = "box/stop";
const STATE: &str = "state";

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// By itself.
    End,
    /// The caller has cancelled it.
    Cancel,
    Deadline,
    /// This program was told to end.
    Signal,
}

impl Cause {
    const ALL: [Self; 4] = [Self::End, Self::Cancel, Self::Deadline, Self::Signal];

    const fn as_str(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Cancel => "cancel",
            Self::Deadline => "deadline",
            Self::Signal => "signal",
        }
    }
}

/// A decision, and when the run is killed; both since the beginning of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub cause: Cause,
    pub kill_at: Duration,
}

impl Stop {
    pub fn read() -> io::Result<Option<Self>> {
        match fs::read_to_string(STOP) {
            Ok(text) => Self::parse(&text)
                .map(Some)
                .ok_or_else(|| io::Error::other("the file `stop` is not readable")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (cause, nanos) = text.trim_end().split_once(' ')?;
        let cause = Cause::ALL.into_iter().find(|it| it.as_str() == cause)?;
        let nanos: u64 = nanos.parse().ok()?;
        let kill_at = Duration::from_nanos(nanos);
        Some(Self { cause, kill_at })
    }

    /// Decides, if nobody has; gives what was decided.
    pub fn decide(cause: Cause, kill_at: Duration) -> io::Result<Self> {
        let ours = Self { cause, kill_at };
        let name = "stop.monitor";
        let mut file = create(name)?;
        writeln!(file, "{} {}", cause.as_str(), nanos(kill_at))?;
        file.sync_data()?;
        let linked = fs::hard_link(name, STOP);
        let _ = fs::remove_file(name);
        match linked {
            Ok(()) => Ok(ours),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(Self::read()?.unwrap_or(ours))
            }
            Err(error) => Err(error),
        }
    }
}

/// Begins the run for a job of this attempt, unless another has, or the folder has become another
/// attempt's: whatever a batch system does, a run is begun once.
///
/// # Errors
///
/// In one sentence, why it is not this job's to begin.
pub fn begin(attempt: &OsStr) -> Result<(), String> {
    let there = fs::read(ATTEMPT).map_err(|error| format!("cannot read `{ATTEMPT}`: {error}"))?;
    if there != attempt.as_bytes() {
        return Err("the run's folder is another attempt's".into());
    }
    let mut options = fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(BEGUN);
    let written = made.and_then(|mut file| {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        write!(file, "process {} on {host}", std::process::id())?;
        file.sync_data()
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err("another job has begun this run".into())
        }
        written => written.map_err(|error| format!("cannot write `{BEGUN}`: {error}")),
    }
}

/// Tells the run that it is not to begin what it has not begun.
pub fn stop_inside() -> io::Result<()> {
    create(STOP_INSIDE).map(drop)
}

/// How far the run is.
#[derive(Debug)]
pub enum Phase<'a> {
    Starting,
    Running,
    Stopping(Cause),
    Ended(&'a Verdict, Cause),
}

/// How it ended.
#[derive(Debug)]
pub enum Verdict {
    Ended(End),
    /// The command was not started, since the run had been told to end.
    NotBegun,
    Failed(String),
}

impl Verdict {
    /// What the monitor ends with.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Ended(End::Exited(code)) => *code,
            Self::Ended(End::Signaled(signal)) => 128 + signal,
            Self::NotBegun => 0,
            Self::Failed(_) => 125,
        }
    }
}

/// What is in the file `state`.
#[derive(Debug, Default)]
pub struct State {
    pub boot: String,
    /// The command's keeper: its number and when it started, as `/proc` has it.
    pub process: Option<(i32, u64)>,
    pub started: Option<Duration>,
    pub finished: Option<Duration>,
    /// Bytes of the log that had no room.
    pub dropped: u64,
    /// Whether the kernel has killed a process of the run for want of memory.
    pub out_of_memory: bool,
}

impl State {
    pub fn write(&self, phase: &Phase<'_>) -> io::Result<()> {
        let durable = matches!(phase, Phase::Starting | Phase::Ended(..));
        let temporary = "state.monitor";
        let mut file = create(temporary)?;
        file.write_all(self.to_json(phase).as_bytes())?;
        if durable {
            file.sync_data()?;
        }
        fs::rename(temporary, STATE)?;
        if durable {
            File::open(".")?.sync_all()?;
        }
        Ok(())
    }

    fn to_json(&self, phase: &Phase<'_>) -> String {
        let mut json = String::from("{\"v\":1");
        let word = match phase {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopping(_) => "stopping",
            Phase::Ended(..) => "ended",
        };
        let _ = write!(json, ",\"phase\":\"{word}\",\"boot\":");
        quote(&mut json, &self.boot);
        if let Some((pid, start)) = self.process {
            let _ = write!(json, ",\"pid\":{pid},\"start\":{start}");
        }
        for (name, time) in [("started", self.started), ("finished", self.finished)] {
            if let Some(time) = time {
                let _ = write!(json, ",\"{name}\":{}", nanos(time));
            }
        }
        if self.dropped > 0 {
            let _ = write!(json, ",\"dropped\":{}", self.dropped);
        }
        if self.out_of_memory {
            json.push_str(",\"out_of_memory\":true");
        }
        if let Phase::Stopping(cause) | Phase::Ended(_, cause) = phase {
            let _ = write!(json, ",\"cause\":\"{}\"", cause.as_str());
        }
        if let Phase::Ended(verdict, _) = phase {
            let _ = match verdict {
                Verdict::Ended(End::Exited(code)) => write!(json, ",\"exit\":{code}"),
                Verdict::Ended(End::Signaled(signal)) => write!(json, ",\"signal\":{signal}"),
                Verdict::NotBegun => write!(json, ",\"not_begun\":true"),
                Verdict::Failed(error) => {
                    json.push_str(",\"failed\":");
                    quote(&mut json, error);
                    Ok(())
                }
            };
        }
        json.push_str("}\n");
        json
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A new file of ours in place of any there is.
pub fn create(path: &str) -> io::Result<File> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// The time of the wall clock.
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Which boot of the machine this is: process ids of another one mean nothing.
pub fn boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}
