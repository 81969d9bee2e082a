//! The run of many cases, one Tokio runtime each, several at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use v6_runtime::Runtime;

use crate::bench::Bench;
use crate::case::{Case, SkippedBy, Verdict};
use crate::harness::Harness;
use crate::phases;
use crate::report::{CaseReport, Machine, Report};

/// Which cases are run, and how many at once.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Only those whose id contains one of these; none: all.
    pub filters: Vec<String>,
    /// Not those whose id contains one of these. They are reported as skipped by the operator.
    pub skip: Vec<String>,
    /// The ids have to be these, not contain them.
    pub exact: bool,
    /// Cases at once. They share an engine and this machine's processors.
    pub threads: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            skip: Vec::new(),
            exact: false,
            threads: 4,
        }
    }
}

impl Selection {
    fn matches(&self, id: &str, words: &[String]) -> bool {
        words.iter().any(|word| {
            if self.exact {
                id == word
            } else {
                id.contains(word.as_str())
            }
        })
    }

    /// Whether this case is to be run.
    #[must_use]
    pub fn includes(&self, id: &str) -> bool {
        (self.filters.is_empty() || self.matches(id, &self.filters))
            && !self.matches(id, &self.skip)
    }
}

/// Every case, in the order in which they are run: those that run beside others first.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = crate::cases::all();
    all.sort_by_key(|case| case.alone);
    all
}

/// Runs the selected cases, telling each result as it comes, and returns the report.
///
/// # Errors
/// If the runtime cannot be connected to, or its engine does not answer.
pub fn run(
    harness: &Arc<dyn Harness>,
    selection: &Selection,
    mut tell: impl FnMut(&CaseReport),
) -> v6_runtime::Result<Report> {
    let began = Instant::now();
    let (runtime, engine) = tokio_runtime().block_on(async {
        let runtime = harness.connect(&Bench::new_owner()).await?;
        let engine = runtime.ping().await?;
        Ok::<_, v6_runtime::Error>((runtime, engine))
    })?;
    let mut reports = Vec::new();
    let (chosen, left): (Vec<Case>, Vec<Case>) = cases()
        .into_iter()
        .partition(|case| selection.includes(case.id));
    for case in &left {
        reports.push(CaseReport::new(case, left_out(), 0.0));
    }
    let (alone, beside): (Vec<Case>, Vec<Case>) = chosen.into_iter().partition(|case| case.alone);
    for (cases, threads) in [(beside, selection.threads), (alone, 1)] {
        at_once(harness, cases, threads, |report| {
            tell(&report);
            reports.push(report);
        });
    }
    // After the cases, so that nothing runs beside.
    let measured = left
        .is_empty()
        .then(|| tokio_runtime().block_on(phases::measure(harness)));
    Ok(Report::new(
        runtime.kind(),
        &engine,
        Machine::here(),
        runtime.capabilities(),
        measured.unwrap_or_default(),
        began.elapsed(),
        reports,
    ))
}

fn left_out() -> Verdict {
    Verdict::Skipped {
        by: SkippedBy::Operator,
        reason: "it was left out on the command line".to_owned(),
    }
}

fn at_once(
    harness: &Arc<dyn Harness>,
    cases: Vec<Case>,
    threads: usize,
    mut tell: impl FnMut(CaseReport),
) {
    let queue = Mutex::new(VecDeque::from(cases));
    let (send, receive) = mpsc::sync_channel(threads.max(1));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (send, queue) = (send.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(case) = next else { break };
                    let _ = send.send(one(harness.clone(), &case));
                }
            });
        }
        drop(send);
        receive.into_iter().for_each(&mut tell);
    });
}

fn one(harness: Arc<dyn Harness>, case: &Case) -> CaseReport {
    let began = Instant::now();
    let verdict = tokio_runtime().block_on(case.check(harness));
    CaseReport::new(case, verdict, began.elapsed().as_secs_f64())
}

/// One for each case: what the case leaves at work in it ends with it, as with a process.
fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime needs threads and nothing else")
}
