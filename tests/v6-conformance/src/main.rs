//! The conformance suite over the runtimes of this workspace.
//!
//! ```text
//! v6-conformance --runtime docker --report docker.yaml
//! v6-conformance --runtime memory --filter watch --format json
//! v6-conformance matrix docs/conformance
//! ```

mod apptainer;
mod cluster;
mod cluster_images;
mod cluster_objects;
mod engine;
mod images;
mod matrix;
mod planted;
#[cfg(feature = "faults")]
mod prove;
mod registries;
mod restart;
mod slurm;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

#[cfg(feature = "faults")]
use clap::Args;
use clap::{Parser, Subcommand, ValueEnum};
use v6_fault_proxy::Address;
use v6_runtime_conformance::{Harness, MemoryHarness, Options, suite_process};

use crate::apptainer::{ApptainerHarness, ApptainerOptions};
use crate::cluster::{ClusterHarness, ClusterOptions};
use crate::engine::{EngineHarness, EngineOptions};
use crate::slurm::SlurmArguments;

/// Checks a container runtime against its contract.
///
/// Exit codes: 0 all that ran passed, 1 a case failed, 2 bad usage, 3 no case was run, 4 the engine
/// or a file cannot be used.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The runtime to check
    #[arg(long, value_enum, required = true)]
    runtime: Option<Kind>,
    #[command(flatten)]
    engine: EngineOptions,
    #[command(flatten)]
    apptainer: ApptainerOptions,
    #[command(flatten)]
    slurm: SlurmArguments,
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    suite: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Write the page that shows the reports in FOLDER side by side: FOLDER/README.md
    Matrix {
        /// Where the reports are, NAME.yaml each
        folder: PathBuf,
    },
    /// Show that the suite can fail: make faults at a real engine, one after the other, and see
    /// which cases fail
    #[cfg(feature = "faults")]
    Prove(Prove),
}

#[cfg(feature = "faults")]
#[derive(Args)]
struct Prove {
    /// The runtime on whose engine the faults are made
    #[arg(long, value_enum)]
    runtime: Kind,
    #[command(flatten)]
    engine: EngineOptions,
    /// Which cases to try with each fault
    #[arg(long, value_enum, default_value = "touched")]
    cases: prove::Breadth,
    /// Only these faults
    #[arg(value_name = "FAULT")]
    faults: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The in-memory runtime
    Memory,
    /// The Docker engine at --host
    Docker,
    /// Podman's service at --host
    Podman,
    /// Apptainer on this machine, with the probe of --archive
    Singularity,
    /// Apptainer in jobs of Slurm, with the probe of --archive
    Slurm,
    /// The Kubernetes cluster at --api
    Kubernetes,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Singularity => "singularity",
            Self::Slurm => "slurm",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// Where the engine usually is: the variable that says it, and the place without one.
    fn engine(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Memory | Self::Singularity | Self::Slurm | Self::Kubernetes => None,
            Self::Docker => Some(("DOCKER_HOST", "unix:///var/run/docker.sock")),
            Self::Podman => Some(("CONTAINER_HOST", "unix:///run/podman/podman.sock")),
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    match as_owner(&arguments) {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(error) => {
            eprintln!("v6-conformance: as the owner of the engine's socket: {error}");
            return ExitCode::from(4);
        }
    }
    arguments.suite.report = user::reports(arguments.suite.report);
    let done = match (arguments.command.take(), arguments.runtime) {
        (Some(Command::Matrix { folder }), _) => matrix::write(&folder),
        #[cfg(feature = "faults")]
        (Some(Command::Prove(prove)), _) => prove::prove(
            || {
                let made = engine(prove.runtime, prove.engine.clone())?;
                let memory = "the in-memory runtime's faults are tried by its own tests: \
                              cargo test -p v6-runtime-conformance --features faults";
                made.ok_or_else(|| memory.to_owned())
            },
            &prove.faults,
            prove.cases,
        ),
        // What there is to list does not depend on an engine.
        (None, Some(chosen)) => {
            let kind = match arguments.suite.list {
                true => Kind::Memory,
                false => chosen,
            };
            let suite = arguments.suite.clone();
            harness(kind, arguments).map(|harness| v6_runtime_conformance::run(harness, &suite))
        }
        (None, None) => Err("name a runtime with --runtime, or see --help".to_owned()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("v6-conformance: {error}");
        ExitCode::from(4)
    })
}

/// Runs all of this as somebody else, where the engine is somebody else's.
fn as_owner(arguments: &Arguments) -> std::io::Result<Option<ExitCode>> {
    let (kind, options) = match (&arguments.command, arguments.runtime) {
        #[cfg(feature = "faults")]
        (Some(Command::Prove(prove)), _) => (prove.runtime, &prove.engine),
        (None, Some(kind)) => (kind, &arguments.engine),
        _ => return Ok(None),
    };
    if matches!(kind, Kind::Singularity | Kind::Slurm)
        && let Some(user) = arguments.apptainer.user()
    {
        let restart = options.restart.as_deref();
        return user::again_as(&user, restart, &arguments.suite.report);
    }
    let host = kind
        .engine()
        .map(|(variable, default)| options.host(variable, default));
    match host {
        Some(Ok(Address::Unix(socket))) => {
            let restart = options.restart.as_deref();
            user::again_as_owner_of(&socket, restart, &arguments.suite.report)
        }
        // What is no address is told where it is used.
        _ => Ok(None),
    }
}

fn harness(kind: Kind, arguments: Arguments) -> Result<Arc<dyn Harness>, String> {
    let options = arguments.engine;
    Ok(match kind {
        Kind::Singularity | Kind::Slurm => {
            let slurm = (kind == Kind::Slurm).then_some(arguments.slurm);
            Arc::new(ApptainerHarness::new(arguments.apptainer, slurm, options)?)
        }
        Kind::Kubernetes => Arc::new(ClusterHarness::new(arguments.cluster, options)?),
        _ => match engine(kind, options)? {
            Some(engine) => Arc::new(engine),
            None => Arc::new(MemoryHarness::new().map_err(|error| error.to_string())?),
        },
    })
}

/// The harness of a runtime that has an engine with an API outside of this process.
fn engine(kind: Kind, options: EngineOptions) -> Result<Option<EngineHarness>, String> {
    let Some((variable, default)) = kind.engine() else {
        return Ok(None);
    };
    let host = options.host(variable, default)?;
    let made = EngineHarness::new(options, host, kind.name())?;
    // A child of the suite is asked for an answer, and its parent has looked.
    if suite_process() == std::process::id() {
        tokio::runtime::Runtime::new()
            .map_err(|error| error.to_string())?
            .block_on(made.check())?;
    }
    Ok(Some(made))
}
