//! `v6-node health`.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use super::{Exit, Failure};
use crate::health::{READY, ask};

/// Longer than any step of the node, and shorter than what a probe is given.
const WITHIN: Duration = Duration::from_secs(5);

/// What `health` takes on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The socket of the node's `start --health`
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Fail with 75, too, while the node does not take work: it waits for the engine, another node or HQ
    #[arg(long)]
    pub ready: bool,
}

/// Prints what the node says of itself.
///
/// # Errors
/// If it does not answer.
pub async fn run(args: &Args) -> Result<Exit, Failure> {
    let answer = ask(&args.socket, WITHIN).await.map_err(|error| {
        let at = args.socket.display();
        Failure::new(Exit::Failed, format!("the node at {at}: {error}"))
    })?;
    writeln!(io::stdout(), "{answer}").map_err(|error| Failure::new(Exit::Internal, error))?;
    match args.ready && answer != READY {
        true => Ok(Exit::TryAgain),
        false => Ok(Exit::Ok),
    }
}
