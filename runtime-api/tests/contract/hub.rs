use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;
use v6_runtime::{
    Error, ErrorKind, Outcome, Pending, ResultStream, RunPhase, RunStatus, SpecDigest, StopCause,
    WatchEvent, WatchHub,
};

use crate::{id, image, spec};

/// More than any watcher may be behind.
const FLOOD: u64 = 5000;

fn status(name: &str, phase: RunPhase) -> RunStatus {
    let digest = SpecDigest::of(&spec());
    let mut status = RunStatus::new(id(name), phase, digest, image('0'), Default::default());
    status.created = Some(SystemTime::UNIX_EPOCH);
    status
}

fn pending() -> RunPhase {
    RunPhase::Pending(Pending::Accepted)
}

fn finished(code: i32) -> RunPhase {
    RunPhase::Finished(Outcome::Exited(code))
}

fn listed(hub: &WatchHub, runs: impl IntoIterator<Item = RunStatus>) {
    let start = hub.begin_listing();
    hub.reset(start, runs);
}

fn next(watch: &mut ResultStream<WatchEvent>) -> Option<WatchEvent> {
    let item = watch.next().now_or_never()?;
    Some(item.expect("the watch goes on").unwrap())
}

/// Reads all there is, as a caller would.
fn drain(watch: &mut ResultStream<WatchEvent>) -> BTreeMap<String, RunPhase> {
    let mut known = BTreeMap::new();
    while let Some(event) = next(watch) {
        match event {
            WatchEvent::Snapshot(runs) => {
                known = runs
                    .into_iter()
                    .map(|run| (run.id.to_string(), run.phase))
                    .collect();
            }
            WatchEvent::Changed(run) => drop(known.insert(run.id.to_string(), run.phase)),
            WatchEvent::Removed(gone) => drop(known.remove(gone.as_str())),
            _ => {}
        }
    }
    known
}

#[test]
fn says_nothing_before_the_first_listing() {
    let hub = WatchHub::new();
    let mut watch = hub.watch();
    assert!(next(&mut watch).is_none());
    listed(&hub, []);
    assert!(matches!(next(&mut watch), Some(WatchEvent::Snapshot(runs)) if runs.is_empty()));
    assert!(next(&mut watch).is_none());
}

#[test]
fn a_late_watcher_begins_with_what_there_is() {
    let hub = WatchHub::new();
    listed(&hub, [status("a", pending())]);
    hub.update(status("a", finished(3)));
    hub.update(status("b", RunPhase::Running));
    let mut watch = hub.watch();
    let Some(WatchEvent::Snapshot(runs)) = next(&mut watch) else {
        unreachable!("no snapshot")
    };
    let phases: Vec<RunPhase> = runs.into_iter().map(|run| run.phase).collect();
    assert_eq!(phases, [finished(3), RunPhase::Running]);
    assert!(
        next(&mut watch).is_none(),
        "what is in the snapshot comes once"
    );
}

#[test]
fn a_watcher_that_lags_gets_a_snapshot_and_delays_nobody() {
    let hub = WatchHub::new();
    listed(&hub, []);
    let (mut slow, mut quick) = (hub.watch(), hub.watch());
    assert!(next(&mut slow).is_some());
    assert!(next(&mut quick).is_some());
    let mut seen = 0;
    for n in 0..FLOOD {
        hub.update(status(&format!("r{n}"), pending()));
        seen += u64::from(matches!(next(&mut quick), Some(WatchEvent::Changed(_))));
    }
    assert_eq!(seen, FLOOD);
    assert!(
        matches!(next(&mut slow), Some(WatchEvent::Snapshot(runs)) if runs.len() as u64 == FLOOD)
    );
    hub.update(status("r0", finished(0)));
    assert!(matches!(next(&mut slow), Some(WatchEvent::Changed(run)) if run.phase == finished(0)));
}

#[test]
fn a_failure_is_told_and_a_listing_follows() {
    let hub = WatchHub::new();
    listed(&hub, [status("a", RunPhase::Running)]);
    let mut watch = hub.watch();
    assert!(next(&mut watch).is_some());
    hub.failed(&Error::new(ErrorKind::Unavailable, "the line is dead"));
    let error = watch.next().now_or_never().unwrap().unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.message()),
        (ErrorKind::Unavailable, "the line is dead")
    );
    assert!(error.is_retryable());
    assert!(
        next(&mut watch).is_none(),
        "a failure says nothing of any run"
    );
    assert_eq!(hub.get(&id("a")).unwrap().phase, RunPhase::Running);
    listed(&hub, []);
    assert!(matches!(next(&mut watch), Some(WatchEvent::Snapshot(runs)) if runs.is_empty()));
}

#[test]
fn a_listing_does_not_undo_what_happened_while_it_was_made() {
    let hub = WatchHub::new();
    let running = |name| status(name, RunPhase::Running);
    listed(
        &hub,
        [
            running("ends"),
            running("goes"),
            running("stays"),
            running("vanishes"),
        ],
    );
    let start = hub.begin_listing();
    let stale = ["ends", "goes", "stays"].map(running);
    hub.update(status("ends", finished(1)));
    hub.remove(&id("goes"));
    hub.update(status("new", pending()));
    hub.reset(start, stale);
    let found = drain(&mut hub.watch());
    let wanted = [
        ("ends", finished(1)),
        ("new", pending()),
        ("stays", RunPhase::Running),
    ];
    assert_eq!(
        found,
        wanted.map(|(name, phase)| (name.to_owned(), phase)).into()
    );
    // Later listings are believed.
    listed(&hub, []);
    assert!(drain(&mut hub.watch()).is_empty());
}

#[test]
fn what_is_removed_stays_removed_until_it_is_made_anew() {
    let hub = WatchHub::new();
    listed(&hub, [status("a", finished(0))]);
    let mut watch = hub.watch();
    let start = hub.begin_listing();
    hub.remove(&id("a"));
    hub.reset(start, [status("a", finished(0))]);
    assert!(drain(&mut watch).is_empty());
    assert!(hub.get(&id("a")).is_none());
    let mut anew = status("a", pending());
    anew.created = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    hub.update(anew);
    assert_eq!(drain(&mut watch)["a"], pending());
}

#[test]
fn an_abandoned_record_that_is_made_anew_begins_again() {
    let hub = WatchHub::new();
    listed(&hub, [status("a", finished(0))]);
    let mut anew = status("a", pending());
    anew.created = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    hub.update(anew.clone());
    assert_eq!(hub.get(&id("a")), Some(anew));
}

#[test]
fn unchanged_news_are_no_news() {
    let hub = WatchHub::new();
    listed(&hub, [status("a", RunPhase::Running)]);
    let mut watch = hub.watch();
    assert!(next(&mut watch).is_some());
    hub.update(status("a", RunPhase::Running));
    hub.remove(&id("unknown"));
    assert!(next(&mut watch).is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Update(usize, RunPhase),
    Begin,
    /// Ends the listing that was begun, with what it saw then.
    Reset(Vec<(usize, RunPhase)>),
    Fail,
}

fn phase() -> impl Strategy<Value = RunPhase> {
    prop_oneof![
        Just(pending()),
        Just(RunPhase::Pending(Pending::Starting)),
        Just(RunPhase::Running),
        Just(RunPhase::Stopping(StopCause::Cancel)),
        Just(finished(0)),
        Just(finished(1)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let all = (0..3_usize, phase());
    prop_oneof![
        4 => (0..3_usize, phase()).prop_map(|(run, phase)| Step::Update(run, phase)),
        1 => Just(Step::Begin),
        1 => proptest::collection::vec(all, 0..4).prop_map(Step::Reset),
        1 => Just(Step::Fail),
    ]
}

proptest! {
    /// Whatever order the engine's news arrive in, and however stale its listings are. No run is
    /// removed here, so a listing has every run that was ever heard of.
    #[test]
    fn phases_never_go_back(steps in proptest::collection::vec(step(), 0..60)) {
        let hub = WatchHub::new();
        let mut watch = hub.watch();
        let mut listing = None;
        let mut heard_of = BTreeMap::new();
        for step in steps {
            match step {
                Step::Update(run, phase) => {
                    heard_of.insert(run, pending());
                    hub.update(status(&format!("r{run}"), phase));
                }
                Step::Begin => listing = Some(hub.begin_listing()),
                Step::Reset(runs) => {
                    let start = listing.take().unwrap_or_else(|| hub.begin_listing());
                    let mut all = heard_of.clone();
                    all.extend(runs);
                    heard_of.extend(all.keys().map(|run| (*run, pending())));
                    hub.reset(start, all.into_iter().map(|(n, phase)| status(&format!("r{n}"), phase)));
                }
                Step::Fail => hub.failed(&Error::new(ErrorKind::Unavailable, "")),
            }
        }
        let mut seen: BTreeMap<String, RunPhase> = BTreeMap::new();
        let mut forward = |run: RunStatus| {
            let old = seen.insert(run.id.to_string(), run.phase.clone());
            old.is_none_or(|old| {
                old.rank() <= run.phase.rank() && (!old.is_finished() || old == run.phase)
            })
        };
        while let Some(item) = watch.next().now_or_never() {
            match item.expect("the watch goes on") {
                Ok(WatchEvent::Snapshot(runs)) => {
                    for run in runs {
                        prop_assert!(forward(run));
                    }
                }
                Ok(WatchEvent::Changed(run)) => prop_assert!(forward(*run)),
                _ => {}
            }
        }
    }
}
