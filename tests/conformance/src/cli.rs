//! The command line of a program that runs the suite.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, ValueEnum};

use crate::case::Verdict;
use crate::child::act_as_child;
use crate::harness::Harness;
use crate::report::{CaseReport, Report};
use crate::suite::{self, Selection, cases};

/// A case failed, or a report claims too much.
const FAILED: u8 = 1;
/// No case was run: nothing is known.
const NOTHING_RUN: u8 = 3;
/// The engine cannot be reached, or a file not read or written.
const UNUSABLE: u8 = 4;

/// How the result is told on standard output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for each case as it ends, then the failures, as Rust's own tests do.
    #[default]
    #[value(alias = "pretty")]
    Terse,
    /// One JSON document at the end.
    Json,
    /// One JUnit document at the end.
    Junit,
}

/// What every program that runs the suite understands.
///
/// Exit codes: 0 all that ran passed, 1 a case failed, 2 bad usage, 3 no case was run, 4 the
/// engine or a file cannot be used.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// Run only cases whose name contains FILTER
    #[arg(value_name = "FILTER")]
    pub words: Vec<String>,
    /// The same as FILTER
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Leave out cases whose name contains WORD; the report is then a partial one
    #[arg(long, value_name = "WORD")]
    pub skip: Vec<String>,
    /// Names have to be equal, not to contain the words
    #[arg(long)]
    pub exact: bool,
    /// List the cases, with level and clauses, and run none
    #[arg(long)]
    pub list: bool,
    /// How to tell the result on standard output
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Also write the report to FILE, in the form that its name ends in: .yaml, .json or .xml
    /// (JUnit). May be given several times
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Fail if the earlier report FILE (YAML) says that a case passed which did not pass now
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// What is checked, in the report and before its cases [default: the runtime's kind]
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// How to get this report again, to be kept in it [default: the command line]
    #[arg(long, value_name = "TEXT")]
    pub command: Option<String>,
    /// Cases at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub test_threads: usize,
    // What cargo and nextest say to every test program.
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    no_capture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, short, hide = true)]
    quiet: bool,
}

impl Options {
    fn selection(&self) -> Selection {
        let mut selection = Selection {
            filters: [self.words.clone(), self.filter.clone()].concat(),
            skip: self.skip.clone(),
            exact: self.exact,
            threads: self.test_threads,
        };
        // No case is of the kind that only --ignored runs.
        if self.ignored {
            selection.skip = vec![String::new()];
        }
        selection
    }
}

/// Runs the suite with the command line of this process; for a test target with
/// `harness = false`. See [`Options`] for what it understands and its exit codes.
#[must_use]
pub fn main(harness: impl Harness) -> ExitCode {
    #[derive(Parser)]
    #[command(about = "Checks a container runtime against its contract", long_about = None)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }
    let harness: Arc<dyn Harness> = Arc::new(harness);
    // Before the command line: a child has the arguments of whoever started it.
    if act_as_child(harness.clone()) {
        return ExitCode::SUCCESS;
    }
    run(harness, &Arguments::parse().options)
}

/// Runs the suite as these options say, and tells the result; for a program with more options of
/// its own.
#[must_use]
pub fn run(harness: Arc<dyn Harness>, options: &Options) -> ExitCode {
    if act_as_child(harness.clone()) {
        return ExitCode::SUCCESS;
    }
    let told = if options.list {
        list(options).map(|()| ExitCode::SUCCESS)
    } else {
        check(&harness, options)
    };
    told.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(UNUSABLE)
    })
}

fn list(options: &Options) -> Result<(), String> {
    let selection = options.selection();
    let mut out = std::io::stdout().lock();
    for case in cases() {
        if !selection.includes(case.id) {
            continue;
        }
        let line = match options.format {
            Format::Terse => format!("{}: test", case.id),
            Format::Json | Format::Junit => serde_json::json!({
                "id": case.id, "level": case.level, "clauses": case.clauses, "claim": case.claim,
            })
            .to_string(),
        };
        writeln!(out, "{line}").map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn check(harness: &Arc<dyn Harness>, options: &Options) -> Result<ExitCode, String> {
    // Read first: what cannot be read should not be found out after minutes.
    let earlier = options.against.as_deref().map(read).transpose()?;
    let terse = options.format == Format::Terse;
    let mut out = std::io::stdout();
    if let (true, Some(name)) = (terse, &options.name) {
        // As cargo has it, for tools that read that.
        let _ = writeln!(out, "     Running {name}");
    }
    let selection = options.selection();
    let report = suite::run(harness, &selection, |case| {
        if terse {
            let _ = writeln!(out, "{}", line(case));
        }
    });
    let mut report = report.map_err(|error| format!("the engine cannot be used: {error}"))?;
    report.name = options.name.clone().unwrap_or(report.name);
    report.command = options.command.clone().unwrap_or_else(command_line);
    match options.format {
        Format::Terse => end(&mut out, &report),
        Format::Json => writeln!(out, "{}", report.to_json()),
        Format::Junit => writeln!(out, "{}", report.to_junit()),
    }
    .map_err(|error| format!("standard output: {error}"))?;
    for file in &options.report {
        write(file, &report)?;
    }
    if report.passed + report.failed == 0 {
        eprintln!("no case was run");
        return Ok(ExitCode::from(NOTHING_RUN));
    }
    let beyond = earlier.map_or_else(Vec::new, |earlier| earlier.claims_beyond(&report));
    for id in &beyond {
        eprintln!("the earlier report says that {id} passed; it did not now");
    }
    Ok(if report.is_success() && beyond.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

fn command_line() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    [name]
        .into_iter()
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

/// As Rust's own tests have it, for tools that read that.
fn line(case: &CaseReport) -> String {
    let ended = match &case.verdict {
        Verdict::Passed => "ok".to_owned(),
        Verdict::Failed { .. } => "FAILED".to_owned(),
        Verdict::Skipped { reason, .. } => format!("ignored, {reason}"),
        Verdict::Inconclusive { hook } => {
            format!("ignored, inconclusive: the harness has no {hook}")
        }
    };
    format!("test {} ... {ended}", case.id)
}

fn end(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    for case in &report.cases {
        if let Verdict::Failed { evidence } = &case.verdict {
            writeln!(
                out,
                "\n---- {} ----\nclause: {} ({:?}): {}\nevidence: {evidence}",
                case.id,
                case.clauses.join(", "),
                case.level,
                case.claim
            )?;
        }
    }
    writeln!(
        out,
        "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {} inconclusive; finished in {:.2}s",
        if report.is_success() { "ok" } else { "FAILED" },
        report.passed,
        report.failed,
        report.skipped + report.inconclusive,
        report.inconclusive,
        report.seconds
    )
}

fn read(file: &Path) -> Result<Report, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("the earlier report {}: {error}", file.display()))?;
    Report::from_yaml(&text).map_err(|error| format!("{} is not a report: {error}", file.display()))
}

fn write(file: &Path, report: &Report) -> Result<(), String> {
    let text = match file.extension().and_then(|ending| ending.to_str()) {
        Some("yaml" | "yml") => report.to_yaml(),
        Some("json") => report.to_json() + "\n",
        Some("xml") => report.to_junit(),
        _ => {
            return Err(format!(
                "{}: a report's name ends in .yaml, .json or .xml",
                file.display()
            ));
        }
    };
    std::fs::write(file, text)
        .map_err(|error| format!("the report {} cannot be written: {error}", file.display()))
}
