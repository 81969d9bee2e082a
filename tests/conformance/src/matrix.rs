//! Several reports side by side, as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::case::{SkippedBy, Verdict};
use crate::report::{CaseReport, Report};

/// Reports by the name under which they are kept.
type Named<'a> = [(String, &'a Report)];

/// A page with the reports in columns.
#[must_use]
pub fn matrix(reports: &[(String, Report)]) -> String {
    let reports: Vec<(String, &Report)> = reports
        .iter()
        .map(|(name, report)| (name.clone(), report))
        .collect();
    let mut page = String::from(
        "# Conformance\n\n\
         Written by `v6-conformance matrix`, from the reports beside it, which the suite wrote on the machines\n\
         that they name. `tests/run` runs the suite again and fails if a report here claims a case that did not pass.\n",
    );
    summary(&mut page, &reports);
    steps(&mut page, &reports);
    capabilities(&mut page, &reports);
    cases(&mut page, &reports);
    reasons(&mut page, &reports);
    page
}

fn row(page: &mut String, first: &str, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells.into_iter().collect();
    let _ = writeln!(page, "| {first} | {} |", cells.join(" | "));
}

fn head(page: &mut String, title: &str, first: &str, reports: &Named<'_>) {
    let _ = write!(page, "\n## {title}\n\n");
    row(page, first, reports.iter().map(|(name, _)| name.clone()));
    row(page, "---", reports.iter().map(|_| "---".to_owned()));
}

fn summary(page: &mut String, reports: &Named<'_>) {
    head(page, "Reports", "", reports);
    type Cell = fn(&Report) -> String;
    let rows: [(&str, Cell); 11] = [
        ("passed", |r| r.passed.to_string()),
        ("failed", |r| r.failed.to_string()),
        ("skipped", |r| r.skipped.to_string()),
        ("inconclusive", |r| r.inconclusive.to_string()),
        ("partial", |r| {
            if r.partial { "yes" } else { "no" }.to_owned()
        }),
        ("engine", |r| {
            format!("{} {}", r.engine.name, r.engine.version)
        }),
        ("kernel", |r| {
            format!("{} {}", r.machine.kernel, r.machine.architecture)
        }),
        ("cgroups", |r| r.machine.cgroups.clone()),
        ("processors", |r| r.machine.processors.to_string()),
        ("whole suite, seconds", |r| format!("{:.0}", r.seconds)),
        ("to get it again", |r| format!("`{}`", r.command)),
    ];
    for (name, cell) in rows {
        row(page, name, reports.iter().map(|(_, report)| cell(report)));
    }
}

fn steps(page: &mut String, reports: &Named<'_>) {
    head(page, "Time of each step, median, ms", "step", reports);
    for step in [
        "accepted",
        "running",
        "ended",
        "collected",
        "cleaned up",
        "whole",
    ] {
        let cells = reports.iter().map(|(_, report)| {
            let took = report.milliseconds.get(step);
            took.map_or("–".to_owned(), |ms| format!("{ms:.1}"))
        });
        row(page, step, cells);
    }
}

fn capabilities(page: &mut String, reports: &Named<'_>) {
    head(page, "Declared", "capability", reports);
    let names: BTreeSet<&String> = reports
        .iter()
        .flat_map(|(_, report)| report.capabilities.keys())
        .collect();
    for name in names {
        let cells = reports.iter().map(|(_, report)| {
            let declared = report.capabilities.get(name) == Some(&true);
            if declared { "yes" } else { "–" }.to_owned()
        });
        row(page, &format!("`{name}`"), cells);
    }
}

fn find<'a>(report: &'a Report, id: &str) -> Option<&'a CaseReport> {
    report.cases.iter().find(|case| case.id == id)
}

fn cases(page: &mut String, reports: &Named<'_>) {
    head(page, "Cases", "case (clauses)", reports);
    let mut seen = BTreeSet::new();
    for (_, report) in reports {
        for case in &report.cases {
            if !seen.insert(&case.id) {
                continue;
            }
            let name = format!("`{}` ({})", case.id, case.clauses.join(", "));
            let cells = reports.iter().map(|(_, report)| {
                match find(report, &case.id).map(|case| &case.verdict) {
                    Some(Verdict::Passed) => "passed",
                    Some(Verdict::Failed { .. }) => "**failed**",
                    Some(Verdict::Skipped {
                        by: SkippedBy::Undeclared,
                        ..
                    }) => "n/a",
                    Some(Verdict::Skipped { .. }) => "skipped",
                    Some(Verdict::Inconclusive { .. }) => "inconclusive",
                    None => "",
                }
                .to_owned()
            });
            row(page, &name, cells);
        }
    }
}

fn reasons(page: &mut String, reports: &Named<'_>) {
    let _ = write!(page, "\n## What was not tried, and why\n");
    for (name, report) in reports {
        let _ = write!(page, "\n{name}:\n\n");
        for case in &report.cases {
            let why = match &case.verdict {
                Verdict::Passed => continue,
                Verdict::Failed { evidence } => format!("failed: {evidence}"),
                Verdict::Skipped { reason, .. } => reason.clone(),
                Verdict::Inconclusive { hook } => format!("the harness has no `{hook}`"),
            };
            let why = why.replace('\n', " ");
            let _ = writeln!(page, "- `{}`: {why}", case.id);
        }
    }
}
