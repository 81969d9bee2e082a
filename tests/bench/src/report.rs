//! Numbers, and how they are printed.
#![expect(clippy::print_stdout, reason = "the result of this program")]

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::Result;

/// One measure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    /// What it is compared with.
    pub(crate) reference: f64,
    pub(crate) ratio: f64,
}

impl Row {
    /// The medians of times in milliseconds.
    pub(crate) fn of_times(name: &'static str, ours: &[Duration], reference: &[Duration]) -> Self {
        Self::of(name, "ms", median(ours), median(reference))
    }

    /// The median of times beside what is aimed at.
    pub(crate) fn against(name: &'static str, ours: &[Duration], aim: Duration) -> Self {
        Self::of(name, "ms", median(ours), median(&[aim]))
    }

    pub(crate) fn of(name: &'static str, unit: &'static str, ours: f64, reference: f64) -> Self {
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        Self {
            name,
            unit,
            ours: rounded(ours),
            reference: rounded(reference),
            ratio: rounded(ours / reference),
        }
    }
}

fn median(times: &[Duration]) -> f64 {
    let mut times: Vec<f64> = times
        .iter()
        .map(|time| time.as_secs_f64() * 1000.0)
        .collect();
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => times[middle],
        _ => f64::midpoint(times[middle - 1], times[middle]),
    }
}

pub(crate) fn json(rows: &[Row]) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(rows)?);
    Ok(())
}

/// A table for docs/measurements.md, with the command and the machine that made it.
pub(crate) fn table(rows: &[Row], engine: &str) -> Result<()> {
    let mut text = String::new();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    writeln!(
        text,
        "cargo run --release -p v6-bench -- {}\n",
        arguments.join(" ")
    )?;
    writeln!(text, "{}\n", machine(engine)?)?;
    writeln!(text, "| measure | unit | ours | reference | ratio |")?;
    writeln!(text, "| --- | --- | --: | --: | --: |")?;
    for row in rows {
        let Row {
            name,
            unit,
            ours,
            reference,
            ratio,
        } = row;
        writeln!(
            text,
            "| {name} | {unit} | {ours:.1} | {reference:.1} | {ratio:.3} |"
        )?;
    }
    print!("{text}");
    Ok(())
}

fn machine(engine: &str) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{cores} cores, Linux {}, {engine}", kernel.trim()))
}

pub(crate) fn complain(error: &(dyn std::error::Error + 'static)) {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    eprintln!("v6-bench: {text}");
}
