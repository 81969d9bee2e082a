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
        let (ours, reference) = (median(ours), median(reference));
        let rounded = |number: f64| (number * 1000.0).round() / 1000.0;
        Self {
            name,
            unit: "ms",
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
pub(crate) async fn table(rows: &[Row]) -> Result<()> {
    let mut text = String::new();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    writeln!(
        text,
        "cargo run --release -p v6-bench -- {}\n",
        arguments.join(" ")
    )?;
    writeln!(text, "{}\n", machine().await?)?;
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

async fn machine() -> Result<String> {
    let docker = bollard::Docker::connect_with_defaults()?
        .negotiate_version()
        .await?;
    let version = docker.version().await?;
    let cores = std::thread::available_parallelism()?;
    let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    Ok(format!(
        "{cores} cores, Linux {}, Docker {}, API {}",
        known(version.kernel_version),
        known(version.version),
        docker.client_version(),
    ))
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
