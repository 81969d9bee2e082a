//! What HQ says and is told, in types of our own.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// A word that this version of the node does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a word that HQ 5.0 uses here")]
pub struct UnknownWord(pub String);

/// Declares an enum whose variants are words of HQ.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// HQ's word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err(UnknownWord(other.to_owned())),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Step type of a run (`vantage6.common.enum.AlgorithmStepType`).
    Action {
        /// Makes a dataframe from a source database.
        DataExtraction = "data_extraction",
        /// Changes a dataframe.
        Preprocessing = "preprocessing",
        /// Computes on dataframes.
        FederatedCompute = "federated_compute",
        /// Computes, and may create subtasks through the node.
        CentralCompute = "central_compute",
        /// Defined by vantage6; 5.0 offers no way to create it.
        Postprocessing = "postprocessing",
    }
}

words! {
    /// Status of a run (protocol 4.1, `vantage6.common.enum.RunStatus`).
    RunStatus {
        /// Made by HQ, not claimed yet.
        Pending = "pending",
        /// Claimed, being prepared.
        Initializing = "initializing",
        /// The container runs.
        Active = "active",
        /// Ended well.
        Completed = "completed",
        /// Could not be started or stored.
        Failed = "failed",
        /// Defined by vantage6; not reported by the Python node.
        StartFailed = "start failed",
        /// The image cannot be had.
        NoImage = "non-existing Docker image",
        /// The container ended badly.
        Crashed = "crashed",
        /// Ended on request.
        Killed = "killed by user",
        /// Refused by this node's policies.
        NotAllowed = "not allowed",
        /// Something unforeseen.
        UnknownError = "unknown error",
        /// A dataframe that the step asks for is not in the session.
        DataframeNotFound = "dataframe not found",
        /// Set by HQ.
        DependedOnFailedTask = "depended on failed task",
        /// An extraction or preprocessing whose output is not parquet.
        UnexpectedOutput = "unexpected output",
    }
}

impl RunStatus {
    /// Whether HQ counts the run as failed. HQ then fails runs that have not started and
    /// tasks that wait for this one: never report such a status before it is final.
    pub fn is_failed(self) -> bool {
        !matches!(
            self,
            Self::Pending | Self::Initializing | Self::Active | Self::Completed
        )
    }

    /// Whether nothing follows; goes with a time of end.
    pub fn is_final(self) -> bool {
        self == Self::Completed || self.is_failed()
    }
}

/// Who this node is at HQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// HQ's id of the node.
    pub node: i64,
    /// The node's name at HQ now; a rename does not touch the name used to sign in.
    pub node_name: String,
    /// HQ's id of the organization.
    pub organization: i64,
    /// HQ's id of the collaboration.
    pub collaboration: i64,
}

/// An organization at HQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    /// HQ's id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Base64 of its PEM public key; empty if there is none.
    pub public_key: String,
}

/// A collaboration at HQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collaboration {
    /// HQ's id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Whether arguments and results are encrypted.
    pub encrypted: bool,
}

/// A run that HQ has for this node, with its task. Ids of things that were deleted at HQ
/// are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRun {
    /// HQ's id of the run.
    pub id: i64,
    /// HQ's word for the status.
    pub status: String,
    /// Encoded or encrypted arguments; `None` means no arguments.
    pub arguments: Option<String>,
    /// HQ says that `arguments` is the id of a blob. 5.0.3 never does.
    pub arguments_in_blob: bool,
    /// HQ's text of when the run was claimed: UTC, without a zone.
    pub started_at: Option<String>,
    /// The log so far; a PATCH that does not repeat it erases it.
    pub log: Option<String>,
    /// What is to be done.
    pub task: Task,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// HQ's id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The image as HQ passes it on, perhaps with a digest.
    pub image: String,
    /// The function to call.
    pub method: String,
    /// HQ's word for the step type; see [`Task::action`].
    pub action_word: String,
    /// The task whose algorithm created this one.
    pub parent: Option<i64>,
    /// The organization that receives the result.
    pub init_org: Option<i64>,
    /// The person who began it.
    pub init_user: Option<i64>,
    /// Shared by a user's task and its subtasks.
    pub job: Option<i64>,
    /// The session it works in.
    pub session: Option<i64>,
    /// The algorithm store that vouches for the image.
    pub algorithm_store: Option<i64>,
    /// What an extraction or preprocessing writes.
    pub dataframe: Option<TaskDataframe>,
    /// What it works on, in HQ's order.
    pub databases: Vec<TaskDatabase>,
}

impl Task {
    /// The step type.
    ///
    /// # Errors
    /// The word, if this node does not know it; the run is to be reported as `failed`.
    pub fn action(&self) -> Result<Action, UnknownWord> {
        self.action_word.parse()
    }

    /// Names of the dataframes asked for, grouped by `position` in ascending order: one
    /// group for each argument of the function (protocol 4.5). An item that is not a
    /// dataframe, or has no name, gives `None`.
    pub fn dataframe_groups(&self) -> Option<Vec<Vec<String>>> {
        let mut groups: std::collections::BTreeMap<i64, Vec<String>> = Default::default();
        for item in &self.databases {
            if item.kind != "dataframe" {
                return None;
            }
            groups
                .entry(item.position)
                .or_default()
                .push(item.dataframe_name.clone()?);
        }
        Some(groups.into_values().collect())
    }

    /// The label of the source database of an extraction: there must be exactly one.
    pub fn source_label(&self) -> Option<&str> {
        match self.databases.as_slice() {
            [one] if one.kind == "source" => one.label.as_deref(),
            _ => None,
        }
    }
}

/// The dataframe that a step writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDataframe {
    /// HQ's id.
    pub id: i64,
    /// Its name, to be checked before it becomes a file's.
    pub name: String,
    /// The label of the database that it was made from.
    pub db_label: Option<String>,
}

/// One item that a step works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDatabase {
    /// `source` or `dataframe`.
    pub kind: String,
    /// Label of a source.
    pub label: Option<String>,
    /// HQ's id of a dataframe.
    pub dataframe_id: Option<i64>,
    /// Name of a dataframe.
    pub dataframe_name: Option<String>,
    /// Which argument of the function it belongs to.
    pub position: i64,
}

/// What HQ knows of a run, open or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunState {
    /// HQ's id.
    pub id: i64,
    /// HQ's word for the status.
    pub status: String,
    /// HQ's text of when it was claimed.
    pub started_at: Option<String>,
    /// HQ's text of when it ended; set means that the run is closed.
    pub finished_at: Option<String>,
}

/// What a node tells HQ of a run (protocol 2.5).
///
/// HQ sets `log`, `result` and the time of end to null where a PATCH leaves them out: once
/// there is a log, every later PATCH must repeat the whole of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunPatch {
    /// The new status.
    pub status: Option<RunStatus>,
    /// When the run was claimed.
    pub started_at: Option<SystemTime>,
    /// When it ended; needed with every final status.
    pub finished_at: Option<SystemTime>,
    /// The whole log.
    pub log: Option<String>,
    /// The encoded result; for a large one see `Hq::patch_run_streaming`.
    pub result: Option<String>,
}

impl RunPatch {
    /// Claims the run: HQ then spares it when a sibling fails.
    pub fn claim(now: SystemTime) -> Self {
        Self {
            started_at: Some(now),
            status: Some(RunStatus::Initializing),
            ..Self::default()
        }
    }

    /// Reports that the container runs.
    pub fn active(log: Option<String>) -> Self {
        Self {
            status: Some(RunStatus::Active),
            log,
            ..Self::default()
        }
    }

    /// The last report. `result` is always sent, empty if there is none.
    pub fn finished(status: RunStatus, now: SystemTime, log: String, result: String) -> Self {
        Self {
            status: Some(status),
            finished_at: Some(now),
            log: Some(log),
            result: Some(result),
            ..Self::default()
        }
    }

    /// The log alone: what HQ still takes after a kill.
    pub fn log_only(log: String) -> Self {
        Self {
            log: Some(log),
            ..Self::default()
        }
    }
}

/// HQ's verdict on a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchOutcome {
    /// It is stored.
    Accepted,
    /// HQ has closed the run: reported before, killed, or failed with a sibling.
    AlreadyFinished,
    /// HQ knows no such run any more.
    Gone,
}

/// A column of a dataframe.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type in pyarrow's words, e.g. `int64`, `timestamp[ns]`.
    pub dtype: String,
}

/// Where an algorithm store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlgorithmStore {
    /// HQ's id.
    pub id: i64,
    /// Scheme, host and port: what policies are compared with.
    pub url: String,
    /// Path of its API.
    pub api_path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        assert_eq!((Action::ALL.len(), RunStatus::ALL.len()), (5, 14));
        for status in RunStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
        for action in Action::ALL {
            assert_eq!(action.to_string().parse(), Ok(*action));
        }
        assert_eq!("x".parse::<Action>(), Err(UnknownWord("x".to_owned())));
    }

    #[test]
    fn what_is_final() {
        let open: Vec<_> = RunStatus::ALL
            .iter()
            .filter(|status| !status.is_final())
            .collect();
        assert_eq!(
            open,
            [
                &RunStatus::Pending,
                &RunStatus::Initializing,
                &RunStatus::Active
            ]
        );
        assert!(!RunStatus::Completed.is_failed() && RunStatus::Killed.is_failed());
    }
}
