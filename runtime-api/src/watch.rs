//! Following all runs of an owner.

use crate::{RunId, RunStatus};

/// One item of [`Runtime::watch`](crate::Runtime::watch).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Every run there is, now. The first item, and again after each reconnection or whenever
    /// changes may have been missed: what is not in it is gone.
    Snapshot(Vec<RunStatus>),
    /// A run is new or has changed. Edges may be merged; only the latest state is sure to come.
    Changed(Box<RunStatus>),
    /// A run's record is gone.
    Removed(RunId),
    /// Something a person may want to know, for instance a pull's progress. Never a verdict.
    Notice(RunId, String),
}
