//! `v6-node runs`, `logs` and `kill`: what this node holds, read from the engine.

use std::io::{self, Write};
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;
use v6_runtime::{
    CancelOptions, Cancelled, ErrorKind, LogOptions, LogStream, Outcome, Pending, RunId, RunPhase,
    RunStatus,
};

use super::node_args::NodeArgs;
use super::{Exit, Failure};
use crate::backends;
use crate::config::Environment;
use crate::hq::iso_utc;
use crate::runs::{RunContext, run_id};

/// What `runs` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Configuration and engine.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Print one JSON array instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What `logs` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Configuration and engine.
    #[command(flatten)]
    pub node: NodeArgs,

    /// HQ's number of the run
    #[arg(value_name = "RUN")]
    pub run: i64,

    /// Go on until the run ends
    #[arg(long, short)]
    pub follow: bool,
}

/// What `kill` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// Configuration and engine.
    #[command(flatten)]
    pub node: NodeArgs,

    /// HQ's number of the run
    #[arg(value_name = "RUN")]
    pub run: i64,

    /// Do not give the algorithm time to end by itself
    #[arg(long)]
    pub now: bool,
}

/// One run, for people and programs.
#[derive(Debug, Serialize)]
struct Row {
    run: Option<i64>,
    task: Option<i64>,
    action: Option<String>,
    method: Option<String>,
    id: String,
    state: String,
    image: String,
    digest: String,
    started_at: Option<String>,
    finished_at: Option<String>,
}

impl Row {
    fn of(status: &RunStatus) -> Self {
        let context = RunContext::from_annotations(&status.annotations).ok();
        let context = context.as_ref();
        Self {
            run: context.map(|c| c.run),
            task: context.map(|c| c.task),
            action: context.map(|c| c.action.clone()),
            method: context.map(|c| c.method.clone()),
            id: status.id.to_string(),
            state: state(&status.phase),
            image: status.image.reference.to_string(),
            digest: status.image.identity.digest().to_string(),
            started_at: status.started.map(iso_utc),
            finished_at: status.finished.map(iso_utc),
        }
    }
}

fn state(phase: &RunPhase) -> String {
    match phase {
        RunPhase::Pending(Pending::Abandoned) => "start was cut off".into(),
        RunPhase::Pending(Pending::PullingImage) => "pulling the image".into(),
        RunPhase::Pending(_) => "starting".into(),
        RunPhase::Running => "running".into(),
        RunPhase::Stopping(_) => "stopping".into(),
        RunPhase::Finished(outcome) => match outcome {
            Outcome::Exited(code) => format!("exited {code}"),
            Outcome::Signaled(signal) => format!("ended by signal {signal}"),
            Outcome::OutOfMemory => "out of memory".into(),
            Outcome::DeadlineExceeded => "deadline exceeded".into(),
            Outcome::Cancelled => "killed".into(),
            Outcome::FailedToStart(failure) => format!("not started: {}", failure.cause.as_str()),
            Outcome::Evicted(_) => "ended by the engine".into(),
            Outcome::NodeLost(_) => "machine lost".into(),
            _ => "lost".into(),
        },
        _ => "unknown".into(),
    }
}

/// Lists what this node has at the engine.
///
/// # Errors
/// If the configuration or the engine cannot be used.
pub async fn list(args: &ListArgs, environment: &Environment) -> Result<Exit, Failure> {
    let config = args.node.load(environment)?;
    let runtime = backends::connect(&config).await?;
    let runs: Vec<RunStatus> = runtime.list().try_collect().await?;
    let mut rows: Vec<Row> = runs.iter().map(Row::of).collect();
    rows.sort_by_key(|row| row.run);
    let mut out = io::stdout().lock();
    let told = |error: io::Error| Failure::new(Exit::Internal, error);
    if args.json {
        serde_json::to_writer(&mut out, &rows).map_err(|e| told(e.into()))?;
        writeln!(out).map_err(told)?;
    } else if rows.is_empty() {
        writeln!(out, "this node has no run at the engine").map_err(told)?;
    } else {
        write_table(&mut out, &rows).map_err(told)?;
    }
    Ok(Exit::Ok)
}

fn write_table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let text = |t: &Option<String>| t.clone().unwrap_or_else(|| "-".to_owned());
    let heads = [
        "RUN", "TASK", "ACTION", "METHOD", "STATE", "STARTED", "IMAGE",
    ]
    .map(str::to_owned);
    let lines = rows.iter().map(|row| {
        [
            number(row.run),
            number(row.task),
            text(&row.action),
            text(&row.method),
            row.state.clone(),
            text(&row.started_at),
            row.image.clone(),
        ]
    });
    let lines: Vec<[String; 7]> = std::iter::once(heads).chain(lines).collect();
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Prints what a run has printed, each stream to its own.
///
/// # Errors
/// If there is no such run, or the engine cannot be used.
pub async fn logs(args: &LogsArgs, environment: &Environment) -> Result<Exit, Failure> {
    let config = args.node.load(environment)?;
    let runtime = backends::connect(&config).await?;
    let id = run_id(args.run);
    let mut chunks = runtime.logs(&id, LogOptions::default().with_follow(args.follow));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| named(args.run, error))?;
        let written = match chunk.stream {
            LogStream::Stderr => io::stderr().write_all(&chunk.bytes),
            LogStream::Stdout | LogStream::Merged => io::stdout().write_all(&chunk.bytes),
        };
        match written {
            Ok(()) => {}
            // As `head` does when it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(Failure::new(Exit::Internal, error)),
        }
    }
    Ok(Exit::Ok)
}

/// Ends a run. The node, if it runs, reports it to HQ; else it does so at its next start.
///
/// # Errors
/// If there is no such run, or the engine cannot be used.
pub async fn kill(args: &KillArgs, environment: &Environment) -> Result<Exit, Failure> {
    let config = args.node.load(environment)?;
    let runtime = backends::connect(&config).await?;
    let id: RunId = run_id(args.run);
    let mut options = CancelOptions::default();
    if args.now {
        options = options.with_grace(std::time::Duration::ZERO);
    }
    let begun = SystemTime::now();
    let cancelled = runtime
        .cancel(&id, options)
        .await
        .map_err(|error| named(args.run, error))?;
    let line = match cancelled {
        Cancelled::Requested => {
            // Staying until the end keeps the promise of the grace also while no node runs.
            let ended = v6_runtime::RuntimeExt::wait(&*runtime, &id).await;
            let took = begun.elapsed().unwrap_or_default();
            match ended {
                Ok(status) => format!(
                    "run {} is over after {:.1} s: {}",
                    args.run,
                    took.as_secs_f32(),
                    state(&status.phase)
                ),
                // The node has reported and removed it already.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    format!("run {} is over and gone", args.run)
                }
                Err(error) => return Err(error.into()),
            }
        }
        Cancelled::AlreadyFinished => format!("run {} had ended already", args.run),
    };
    writeln!(io::stdout(), "{line}").map_err(|error| Failure::new(Exit::Internal, error))?;
    Ok(Exit::Ok)
}

fn named(run: i64, error: v6_runtime::Error) -> Failure {
    if error.kind() == ErrorKind::NotFound {
        let message =
            format!("this node has no run {run} at the engine; `v6-node runs` lists what it has");
        return Failure::new(Exit::Failed, message);
    }
    error.into()
}
