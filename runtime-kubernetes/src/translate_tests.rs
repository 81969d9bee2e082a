//! What is made of pods as a real cluster told them: `tests/states.rs` records them.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::path::Path;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use v6_runtime::{Outcome, Owner, Pending, RunPhase, StartFailureCause as Cause, StopCause};

use crate::obstacle::{self, Patience};
use crate::record::{self, Marks, Record};
use crate::translate::{self, Seen};

fn recorded(name: &str) -> Pod {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/states");
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn judged(pod: &Pod, driven: bool) -> RunPhase {
    let owner = Owner::new("hospital-a").unwrap();
    let id = record::identify(&owner, pod).unwrap();
    let record = Record::read(id, pod).unwrap();
    let seen = Seen {
        record: &record,
        marks: &Marks::read(pod),
        pod,
        driven,
        now: SystemTime::now(),
    };
    translate::phase(&seen)
}

fn outcome(pod: &Pod) -> Outcome {
    match judged(pod, false) {
        RunPhase::Finished(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn note(pod: &mut Pod, name: &str, value: &str) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(name.to_owned(), value.to_owned());
}

fn forget(pod: &mut Pod, name: &str) {
    pod.metadata.annotations.as_mut().unwrap().remove(name);
}

#[test]
fn ends_are_told_apart() {
    let cases = [
        ("exited-0", Outcome::Exited(0)),
        ("exited-7", Outcome::Exited(7)),
        ("exited-137", Outcome::Exited(137)),
        ("out-of-memory", Outcome::OutOfMemory),
        ("deadline", Outcome::DeadlineExceeded),
        ("cancelled", Outcome::Cancelled),
        ("cancelled-now", Outcome::Cancelled),
    ];
    for (name, expected) in cases {
        assert_eq!(outcome(&recorded(name)), expected, "{name}");
    }
    for name in [
        "evicted",
        "deleted",
        "deleted-by-force",
        "drained",
        "disk-full",
        "rejected",
    ] {
        let outcome = outcome(&recorded(name));
        assert!(
            matches!(outcome, Outcome::Evicted(_)),
            "{name}: {outcome:?}"
        );
    }
}

/// The outputs of one that had ended are gone, and its end is as it was.
#[test]
fn a_drain_does_not_change_an_end() {
    let pod = recorded("drained-waiting");
    assert_eq!(outcome(&pod), Outcome::Exited(0));
    assert!(!translate::has_sidecar(&pod));
}

#[test]
fn a_lost_machine_is_told_in_the_clusters_words() {
    let cases = [
        ("machine-lost", "NoExecute taint"),
        ("lost-and-forced", "testnode-lost"),
    ];
    for (name, words) in cases {
        let mut pod = recorded(name);
        // The pod itself tells it, before it is noted.
        forget(&mut pod, "v6-runtime.ended");
        match outcome(&pod) {
            Outcome::NodeLost(said) => assert!(said.contains(words), "{name}: {said}"),
            other => panic!("{name}: {other:?}"),
        }
        // Until the cluster gives the machine up, nothing is sure.
        pod.status.as_mut().unwrap().phase = Some("Running".into());
        assert_eq!(judged(&pod, false), RunPhase::Stopping(StopCause::Engine));
    }
}

/// The machine was there all the time, and ends the run.
#[test]
fn what_was_said_of_a_lost_machine_stays_so() {
    let mut pod = recorded("drained");
    let gone = Outcome::NodeLost("it is gone".into());
    note(
        &mut pod,
        "v6-runtime.ended",
        &serde_json::to_string(&gone).unwrap(),
    );
    assert_eq!(outcome(&pod), gone);
}

/// A kubelet that starts on a full disk forgets now and then how the containers ended of a pod that it
/// rejects: seen with one that had ended with 0.
#[test]
fn an_end_that_is_noted_outlives_the_machines_memory() {
    let rejected = recorded("rejected").status.unwrap();
    let mut pod = recorded("rejected-waiting");
    assert_eq!(outcome(&pod), Outcome::Exited(0));
    let status = pod.status.as_mut().unwrap();
    status.phase = rejected.phase;
    status.reason = rejected.reason;
    status.message = rejected.message;
    status.container_statuses = None;
    assert_eq!(outcome(&pod), Outcome::Exited(0));
    forget(&mut pod, "v6-runtime.ended");
    match outcome(&pod) {
        Outcome::Evicted(said) => assert!(said.contains("[DiskPressure]"), "{said}"),
        other => panic!("{other:?}"),
    }
    // As it was on the way there.
    pod.status.as_mut().unwrap().phase = Some("Running".into());
    assert_eq!(judged(&pod, false), RunPhase::Stopping(StopCause::Engine));
}

/// Whether it ran, and how it ended: that it never ran must not be said of it.
#[test]
fn what_a_machine_has_forgotten_is_lost() {
    let mut pod = recorded("forgotten");
    let lost = outcome(&pod);
    assert!(matches!(lost, Outcome::Lost(_)), "{lost:?}");
    // As it was seen on the way there.
    let status = pod.status.as_mut().unwrap();
    for container in status.container_statuses.as_mut().unwrap() {
        container.state =
            serde_json::from_str(r#"{"waiting": {"reason": "PodInitializing"}}"#).ok();
    }
    let lost = outcome(&pod);
    assert!(matches!(lost, Outcome::Lost(_)), "{lost:?}");
    pod.status.as_mut().unwrap().phase = Some("Running".into());
    assert_eq!(judged(&pod, false), RunPhase::Stopping(StopCause::Engine));
}

/// A machine that ends a pod by itself says first that its containers were killed, and then why.
#[test]
fn a_kill_without_a_sidecar_is_not_told_before_its_reason() {
    let mut pod = recorded("disk-full");
    let status = pod.status.as_mut().unwrap();
    status.phase = Some("Running".into());
    status.reason = None;
    status.message = None;
    status
        .conditions
        .as_mut()
        .unwrap()
        .retain(|it| it.type_ != "DisruptionTarget");
    assert_eq!(judged(&pod, false), RunPhase::Stopping(StopCause::Engine));
    // With the sidecar there, it is the program's own end.
    assert_eq!(outcome(&recorded("exited-137")), Outcome::Exited(137));
}

#[test]
fn causes_are_told_apart() {
    let cases = [
        ("command-not-found", Cause::CommandNotFound),
        ("command-not-executable", Cause::CommandNotExecutable),
        ("image-absent", Cause::ImageNotFound),
        ("registry-unreachable", Cause::RegistryUnreachable),
        ("no-room", Cause::Unschedulable),
        ("claim-absent", Cause::MountUnusable),
    ];
    for (name, cause) in cases {
        match outcome(&recorded(name)) {
            Outcome::FailedToStart(failure) => assert_eq!(failure.cause, cause, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// What was noted when a run was given up, told once more from the pod itself.
#[test]
fn what_is_in_the_way_is_told_by_the_pod() {
    let cases = [
        ("image-absent", Cause::ImageNotFound, Patience::None),
        (
            "registry-unreachable",
            Cause::RegistryUnreachable,
            Patience::Registry,
        ),
        ("no-room", Cause::Unschedulable, Patience::Machine),
    ];
    for (name, cause, patience) in cases {
        let mut pod = recorded(name);
        pod.metadata.deletion_timestamp = None;
        let (failure, how) = obstacle::obstacle(&pod).unwrap();
        assert_eq!(
            (failure.cause, how),
            (cause, patience),
            "{name}: {}",
            failure.message
        );
    }
}

#[test]
fn nobody_at_work_is_abandoned() {
    let mut pod = recorded("exited-0");
    forget(&mut pod, record::STORED);
    pod.status = None;
    pod.spec.as_mut().unwrap().node_name = None;
    assert_eq!(judged(&pod, false), RunPhase::Pending(Pending::Abandoned));
    assert_eq!(judged(&pod, true), RunPhase::Pending(Pending::Accepted));
    note(&mut pod, record::STORED, "true");
    assert_eq!(judged(&pod, false), RunPhase::Pending(Pending::Queued));
}

/// A run that ended by itself before it was cancelled keeps its outcome.
#[test]
fn a_late_cancel_changes_nothing() {
    let mut pod = recorded("exited-7");
    let now = crate::time::to_text(SystemTime::now() + Duration::from_secs(3600));
    note(&mut pod, "v6-runtime.cancelled", &now);
    assert_eq!(outcome(&pod), Outcome::Exited(7));
}

/// A drain long after a program that has ended like one that was ended.
#[test]
fn what_befalls_a_pod_later_is_no_end_of_its_program() {
    let mut pod = recorded("exited-137");
    let evicted = recorded("evicted");
    let told = evicted.status.unwrap().conditions.unwrap();
    let mut told = told
        .into_iter()
        .find(|condition| condition.type_ == "DisruptionTarget")
        .unwrap();
    let now = k8s_openapi::jiff::Timestamp::now();
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
    told.last_transition_time = Some(now.clone());
    let conditions = &mut pod.status.as_mut().unwrap().conditions;
    conditions.get_or_insert_default().push(told);
    pod.metadata.deletion_timestamp = Some(now);
    pod.metadata.deletion_grace_period_seconds = Some(1);
    assert_eq!(outcome(&pod), Outcome::Exited(137));
}

#[test]
fn a_program_that_runs_on_is_stopping() {
    let mut pod = recorded("cancelled");
    let ended = pod
        .status
        .as_mut()
        .unwrap()
        .container_statuses
        .as_mut()
        .unwrap();
    let program = ended
        .iter_mut()
        .find(|it| it.name == crate::pod::PROGRAM)
        .unwrap();
    let state = program.state.as_mut().unwrap();
    let ended = state.terminated.take().unwrap();
    state.running = Some(k8s_openapi::api::core::v1::ContainerStateRunning {
        started_at: ended.started_at,
    });
    assert_eq!(judged(&pod, false), RunPhase::Stopping(StopCause::Cancel));
    forget(&mut pod, "v6-runtime.cancelled");
    assert_eq!(judged(&pod, false), RunPhase::Running);
}

#[test]
fn pulls_fail_in_their_own_ways() {
    let cause = |words: &str| obstacle::pull_failure(words).0;
    let denied = "failed to authorize: failed to fetch anonymous token: 401 Unauthorized";
    assert_eq!(cause(denied), Cause::ImageDenied);
    let absent = "failed to resolve reference \"r/a:1\": r/a:1: not found";
    assert_eq!(cause(absent), Cause::ImageNotFound);
    let platform = "no match for platform in manifest sha256:1: not found";
    assert_eq!(cause(platform), Cause::ImageUnusable);
    let away = "dial tcp 127.0.0.1:1: connect: connection refused";
    assert_eq!(cause(away), Cause::RegistryUnreachable);
}
