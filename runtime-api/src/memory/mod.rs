//! A complete runtime in memory, for tests and trials.
//!
//! [`MemoryRuntime`] keeps the whole contract, and the conformance suite runs on it. Images hold
//! programs that are async closures, so a test says in a few lines what an algorithm does: exit
//! with a code, write an output, print, connect, ignore the request to end, take too much memory.
//!
//! ```
//! use v6_runtime::memory::{ExitStatus, MemoryEngine, ProgramContext};
//! use v6_runtime::{Outcome, Owner, RunId, RunSpec, Runtime, RuntimeExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> v6_runtime::Result<()> {
//! let engine = MemoryEngine::new();
//! let image = engine.add_image("example.org/greet:1", |ctx: ProgramContext| async move {
//!     ctx.print(format!("hello, {}\n", ctx.args().join(" ")));
//!     ExitStatus::Code(3)
//! })?;
//! let runtime = engine.runtime(Owner::new("me")?);
//! let id = RunId::new("greeting")?;
//! runtime.run(&id, &RunSpec::new(image).with_args(["world"])).await?;
//! assert_eq!(runtime.wait(&id).await?.outcome(), Some(&Outcome::Exited(3)));
//! assert_eq!(runtime.logs_bytes(&id, 1000).await?, "hello, world\n");
//! # Ok(())
//! # }
//! ```
//!
//! # What stands for what
//!
//! | elsewhere | here |
//! | --- | --- |
//! | the engine | [`MemoryEngine`]: records, images, and programs that run |
//! | a process of the caller | a [`MemoryRuntime`], from [`MemoryEngine::runtime`] |
//! | a restart of the caller | dropping it, and asking the engine for another |
//! | the engine cannot be reached | [`go_away`](MemoryEngine::go_away) and [`come_back`](MemoryEngine::come_back) |
//! | a broken event stream | [`cut_watches`](MemoryEngine::cut_watches) |
//! | anything else on one owner's way to the engine | [`disturb`](MemoryEngine::disturb) |
//! | a restart of the engine | [`restart`](MemoryEngine::restart) |
//! | a stranger's object | [`plant`](MemoryEngine::plant) |
//! | a slow, denied or missing image | [`hold_pulls`](MemoryEngine::hold_pulls), [`set_registry_fault`](MemoryEngine::set_registry_fault) |
//! | a machine that dies, an eviction | [`end_run`](MemoryEngine::end_run) |
//! | a lease that is lost | [`break_lease`](MemoryEngine::break_lease) |
//!
//! # Time
//!
//! All waiting is by Tokio's clock, nothing runs on a thread of its own, and
//! [`MemoryEngine::now`] follows: under `tokio::time::pause` deadlines and graces pass at once
//! and in the right order. A program that blocks its thread cannot be ended.
//!
//! # Limits
//!
//! Everything is in memory, large inputs and outputs included. There is no isolation from a
//! program that means harm: it is a closure of this process. What the contract says about files,
//! connections and limits holds for what a program does through its [`ProgramContext`].
//! [`HostPath`](crate::MountSource::HostPath) leads to this machine's files, read and written
//! in place. [`Trust::image_user`](crate::Trust::image_user) and supplementary groups are
//! accepted, and mean nothing without users.

mod engine;
mod files;
mod images;
mod log;
mod program;
mod reading;
mod record;
mod runtime;
mod way;

pub use engine::{MemoryEngine, PullHold};
pub use files::FileKind;
pub use images::{MemoryImage, RegistryFault};
pub use program::{Allocation, ExitStatus, LogWriter, Process, ProgramContext};
pub use runtime::MemoryRuntime;
pub use way::{Disturbance, Disturbed};

/// Where a program may write: `HOME` and `TMPDIR` are this.
const TMPDIR: &str = "/tmp";
