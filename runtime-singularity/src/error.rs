//! Steps that fail, and the one place where they become the contract's error.

use std::io;
use std::time::Duration;

use v6_runtime::{Error as Public, ErrorKind};

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what}")]
    Host { what: String, source: io::Error },
    #[error("{0}")]
    Stranger(String),
    #[error("the record of {name} cannot be read: {why}")]
    Record { name: String, why: String },
    #[error("{0}")]
    Config(String),
    /// The command failed, in its own words.
    #[error("{step}: {words}")]
    Engine { step: &'static str, words: String },
    /// The batch system does not answer now.
    #[error("{step}: {words}")]
    Unavailable { step: &'static str, words: String },
    #[error("{step}: not done within {after:?}")]
    Timeout { step: &'static str, after: Duration },
    #[error(transparent)]
    Launch(#[from] v6_helper::LaunchError),
    #[error(transparent)]
    Contract(#[from] Public),
}

impl Error {
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Host { what, source }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Host { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Quota,
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                // A record or state that is not ours to understand.
                io::ErrorKind::InvalidData => ErrorKind::Protocol,
                // A file server that is away for a moment.
                io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::TimedOut => {
                    ErrorKind::Unavailable
                }
                _ => ErrorKind::Unexpected,
            },
            Self::Stranger(_) => ErrorKind::Conflict,
            Self::Record { .. } => ErrorKind::Protocol,
            Self::Config(_) => ErrorKind::InvalidSpec,
            Self::Engine { .. } | Self::Launch(_) => ErrorKind::Unexpected,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Contract(error) => error.kind(),
        }
    }
}

impl From<Error> for Public {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        match error {
            Error::Contract(error) => error,
            Error::Host { what, source } => Self::new(kind, what).with_source(source),
            other => Self::new(kind, other.to_string()),
        }
    }
}

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            let message = "a step broke off";
            Err(Public::new(ErrorKind::Unexpected, message)
                .with_source(error)
                .into())
        }
    }
}
