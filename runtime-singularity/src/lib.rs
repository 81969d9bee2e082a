//! The v6-runtime contract on Apptainer: containers of an ordinary user, without any daemon, on this
//! machine or as jobs of Slurm.
//!
//! Checked with Apptainer 1.4, SingularityCE 4.3 and Slurm 22.05.
//!
//! ```no_run
//! use v6_runtime::{ImageRef, Owner, PullPolicy, RunId, RunSpec, Runtime, RuntimeExt};
//! use v6_runtime_singularity::{SingularityConfig, SingularityRuntime};
//!
//! # async fn example() -> v6_runtime::Result<()> {
//! let config = SingularityConfig::new(Owner::new("hospital-a")?, "/var/lib/v6/runs");
//! let apptainer = SingularityRuntime::connect(config).await?;
//! let image = ImageRef::parse("docker.io/library/busybox")?;
//! let image = apptainer.resolve(&image, PullPolicy::IfNotPresent).await?;
//! let id = RunId::new("run-1")?;
//! apptainer.run(&id, &RunSpec::new(image).with_command(["true"])).await?;
//! assert!(apptainer.wait(&id).await?.phase.is_finished());
//! apptainer.cleanup(&id, Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a run is on this machine
//!
//! A folder below `owners/OWNER/runs`, and while it runs a process of `v6-helper monitor`, which has
//! that folder's lock:
//!
//! | in the folder | what | from, to |
//! |---|---|---|
//! | `record.json` | the record | first, last |
//! | `lock` | held by whoever works on the run: the starter, then the monitor | the record's making, the end |
//! | `state`, `log`, `engine.log`, `bell` | the monitor's | the start, the cleanup |
//! | `stop` | why the run ends: made once, by whoever decides it | until the cleanup |
//! | `failed.json` | why it could not be started | until the cleanup |
//! | `in/`, `out/`, `scratch/`, `hosts`, `claim` | what is mounted into the container | until the cleanup |
//! | `box/` | what the container has at `/.v6`, read-only | until the cleanup |
//!
//! As a job of Slurm ([`SlurmConfig`]) the monitor is what the job executes, and the lock is free once
//! it is submitted. Besides there are:
//!
//! | in the folder | what | from, to |
//! |---|---|---|
//! | `attempt`, `job.sh`, `job.command`, `job.environment` | what the job executes | before it is submitted, the cleanup |
//! | `key` | by which the job proves that a connection is this run's | before it is submitted, the cleanup |
//! | `job`, `job.log` | its number; what Slurm says of it | until the cleanup |
//! | `begun` | made once, by the job that has begun the run, or by whoever has ended it before | until the cleanup |
//! | `concluded.json` | how it ended, if Slurm had to be asked for that | until the cleanup |
//!
//! The names are not an interface.

mod cgroup;
mod cleanup;
mod collect;
mod command;
mod config;
mod connect;
mod driver;
mod egress;
mod engine;
mod error;
mod examine;
mod files;
mod gpu;
mod image;
mod job;
mod job_end;
mod lease;
mod logs;
mod look;
mod plan;
mod record;
mod remove;
mod run;
mod runtime;
mod slurm;
mod state;
mod stop;
mod translate;
mod tunnel;
mod watch;

pub use cgroup::ControlGroup;
pub use config::{ImageFormat, SingularityConfig};
pub use gpu::GpuKind;
pub use runtime::SingularityRuntime;
pub use slurm::{SlurmConfig, SlurmListen, SlurmOptions};
