//! What the cluster says about a pod, in the contract's words. Pure.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition,
};
use v6_runtime::{
    Outcome, Pending, RunPhase, RunStatus, StartFailure, StartFailureCause as Cause, StopCause,
};

use crate::api::LEAST_CPU;
use crate::obstacle::refusal;
use crate::pod::{PROGRAM, RECEIVE, SIDECAR};
use crate::record::{Marks, Record};
use crate::time;

/// A machine's clock and the API server's may differ by so much.
const SKEW: Duration = Duration::from_secs(60);

/// All that is known about a run at one moment.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) record: &'a Record,
    pub(crate) marks: &'a Marks,
    pub(crate) pod: &'a Pod,
    /// Whether somebody is bringing its input.
    pub(crate) driven: bool,
    pub(crate) now: SystemTime,
}

/// Where the run is. The verdict comes from the program's own container, never from the phase of
/// the pod, which tells as much about our sidecar.
pub(crate) fn phase(seen: &Seen<'_>) -> RunPhase {
    let Seen {
        record, marks, pod, ..
    } = seen;
    if let Some(failure) = &marks.failed {
        return RunPhase::Finished(Outcome::FailedToStart(failure.clone()));
    }
    // A machine that was only away, or has forgotten it, may say otherwise by now.
    if let Some(outcome) = &marks.ended {
        return RunPhase::Finished(outcome.clone());
    }
    if let Some(ended) = terminated(pod, PROGRAM) {
        if is_unexplained(pod, ended) {
            return RunPhase::Stopping(stop_cause(marks));
        }
        return RunPhase::Finished(outcome(seen, ended));
    }
    if is_running(pod, PROGRAM) {
        return match has_gone(pod) {
            Some(outcome) => RunPhase::Finished(outcome),
            None => running(seen),
        };
    }
    if let Some(ended) = terminated(pod, RECEIVE).filter(|ended| ended.exit_code != 0) {
        return not_received(seen, ended);
    }
    if has_ended(pod) {
        return RunPhase::Finished(never_ran(seen));
    }
    if is_forgotten(pod) {
        return RunPhase::Stopping(stop_cause(marks));
    }
    if is_deleted(pod) {
        // A pod that no machine has ends at once.
        return if node(pod).is_none() {
            RunPhase::Finished(never_ran(seen))
        } else {
            RunPhase::Stopping(stop_cause(marks))
        };
    }
    if !marks.stored {
        return RunPhase::Pending(if seen.driven {
            Pending::Accepted
        } else {
            Pending::Abandoned
        });
    }
    let late = record.deadline.is_some_and(|deadline| deadline <= seen.now);
    if late && node(pod).is_none() {
        // Nobody will start it any more: the helper looks at the clock first.
        return RunPhase::Stopping(StopCause::Deadline);
    }
    RunPhase::Pending(pending(pod))
}

fn running(seen: &Seen<'_>) -> RunPhase {
    let late = seen.record.deadline.is_some_and(|at| at <= seen.now);
    if seen.marks.cancelled.is_some() {
        RunPhase::Stopping(StopCause::Cancel)
    } else if late {
        RunPhase::Stopping(StopCause::Deadline)
    } else if is_deleted(seen.pod) {
        RunPhase::Stopping(StopCause::Engine)
    } else {
        RunPhase::Running
    }
}

fn stop_cause(marks: &Marks) -> StopCause {
    if marks.cancelled.is_some() {
        StopCause::Cancel
    } else {
        StopCause::Engine
    }
}

/// A machine that ends a pod for reasons of its own tells the ends of its containers first, and that
/// it was its own doing only when it is through.
fn is_unexplained(pod: &Pod, ended: &ContainerStateTerminated) -> bool {
    // A sidecar that is to go with the program says nothing by that.
    let stays = is_beside(pod) && !is_running(pod, SIDECAR);
    is_by_signal(ended) && stays && !has_ended(pod) && !is_deleted(pod)
}

/// A machine that has lost its memory of what has run says nothing of it, or that it is to begin, and
/// then ends it. Of a pod that runs, the sidecar is the first of which it says more.
fn is_forgotten(pod: &Pod) -> bool {
    phase_word(pod) == "Running" && !is_running(pod, SIDECAR) && terminated(pod, SIDECAR).is_none()
}

/// A machine that is gone leaves its containers as they were last seen. One that is there ends them
/// before it says that their pod has ended: this was said by others, who have given the machine up.
fn has_gone(pod: &Pod) -> Option<Outcome> {
    if !has_ended(pod) {
        return None;
    }
    let words = disruption(pod).map(|(_, message)| message.to_owned());
    let words = words.filter(|words| !words.is_empty());
    let given_up = || {
        let machine = node(pod).unwrap_or_default();
        format!("the cluster has given up the machine {machine}")
    };
    Some(Outcome::NodeLost(words.unwrap_or_else(given_up)))
}

fn pending(pod: &Pod) -> Pending {
    let scheduled = condition(pod, "PodScheduled");
    if node(pod).is_none() {
        return match scheduled {
            Some((false, "SchedulingGated", _)) => Pending::Accepted,
            _ => Pending::Queued,
        };
    }
    let pulls = |reason: &str| reason.contains("ImagePull") || reason == "ErrImageNeverPull";
    // A machine says nothing while it fetches. Once the helper has let the program go, that is all that
    // there is to do but for the start itself.
    let let_go = terminated(pod, RECEIVE).is_some_and(|ended| ended.exit_code == 0);
    if let_go || waiting(pod).any(|(_, reason, _)| pulls(reason)) {
        return Pending::PullingImage;
    }
    Pending::Starting
}

/// How a program that has run, or could not be run, ended.
fn outcome(seen: &Seen<'_>, state: &ContainerStateTerminated) -> Outcome {
    let code = state.exit_code;
    let reason = state.reason.as_deref().unwrap_or_default();
    let message = state.message.as_deref().unwrap_or_default();
    // A machine that has forgotten it says neither when it started nor how it ended.
    if reason == "ContainerStatusUnknown" {
        let lost = || Outcome::Lost(or(message, "the machine has forgotten the container"));
        return explained(seen).unwrap_or_else(lost);
    }
    if !has_started(state) {
        return match reason {
            "StartError" | "ContainerCannotRun" => {
                Outcome::FailedToStart(StartFailure::new(refusal(message), message))
            }
            _ => never_ran(seen),
        };
    }
    let ended = state
        .finished_at
        .as_ref()
        .map_or(seen.now, time::from_cluster);
    // The cluster's times have whole seconds: within the second of the request, only what looks
    // like its work is.
    let by_signal = is_by_signal(state);
    let told = |at: SystemTime| {
        let at = time::floor(at);
        at < ended || (at == ended && by_signal)
    };
    if seen.marks.cancelled.is_some_and(told) {
        return Outcome::Cancelled;
    }
    if seen.record.deadline.is_some_and(told) {
        return Outcome::DeadlineExceeded;
    }
    if reason == "OOMKilled" {
        return Outcome::OutOfMemory;
    }
    // What befell the pod later did nothing to a program that had ended.
    let last = time::later(ended, SKEW);
    let befell = |at: Option<SystemTime>| at.is_none_or(|at| at <= last);
    if by_signal {
        if let Some((_, message)) = disruption(seen.pod)
            && befell(disrupted_at(seen.pod))
        {
            return Outcome::Evicted(message.to_owned());
        }
        if let Some(words) = pod_reason(seen.pod) {
            return Outcome::Evicted(words);
        }
        if is_deleted(seen.pod) && befell(deletion(seen.pod)) {
            return Outcome::Evicted("its pod was deleted by somebody else".into());
        }
        if let Some(words) = sidecar_failed(seen.pod) {
            return Outcome::Evicted(words);
        }
    }
    Outcome::Exited(code)
}

/// A sidecar that dies ends the program. Its machine may have started it again since.
fn sidecar_failed(pod: &Pod) -> Option<String> {
    let status = container_status(pod, SIDECAR)?;
    let ended = |state: &Option<ContainerState>| {
        let ended = state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then(|| format!("its sidecar ended with code {}", ended.exit_code))
    };
    let before = (status.restart_count > 0).then(|| {
        ended(&status.last_state).unwrap_or_else(|| "its sidecar ended, and was restarted".into())
    });
    ended(&status.state).or(before)
}

/// How a run ended whose program never ran.
fn never_ran(seen: &Seen<'_>) -> Outcome {
    let Seen {
        record, marks, pod, ..
    } = seen;
    if marks.cancelled.is_some() {
        return Outcome::Cancelled;
    }
    let status = pod.status.as_ref();
    let reason = status.and_then(|s| s.reason.as_deref()).unwrap_or_default();
    let words = || pod_reason(pod).unwrap_or_else(|| "its pod ended before the start".into());
    let refused = |cause| Outcome::FailedToStart(StartFailure::new(cause, words()));
    match reason {
        // The machine would not have it.
        "NodeAffinity" | "NodePorts" | "NodeShutdown" | "Terminated" => {
            return refused(Cause::Unschedulable);
        }
        reason if reason.starts_with("OutOf") => return refused(Cause::Unschedulable),
        "SysctlForbidden" | "AppArmor" | "UnexpectedAdmissionError" | "PodOSNotSupported" => {
            return refused(Cause::Engine);
        }
        _ => {}
    }
    if record.deadline.is_some_and(|deadline| deadline <= seen.now) && is_deleted(pod) {
        return Outcome::DeadlineExceeded;
    }
    // Whether it never ran, nobody has said.
    let lost = || Outcome::Lost("its pod has ended, and its machine does not say how".into());
    explained(seen).unwrap_or_else(lost)
}

/// What the cluster says of a run about whose program its machine says nothing.
fn explained(seen: &Seen<'_>) -> Option<Outcome> {
    let pod = seen.pod;
    if seen.marks.cancelled.is_some() {
        return Some(Outcome::Cancelled);
    }
    match disruption(pod) {
        Some(("DeletionByPodGC", message)) => Some(Outcome::NodeLost(message.to_owned())),
        Some((_, message)) => Some(Outcome::Evicted(message.to_owned())),
        None if is_deleted(pod) => {
            let words = pod_reason(pod);
            let deleted = || "its pod was deleted by somebody else".to_owned();
            Some(Outcome::Evicted(words.unwrap_or_else(deleted)))
        }
        None => pod_reason(pod).map(Outcome::Evicted),
    }
}

/// The helper did not let the program start.
fn not_received(seen: &Seen<'_>, state: &ContainerStateTerminated) -> RunPhase {
    let message = state.message.as_deref().unwrap_or_default();
    let failed = |cause| {
        let words = or(
            message,
            &format!("the helper ended with code {}", state.exit_code),
        );
        RunPhase::Finished(Outcome::FailedToStart(StartFailure::new(cause, words)))
    };
    if seen.marks.cancelled.is_some() {
        return RunPhase::Finished(Outcome::Cancelled);
    }
    match state.exit_code {
        v6_helper::EXIT_NOT_ISOLATED => failed(Cause::NotIsolated),
        v6_helper::EXIT_LATE => RunPhase::Finished(Outcome::DeadlineExceeded),
        v6_helper::EXIT_NO_PART => failed(Cause::MountUnusable),
        v6_helper::EXIT_NO_INPUT => RunPhase::Pending(Pending::Abandoned),
        137 | 143 if is_deleted(seen.pod) || pod_reason(seen.pod).is_some() => {
            RunPhase::Finished(never_ran(seen))
        }
        _ => failed(Cause::Engine),
    }
}

/// A whole status.
pub(crate) fn status(seen: &Seen<'_>) -> RunStatus {
    let Record {
        id,
        spec,
        image,
        annotations,
        egress,
        deadline,
        created,
        ..
    } = seen.record;
    let mut status = RunStatus::new(
        id.clone(),
        phase(seen),
        spec.clone(),
        image.clone(),
        annotations.clone(),
    );
    status.egress.clone_from(egress);
    status.deadline = *deadline;
    status.created = Some(*created);
    let state = program_state(seen.pod);
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        status.started = running.started_at.as_ref().map(time::from_cluster);
    }
    if let Some(ended) = terminated(seen.pod, PROGRAM).filter(|ended| has_started(ended)) {
        status.started = ended.started_at.as_ref().map(time::from_cluster);
        status.finished = ended.finished_at.as_ref().map(time::from_cluster);
    }
    if status.phase.is_finished() && status.finished.is_none() {
        status.finished = ended_before_the_start(seen.pod);
    }
    // Whole seconds may lie before the record's making.
    status.started = status.started.map(|at| at.max(*created));
    status.finished = status
        .finished
        .map(|at| at.max(status.started.unwrap_or(at)));
    status
}

/// When a run ended whose program never ran, as far as the cluster tells.
fn ended_before_the_start(pod: &Pod) -> Option<SystemTime> {
    let received = terminated(pod, RECEIVE).filter(|ended| ended.exit_code != 0);
    if let Some(ended) = received {
        return ended.finished_at.as_ref().map(time::from_cluster);
    }
    deletion(pod)
}

/// When somebody deleted the pod, at the latest.
fn deletion(pod: &Pod) -> Option<SystemTime> {
    let deleted = time::from_cluster(pod.metadata.deletion_timestamp.as_ref()?);
    // That is the time at which it was to be gone.
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    deleted.checked_sub(Duration::from_secs(u64::try_from(grace).unwrap_or(0)))
}

/// Whether the program has run, so that there may be outputs and a log.
pub(crate) fn has_run(pod: &Pod) -> bool {
    is_running(pod, PROGRAM) || terminated(pod, PROGRAM).is_some_and(has_started)
}

/// Whether the sidecar can be asked.
pub(crate) fn has_sidecar(pod: &Pod) -> bool {
    is_running(pod, SIDECAR)
}

/// Whether the pod stays for its outputs when the program has ended.
pub(crate) fn waits(pod: &Pod) -> bool {
    has_sidecar(pod) && is_beside(pod)
}

/// Whether the sidecar stays when the program has ended.
fn is_beside(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map(|spec| &spec.containers);
    containers.is_some_and(|all| all.iter().any(|one| one.name == SIDECAR))
}

/// Whether more than the least is booked for the program.
pub(crate) fn books(pod: &Pod) -> bool {
    let containers = pod.spec.as_ref().map(|spec| &spec.containers);
    let program = containers.and_then(|all| all.iter().find(|one| one.name == PROGRAM));
    let booked = program
        .and_then(|program| program.resources.as_ref()?.requests.as_ref()?.get("cpu"))
        .map(|cpu| cpu.0.as_str());
    booked.is_some_and(|cpu| cpu != LEAST_CPU)
}

/// Whether the helper waits for what is streamed.
pub(crate) fn is_receiving(pod: &Pod) -> bool {
    is_running(pod, RECEIVE)
}

/// Whether the pod is being ended, by whomever.
pub(crate) fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Which machine has the pod.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    spec.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the cluster has nothing to do with the pod any more.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase_word(pod), "Failed" | "Succeeded")
}

/// How long what stands in the way has done so, at least: since the pod was given its last chance.
pub(crate) fn waiting_since(pod: &Pod, created: SystemTime) -> SystemTime {
    let scheduled = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|all| {
            all.iter()
                .find(|it| it.type_ == "PodScheduled" && it.status == "True")
        })
        .and_then(|condition| condition.last_transition_time.as_ref());
    scheduled.map_or(created, time::from_cluster)
}

fn phase_word(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status.and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn is_by_signal(state: &ContainerStateTerminated) -> bool {
    state.exit_code == 137 || state.exit_code == 143
}

fn has_started(state: &ContainerStateTerminated) -> bool {
    // What never ran has the beginning of time, or none.
    let year = Duration::from_secs(365 * 86_400);
    state
        .started_at
        .as_ref()
        .is_some_and(|at| time::from_cluster(at) > SystemTime::UNIX_EPOCH + year)
}

pub(crate) fn or(text: &str, otherwise: &str) -> String {
    let text = text.trim();
    (if text.is_empty() { otherwise } else { text }).to_owned()
}

/// Reason and words of the pod's own status.
fn pod_reason(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let reason = status.reason.as_deref().filter(|text| !text.is_empty())?;
    let message = status.message.as_deref().unwrap_or_default();
    Some(format!("{reason}: {message}"))
}

/// Why somebody other than us ends the pod.
fn disruption(pod: &Pod) -> Option<(&str, &str)> {
    match condition(pod, "DisruptionTarget")? {
        (true, reason, message) => Some((reason, message)),
        _ => None,
    }
}

/// Since when somebody does.
fn disrupted_at(pod: &Pod) -> Option<SystemTime> {
    let at = find_condition(pod, "DisruptionTarget")?;
    at.last_transition_time.as_ref().map(time::from_cluster)
}

fn find_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(bool, &'a str, &'a str)> {
    let found = find_condition(pod, kind)?;
    let text = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
    Some((
        found.status == "True",
        text(&found.reason),
        text(&found.message),
    ))
}

fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.init_container_statuses, &status.container_statuses];
    let mut all = all.into_iter().flatten().flatten();
    all.find(|status| status.name == name)
}

fn state<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerState> {
    container_status(pod, name)?.state.as_ref()
}

fn program_state(pod: &Pod) -> Option<&ContainerState> {
    state(pod, PROGRAM)
}

pub(crate) fn terminated<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStateTerminated> {
    state(pod, name)?.terminated.as_ref()
}

pub(crate) fn is_running(pod: &Pod, name: &str) -> bool {
    state(pod, name).is_some_and(|state| state.running.is_some())
}

/// Containers that wait, with reason and words.
pub(crate) fn waiting(pod: &Pod) -> impl Iterator<Item = (&str, &str, &str)> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let others = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter()
        .chain(others)
        .flatten()
        .filter_map(|status| {
            let waiting = status.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let message = waiting.message.as_deref().unwrap_or_default();
            Some((status.name.as_str(), reason, message))
        })
}
