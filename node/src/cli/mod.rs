//! The command line of `v6-node`.

pub mod check;
mod exit;
mod failure;
mod logging;
mod node_args;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Level;

pub use exit::Exit;
pub use failure::{Failure, render};
pub use logging::{LogFormat, init as start_log};
pub use node_args::{NodeArgs, announce};

use crate::config::Environment;

/// A vantage6 node that takes its container engine by name.
///
/// It joins a vantage6 5.x server (HQ), runs the algorithms that HQ sends it next to the
/// data of this organization, and sends their results back. Algorithms run in
/// containers without a network; what they may read and reach is in the configuration.
#[derive(Debug, Parser)]
#[command(name = "v6-node", version, after_help = Exit::table(), arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,

    #[command(subcommand)]
    command: Command,
}

/// How the log is written, for each command alike.
#[derive(Debug, clap::Args)]
struct LogArgs {
    /// How the log on standard error looks
    #[arg(long, value_enum, default_value = "human", global = true)]
    log_format: LogFormat,

    /// What the log shows, such as "debug" or "v6_node=debug,warn"; the finest levels of
    /// libraries may show secrets
    #[arg(
        long,
        value_name = "FILTER",
        env = "V6_NODE_LOG",
        hide_env_values = true,
        global = true
    )]
    log_filter: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Test each thing that the node needs and print one line each, with the remedy
    ///
    /// Nothing is changed, and no algorithm is run. A line begins with ok, warn or FAIL;
    /// without any FAIL the node can be started.
    Check(check::Args),
}

/// Runs the command line of this process; what `main` returns.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way as well, and are no mistake.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            return match error.print() {
                Ok(()) => exit.into(),
                Err(_) => Exit::Internal.into(),
            };
        }
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Internal, error))
        .and_then(|runtime| runtime.block_on(run(cli)));
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("error: {}", failure.render());
            failure.exit.into()
        }
    }
}

async fn run(cli: Cli) -> Result<Exit, Failure> {
    let environment = Environment::of_process();
    match &cli.command {
        Command::Check(args) => {
            start_log(
                cli.log.log_format,
                cli.log.log_filter.as_deref(),
                Level::WARN,
            )?;
            check::run(args, &environment, async |_| Vec::new()).await
        }
    }
}

#[cfg(test)]
mod tests;
