//! The v6-runtime contract on Apptainer and SingularityCE: containers of an ordinary user, without
//! any daemon.
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
//! The names are not an interface.

mod cleanup;
mod collect;
mod config;
mod connect;
mod driver;
mod egress;
mod engine;
mod error;
mod examine;
mod files;
mod image;
mod lease;
mod logs;
mod look;
mod plan;
mod record;
mod remove;
mod run;
mod runtime;
mod state;
mod stop;
mod translate;
mod watch;

pub use config::{ImageFormat, SingularityConfig};
pub use runtime::SingularityRuntime;
