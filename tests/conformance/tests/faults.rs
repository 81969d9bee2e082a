//! The suite can fail: each fault turns exactly its cases red, and every case is turned red.
//!
//! Each case runs on a Tokio runtime of its own whose clock is paused: it leaps whenever all wait,
//! so that a case that waits in vain costs nothing, and what happens does so in the same order
//! every time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use v6_runtime_conformance::faults::{ELSEWHERE, Seed, SeededHarness};
use v6_runtime_conformance::{Case, Verdict, cases};

/// A case that goes round in circles keeps the paused clock from leaping: real time has to end it.
const STUCK: Duration = Duration::from_secs(120);

type Ids = BTreeSet<&'static str>;

/// What the runtime declares: each case runs where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declaring {
    Everything,
    Nothing,
}

/// What came of every case, on the runtime without a fault and on every one with.
struct Results {
    honest: BTreeMap<&'static str, (Declaring, Verdict)>,
    seeded: BTreeMap<Seed, BTreeMap<&'static str, Verdict>>,
}

struct Job<'a> {
    seed: Option<Seed>,
    declaring: Declaring,
    case: &'a Case,
}

impl Results {
    /// Made once, for all tests.
    fn get() -> &'static Self {
        static RESULTS: OnceLock<Results> = OnceLock::new();
        RESULTS.get_or_init(Self::make)
    }

    fn make() -> Self {
        let cases = cases();
        let mut honest = BTreeMap::new();
        for declaring in [Declaring::Everything, Declaring::Nothing] {
            let open = cases.iter().filter(|case| {
                let before = honest.get(case.id);
                !matches!(before, Some((_, Verdict::Passed | Verdict::Failed { .. })))
            });
            let jobs = open.map(|case| Job {
                seed: None,
                declaring,
                case,
            });
            for (job, verdict) in try_all(&jobs.collect::<Vec<_>>()) {
                honest.insert(job.case.id, (declaring, verdict));
            }
        }
        let jobs = Seed::all().into_iter().flat_map(|seed| {
            let (honest, cases) = (&honest, &cases);
            cases.iter().filter_map(move |case| match honest[case.id] {
                (declaring, Verdict::Passed) => Some(Job {
                    seed: Some(seed),
                    declaring,
                    case,
                }),
                _ => None,
            })
        });
        let jobs: Vec<Job<'_>> = jobs.collect();
        let mut seeded: BTreeMap<Seed, BTreeMap<_, _>> = BTreeMap::new();
        for (job, verdict) in try_all(&jobs) {
            if let Some(seed) = job.seed {
                seeded.entry(seed).or_default().insert(job.case.id, verdict);
            }
        }
        Self { honest, seeded }
    }

    /// Those that turn red of the cases that are green without a fault.
    fn red(&self, seed: Seed) -> Ids {
        let all = self.seeded[&seed].iter();
        all.filter(|(_, verdict)| **verdict != Verdict::Passed)
            .map(|(id, _)| *id)
            .collect()
    }
}

/// Every job with its verdict, several at once.
fn try_all<'a, 'b>(jobs: &'a [Job<'b>]) -> Vec<(&'a Job<'b>, Verdict)> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = guarded(job);
                    done.lock()
                        .expect("a job does not panic")
                        .push((job, verdict));
                }
            });
        }
    });
    done.into_inner().expect("a job does not panic")
}

/// Tries a case on a thread that is left alone if it goes on for ever.
fn guarded(job: &Job<'_>) -> Verdict {
    let (tell, told) = mpsc::sync_channel(1);
    let (seed, declaring, case) = (job.seed, job.declaring, *job.case);
    std::thread::spawn(move || tell.send(try_case(seed, declaring, &case)));
    told.recv_timeout(STUCK)
        .unwrap_or_else(|_| Verdict::Inconclusive {
            hook: format!("an end: it goes round in circles for {STUCK:?}, or its thread panicked"),
        })
}

fn try_case(seed: Option<Seed>, declaring: Declaring, case: &Case) -> Verdict {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime needs nothing");
    tokio.block_on(async {
        let harness = match seed {
            Some(seed) => SeededHarness::new(seed),
            None => SeededHarness::honest(),
        };
        let mut harness = harness.expect("a temporary folder");
        if declaring == Declaring::Nothing {
            harness = harness.declaring_nothing();
        }
        case.check(Arc::new(harness)).await
    })
}

/// All that is wrong at once, a line each.
fn nothing(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n{}\n", wrong.join("\n"));
}

#[test]
fn without_a_fault_every_case_is_green() {
    let elsewhere: Ids = ELSEWHERE
        .iter()
        .flat_map(|(_, ids)| *ids)
        .copied()
        .collect();
    let mut wrong = Vec::new();
    for (id, (_, verdict)) in &Results::get().honest {
        match (verdict, elsewhere.contains(id)) {
            (Verdict::Passed, false) => {}
            (Verdict::Passed, true) => wrong.push(format!("{id} can be run here after all")),
            (Verdict::Skipped { .. } | Verdict::Inconclusive { .. }, true) => {}
            (verdict, _) => wrong.push(format!("{id}: {verdict:?}")),
        }
    }
    let known: Ids = Results::get().honest.keys().copied().collect();
    let gone = elsewhere.difference(&known);
    wrong.extend(gone.map(|id| format!("{id} is in ELSEWHERE, and no case")));
    nothing("on the runtime without a fault", &wrong);
}

#[test]
fn each_fault_turns_its_cases_red_and_no_others() {
    let results = Results::get();
    let mut wrong = Vec::new();
    for seed in Seed::all() {
        let wanted: Ids = seed.cases().into_iter().collect();
        let red = results.red(seed);
        for id in wanted.difference(&red) {
            let verdict = results.seeded[&seed].get(id);
            wrong.push(format!("{seed}: {id} should be red, and is {verdict:?}"));
        }
        for id in red.difference(&wanted) {
            let verdict = &results.seeded[&seed][id];
            wrong.push(format!("{seed}: {id} should be green, and is {verdict:?}"));
        }
    }
    nothing("on runtimes with a fault", &wrong);
}

#[test]
fn every_case_is_turned_red_by_a_fault() {
    let results = Results::get();
    let red: Ids = Seed::all()
        .into_iter()
        .flat_map(|seed| results.red(seed))
        .collect();
    let passed = results
        .honest
        .iter()
        .filter(|(_, (_, verdict))| *verdict == Verdict::Passed);
    let never: Vec<String> = passed
        .filter(|(id, _)| !red.contains(*id))
        .map(|(id, _)| format!("{id}: there is no fault that it finds"))
        .collect();
    nothing("cases that have not been seen to fail", &never);
}

#[test]
fn names_are_unique_and_understood() {
    let names: BTreeSet<String> = Seed::all().iter().map(Seed::to_string).collect();
    assert_eq!(names.len(), Seed::all().len());
    for seed in Seed::all() {
        assert_eq!(seed.to_string().parse(), Ok(seed));
        assert!(!seed.cases().is_empty(), "{seed} is found by no case");
    }
    assert!("no-such-fault".parse::<Seed>().is_err());
}
