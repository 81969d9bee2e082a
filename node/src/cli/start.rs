//! `v6-node start`.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::node_args::{NodeArgs, announce};
use super::{Exit, Failure, LogFormat};
use crate::config::Config;
use crate::health::{Health, Listener};
use crate::service;

/// What `start` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration and engine.
    #[command(flatten)]
    pub node: NodeArgs,

    /// Where to answer `v6-node health`: a socket that is made at this path
    #[arg(long, value_name = "SOCKET")]
    pub health: Option<PathBuf>,
}

/// Runs the node until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the node from working.
pub async fn run(args: &Args, config: Config, format: LogFormat) -> Result<Exit, Failure> {
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
    let health = Health::default();
    let serving = service::start(config, &health, stop);
    match &args.health {
        None => serving.await?,
        Some(path) => {
            let listener = Listener::bind(path).map_err(|error| {
                let at = path.display();
                Failure::new(Exit::Usage, format!("--health {at}: {error}"))
            })?;
            tokio::select! {
                ended = serving => ended?,
                never = listener.answer(&health) => match never {},
            }
        }
    }
    Ok(Exit::Ok)
}
