//! What each end of a run is called at HQ, and why, in plain words. The one table.

use std::fmt;

use v6_runtime::{Outcome, StartFailure, StartFailureCause};

use crate::hq::RunStatus;

/// What HQ is told about how a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// HQ's status.
    pub status: RunStatus,
    /// One sentence for the researcher; empty for a run that simply succeeded.
    pub reason: String,
}

impl Verdict {
    /// A verdict with its reason.
    pub fn new(status: RunStatus, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }

    /// The run succeeded.
    #[must_use]
    pub fn completed() -> Self {
        Self::new(RunStatus::Completed, "")
    }

    /// What an outcome at the engine means, before the output is looked at. `output_limit` is in
    /// bytes and explains the signal that the kernel sends when it is passed.
    #[must_use]
    pub fn of(outcome: &Outcome, output_limit: u64) -> Self {
        use RunStatus as S;
        match outcome {
            Outcome::Exited(0) => Self::completed(),
            Outcome::Exited(code) => Self::new(
                S::Crashed,
                format!("the algorithm ended with exit code {code}"),
            ),
            Outcome::Signaled(SIGXFSZ) => Self::new(
                S::Crashed,
                format!(
                    "the algorithm tried to write a file of more than {output_limit} bytes, the limit of this node"
                ),
            ),
            Outcome::Signaled(signal) => Self::new(
                S::Crashed,
                format!("the algorithm was ended by signal {signal}"),
            ),
            Outcome::OutOfMemory => Self::new(
                S::Crashed,
                "the algorithm used more memory than this node allows and was ended",
            ),
            Outcome::DeadlineExceeded => Self::new(
                S::Crashed,
                "the algorithm ran longer than this node allows and was ended",
            ),
            Outcome::Cancelled => Self::new(S::Killed, "the algorithm was killed by request"),
            Outcome::FailedToStart(failure) => Self::failed_to_start(failure),
            Outcome::Evicted(why) => Self::new(
                S::Crashed,
                format!("the container engine ended the algorithm: {why}"),
            ),
            Outcome::NodeLost(why) => Self::new(
                S::Crashed,
                format!("the machine that ran the algorithm was lost: {why}"),
            ),
            Outcome::Lost(why) => Self::new(
                S::UnknownError,
                format!("the container engine lost track of the algorithm: {why}"),
            ),
            _ => Self::new(
                S::UnknownError,
                "the algorithm ended in a way this node does not know",
            ),
        }
    }

    fn failed_to_start(failure: &StartFailure) -> Self {
        use StartFailureCause as C;
        let status = match failure.cause {
            C::ImageNotFound | C::ImageDenied | C::RegistryUnreachable | C::ImageUnusable => {
                RunStatus::NoImage
            }
            C::CommandNotFound | C::CommandNotExecutable => RunStatus::Crashed,
            _ => RunStatus::StartFailed,
        };
        Self::new(
            status,
            format!(
                "the algorithm was not started: {}: {}",
                failure.cause.as_str(),
                failure.message
            ),
        )
    }

    /// The text that HQ keeps as the run's log: what the algorithm printed, if that may be shown,
    /// and the reason.
    #[must_use]
    pub fn log(&self, printed: &Printed) -> String {
        let mut log = match printed {
            Printed::Shared(text) => text.clone(),
            Printed::Withheld => NOT_SHARED.to_owned(),
            Printed::Unreadable => "The log of the algorithm could not be read.".to_owned(),
        };
        if !self.reason.is_empty() {
            if !log.is_empty() {
                log.push_str("\n\n");
            }
            log.push_str("[node] ");
            log.push_str(&self.reason);
        }
        log
    }
}

/// The Python node's own sentence; users may look for it.
const NOT_SHARED: &str = "Node does not allow sharing algorithm logs";

/// `SIGXFSZ` on Linux: the limit on the size of a file was passed.
const SIGXFSZ: i32 = 25;

/// What an algorithm printed, as far as HQ may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Printed {
    /// The text.
    Shared(String),
    /// `share_algorithm_logs` is off.
    Withheld,
    /// The engine did not give it.
    Unreadable,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() {
            write!(f, "{}", self.status)
        } else {
            write!(f, "{}: {}", self.status, self.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_a_final_status() {
        let start = |cause| Outcome::FailedToStart(StartFailure::new(cause, "said the engine"));
        let cases = [
            (Outcome::Exited(0), RunStatus::Completed),
            (Outcome::Exited(3), RunStatus::Crashed),
            (Outcome::Signaled(9), RunStatus::Crashed),
            (Outcome::OutOfMemory, RunStatus::Crashed),
            (Outcome::DeadlineExceeded, RunStatus::Crashed),
            (Outcome::Cancelled, RunStatus::Killed),
            (start(StartFailureCause::ImageNotFound), RunStatus::NoImage),
            (start(StartFailureCause::ImageDenied), RunStatus::NoImage),
            (
                start(StartFailureCause::RegistryUnreachable),
                RunStatus::NoImage,
            ),
            (
                start(StartFailureCause::CommandNotFound),
                RunStatus::Crashed,
            ),
            (
                start(StartFailureCause::MountUnusable),
                RunStatus::StartFailed,
            ),
            (start(StartFailureCause::Engine), RunStatus::StartFailed),
            (
                Outcome::Evicted("daemon stopped".into()),
                RunStatus::Crashed,
            ),
            (Outcome::NodeLost("gone".into()), RunStatus::Crashed),
            (Outcome::Lost("no trace".into()), RunStatus::UnknownError),
        ];
        for (outcome, status) in cases {
            let verdict = Verdict::of(&outcome, 7);
            assert_eq!(verdict.status, status, "{outcome:?}");
            assert!(verdict.status.is_final());
            assert_eq!(
                verdict.reason.is_empty(),
                outcome.is_success(),
                "{outcome:?}"
            );
        }
        let too_large = Verdict::of(&Outcome::Signaled(25), 7);
        assert!(
            too_large.reason.contains("more than 7 bytes"),
            "{too_large}"
        );
    }

    #[test]
    fn the_log_ends_with_the_reason() {
        let crashed = Verdict::of(&Outcome::Exited(3), 7);
        let shared = crashed.log(&Printed::Shared("hello\n".into()));
        assert_eq!(
            shared,
            "hello\n\n\n[node] the algorithm ended with exit code 3"
        );
        let withheld = crashed.log(&Printed::Withheld);
        assert!(
            withheld.starts_with(NOT_SHARED) && withheld.ends_with("exit code 3"),
            "{withheld}"
        );
        assert_eq!(Verdict::completed().log(&Printed::Shared("x".into())), "x");
    }
}
