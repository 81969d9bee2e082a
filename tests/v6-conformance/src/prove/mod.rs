//! The suite can fail also where the in-memory runtime cannot show it: faults at a real engine,
//! each of which must turn the cases red that are about it, and no others.
//!
//! Two kinds. Those of isolation are made on the way to the engine: the request that makes a
//! container is changed. Those of a caller's process are made in the runtime that the suite gets:
//! it forgets, keeps or gathers what it must not.

mod callers;
mod containers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::Value;
use v6_runtime_conformance::suite::{Selection, cases, run};
use v6_runtime_conformance::{Case, Harness, Report, Verdict, act_as_child, suite_process};

pub(crate) use self::callers::Caller;
use crate::engine::{EngineHarness, fault_of_the_parent};

/// A fault.
pub(crate) struct Seed {
    pub(crate) name: &'static str,
    /// In a sentence.
    wrong: &'static str,
    pub(crate) how: How,
    /// The cases that it must turn red.
    red: &'static [&'static str],
    /// Runs disturb each other with it, so there is one at a time.
    alone: bool,
}

/// Where a fault is made.
#[derive(Clone, Copy)]
pub(crate) enum How {
    /// In the body of the request that makes a container.
    Container(fn(&mut Value)),
    /// In the runtime.
    Caller(Caller),
}

const fn container(
    name: &'static str,
    wrong: &'static str,
    rewrite: fn(&mut Value),
    red: &'static [&'static str],
) -> Seed {
    Seed {
        name,
        wrong,
        how: How::Container(rewrite),
        red,
        alone: false,
    }
}

/// Clauses about what surrounds a program and what it may do.
const SURROUNDINGS: &[&str] = &["FLOOR-", "NET-1", "NET-2", "OUT-2", "RUN-6"];
/// Clauses about what outlives a process, and what it takes of memory.
const PROCESSES: &[&str] = &[
    "REC-2", "RUN-2", "RUN-4", "CLEAN-3", "CAN-", "DEAD-", "LEASE-", "ANY-2", "OUT-1", "LOG-",
];

impl Seed {
    /// The clauses whose cases it can touch. Of the others no case is tried, unless all are.
    fn touches(&self) -> &'static [&'static str] {
        match self.how {
            How::Container(_) => SURROUNDINGS,
            How::Caller(_) => PROCESSES,
        }
    }

    fn tries(&self, case: &Case, whole: bool) -> bool {
        let about = |clause: &&str| {
            self.touches()
                .iter()
                .any(|prefix| clause.starts_with(prefix))
        };
        whole || (!case.alone && case.clauses.iter().any(about))
    }
}

fn all() -> impl Iterator<Item = &'static Seed> {
    containers::ALL.iter().chain(callers::ALL)
}

/// Runs the suite with each fault and says whether it turned red what it must, and only that.
/// Without `whole`, of clauses that a fault cannot touch no case is tried.
///
/// # Errors
/// An engine that cannot be used; a name that no fault has.
pub(crate) fn prove(
    engine: impl Fn() -> Result<EngineHarness, String>,
    only: &[String],
    whole: bool,
) -> Result<ExitCode, String> {
    if suite_process() != std::process::id() {
        return Ok(child(engine()?));
    }
    let known: Vec<&str> = all().map(|seed| seed.name).collect();
    if let Some(name) = only.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        return Err(format!("there is no fault {name:?}; there are {known}"));
    }
    println("     Running faults");
    let mut failures = Vec::new();
    let mut proved = 0;
    for seed in all().filter(|seed| only.is_empty() || only.iter().any(|name| name == seed.name)) {
        let harness: Arc<dyn Harness> = Arc::new(engine()?.with_fault(seed)?);
        let report = run(&harness, &selection(seed, whole), |_| {});
        let report = report.map_err(|error| format!("the engine cannot be used: {error}"))?;
        match judge(seed, &report) {
            Ok(()) => {
                proved += 1;
                println(&format!("test {} ... ok", seed.name));
            }
            Err(what) => {
                println(&format!("test {} ... FAILED", seed.name));
                failures.push((seed, what));
            }
        }
    }
    for (seed, what) in &failures {
        let (name, wrong) = (seed.name, seed.wrong);
        println(&format!("\n---- {name} ----\nfault: {wrong}\n{what}"));
    }
    println(&format!(
        "\ntest result: {}. {proved} passed; {} failed; 0 ignored; 0 measured",
        if failures.is_empty() { "ok" } else { "FAILED" },
        failures.len()
    ));
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The suite's program once more, started by a case: with the fault that its parent is at.
fn child(harness: EngineHarness) -> ExitCode {
    let name = fault_of_the_parent();
    let seed = all().find(|seed| Some(seed.name) == name.as_deref());
    let Some(seed) = seed else {
        return ExitCode::FAILURE;
    };
    let made = harness.again_with(seed);
    if act_as_child(Arc::new(made)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn selection(seed: &Seed, whole: bool) -> Selection {
    let tried = cases().into_iter().filter(|case| seed.tries(case, whole));
    let mut selection = Selection {
        filters: tried.map(|case| case.id.to_owned()).collect(),
        exact: true,
        ..Selection::default()
    };
    if seed.alone {
        selection.threads = 1;
    }
    selection
}

fn judge(seed: &Seed, report: &Report) -> Result<(), String> {
    let failed = report.cases.iter().filter_map(|case| match &case.verdict {
        Verdict::Failed { evidence } => Some((case.id.as_str(), evidence)),
        _ => None,
    });
    let failed: BTreeMap<&str, &String> = failed.collect();
    let wanted: BTreeSet<&str> = seed.red.iter().copied().collect();
    let mut wrong = Vec::new();
    for id in wanted.iter().filter(|id| !failed.contains_key(**id)) {
        wrong.push(format!("{id} did not fail"));
    }
    for (id, evidence) in failed.iter().filter(|(id, _)| !wanted.contains(**id)) {
        wrong.push(format!("{id} failed: {evidence}"));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

fn println(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use v6_runtime_conformance::faults::{ELSEWHERE, Rows, table};

    use super::*;

    #[test]
    fn what_memory_cannot_show_is_shown_here() {
        let shown: BTreeSet<&str> = all().flat_map(|seed| seed.red).copied().collect();
        let elsewhere = ELSEWHERE.iter().flat_map(|(_, ids)| *ids);
        let missing: Vec<&&str> = elsewhere.filter(|id| !shown.contains(**id)).collect();
        assert!(missing.is_empty(), "no fault is found by {missing:?}");
    }

    #[test]
    fn a_fault_names_cases_that_are_tried() {
        let cases = cases();
        for seed in all() {
            assert!(!seed.red.is_empty(), "{} is found by no case", seed.name);
            for id in seed.red {
                let case = cases.iter().find(|case| case.id == *id);
                let tried = case.is_some_and(|case| seed.tries(case, false));
                assert!(tried, "{}: {id} is not tried", seed.name);
            }
        }
        let names: BTreeSet<&str> = all().map(|seed| seed.name).collect();
        assert_eq!(names.len(), all().count(), "a name is there twice");
    }

    #[test]
    fn the_page_is_current() {
        let rows = |title, seeds: &'static [Seed]| -> Rows {
            let row = |seed: &Seed| (seed.name.to_owned(), seed.wrong, seed.red.to_vec());
            (title, seeds.iter().map(row).collect())
        };
        let written = table(vec![
            rows("Isolation, at a real engine", containers::ALL),
            rows("Processes, at a real engine", callers::ALL),
        ]);
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance/faults.md");
        if std::env::var_os("V6_UPDATE").is_some() {
            std::fs::write(&page, &written).expect("the page can be written");
        }
        assert!(
            std::fs::read_to_string(&page).unwrap_or_default() == written,
            "{} is out of date: run this test with V6_UPDATE=1",
            page.display()
        );
    }
}
