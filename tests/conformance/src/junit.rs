//! JUnit's XML.

use std::time::Duration;

use quick_junit::{NonSuccessKind, NonSuccessReruns, TestCase, TestCaseStatus, TestSuite};

use crate::case::Verdict;
use crate::report::Report;

pub(crate) fn junit(report: &Report) -> String {
    let mut suite = TestSuite::new(format!("v6-conformance.{}", report.name));
    for case in &report.cases {
        let status = match &case.verdict {
            Verdict::Passed => TestCaseStatus::success(),
            Verdict::Failed { evidence } => {
                let mut status = TestCaseStatus::NonSuccess {
                    kind: NonSuccessKind::Failure,
                    message: None,
                    ty: None,
                    description: None,
                    reruns: NonSuccessReruns::default(),
                };
                status
                    .set_message(format!("{}: {}", case.clauses.join(", "), case.claim))
                    .set_description(evidence.as_str());
                status
            }
            Verdict::Skipped { by, reason } => skipped(&format!("{by:?}: {reason}")),
            Verdict::Inconclusive { hook } => {
                skipped(&format!("inconclusive: the harness has no {hook}"))
            }
        };
        let mut test = TestCase::new(case.id.as_str(), status);
        test.set_classname(report.name.as_str());
        test.set_time(Duration::from_secs_f64(case.seconds.max(0.0)));
        suite.add_test_case(test);
    }
    let mut junit = quick_junit::Report::new("v6-conformance");
    junit.set_time(Duration::from_secs_f64(report.seconds.max(0.0)));
    junit.add_test_suite(suite);
    junit.to_string().expect("texts are escaped")
}

fn skipped(why: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(why);
    status
}
