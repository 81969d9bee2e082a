//! Steps that fail, and the one place where they become the contract's error.

use std::time::Duration;

use v6_runtime::{Error as Public, ErrorKind, Retry};

use crate::quirks::is_just_gone;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{step}: {}", words(.source))]
    Engine {
        step: &'static str,
        source: bollard::errors::Error,
    },
    #[error("{step}: no answer from the engine within {after:?}")]
    Timeout { step: &'static str, after: Duration },
    #[error("{0}")]
    Stranger(String),
    #[error("the record of {name} cannot be read: {why}")]
    Record { name: String, why: String },
    #[error("{0}")]
    Config(String),
    #[error("{what}")]
    Host {
        what: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Contract(#[from] Public),
}

impl Error {
    pub(crate) fn host(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Host {
            what: what.into(),
            source,
        }
    }

    /// The HTTP status that the engine answered with, if it did.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Engine {
                source: bollard::errors::Error::DockerResponseServerError { status_code, .. },
                ..
            } => Some(*status_code),
            _ => None,
        }
    }

    /// Whether the request may have got through although no answer to it was understood.
    pub(crate) fn is_unanswered(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Engine { source, .. } => matches!(
                kind(source),
                ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Protocol
            ),
            _ => false,
        }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine { source, .. } => kind(source),
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Stranger(_) => ErrorKind::Conflict,
            Self::Record { .. } => ErrorKind::Protocol,
            Self::Config(_) => ErrorKind::InvalidSpec,
            Self::Host { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorKind::Denied
            }
            Self::Host { .. } => ErrorKind::Unexpected,
            Self::Contract(error) => error.kind(),
        }
    }
}

/// Treats "there is none" as an answer.
pub(crate) fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status() == Some(404) || is_just_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The engine's own words, without the client's wrapping.
pub(crate) fn words(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => {
            message.trim().to_owned()
        }
        bollard::errors::Error::DockerStreamError { error } => error.trim().to_owned(),
        other => other.to_string(),
    }
}

fn kind(error: &bollard::errors::Error) -> ErrorKind {
    use bollard::errors::Error as E;
    match error {
        E::DockerResponseServerError { status_code, .. } => match status_code {
            401 | 403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            408 | 504 => ErrorKind::Timeout,
            409 => ErrorKind::Conflict,
            429 | 502 | 503 => ErrorKind::Unavailable,
            507 => ErrorKind::Quota,
            _ => ErrorKind::Unexpected,
        },
        E::RequestTimeoutError => ErrorKind::Timeout,
        E::SocketNotFoundError(_) => ErrorKind::Unavailable,
        E::JsonDataError { .. } | E::JsonSerdeError { .. } | E::StrParseError { .. } => {
            ErrorKind::Protocol
        }
        E::HyperLegacyError { .. }
        | E::HyperResponseError { .. }
        | E::IOError { .. }
        | E::DockerStreamError { .. } => {
            if denied(error) {
                ErrorKind::Denied
            } else {
                ErrorKind::Unavailable
            }
        }
        E::UnsupportedURISchemeError { .. } | E::InvalidURIError { .. } => ErrorKind::InvalidSpec,
        _ => ErrorKind::Unexpected,
    }
}

/// Whether the system refused the socket to this process.
fn denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::PermissionDenied
        {
            return true;
        }
        next = error.source();
    }
    false
}

impl From<Error> for Public {
    fn from(error: Error) -> Self {
        match error {
            Error::Contract(error) => error,
            Error::Engine { step, source } => {
                let message = format!("{step}: {}", words(&source));
                let error = Public::new(kind(&source), message);
                // What went wrong inside the engine may go well the next time.
                let error = match &source {
                    bollard::errors::Error::DockerResponseServerError {
                        status_code: 500, ..
                    } => error.with_retry(Retry::After(None)),
                    _ => error,
                };
                error.with_source(source)
            }
            Error::Host { ref what, .. } => {
                Public::new(error.kind(), what.as_str()).with_source(error)
            }
            other => Public::new(other.kind(), other.to_string()),
        }
    }
}
