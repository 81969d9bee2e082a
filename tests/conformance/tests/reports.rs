//! What a run of the suite leaves for people and programs to read.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use v6_runtime_conformance::matrix::matrix;
use v6_runtime_conformance::suite::{Selection, run};
use v6_runtime_conformance::{Harness, MemoryHarness, Report, SkippedBy, Verdict, cases};

fn report(filters: &[&str], skip: &[&str]) -> Report {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let harness: Arc<dyn Harness> = Arc::new(MemoryHarness::new().unwrap());
    let selection = Selection {
        filters: words(filters),
        skip: words(skip),
        exact: true,
        threads: 2,
    };
    run(&harness, &selection, |_| {}).unwrap()
}

fn verdict<'a>(report: &'a Report, id: &str) -> &'a Verdict {
    let mut cases = report.cases.iter();
    &cases.find(|case| case.id == id).unwrap().verdict
}

#[test]
fn every_case_is_accounted_for() {
    let report = report(&["exit_codes_are_exact", "usage_is_told"], &[]);
    let counted = report.passed + report.failed + report.skipped + report.inconclusive;
    assert_eq!(
        (counted, report.cases.len()),
        (cases().len(), cases().len())
    );
    assert_eq!((report.passed, report.failed), (1, 0));
    assert!(report.partial, "cases were left out");
    let by_whom = |id| match verdict(&report, id) {
        Verdict::Skipped { by, .. } => *by,
        other => panic!("{id}: {other:?}"),
    };
    assert_eq!(by_whom("usage_is_told"), SkippedBy::Undeclared);
    assert_eq!(by_whom("arguments_are_literal"), SkippedBy::Operator);
}

#[test]
fn a_report_survives_its_file() {
    let mut written = report(&["exit_codes_are_exact"], &[]);
    written.command = "a: \"b\" # 'c'\n- d".to_owned();
    written.cases[0].verdict = Verdict::Failed {
        evidence: "wanted \u{1b}[31m{x: 1}, got\n  é <&> ]]>".to_owned(),
    };
    let read = Report::from_yaml(&written.to_yaml()).unwrap();
    assert_eq!(read.to_json(), written.to_json());
    let numbers = format!("passed: {}\nfailed: 0\n", written.passed);
    assert!(written.to_yaml().starts_with(&numbers));
    assert!(Report::from_yaml("passed: 1").is_err());
}

#[test]
fn claims_are_held_against_a_run() {
    let run = report(&["exit_codes_are_exact"], &[]);
    let mut earlier = report(&["exit_codes_are_exact", "logs_are_byte_exact"], &[]);
    assert_eq!(earlier.claims_beyond(&run), ["logs_are_byte_exact"]);
    // A case that is not there any more is not shown either.
    earlier
        .cases
        .retain(|case| case.id == "logs_are_byte_exact");
    earlier.cases[0].id = "gone".to_owned();
    assert_eq!(earlier.claims_beyond(&run), ["gone"]);
    assert!(run.claims_beyond(&run).is_empty());
    assert!(!report(&["no_such_case"], &[]).is_success(), "nothing ran");
}

#[test]
fn junit_and_the_matrix_show_all() {
    let mut report = report(&["exit_codes_are_exact"], &[]);
    report.cases[0].verdict = Verdict::Failed {
        evidence: "1 < 2 & \"3\"".to_owned(),
    };
    let junit = report.to_junit();
    assert!(junit.contains("1 &lt; 2 &amp; "), "{junit}");
    assert_eq!(junit.matches("<testcase").count(), cases().len());
    let page = matrix(&[
        ("one".to_owned(), report.clone()),
        ("two".to_owned(), report),
    ]);
    for case in cases() {
        assert!(page.contains(&format!("| `{}` (", case.id)), "{}", case.id);
    }
    assert!(page.contains("| **failed** | **failed** |"));
}
