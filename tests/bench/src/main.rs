//! Measures what the project costs beside what it cannot do without, both in one process run and
//! in turns, so that a slow or busy machine slows both.
//!
//! ```text
//! cargo run --release -p v6-bench -- [--json] [--quick] [--only TEXT] [--image IMAGE]
//! ```
//!
//! `DOCKER_HOST` says where the engine is. It needs an image with `cp`, `true`, `yes` and `head`.
//! Everything that is made there carries this process's label, and is removed at the end.

mod docker;
mod log;
mod raw;
mod report;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

/// What runs cost, as a table or as JSON.
#[derive(Debug, Parser)]
#[command(name = "v6-bench", version)]
struct Options {
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

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let plan = Plan {
        image: options.image,
        only: options.only,
        quick: options.quick,
    };
    let rows = match Box::pin(docker::measure(&plan)).await {
        Ok(rows) => rows,
        Err(error) => {
            report::complain(&*error);
            return ExitCode::FAILURE;
        }
    };
    let printed = if options.json {
        report::json(&rows)
    } else {
        report::table(&rows).await
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&*error);
            ExitCode::FAILURE
        }
    }
}
