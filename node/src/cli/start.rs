//! `v6-node start`.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::node_args::{NodeArgs, announce};
use super::{Exit, Failure, LogFormat};
use crate::config::Config;
use crate::service;

/// What `start` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration and engine.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Runs the node until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the node from working.
pub async fn run(config: Config, format: LogFormat) -> Result<Exit, Failure> {
    announce(&config, format);
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).map_err(|e| Failure::new(Exit::Internal, e))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| Failure::new(Exit::Internal, e))?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM"),
            _ = int.recv() => tracing::info!("SIGINT"),
        }
        stopping.cancel();
    });
    service::start(config, stop).await?;
    Ok(Exit::Ok)
}
