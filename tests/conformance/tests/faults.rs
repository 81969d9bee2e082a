//! The suite can fail: every fault turns exactly its cases red, and every case is turned red.
//!
//! Each case runs on a Tokio runtime of its own whose clock is paused: it leaps whenever all wait,
//! so that a case that waits in vain costs nothing, and what happens does so in the same order
//! every time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use v6_runtime_conformance::faults::{Seed, SeededHarness, table};
use v6_runtime_conformance::{Case, Harness, SkippedBy, Verdict, cases};

fn try_case(case: &Case, seed: Option<Seed>) -> Verdict {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    tokio.block_on(async {
        let harness: Arc<dyn Harness> = Arc::new(match seed {
            Some(seed) => SeededHarness::new(seed),
            None => SeededHarness::honest(),
        });
        case.check(harness).await
    })
}

/// Every case on every one of these, by index of the seed.
fn try_all(seeds: &[Option<Seed>], cases: &[Case]) -> Vec<BTreeMap<&'static str, Verdict>> {
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![BTreeMap::new(); seeds.len()]);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    let (seed, case) = (job / cases.len(), job % cases.len());
                    let Some(&which) = seeds.get(seed) else { break };
                    let verdict = try_case(&cases[case], which);
                    verdicts.lock().expect("no panics")[seed].insert(cases[case].id, verdict);
                }
            });
        }
    });
    verdicts.into_inner().expect("no panics")
}

fn main() {
    let began = Instant::now();
    let cases = cases();
    let seeds: Vec<Option<Seed>> = std::iter::once(None)
        .chain(Seed::all().into_iter().map(Some))
        .collect();
    let verdicts = try_all(&seeds, &cases);
    println!("took {:?}", began.elapsed());
    for (id, verdict) in &verdicts[0] {
        if !matches!(verdict, Verdict::Passed) {
            println!("BASE {id}: {verdict:?}");
        }
    }
    let base: BTreeSet<&str> = verdicts[0]
        .iter()
        .filter(|(_, v)| matches!(v, Verdict::Passed))
        .map(|(id, _)| *id)
        .collect();
    let mut never = base.clone();
    for (seed, verdicts) in seeds.iter().zip(&verdicts).skip(1) {
        let seed = seed.expect("one");
        let red: BTreeSet<&str> = verdicts
            .iter()
            .filter(|(id, v)| base.contains(*id) && !matches!(v, Verdict::Passed))
            .map(|(id, _)| *id)
            .collect();
        never.retain(|id| !red.contains(id));
        let wanted: BTreeSet<&str> = seed.cases().iter().copied().collect();
        for id in wanted.difference(&red) {
            println!("{seed}: green: {id}");
        }
        for id in red.difference(&wanted) {
            println!("{seed}: red: {id}: {:?}", verdicts[id]);
        }
    }
    println!("never red: {never:?}");
}
