//! What can go wrong with a session.

use std::io;
use std::path::{Path, PathBuf};

/// Why a session could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The file system refused.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done, e.g. `cannot read`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not parquet, or not one that this node takes.
    #[error("not a usable parquet file: {0}")]
    NotParquet(String),
    /// The session would grow beyond its limit.
    #[error("the session would grow beyond its limit of {limit} bytes")]
    Quota {
        /// In bytes.
        limit: u64,
    },
    /// More private files than are taken.
    #[error("a run may leave at most {limit} files in its session")]
    TooManyFiles {
        /// How many are taken.
        limit: usize,
    },
    /// The run's folder did not arrive whole.
    #[error("the files of the run's session folder could not be read")]
    Tar(#[source] io::Error),
    /// A worker of this node failed; nothing was changed.
    #[error("internal error in the session store: {0}")]
    Internal(String),
}

/// Adds where and what to an I/O error.
pub(super) trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, SessionError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, SessionError> {
        self.map_err(|source| SessionError::Io {
            what,
            path: path.to_owned(),
            source,
        })
    }
}
