//! The node's own log, on standard error.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::EnvFilter;

use super::exit::Exit;
use super::failure::Failure;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts the log. `filter` is an expression of `tracing_subscriber` such as
/// `debug` or `v6_node=debug,hyper=info`; without one, this project's crates speak at
/// `level` and all others only of warnings: their finer messages may show what they send.
///
/// # Errors
///
/// When `filter` can't be read.
pub fn init(format: LogFormat, filter: Option<&str>, level: Level) -> Result<(), Failure> {
    let filter = match filter {
        Some(text) => EnvFilter::try_new(text).map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("--log-filter {text:?} can't be read: {error}"),
            )
        })?,
        None => {
            let level = level.as_str().to_ascii_lowercase();
            EnvFilter::new(format!(
                "warn,v6_node={level},v6_runtime={level},v6_runtime_docker={level}"
            ))
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let started = match format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(Exit::Internal, error))
}
