//! `v6-node check`: one line for each thing that the node needs.
//!
//! A thing to check is a [`Probe`]. Those in [`local`] need this machine alone; others
//! are given to [`run`] by whoever knows the engine or HQ.

pub mod engine;
pub mod hq;
pub mod local;
mod probe;
mod report;

use std::io::{self, IsTerminal as _, Write};

pub use probe::{DEFAULT_TIMEOUT, Finding, Line, Probe, Settled, Verdict};

use super::exit::Exit;
use super::failure::Failure;
use super::node_args::NodeArgs;
use crate::config::{Config, Environment, Origin, Problems, Weight};

/// What `check` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration and engine.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Checks everything and prints the report on standard output, lines as they come.
/// `more` adds the probes that need a runtime or HQ.
///
/// # Errors
///
/// Only when the report can't be written; what was found is the exit code.
pub async fn run(
    args: &Args,
    environment: &Environment,
    more: impl AsyncFnOnce(&Config) -> Vec<Box<dyn Probe>>,
) -> Result<Exit, Failure> {
    let stdout = io::stdout();
    let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut lines = Vec::new();
    let mut add = |line: Line| -> io::Result<()> {
        if !args.json {
            report::write_line(&mut stdout.lock(), &line, colour)?;
        }
        lines.push(line);
        Ok(())
    };
    let told = |error: io::Error| Failure::new(Exit::Internal, error);
    match args.node.load(environment) {
        Err(problems) => of_problems(&problems)
            .into_iter()
            .try_for_each(&mut add)
            .map_err(told)?,
        Ok(config) => {
            of_config(&config)
                .into_iter()
                .try_for_each(&mut add)
                .map_err(told)?;
            let mut probes = local::probes(&config);
            probes.extend(more(&config).await);
            for probe in &probes {
                add(probe::run(probe.as_ref()).await).map_err(told)?;
            }
        }
    }
    if args.json {
        report::write_json(&mut stdout.lock(), &lines).map_err(told)?;
    }
    stdout.lock().flush().map_err(told)?;
    Ok(report::exit(&lines))
}

/// A line for each mistake in the configuration.
pub fn of_problems(Problems(problems): &Problems) -> Vec<Line> {
    let lines = problems.iter().map(|problem| {
        let place = match &problem.origin {
            origin @ Origin::File { .. } => format!("{origin}: "),
            Origin::Environment => "environment: ".to_owned(),
        };
        let key = if problem.key.is_empty() {
            String::new()
        } else {
            format!("{}: ", problem.key)
        };
        let message = format!("{place}{key}{}", problem.what);
        Line::new(
            "configuration",
            Finding::fail(message, problem.remedy.clone()).with_exit(Exit::Usage),
        )
    });
    lines.collect()
}

/// What a configuration without mistakes still has to say.
pub fn of_config(config: &Config) -> Vec<Line> {
    let message = format!(
        "node {}, HQ {}, {}, owner {}",
        config.name,
        config.hq.api(),
        config.runtime.kind.name(),
        config.runtime.owner,
    );
    let mut lines = vec![Line::new("configuration", Finding::ok(message))];
    let unused: Vec<&str> = config
        .notices
        .iter()
        .filter(|notice| notice.weight == Weight::Info)
        .map(|notice| notice.key.as_str())
        .collect();
    if !unused.is_empty() {
        let message = format!("without effect on this node: {}", unused.join(", "));
        lines.push(Line::new("configuration", Finding::ok(message)));
    }
    for notice in config
        .notices
        .iter()
        .filter(|notice| notice.weight == Weight::Warning)
    {
        let remedy = "docs/configuration.md says what this key does";
        lines.push(Line::new(
            "configuration",
            Finding::warn(notice.to_string(), remedy),
        ));
    }
    for image in &config.runtime.images {
        let message = format!(
            "images like {} get more than the floor; accepted: {}",
            image.pattern.as_str(),
            image.risk_accepted
        );
        let remedy = "remove it from runtime.images when it is no longer needed";
        lines.push(Line::new("configuration", Finding::warn(message, remedy)));
    }
    lines
}

#[cfg(test)]
mod tests;
