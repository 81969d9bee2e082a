//! From HQ's open runs to reported results.
//!
//! [`Supervisor`] compares what HQ offers with what the engine has and gives each run a task:
//! `start` (policy, image, claim, arguments, spec), `follow` (running, log, kill), `deliver`
//! (output, report, removal). What a restarted node needs of a run is its [`RunContext`], kept in
//! the engine's record.

mod capacity;
mod context;
mod deliver;
mod follow;
mod logs;
mod sessions;
mod shared;
mod spec;
mod spool;
mod start;
mod supervisor;
mod verdict;

pub use capacity::{Capacity, Permit, Room, Share};
pub use context::{DataframeTarget, Destination, RunContext, STEP, Target, run_id};
pub use shared::{Node, patience, spool_folder};
pub use supervisor::Supervisor;
pub use verdict::{Printed, Verdict};
