//! The command line of `v6-node`.

pub mod check;
mod cluster;
mod exit;
mod failure;
mod health;
mod image;
mod logging;
mod node_args;
mod runs;
mod start;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tracing::Level;

pub use exit::Exit;
pub use failure::{Failure, render};
pub use logging::{LogFormat, init as start_log};
pub use node_args::{NodeArgs, announce};

use crate::backends;
use crate::config::{Config, Environment};

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
    /// Join HQ and carry out its runs until SIGTERM or SIGINT
    ///
    /// Stopping the node does not stop runs: they go on at the container engine, and the
    /// next start takes them up and delivers their results. It waits for an engine or a
    /// server that is not there yet.
    Start(start::Args),

    /// Test each thing that the node needs and print one line each, with the remedy
    ///
    /// Nothing is changed, and no algorithm is run. A line begins with ok, warn or FAIL;
    /// without any FAIL the node can be started.
    Check(check::Args),

    /// Ask a running node how it is, for a probe: print its answer, and fail if there is none
    ///
    /// It answers as long as it works, whoever else is away.
    Health(health::Args),

    /// List the runs that this node has at the container engine
    Runs(runs::ListArgs),

    /// Print what a run has printed
    Logs(runs::LogsArgs),

    /// End a run; the node reports it as killed
    Kill(runs::KillArgs),

    /// Print what the administrator of a Kubernetes cluster applies for a node, as YAML
    ///
    /// An account in one namespace with the rights that the node needs and no other, and the
    /// network policy that denies its runs everything.
    Rbac(cluster::RbacArgs),

    /// Write the image that a Kubernetes cluster needs beside each run, as an OCI archive
    ///
    /// It holds v6-helper alone. Put it into a registry from which the cluster fetches, and
    /// name it there in runtime.kubernetes.helper_image.
    HelperImage(cluster::ImageArgs),

    /// Write an image of this program, as an OCI archive
    ///
    /// It holds v6-node, v6-helper, this machine's C library and its certificates of authorities, and
    /// nothing else. Put it into a registry from which the cluster fetches: the chart takes it as
    /// the image of the node and of the helper.
    Image(image::Args),
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
    let log = &cli.log;
    let start_log = |level| start_log(log.log_format, log.log_filter.as_deref(), level);
    match &cli.command {
        Command::Start(args) => {
            let config = match args.node.load(&environment) {
                Ok(config) => config,
                Err(problems) => return Err(problems.into()),
            };
            start_log(config.log_level.unwrap_or(Level::INFO))?;
            start::run(args, config, log.log_format).await
        }
        Command::Check(args) => {
            start_log(Level::WARN)?;
            check::run(args, &environment, async |config| {
                remote_probes(config).await
            })
            .await
        }
        Command::Health(args) => health::run(args).await,
        Command::Runs(args) => {
            start_log(Level::WARN)?;
            runs::list(args, &environment).await
        }
        Command::Logs(args) => {
            start_log(Level::WARN)?;
            runs::logs(args, &environment).await
        }
        Command::Kill(args) => {
            start_log(Level::WARN)?;
            runs::kill(args, &environment).await
        }
        Command::Rbac(args) => cluster::rbac(args),
        Command::HelperImage(args) => cluster::helper_image(args),
        Command::Image(args) => image::write(args),
    }
}

/// What `check` asks of HQ and the engine.
async fn remote_probes(config: &Config) -> Vec<Box<dyn check::Probe>> {
    let config = Arc::new(config.clone());
    let mut probes: Vec<Box<dyn check::Probe>> = vec![Box::new(check::hq::Hq(config.clone()))];
    match backends::connect(&config).await {
        Ok(runtime) => probes.extend(check::engine::probes(&config, &runtime)),
        Err(error) => probes.push(Box::new(check::Settled {
            name: "engine",
            finding: check::engine::unusable(&config, &error),
        })),
    }
    probes
}

#[cfg(test)]
mod tests;
