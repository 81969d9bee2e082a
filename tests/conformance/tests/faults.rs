//! The suite can fail: each fault turns exactly its cases red, and every case is turned red.
//!
//! Each case runs on a Tokio runtime of its own whose clock is paused: it leaps whenever all wait,
//! so that a case that waits in vain costs nothing, and what happens does so in the same order
//! every time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use v6_runtime_conformance::faults::{ELSEWHERE, Seed, SeededHarness, table};
use v6_runtime_conformance::{Case, Verdict, cases};

/// A case that goes round in circles keeps the paused clock from leaping: real time has to end it.
const STUCK: Duration = Duration::from_secs(120);

type Ids = BTreeSet<&'static str>;

/// What came of every case on every seed, and on the runtime without one.
struct Results {
    honest: BTreeMap<&'static str, Verdict>,
    seeded: BTreeMap<Seed, BTreeMap<&'static str, Verdict>>,
}

impl Results {
    /// Made once, for all tests.
    fn get() -> &'static Self {
        static RESULTS: OnceLock<Results> = OnceLock::new();
        RESULTS.get_or_init(|| {
            let seeds: Vec<Option<Seed>> = [None]
                .into_iter()
                .chain(Seed::all().into_iter().map(Some))
                .collect();
            let mut all = try_all(&seeds);
            Self {
                honest: all.remove(&None).unwrap_or_default(),
                seeded: all
                    .into_iter()
                    .filter_map(|(seed, verdicts)| Some((seed?, verdicts)))
                    .collect(),
            }
        })
    }

    /// What can be red at all.
    fn green(&self) -> Ids {
        let green = |verdict: &Verdict| *verdict == Verdict::Passed;
        let all = self.honest.iter();
        all.filter(|(_, verdict)| green(verdict))
            .map(|(id, _)| *id)
            .collect()
    }

    fn red(&self, seed: Seed) -> Ids {
        let green = self.green();
        let all = self.seeded[&seed].iter();
        all.filter(|(id, verdict)| green.contains(*id) && **verdict != Verdict::Passed)
            .map(|(id, _)| *id)
            .collect()
    }
}

fn try_all(seeds: &[Option<Seed>]) -> BTreeMap<Option<Seed>, BTreeMap<&'static str, Verdict>> {
    let cases = cases();
    let jobs: Vec<(Option<Seed>, &Case)> = seeds
        .iter()
        .flat_map(|seed| cases.iter().map(|case| (*seed, case)))
        .collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((seed, case)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = guarded(*seed, case);
                    let mut results = results.lock().expect("a job does not panic");
                    let of_seed: &mut BTreeMap<_, _> = results.entry(*seed).or_default();
                    of_seed.insert(case.id, verdict);
                }
            });
        }
    });
    results.into_inner().expect("a job does not panic")
}

/// Tries a case on a thread that is left alone if it goes on for ever.
fn guarded(seed: Option<Seed>, case: &Case) -> Verdict {
    let (tell, told) = mpsc::channel();
    let case = *case;
    std::thread::spawn(move || tell.send(try_case(seed, &case)));
    told.recv_timeout(STUCK)
        .unwrap_or_else(|_| Verdict::Inconclusive {
            hook: format!("an end: it goes round in circles, or panicked, for {STUCK:?}"),
        })
}

fn try_case(seed: Option<Seed>, case: &Case) -> Verdict {
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
        case.check(Arc::new(harness.expect("a temporary folder")))
            .await
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
    for (id, verdict) in &Results::get().honest {
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
        let wanted: Ids = seed.cases().iter().copied().collect();
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
    let never: Vec<String> = results
        .green()
        .difference(&red)
        .map(|id| format!("{id}: there is no fault that it finds"))
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

#[test]
fn the_page_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance/faults.md");
    if std::env::var_os("V6_UPDATE").is_some() {
        std::fs::write(&page, table()).expect("the page can be written");
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        written == table(),
        "{} is out of date: run this test with V6_UPDATE=1",
        page.display()
    );
}
