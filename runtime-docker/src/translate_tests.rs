//! The translation, on what a real engine said about containers in each state.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::time::{Duration, SystemTime};

use bollard::models::ContainerInspectResponse;
use v6_helper::Claim;
use v6_runtime::{
    Digest, ImageIdentity, ImageRef, Outcome, Pending, ResolvedImage, RunId, RunPhase, RunSpec,
    StartFailure, StartFailureCause, StopCause,
};

use crate::quirks;
use crate::record::{Marks, Record, Stop};
use crate::recorded::Engine;
use crate::time;
use crate::translate::{self, Seen};

/// Docker run by root, whose words the contract's were drawn up from.
const DOCKER: &str = "docker-20.10.24";

/// One state of one engine, as `tests/states.rs` and `tests/restart.rs` recorded it.
struct Recorded {
    container: ContainerInspectResponse,
    claim: Option<Claim>,
}

impl Recorded {
    fn read(name: &str) -> Self {
        Self::of(&Engine::named(DOCKER), name).unwrap()
    }

    /// `None` if the engine cannot come to this state.
    fn of(engine: &Engine, name: &str) -> Option<Self> {
        let all = engine.file(&format!("states/{name}.json"))?;
        let inspected = serde_json::json!({"State": all["state"]}).to_string();
        Some(Self {
            container: quirks::container(inspected.as_bytes()).unwrap(),
            claim: Claim::parse(all["claim"].as_str().unwrap().as_bytes()).ok(),
        })
    }

    fn finished(&self) -> SystemTime {
        let state = self.container.state.as_ref().unwrap();
        time::from_engine(state.finished_at.as_deref().unwrap()).unwrap()
    }
}

fn record() -> Record {
    let digest = Digest::new(format!("sha256:{}", "0".repeat(64))).unwrap();
    let reference = ImageRef::parse("a").unwrap();
    let image = ResolvedImage::new(reference, ImageIdentity::ImageId(digest), "linux/amd64");
    Record::new(
        &RunId::new("r").unwrap(),
        &RunSpec::new(image),
        SystemTime::UNIX_EPOCH,
    )
}

/// What is made of it, seen as a process sees it that knows nothing else, and asks for a claim
/// where the translation wants one.
fn phase(seen: &Recorded, record: &Record, marks: &Marks) -> RunPhase {
    let wanted = translate::wants_claim(record, &seen.container);
    translate::phase(&Seen {
        record,
        marks,
        container: Some(&seen.container),
        files: false,
        claim: seen.claim.as_ref().filter(|_| wanted),
        driven: None,
        now: SystemTime::UNIX_EPOCH,
    })
}

fn outcome(seen: &Recorded, name: &str) -> Outcome {
    match phase(seen, &record(), &Marks::default()) {
        RunPhase::Finished(outcome) => outcome,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn every_recorded_end() {
    // What a user's engine does not limit it does not end; only Docker has a daemon to lose.
    let elsewhere = |engine: &Engine, name: &str| {
        let unlimited = name == "out-of-memory" && engine.name.ends_with("-rootless");
        let daemonless = name.starts_with("daemon-") && engine.name != DOCKER;
        unlimited || daemonless
    };
    let exact = [
        ("exited-0", Outcome::Exited(0)),
        ("exited-7", Outcome::Exited(7)),
        ("exited-127", Outcome::Exited(127)),
        ("exited-137", Outcome::Exited(137)),
        ("signal-9", Outcome::Signaled(9)),
        ("out-of-memory", Outcome::OutOfMemory),
        ("daemon-crash-live-restore", Outcome::Exited(4)),
    ];
    let evicted = [
        "killed-outside",
        "stopped-outside",
        "daemon-stop",
        "daemon-crash",
    ];
    let failed = [
        ("command-not-found", StartFailureCause::CommandNotFound),
        (
            "command-not-executable",
            StartFailureCause::CommandNotExecutable,
        ),
    ];
    for engine in Engine::all() {
        let get = |name: &str| {
            let seen = Recorded::of(&engine, name);
            let at = format!("{name} of {}", engine.name);
            assert!(
                seen.is_some() || elsewhere(&engine, name),
                "{at} is missing"
            );
            seen.map(|seen| (outcome(&seen, &at), at))
        };
        for (name, wanted) in &exact {
            if let Some((outcome, at)) = get(name) {
                assert_eq!(outcome, *wanted, "{at}");
            }
        }
        for (outcome, at) in evicted.into_iter().filter_map(&get) {
            assert!(matches!(outcome, Outcome::Evicted(_)), "{at}: {outcome:?}");
        }
        for (name, wanted) in failed {
            match get(name) {
                Some((Outcome::FailedToStart(failure), at)) => {
                    assert_eq!(failure.cause, wanted, "{at}");
                }
                other => panic!("{name} of {}: {other:?}", engine.name),
            }
        }
    }
}

#[test]
fn a_deadline_needs_the_clock_and_the_claim() {
    let seen = Recorded::read("deadline");
    let mut record = record();
    record.deadline = Some(seen.finished() - Duration::from_secs(1));
    let marks = Marks::default();
    let late = RunPhase::Finished(Outcome::DeadlineExceeded);
    assert_eq!(phase(&seen, &record, &marks), late);
    // The kernel's clock for files is behind by up to a tick.
    record.deadline = Some(seen.finished() + Duration::from_millis(10));
    assert_eq!(phase(&seen, &record, &marks), late);
    // A program that claims a deadline that has not come, says nothing.
    record.deadline = Some(seen.finished() + Duration::from_secs(1));
    let ended = phase(&seen, &record, &marks);
    assert_eq!(ended, RunPhase::Finished(Outcome::Signaled(15)));
}

#[test]
fn a_mark_counts_if_it_was_there_at_the_end() {
    let seen = Recorded::read("killed-outside");
    let stop = |at| {
        Some(Stop {
            at,
            grace: Duration::ZERO,
        })
    };
    let before = stop(seen.finished() - Duration::from_millis(1));
    let after = stop(seen.finished() + Duration::from_secs(1));
    let with = |cancelled, deadline| {
        let marks = Marks {
            cancelled,
            deadline,
            failed: None,
        };
        phase(&seen, &record(), &marks)
    };
    assert_eq!(with(before, None), RunPhase::Finished(Outcome::Cancelled));
    let late = RunPhase::Finished(Outcome::DeadlineExceeded);
    assert_eq!(with(None, before), late);
    let evicted = with(after, after);
    assert!(
        matches!(evicted, RunPhase::Finished(Outcome::Evicted(_))),
        "{evicted:?}"
    );
}

#[test]
fn a_run_that_runs() {
    let seen = Recorded::read("running");
    let mut record = record();
    let mut marks = Marks::default();
    assert_eq!(phase(&seen, &record, &marks), RunPhase::Running);
    record.deadline = Some(SystemTime::UNIX_EPOCH);
    let stopping = phase(&seen, &record, &marks);
    assert_eq!(stopping, RunPhase::Stopping(StopCause::Deadline));
    marks.cancelled = Some(Stop {
        at: SystemTime::UNIX_EPOCH,
        grace: Duration::ZERO,
    });
    let stopping = phase(&seen, &record, &marks);
    assert_eq!(stopping, RunPhase::Stopping(StopCause::Cancel));
}

#[test]
fn a_claim_never_makes_a_success() {
    let mut seen = Recorded::read("killed-outside");
    for claim in [r#"{"v":1,"exit":0}"#, r#"{"v":1,"exit":7,"deadline":true}"#] {
        seen.claim = Some(Claim::parse(claim.as_bytes()).unwrap());
        let phase = phase(&seen, &record(), &Marks::default());
        assert!(
            matches!(phase, RunPhase::Finished(Outcome::Evicted(_))),
            "{phase:?}"
        );
    }
}

/// Docker has forgotten the kernel's kill, as it does once in some hundred runs.
#[test]
fn init_tells_of_want_of_memory_too() {
    let mut seen = Recorded::read("out-of-memory");
    seen.container.state.as_mut().unwrap().oom_killed = Some(false);
    seen.claim = Claim::parse(br#"{"v":1,"signal":9,"out_of_memory":true}"#).ok();
    assert_eq!(outcome(&seen, "told by init"), Outcome::OutOfMemory);
    let state = seen.container.state.as_mut().unwrap();
    state.exit_code = Some(0);
    let forged = outcome(&seen, "a claim that does not agree with the engine");
    assert_eq!(forged, Outcome::Exited(0));
}

#[test]
fn a_container_that_was_not_started() {
    let record = record();
    let at = |error: &str, driven| {
        let state =
            serde_json::json!({"State": {"Status": "created", "ExitCode": 128, "Error": error}});
        let container = quirks::container(state.to_string().as_bytes()).unwrap();
        translate::phase(&Seen {
            record: &record,
            marks: &Marks::default(),
            container: Some(&container),
            files: false,
            claim: None,
            driven,
            now: SystemTime::UNIX_EPOCH,
        })
    };
    let pending = Pending::Accepted;
    for not_final in ["", "failed to retrieve spec: unexpected EOF: unknown"] {
        assert_eq!(at(not_final, Some(pending)), RunPhase::Pending(pending));
        assert_eq!(at(not_final, None), RunPhase::Pending(Pending::Abandoned));
    }
    let failure = StartFailure::new(StartFailureCause::Unschedulable, "no space left on device");
    let failed = RunPhase::Finished(Outcome::FailedToStart(failure));
    assert_eq!(at("no space left on device", Some(pending)), failed);
}

#[test]
fn without_a_container() {
    let record = record();
    let at = |marks: &Marks, files, driven| {
        translate::phase(&Seen {
            record: &record,
            marks,
            container: None,
            files,
            claim: None,
            driven,
            now: SystemTime::UNIX_EPOCH,
        })
    };
    let none = Marks::default();
    let pulling = Some(Pending::PullingImage);
    assert_eq!(
        at(&none, true, pulling),
        RunPhase::Pending(Pending::PullingImage)
    );
    assert_eq!(at(&none, true, None), RunPhase::Pending(Pending::Abandoned));
    let lost = at(&none, false, None);
    assert!(
        matches!(lost, RunPhase::Finished(Outcome::Lost(_))),
        "{lost:?}"
    );
    let failure = StartFailure::new(StartFailureCause::ImageDenied, "no");
    let failed = Marks {
        failed: Some(failure.clone()),
        ..Marks::default()
    };
    let failed = at(&failed, true, None);
    assert_eq!(failed, RunPhase::Finished(Outcome::FailedToStart(failure)));
}
