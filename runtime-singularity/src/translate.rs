//! What can be seen of a run, in the contract's words. Pure.

use std::time::SystemTime;

use v6_helper::{Claim, End, Ended, NotStarted, Sight, Stop, StopCause as Why, Verdict};
use v6_runtime::{
    Outcome, Pending, RunId, RunPhase, RunStatus, StartFailure, StartFailureCause, StopCause,
};

use crate::look::Holder;
use crate::record::Record;

/// The exit code of Apptainer itself when it cannot start a container.
const ENGINE_FAILED: i32 = 255;

/// All that is known about a run at one moment.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) record: &'a Record,
    /// Why it could not be started, if that was noted.
    pub(crate) failed: Option<&'a StartFailure>,
    /// How it ended, if its job's end told that.
    pub(crate) concluded: Option<&'a Outcome>,
    pub(crate) holder: &'a Holder,
    pub(crate) sight: &'a Sight,
    /// What `init` says about the end.
    pub(crate) claim: Option<&'a Claim>,
    /// What the engine has said.
    pub(crate) words: &'a str,
    /// What this process is doing about the start.
    pub(crate) driven: Option<Pending>,
}

/// Where the run is.
pub(crate) fn phase(seen: &Seen<'_>) -> RunPhase {
    if let Some(failure) = seen.failed {
        return RunPhase::Finished(Outcome::FailedToStart(failure.clone()));
    }
    if let Some(outcome) = seen.concluded {
        return RunPhase::Finished(outcome.clone());
    }
    match seen.sight {
        Sight::NotBegun { held: true, .. } => {
            let waits = match seen.holder {
                Holder::Monitor => Pending::Accepted,
                Holder::Job { .. } => Pending::Queued,
            };
            RunPhase::Pending(seen.driven.unwrap_or(waits))
        }
        Sight::NotBegun { held: false, stop } => match stop.as_ref().map(|stop| stop.cause) {
            Some(Why::Cancel) => RunPhase::Finished(Outcome::Cancelled),
            Some(Why::Deadline) => RunPhase::Finished(Outcome::DeadlineExceeded),
            _ => RunPhase::Pending(Pending::Abandoned),
        },
        Sight::Starting => RunPhase::Pending(Pending::Starting),
        Sight::Running { stop: None, .. } => RunPhase::Running,
        Sight::Running {
            stop: Some(stop), ..
        } => RunPhase::Stopping(cause(stop)),
        // Slurm has yet to say why.
        Sight::Ended(ended)
            if matches!(seen.holder, Holder::Job { alive: true, .. })
                && needs_a_reason(ended, seen.claim) =>
        {
            RunPhase::Stopping(StopCause::Engine)
        }
        Sight::Ended(ended) => RunPhase::Finished(outcome(seen, ended)),
        Sight::Lost { why, .. } => RunPhase::Finished(Outcome::Lost((*why).to_owned())),
        other => RunPhase::Finished(Outcome::Lost(format!("not understood: {other:?}"))),
    }
}

fn cause(stop: &Stop) -> StopCause {
    match stop.cause {
        Why::Cancel => StopCause::Cancel,
        Why::Deadline => StopCause::Deadline,
        _ => StopCause::Engine,
    }
}

fn outcome(seen: &Seen<'_>, ended: &Ended) -> Outcome {
    match ended.cause {
        Why::Cancel => return Outcome::Cancelled,
        Why::Deadline => return Outcome::DeadlineExceeded,
        Why::Signal => {
            return Outcome::Evicted("its monitor was told to end, as by a shutdown".into());
        }
        _ => {}
    }
    // It is also said where only a child of the program was killed.
    let killed = matches!(ended.verdict, Verdict::Exited(137) | Verdict::Signaled(9));
    if ended.out_of_memory && killed {
        return Outcome::OutOfMemory;
    }
    let failed = |cause, message: &str| Outcome::FailedToStart(StartFailure::new(cause, message));
    let code = match &ended.verdict {
        Verdict::Exited(code) => *code,
        Verdict::Signaled(signal) => {
            return Outcome::Evicted(format!("it was killed from outside, by signal {signal}"));
        }
        Verdict::Failed(why) => return failed(StartFailureCause::NotIsolated, why),
        other => return Outcome::Lost(format!("not understood: {other:?}")),
    };
    // Only a claim that agrees with what the monitor saw counts.
    let claim = seen.claim.filter(|claim| claim.exit_code() == code);
    match claim.map(|claim| &claim.end) {
        Some(End::Exited(code)) => Outcome::Exited(i32::from(*code)),
        Some(End::Signaled(signal)) => Outcome::Signaled(i32::from(*signal)),
        Some(End::NotStarted { cause, error }) => failed(
            match cause {
                NotStarted::NotFound => StartFailureCause::CommandNotFound,
                NotStarted::NotExecutable => StartFailureCause::CommandNotExecutable,
                _ => StartFailureCause::Engine,
            },
            error,
        ),
        None if code == ENGINE_FAILED && !seen.words.is_empty() => {
            failed(refusal(seen.words), &crate::image::last_lines(seen.words))
        }
        None if matches!(code, 137 | 143) => Outcome::Evicted(format!(
            "it was killed from outside, by signal {}",
            code - 128
        )),
        None => Outcome::Exited(code),
        Some(other) => Outcome::Lost(format!("not understood: {other:?}")),
    }
}

/// Whether a batch system can say more about an end than the monitor: who has told it to end, or
/// whether the kill was for want of memory.
pub(crate) fn needs_a_reason(ended: &Ended, claim: Option<&Claim>) -> bool {
    const KILLED: i32 = 128 + 9;
    match (ended.cause, &ended.verdict) {
        (Why::Signal, _) | (Why::End, Verdict::Signaled(_)) => true,
        (Why::End, Verdict::Exited(KILLED)) => {
            !claim.is_some_and(|claim| matches!(claim.end, End::Exited(_)))
        }
        _ => false,
    }
}

/// A cause for the engine's words about a container that it did not start.
fn refusal(words: &str) -> StartFailureCause {
    let words = words.to_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if any(&[
        "exec format error",
        "while opening image",
        "could not open image",
        "squashfs",
        "failed to mount image",
    ]) {
        StartFailureCause::ImageUnusable
    } else if any(&["destination", "mount source", "while mounting", "bind"]) {
        StartFailureCause::MountUnusable
    } else if any(&[
        "no space left on device",
        "disk quota exceeded",
        "resource temporarily unavailable",
    ]) {
        StartFailureCause::Unschedulable
    } else {
        StartFailureCause::Engine
    }
}

/// A whole status.
pub(crate) fn status(id: &RunId, seen: &Seen<'_>) -> RunStatus {
    let mut status = status_at(id, seen.record, phase(seen));
    (status.started, status.finished) = times(seen.sight);
    status
}

/// What the record alone tells, with this phase.
pub(crate) fn status_at(id: &RunId, record: &Record, phase: RunPhase) -> RunStatus {
    let mut status = RunStatus::new(
        id.clone(),
        phase,
        record.spec.clone(),
        record.image.clone(),
        record.annotations.clone(),
    );
    status.egress.clone_from(&record.egress);
    status.deadline = record.deadline;
    status.created = Some(record.created);
    status
}

fn times(sight: &Sight) -> (Option<SystemTime>, Option<SystemTime>) {
    match sight {
        Sight::Running { started, .. } => (Some(*started), None),
        Sight::Lost { started, .. } => (*started, None),
        // Only what ran has times.
        Sight::Ended(ended) if ended.started.is_some() => (ended.started, Some(ended.finished)),
        _ => (None, None),
    }
}
