//! The v6-runtime contract on Docker and Podman, by root or an ordinary user, through the Docker
//! API of the engine.
//!
//! ```no_run
//! use v6_runtime::{ImageRef, Owner, PullPolicy, RunId, RunSpec, Runtime, RuntimeExt};
//! use v6_runtime_docker::{DockerConfig, DockerRuntime};
//!
//! # async fn example() -> v6_runtime::Result<()> {
//! let config = DockerConfig::new(Owner::new("hospital-a")?);
//! let docker = DockerRuntime::connect(config).await?;
//! let image = ImageRef::parse("docker.io/library/busybox")?;
//! let image = docker.resolve(&image, PullPolicy::IfNotPresent).await?;
//! let id = RunId::new("run-1")?;
//! docker.run(&id, &RunSpec::new(image).with_command(["true"])).await?;
//! assert!(docker.wait(&id).await?.phase.is_finished());
//! docker.cleanup(&id, Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a run is in the engine
//!
//! | object | name | from, to |
//! |---|---|---|
//! | volume with the record as labels, and the files | `v6-OWNER.RUN` | first, last |
//! | container that is never started, through which files are put | `v6-OWNER.RUN.files` | until the start |
//! | container with the program | `v6-OWNER.RUN` | until the cleanup |
//! | empty volumes that note something for good | `v6-OWNER.RUN.cancelled`, `.deadline`, `.failed`; on Podman `.stored` | until the cleanup |
//!
//! All carry labels `v6-runtime.*`; what lacks them is not touched. The names of volumes and of
//! labels are not an interface.

mod about;
mod archive;
mod ask;
mod cleanup;
mod config;
mod connect;
mod container;
mod disk;
mod driver;
mod egress;
mod engine;
#[cfg(test)]
mod engine_tests;
mod error;
mod examine;
mod files_image;
mod host;
mod image;
mod lease;
mod logs;
mod look;
mod quirks;
#[cfg(test)]
mod quirks_tests;
mod record;
#[cfg(test)]
mod recorded;
mod registry_words;
mod run;
mod runtime;
mod state;
mod stop;
mod time;
mod translate;
#[cfg(test)]
mod translate_tests;
mod watch;

pub use config::DockerConfig;
pub use runtime::DockerRuntime;
