//! Measures what the project costs beside what it cannot do without, both in one process run and
//! in turns, so that a slow or busy machine slows both.
//!
//! ```text
//! cargo run --release -p v6-bench -- [--runtime docker|singularity|slurm|kubernetes] [--json] [--quick] [--only TEXT]
//! ```
//!
//! Docker is where `DOCKER_HOST` says; Apptainer, Slurm and Kubernetes are those of the environment
//! (`tests/services`). The runs need an image with `cp`, `sh`, `sleep`, `true`, `yes` and `head`. Everything
//! that is made is known by this process's number, and is removed at the end.

mod apptainer;
mod docker;
mod kubernetes;
mod ours;
mod report;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// What runs cost, as a table or as JSON.
#[derive(Debug, Parser)]
#[command(name = "v6-bench", version)]
struct Options {
    /// Which runtime is measured.
    #[arg(long, value_enum, default_value = "docker")]
    runtime: Kind,
    /// Print a list of {name, unit, ours, reference, ratio}.
    #[arg(long)]
    json: bool,
    /// A fifth of the repetitions: shows that everything works, and rough numbers.
    #[arg(long)]
    quick: bool,
    /// Only measures with this in their name.
    #[arg(long, default_value = "")]
    only: String,
    /// The image of the runs.
    #[arg(long, default_value = "localhost/v6-busybox:test")]
    image: String,
    #[command(flatten)]
    apptainer: Apptainer,
    #[command(flatten)]
    kubernetes: kubernetes::Options,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// The engine of `DOCKER_HOST`.
    Docker,
    /// Apptainer on this machine.
    Singularity,
    /// Apptainer in jobs of Slurm.
    Slurm,
    /// A namespace of a cluster.
    Kubernetes,
}

/// Where Apptainer and Slurm are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Apptainer {
    /// The command, by path [default: `V6_APPTAINER`, or the one in PATH].
    #[arg(long, value_name = "FILE", env = "V6_APPTAINER")]
    apptainer: Option<PathBuf>,
    /// Who calls it, if root starts this.
    #[arg(long, value_name = "USER", env = "V6_APPTAINER_USER")]
    user: Option<String>,
    /// The archive with the image (`tests/algorithms/build --to FOLDER busybox`).
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// Slurm's configuration.
    #[arg(long, value_name = "FILE", env = "V6_SLURM_CONF")]
    slurm_conf: Option<PathBuf>,
    /// The partition that jobs are submitted to.
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
}

/// What every measure needs.
pub(crate) struct Plan {
    pub(crate) image: String,
    only: String,
    quick: bool,
}

impl Plan {
    /// How often to repeat what a full measure repeats `full` times.
    pub(crate) fn times(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(5) } else { full }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }
}

/// Whatever went wrong, for people.
pub(crate) type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let options = Options::parse();
    let is_apptainer = matches!(options.runtime, Kind::Singularity | Kind::Slurm);
    match user::again_as(options.apptainer.user.as_deref().filter(|_| is_apptainer)) {
        Ok(None) => {}
        Ok(Some(code)) => return code,
        Err(error) => return complain(&error),
    }
    match measure(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&*error),
    }
}

fn complain(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    report::complain(error);
    ExitCode::FAILURE
}

#[tokio::main]
async fn measure(options: Options) -> Result<()> {
    let plan = Plan {
        image: options.image,
        only: options.only,
        quick: options.quick,
    };
    let apptainer = &options.apptainer;
    let (rows, engine) = match options.runtime {
        Kind::Docker => Box::pin(docker::measure(&plan)).await?,
        Kind::Singularity => Box::pin(apptainer::measure(&plan, apptainer)).await?,
        Kind::Slurm => Box::pin(apptainer::slurm::measure(&plan, apptainer)).await?,
        Kind::Kubernetes => Box::pin(kubernetes::measure(&plan, &options.kubernetes)).await?,
    };
    if options.json {
        report::json(&rows)
    } else {
        report::table(&rows, &engine)
    }
}
