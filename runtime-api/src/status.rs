//! Where a run is and how it ended.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{Annotations, EgressGrant, ResolvedImage, RunId, SpecDigest};

/// What a backend knows of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunStatus {
    /// The run.
    pub id: RunId,
    /// Where it is.
    pub phase: RunPhase,
    /// Which spec it was accepted with.
    pub spec: SpecDigest,
    /// The image that it runs.
    pub image: ResolvedImage,
    /// What the caller noted.
    pub annotations: Annotations,
    /// Its egress grants.
    pub egress: Vec<EgressGrant>,
    /// The wall-clock time at which it is ended.
    pub deadline: Option<SystemTime>,
    /// When the record was made.
    pub created: Option<SystemTime>,
    /// When the program started, by the engine's clock.
    pub started: Option<SystemTime>,
    /// When it ended, by the engine's clock.
    pub finished: Option<SystemTime>,
    /// What it has used, where the engine tells.
    pub usage: Usage,
}

impl RunStatus {
    /// A status without times and usage; for backends.
    #[must_use]
    pub fn new(
        id: RunId,
        phase: RunPhase,
        spec: SpecDigest,
        image: ResolvedImage,
        annotations: Annotations,
    ) -> Self {
        Self {
            id,
            phase,
            spec,
            image,
            annotations,
            egress: Vec::new(),
            deadline: None,
            created: None,
            started: None,
            finished: None,
            usage: Usage::default(),
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            RunPhase::Finished(outcome) => Some(outcome),
            _ => None,
        }
    }
}

/// What a run has used. `None`: the engine does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Processor time of all its processes.
    pub cpu: Option<Duration>,
    /// The most memory at any time, in bytes.
    pub peak_memory_bytes: Option<u64>,
}

/// Where a run is.
///
/// The rank Pending, Running, Stopping, Finished never falls for one id; steps may be skipped.
/// `Finished` is final, and the backend remembers it until `cleanup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase", content = "detail")]
#[non_exhaustive]
pub enum RunPhase {
    /// Not started.
    Pending(Pending),
    /// The program runs.
    Running,
    /// It has been told to end.
    Stopping(StopCause),
    /// It is over.
    Finished(Outcome),
}

impl RunPhase {
    /// 0 for Pending to 3 for Finished.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self {
            Self::Pending(_) => 0,
            Self::Running => 1,
            Self::Stopping(_) => 2,
            Self::Finished(_) => 3,
        }
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Finished(_))
    }
}

/// Why a run has not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Pending {
    /// There is a record, and nobody is at work on it: the process that called `run` is gone.
    /// Call `run` again with a full spec, or `cleanup`.
    Abandoned,
    /// Accepted.
    Accepted,
    /// Waits for the engine to find room.
    Queued,
    /// Its image is being fetched.
    PullingImage,
    /// Its container is being made.
    Starting,
}

/// Why a run was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StopCause {
    /// The caller cancelled it.
    Cancel,
    /// Its deadline passed.
    Deadline,
    /// The engine ends it for reasons of its own.
    Engine,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome", content = "detail")]
#[non_exhaustive]
pub enum Outcome {
    /// The program ended with this exit code.
    Exited(i32),
    /// The program was ended by this signal. Backends that cannot tell report
    /// `Exited(128 + signal)` and do not declare `signaled`.
    Signaled(i32),
    /// It was ended for using more memory than its limit. Where an engine has not told its backend why, it
    /// is `Signaled(9)` or `Exited(137)`: on a busy machine one was seen to lose that word.
    OutOfMemory,
    /// It was ended because its deadline passed.
    DeadlineExceeded,
    /// The caller cancelled it before it ended by itself.
    Cancelled,
    /// Its program never ran.
    FailedToStart(StartFailure),
    /// The engine or somebody else ended it, as described.
    Evicted(String),
    /// The machine that it was on is gone.
    NodeLost(String),
    /// There is a record of it, but no trace of how it ended.
    Lost(String),
}

impl Outcome {
    /// Whether the program ended with exit code 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }
}

/// Why a program never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StartFailure {
    /// The cause.
    pub cause: StartFailureCause,
    /// In the words of whoever said so: engine, registry, kernel.
    pub message: String,
}

impl StartFailure {
    /// A failure with its message.
    pub fn new(cause: StartFailureCause, message: impl Into<String>) -> Self {
        Self {
            cause,
            message: message.into(),
        }
    }
}

/// The causes of a failed start, told apart by who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StartFailureCause {
    /// The registry has no such image.
    ImageNotFound,
    /// The registry wants credentials, or refuses these.
    ImageDenied,
    /// The registry cannot be reached.
    RegistryUnreachable,
    /// The image is there and cannot be used: damaged, or of another platform.
    ImageUnusable,
    /// The command is not in the image.
    CommandNotFound,
    /// The command is there and cannot be executed.
    CommandNotExecutable,
    /// A mount's source is not there or cannot be used.
    MountUnusable,
    /// No machine has room for it.
    Unschedulable,
    /// The isolation of this very run could not be shown.
    NotIsolated,
    /// The engine refused for another reason.
    Engine,
}

impl StartFailureCause {
    /// The cause in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImageNotFound => "the registry has no such image",
            Self::ImageDenied => "the registry refused access to the image",
            Self::RegistryUnreachable => "the registry could not be reached",
            Self::ImageUnusable => "the image cannot be used",
            Self::CommandNotFound => "the command is not in the image",
            Self::CommandNotExecutable => "the command cannot be executed",
            Self::MountUnusable => "a mount cannot be used",
            Self::Unschedulable => "no machine has room for it",
            Self::NotIsolated => "its isolation could not be shown",
            Self::Engine => "the engine refused to start it",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Pending, RunPhase, StopCause};

    /// A backend whose record is a file keeps phases in it.
    #[test]
    fn phases_are_read_back() {
        for phase in [
            RunPhase::Pending(Pending::PullingImage),
            RunPhase::Running,
            RunPhase::Stopping(StopCause::Deadline),
            RunPhase::Finished(Outcome::Exited(3)),
            RunPhase::Finished(Outcome::Lost("no trace".into())),
        ] {
            let text = serde_json::to_string(&phase).expect("a phase can be written");
            let again: RunPhase = serde_json::from_str(&text).expect("and read");
            assert_eq!(again, phase, "{text}");
        }
    }
}
