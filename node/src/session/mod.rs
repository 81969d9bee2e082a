//! Sessions: what steps of a data preparation leave behind for the next ones (protocol 4.4
//! to 4.7).
//!
//! Below the data directory, as the Python node lays them out:
//!
//! ```text
//! sessions/session000000005/session_state.parquet   what was done
//! sessions/session000000005/<name>.parquet          one for each dataframe
//! sessions/session000000005/...                     private files of algorithms
//! sessions-journal/session000000005/                ours: merges under way, runs merged
//! ```
//!
//! No run ever works in these folders. It is given the files of a [`Snapshot`], and what it
//! leaves is merged when it has succeeded ([`Sessions::merge`]): all of it or nothing, once
//! for each run, also if the node dies in the middle. Files are replaced by rename and never
//! written in place, so a snapshot stays as it was whatever is merged later, and no step sees
//! half of a change.

mod columns;
mod error;
mod footer;
mod journal;
mod name;
mod plan;
mod snapshot;
mod state;
mod store;

pub use columns::{MAX_FOOTER, columns_of};
pub use error::SessionError;
pub use name::{DataframeName, WrongName};
pub use snapshot::{FileKind, Snapshot, SnapshotFile};
pub use state::StateRow;
pub use store::{Merge, Merged, PrivateFiles, SessionLimits, Sessions};
