//! One contract for running containers to their end: run, watch, collect, cleanup.
//!
//! A program starts containers through the trait [`Runtime`], and does not know which engine
//! carries them out. A backend implements the trait for one engine, and does not know what the
//! containers are for. [`memory`] is a complete backend without any engine, for tests.
//!
//! # The whole way of one run
//!
//! ```
//! use std::num::NonZeroU64;
//! use std::sync::Arc;
//!
//! use bytes::Bytes;
//! use v6_runtime::memory::{ExitStatus, MemoryEngine, ProgramContext};
//! use v6_runtime::{
//!     Accepted, CleanedUp, CleanupOptions, ContainerPath, ErrorKind, ImageRef, Mount, MountSource,
//!     Outcome, Output, OutputName, Owner, PullPolicy, RunId, RunSpec, Runtime, RuntimeExt, Tracker,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // An engine with one image. Any other backend goes here as well.
//! let engine = MemoryEngine::new();
//! engine.add_image("example.org/average:1", |ctx: ProgramContext| async move {
//!     let Ok(table) = ctx.read("/input/table.csv") else {
//!         ctx.eprint("there is no table\n");
//!         return ExitStatus::FAILURE;
//!     };
//!     let text = String::from_utf8_lossy(&table);
//!     let numbers: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
//!     ctx.print(format!("{} rows\n", numbers.len()));
//!     let average = numbers.iter().sum::<f64>() / numbers.len() as f64;
//!     match ctx.write("/output/result", average.to_string()) {
//!         Ok(()) => ExitStatus::SUCCESS,
//!         Err(_) => ExitStatus::FAILURE,
//!     }
//! })?;
//! let runtime: Arc<dyn Runtime> = Arc::new(engine.runtime(Owner::new("clinic-1")?));
//!
//! // One process per owner.
//! let _lease = runtime.acquire().await?;
//!
//! // Settle what the name stands for. Exactly this content will run.
//! let image = ImageRef::parse("example.org/average:1")?;
//! let image = runtime.resolve(&image, PullPolicy::Always).await?;
//!
//! // Say what to run: files in, files out, limits. What is not asked for is not there.
//! let result = OutputName::new("result")?;
//! let limit = NonZeroU64::new(1 << 20).ok_or("not zero")?;
//! let table = MountSource::Inline(Bytes::from_static(b"1\n2\n6\n"));
//! let spec = RunSpec::new(image)
//!     .with_mount(Mount::new(table, ContainerPath::new("/input/table.csv")?))
//!     .with_output(result.clone(), Output::file(ContainerPath::new("/output/result")?, limit));
//!
//! // Start it. The caller chooses the id, and may repeat the call: it runs once.
//! let id = RunId::new("average-7")?;
//! assert_eq!(runtime.run(&id, &spec).await?, Accepted::Created);
//! assert_eq!(runtime.run(&id, &spec).await?, Accepted::Adopted);
//!
//! // Wait for its end. One watch serves any number of waiters.
//! let tracker = Tracker::new(runtime.clone());
//! let status = tracker.wait(&id).await?;
//! assert_eq!(status.outcome(), Some(&Outcome::Exited(0)));
//!
//! // What it printed, and what it wrote.
//! assert_eq!(runtime.logs_bytes(&id, 1 << 20).await?, "3 rows\n");
//! assert_eq!(runtime.collect_bytes(&id, &result, 1 << 20).await?, "3");
//!
//! // Until now everything was there still, also for another process. Then it is gone.
//! let removed = runtime.cleanup(&id, CleanupOptions::default()).await?;
//! assert_eq!(removed, CleanedUp::Removed);
//! let error = runtime.status(&id).await.err().ok_or("it is gone")?;
//! assert_eq!(error.kind(), ErrorKind::NotFound);
//! # Ok(())
//! # }
//! ```
//!
//! # The life of a run
//!
//! ```text
//!             run                                                         cleanup
//!  (absent) ───────► Pending ───────► Running ───────► Stopping ───────► Finished ───────► (absent)
//!                      Accepted          │                 Cancel         Outcome
//!                      Queued            │                 Deadline          ▲
//!                      PullingImage      │                 Engine            │
//!                      Starting          └───────────────────────────────────┤
//!                      Abandoned             (steps may be skipped)          │
//!                         └──────────────────────────────────────────────────┘
//! ```
//!
//! - The [rank](RunPhase::rank) Pending 0, Running 1, Stopping 2, Finished 3 never falls for one
//!   attempt. Within Pending the reason changes in any order.
//! - One [`RunId`] is one attempt. To try again is a new id. The only record that is replaced is
//!   an [`Abandoned`](Pending::Abandoned) one: the process that was about to start it is gone, and
//!   its program has never run.
//! - [`Finished`](RunPhase::Finished) is final, and the engine remembers it until `cleanup`: that
//!   is what makes a restart of the caller harmless.
//! - `NotFound` means no trace; [`Outcome::Lost`] means a trace without an end.
//! - What is wrong with a spec is an [`Error`] of `run`. What turns out later is an [`Outcome`],
//!   on every backend, a missing image included.
//!
//! # Dropped futures
//!
//! Every future and stream here may be dropped at any point. That ends the *call*, never the
//! *run*, and what is left is repaired by calling again. Work that a dropped call has left going
//! on, on another thread for instance, is part of what is left: the next call waits for it, or
//! makes it stop.
//!
//! | dropped | what may be left | what repairs it |
//! | --- | --- | --- |
//! | `run` | a record that is `Abandoned`, or a run that goes on | `run` again, with the whole spec |
//! | `cancel` | the wish may be noted or not | `cancel` again |
//! | `cleanup` | a run that has ended, with part of its things gone | `cleanup` again |
//! | `collect`, `logs` | nothing | from the start, or from a [`LogPosition`] |
//! | `watch`, `wait` | nothing | a new one begins with a snapshot |
//! | `connections` | connections wait for the next reader, for a while | call it again |
//! | `resolve`, `prefetch` | perhaps a part of an image, at the engine | call it again |
//! | a [`Lease`] | nothing: it is given back | `acquire` |
//!
//! # How to write a backend
//!
//! 1. **Say what it can do.** Start from [`Capabilities::none`] and switch on what the engine
//!    keeps, found out while connecting, then constant.
//! 2. **Admit first.** `run` begins with [`Capabilities::admit`], before any I/O: it refuses what
//!    is wrong and what is not declared, naming the field. Nothing may be silently ignored.
//! 3. **Record first.** Make something durable that carries owner, id, [`SpecDigest`],
//!    [`Annotations`] and the resolved image before anything else of the run, and remove it last.
//!    All answers come from it and from the engine, never from memory alone. An engine that keeps
//!    no labels needs a file; what a record has in it can be read back by serde.
//! 4. **Watch through a [`WatchHub`].** Call [`WatchHub::begin_listing`] before asking the engine
//!    for all runs, [`WatchHub::reset`] with the answer, then [`update`](WatchHub::update) and
//!    [`remove`](WatchHub::remove) with the engine's news; when the connection breaks,
//!    [`failed`](WatchHub::failed), and list again. It gives every watcher a snapshot first, keeps
//!    phases from going back, and spares others from a slow one. Update it in `run` too, and
//!    remove in `cleanup`, before they return: a caller that waits for a run that has just been
//!    accepted must not get a snapshot without it, whenever the engine's news come.
//! 5. **Translate in pure functions** from the engine's own words to [`RunPhase`] and [`Outcome`],
//!    tested on recorded answers.
//! 6. **Forward by reference.** A wrapper around another runtime forwards every method, those with
//!    a default too: put `#[deny(clippy::missing_trait_methods)]` on the `impl`, as this crate
//!    does for [`Arc`](std::sync::Arc) and [`Box`].
//! 7. **Run the conformance suite**, crate `v6-runtime-conformance`. What is declared has to work,
//!    what is not has to be refused.
mod annotations;
mod capabilities;
mod digest;
mod egress;
mod error;
mod ext;
mod hub;
mod image;
mod input;
mod lease;
mod logs;
pub mod memory;
mod name;
mod path;
mod runtime;
mod secret;
mod spec;
mod status;
mod tracker;
mod watch;

pub use annotations::Annotations;
pub use capabilities::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};
pub use digest::SpecDigest;
pub use egress::{Connection, EgressGrant, Io};
pub use error::{Error, ErrorKind, Result, Retry};
pub use ext::RuntimeExt;
pub use hub::{ListingStart, WatchHub};
pub use image::{Digest, ImageIdentity, ImageRef, PullPolicy, RegistryCredentials, ResolvedImage};
pub use input::{InputReader, InputStream};
pub use lease::{Held, Lease};
pub use logs::{LogChunk, LogOptions, LogPosition, LogStream};
pub use name::{GrantName, NAME_MAX, OutputName, Owner, RunId};
pub use path::{ContainerPath, VolumePath};
pub use runtime::{
    Accepted, CancelOptions, Cancelled, CleanedUp, CleanupOptions, EngineInfo, Observation,
    ResultStream, Runtime,
};
pub use secret::Secret;
pub use spec::{
    Access, DEFAULT_GRACE, EnvValue, Gpu, INLINE_MAX, Mount, MountSource, Output, OutputKind,
    Resources, RunSpec, Trust,
};
pub use status::{
    Outcome, Pending, RunPhase, RunStatus, StartFailure, StartFailureCause, StopCause, Usage,
};
pub use tracker::Tracker;
pub use watch::WatchEvent;
