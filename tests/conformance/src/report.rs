//! What a run of the suite showed, as data.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use v6_runtime::{Capabilities, EngineInfo};

use crate::case::{Case, Level, SkippedBy, Verdict};

/// A whole report. Its text forms: [`to_yaml`](Self::to_yaml), [`to_json`](Self::to_json),
/// [`to_junit`](Self::to_junit) and [`matrix`](crate::matrix::matrix).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Cases that held.
    pub passed: usize,
    /// Cases that did not.
    pub failed: usize,
    /// Cases that were not tried, with the reason of each below.
    pub skipped: usize,
    /// Cases that could not be tried for want of a hook of the harness.
    pub inconclusive: usize,
    /// Somebody left cases out: the numbers do not speak for the runtime.
    pub partial: bool,
    /// What was checked.
    pub name: String,
    /// [`Runtime::kind`](v6_runtime::Runtime::kind).
    pub runtime: String,
    /// What the engine says of itself.
    pub engine: Engine,
    /// Where the suite ran.
    pub machine: Machine,
    /// The version of the suite.
    pub suite: String,
    /// How to get this report again; told by whoever started the suite.
    pub command: String,
    /// Wall time of all cases, in seconds.
    pub seconds: f64,
    /// Median time of each step of a run's life, one at a time, in milliseconds.
    pub milliseconds: BTreeMap<String, f64>,
    /// What the runtime declares, by name.
    pub capabilities: BTreeMap<String, bool>,
    /// Each case, by id.
    pub cases: Vec<CaseReport>,
}

/// The engine, in its own words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Engine {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whatever else it says of itself.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

/// The machine on which the suite ran; with a remote engine, not the engine's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Its operating system's kernel.
    pub kernel: String,
    /// Its processors' kind.
    pub architecture: String,
    /// Its processors' number.
    pub processors: usize,
    /// How control groups are mounted: `v1`, `v2`, `hybrid` or `none`.
    pub cgroups: String,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mounts = read("/proc/self/mounts");
        let has = |kind: &str| {
            mounts
                .lines()
                .any(|line| line.split(' ').nth(2) == Some(kind))
        };
        let cgroups = match (has("cgroup"), has("cgroup2")) {
            (true, true) => "hybrid",
            (true, false) => "v1",
            (false, true) => "v2",
            (false, false) => "none",
        };
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            cgroups: cgroups.to_owned(),
        }
    }
}

/// One case in a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseReport {
    /// Its name.
    pub id: String,
    /// How binding it is.
    pub level: Level,
    /// The clauses of the contract that it tries.
    pub clauses: Vec<String>,
    /// What must hold.
    pub claim: String,
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long it took.
    pub seconds: f64,
}

impl CaseReport {
    /// The report of a case.
    #[must_use]
    pub fn new(case: &Case, verdict: Verdict, seconds: f64) -> Self {
        Self {
            id: case.id.to_owned(),
            level: case.level,
            clauses: case
                .clauses
                .iter()
                .map(|&clause| clause.to_owned())
                .collect(),
            claim: case.claim.to_owned(),
            verdict,
            seconds: rounded(seconds),
        }
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

impl Report {
    pub(crate) fn new(
        runtime: &str,
        engine: &EngineInfo,
        machine: Machine,
        capabilities: &Capabilities,
        milliseconds: BTreeMap<String, f64>,
        took: Duration,
        mut cases: Vec<CaseReport>,
    ) -> Self {
        cases.sort_by(|a, b| a.id.cmp(&b.id));
        let count = |of: fn(&Verdict) -> bool| cases.iter().filter(|c| of(&c.verdict)).count();
        Self {
            passed: count(|verdict| *verdict == Verdict::Passed),
            failed: count(|verdict| matches!(verdict, Verdict::Failed { .. })),
            skipped: count(|verdict| matches!(verdict, Verdict::Skipped { .. })),
            inconclusive: count(|verdict| matches!(verdict, Verdict::Inconclusive { .. })),
            partial: count(
                |verdict| matches!(verdict, Verdict::Skipped { by, .. } if *by == SkippedBy::Operator),
            ) > 0,
            name: runtime.to_owned(),
            runtime: runtime.to_owned(),
            engine: Engine {
                name: engine.name.clone(),
                version: engine.version.clone(),
                facts: engine.facts.clone(),
            },
            machine,
            suite: env!("CARGO_PKG_VERSION").to_owned(),
            command: String::new(),
            seconds: rounded(took.as_secs_f64()),
            milliseconds,
            capabilities: by_name(capabilities),
            cases,
        }
    }

    /// Whether it speaks for the runtime: something was tried, and nothing failed.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Cases that this report says passed, and a later run did not show: what it claims too much.
    #[must_use]
    pub fn claims_beyond(&self, run: &Report) -> Vec<String> {
        let passed = |report: &Report| -> Vec<String> {
            let cases = report.cases.iter();
            cases
                .filter(|case| case.verdict == Verdict::Passed)
                .map(|case| case.id.clone())
                .collect()
        };
        let shown = passed(run);
        passed(self)
            .into_iter()
            .filter(|id| !shown.contains(id))
            .collect()
    }

    /// As one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report has only names, numbers and texts")
    }

    /// As YAML, to be kept in a repository.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a report has only names, numbers and texts")
    }

    /// From YAML.
    ///
    /// # Errors
    /// What is not a report.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// As JUnit's XML, for build servers.
    #[must_use]
    pub fn to_junit(&self) -> String {
        crate::junit::junit(self)
    }
}

/// `mounts.stream: true` and so on.
pub(crate) fn by_name(capabilities: &Capabilities) -> BTreeMap<String, bool> {
    let mut names = BTreeMap::new();
    let value = serde_json::to_value(capabilities).unwrap_or_default();
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            serde_json::Value::Bool(declared) => {
                names.insert(name.clone(), *declared);
            }
            serde_json::Value::Object(group) => {
                for (part, declared) in group {
                    names.insert(format!("{name}.{part}"), *declared == true);
                }
            }
            _ => {}
        }
    }
    names
}
