//! What the engine says about a container, in the contract's words. Pure.

use std::time::{Duration, SystemTime};

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum};
use v6_helper::{Claim, End, NotStarted};
use v6_runtime::{
    Outcome, Pending, RunPhase, RunStatus, StartFailure, StartFailureCause, StopCause,
};

use crate::quirks::is_spec_unread;
use crate::record::{Marks, Record, Stop};
use crate::time;

/// How much earlier than it was an end may be told.
///
/// Podman 4.3.1 takes for the time of the end that of the file in which conmon notes it, and a file's
/// times are those of the kernel's last tick: up to 10 ms ago. A deadline was seen to end a run
/// before it had come.
const TICK: Duration = Duration::from_millis(20);

/// All that is known about a run at one moment.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) record: &'a Record,
    pub(crate) marks: &'a Marks,
    pub(crate) container: Option<&'a ContainerInspectResponse>,
    /// Whether the container through which files were put is there: then nothing was started.
    pub(crate) files: bool,
    /// What `init` says about the end, where it was asked.
    pub(crate) claim: Option<&'a Claim>,
    /// What a live process is doing about the start.
    pub(crate) driven: Option<Pending>,
    pub(crate) now: SystemTime,
}

/// Where the run is.
pub(crate) fn phase(seen: &Seen<'_>) -> RunPhase {
    let Seen { record, marks, .. } = seen;
    if let Some(failure) = &marks.failed {
        return RunPhase::Finished(Outcome::FailedToStart(failure.clone()));
    }
    let state = seen.container.and_then(|c| c.state.as_ref());
    match state {
        Some(state) if is_live(state) => {
            let late = record.deadline.is_some_and(|deadline| deadline <= seen.now);
            if marks.cancelled.is_some() {
                RunPhase::Stopping(StopCause::Cancel)
            } else if marks.deadline.is_some() || late {
                RunPhase::Stopping(StopCause::Deadline)
            } else {
                RunPhase::Running
            }
        }
        Some(state) if was_started(state) => RunPhase::Finished(outcome(seen, state)),
        state => not_started(seen, state),
    }
}

fn not_started(seen: &Seen<'_>, state: Option<&ContainerState>) -> RunPhase {
    if let Some(message) = state.and_then(refused) {
        let failure = StartFailure::new(refusal(message), message);
        return RunPhase::Finished(Outcome::FailedToStart(failure));
    }
    if seen.marks.cancelled.is_some() {
        return RunPhase::Finished(Outcome::Cancelled);
    }
    if seen.marks.deadline.is_some() {
        return RunPhase::Finished(Outcome::DeadlineExceeded);
    }
    match (seen.driven, state) {
        (Some(pending), _) => RunPhase::Pending(pending),
        (None, Some(_)) => RunPhase::Pending(Pending::Abandoned),
        (None, None) if seen.files => RunPhase::Pending(Pending::Abandoned),
        (None, None) => RunPhase::Finished(Outcome::Lost(
            "its container was removed by somebody else".into(),
        )),
    }
}

/// How a container that has run ended.
fn outcome(seen: &Seen<'_>, state: &ContainerState) -> Outcome {
    let code = state.exit_code.unwrap_or(-1);
    let ended = finished(state).unwrap_or(seen.now);
    let latest = ended + TICK;
    let told = |stop: &Option<Stop>| stop.is_some_and(|stop| stop.at <= latest);
    if told(&seen.marks.cancelled) {
        return Outcome::Cancelled;
    }
    if told(&seen.marks.deadline) {
        return Outcome::DeadlineExceeded;
    }
    // Only a claim that agrees with what the engine saw counts.
    let claim = seen
        .claim
        .filter(|claim| i64::from(claim.exit_code()) == code);
    let late = seen.record.deadline.is_some_and(|d| d <= latest);
    if late && claim.is_some_and(|claim| claim.deadline) {
        return Outcome::DeadlineExceeded;
    }
    let told = claim.is_some_and(|claim| claim.out_of_memory);
    if (state.oom_killed == Some(true) || told) && code == 137 {
        return Outcome::OutOfMemory;
    }
    let Some(claim) = claim else {
        return match code {
            137 | 143 => Outcome::Evicted(format!(
                "it was ended from outside, by signal {}",
                code - 128
            )),
            code => exited(code),
        };
    };
    match &claim.end {
        End::NotStarted { cause, error } => {
            let cause = match cause {
                NotStarted::NotFound => StartFailureCause::CommandNotFound,
                NotStarted::NotExecutable => StartFailureCause::CommandNotExecutable,
                _ => StartFailureCause::Engine,
            };
            Outcome::FailedToStart(StartFailure::new(cause, error.as_str()))
        }
        End::Signaled(_) | End::Exited(_) if claim.terminated && code != 0 => {
            Outcome::Evicted("the engine or an administrator asked it to stop".into())
        }
        End::Signaled(signal) => Outcome::Signaled(i32::from(*signal)),
        // It agrees with what the engine saw.
        _ => exited(code),
    }
}

fn exited(code: i64) -> Outcome {
    Outcome::Exited(i32::try_from(code).unwrap_or(-1))
}

/// Whether the claim can change what is said about this container: it is inside the sandbox, and
/// reading it costs a call.
pub(crate) fn wants_claim(record: &Record, container: &ContainerInspectResponse) -> bool {
    let Some(state) = &container.state else {
        return false;
    };
    let ended = !is_live(state) && was_started(state);
    let late = || {
        let latest = finished(state).map(|finished| finished + TICK);
        record
            .deadline
            .is_some_and(|deadline| latest >= Some(deadline))
    };
    ended && (state.exit_code.is_none_or(|code| code >= 125) || late())
}

/// The engine's words about a container that it did not start and never will.
pub(crate) fn refused(state: &ContainerState) -> Option<&str> {
    let said = state.error.as_deref();
    said.filter(|said| !said.is_empty() && !is_spec_unread(said))
}

/// A cause for the engine's words about a container that it did not start.
pub(crate) fn refusal(message: &str) -> StartFailureCause {
    let has = |text: &str| message.contains(text);
    // Our own helper's path is in the message only if the image's platform is another one.
    if has("exec format error") {
        StartFailureCause::ImageUnusable
    } else if has("bind source path does not exist")
        || has("error mounting")
        || has("error while creating mount source path")
        || has("mounts denied")
    {
        StartFailureCause::MountUnusable
    } else if has("could not select device driver") || has("no space left on device") {
        StartFailureCause::Unschedulable
    } else {
        StartFailureCause::Engine
    }
}

/// A whole status.
pub(crate) fn status(seen: &Seen<'_>) -> RunStatus {
    let mut status = status_at(seen.record, phase(seen));
    let state = seen.container.and_then(|c| c.state.as_ref());
    if let Some(state) = state.filter(|state| was_started(state)) {
        status.started = state.started_at.as_deref().and_then(time::from_engine);
        if status.phase.is_finished() {
            status.finished = finished(state);
            // The engine takes the time of a start a little late, after that of a quick end.
            status.started = status.started.min(status.finished.or(status.started));
        }
    }
    status
}

/// What the record alone tells, with this phase.
pub(crate) fn status_at(record: &Record, phase: RunPhase) -> RunStatus {
    let mut status = RunStatus::new(
        record.id.clone(),
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

pub(crate) fn is_live(state: &ContainerState) -> bool {
    use ContainerStateStatusEnum as S;
    match state.status {
        Some(S::RUNNING | S::PAUSED | S::RESTARTING | S::STOPPING) => true,
        Some(S::CREATED | S::EXITED | S::DEAD) => false,
        _ => state.running == Some(true),
    }
}

/// Whether a program with a memory limit was killed just now, and why may still become known.
pub(crate) fn may_be_out_of_memory(
    container: &ContainerInspectResponse,
    now: SystemTime,
    just_now: Duration,
) -> bool {
    let limit = container.host_config.as_ref().and_then(|host| host.memory);
    let Some(state) = &container.state else {
        return false;
    };
    let finished = state.finished_at.as_deref().and_then(time::from_engine);
    has_ended(container)
        && limit.is_some_and(|bytes| bytes > 0)
        && state.exit_code == Some(137)
        && state.oom_killed != Some(true)
        && finished.is_some_and(|finished| now < finished + just_now)
}

/// Whether a container has run and runs no more.
pub(crate) fn has_ended(container: &ContainerInspectResponse) -> bool {
    let state = container.state.as_ref();
    state.is_some_and(|state| !is_live(state) && was_started(state))
}

pub(crate) fn was_started(state: &ContainerState) -> bool {
    let started = state.started_at.as_deref();
    started.and_then(time::from_engine).is_some()
}

fn finished(state: &ContainerState) -> Option<SystemTime> {
    state.finished_at.as_deref().and_then(time::from_engine)
}
