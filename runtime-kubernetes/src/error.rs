//! Steps that fail, and the one place where they become the contract's error.

use std::time::Duration;

use v6_runtime::{Error as Public, ErrorKind, Retry};

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{step}: {}", words(.source))]
    Api {
        step: &'static str,
        source: Box<kube::Error>,
    },
    #[error("{step}: no answer from the API server within {after:?}")]
    Timeout { step: &'static str, after: Duration },
    /// The way into a pod.
    #[error("{step}: {source}")]
    Tunnel {
        step: &'static str,
        source: std::io::Error,
    },
    /// A watch has ended as watches do.
    #[error("the watch has ended")]
    End,
    #[error("{0}")]
    Stranger(String),
    #[error("the record of {name} cannot be read: {why}")]
    Record { name: String, why: String },
    #[error("{0}")]
    Config(String),
    /// Who we are could not be shown.
    #[error("signing in at the cluster: {0}")]
    SignIn(String),
    /// Runs would not be isolated.
    #[error("{0}")]
    NotEnforced(String),
    #[error(transparent)]
    Contract(#[from] Public),
}

/// What our own layers of the client say, in words for an operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nothing was sent, since who we are could not be shown.
    #[error("{0}")]
    SignIn(String),
    /// There is no connection.
    #[error("{0}")]
    Connect(String),
}

impl Error {
    /// Turns a failed call into a step that failed.
    pub(crate) fn api(step: &'static str) -> impl Fn(kube::Error) -> Self {
        move |source| Self::Api {
            step,
            source: Box::new(source),
        }
    }

    /// The HTTP status that the API server answered with, if it did.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether there is no namespace to make something in, or soon none.
    pub(crate) fn is_homeless(&self) -> bool {
        match self {
            Self::Api { source, .. } => {
                matches!(&**source, kube::Error::Api(status) if is_homeless(status))
            }
            _ => false,
        }
    }

    /// The end of a watch.
    pub(crate) fn end() -> Self {
        Self::End
    }

    /// Whether it is only the end of a watch.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::End)
    }

    /// Whether the request may have got through although no answer to it was understood.
    pub(crate) fn is_unanswered(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Api { source, .. } if is_sign_in(source) => false,
            Self::Api { source, .. } => {
                !matches!(**source, kube::Error::Api(_) | kube::Error::BuildRequest(_))
                    || self.status().is_some_and(|code| code >= 500)
            }
            _ => false,
        }
    }

    /// Whether the way to the API server broke, and nothing was said.
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::Api { source, .. } => {
                matches!(
                    **source,
                    kube::Error::HyperError(_) | kube::Error::Service(_)
                ) && !is_sign_in(source)
            }
            _ => false,
        }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Api { source, .. } => kind(source),
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Tunnel { .. } | Self::End => ErrorKind::Unavailable,
            Self::Stranger(_) => ErrorKind::Conflict,
            Self::Record { .. } => ErrorKind::Protocol,
            Self::Config(_) => ErrorKind::InvalidSpec,
            Self::NotEnforced(_) | Self::SignIn(_) => ErrorKind::Denied,
            Self::Contract(error) => error.kind(),
        }
    }
}

/// Treats "there is none" as an answer.
pub(crate) fn found<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All levels of an error, but those that the level above has told already.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        next = error.source();
    }
    words
}

/// What is below all wrapping: each level says less than the one below it.
pub(crate) fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn client_error(error: &kube::Error) -> Option<&ClientError> {
    match error {
        kube::Error::Service(error) => error.downcast_ref(),
        _ => None,
    }
}

/// Whether nothing was sent, since who we are could not be shown.
fn is_sign_in(error: &kube::Error) -> bool {
    matches!(client_error(error), Some(ClientError::SignIn(_)))
}

/// Whether our login is what is wrong: with another one, the same call may succeed.
fn is_unknown(error: &kube::Error) -> bool {
    is_sign_in(error) || matches!(error, kube::Error::Api(status) if status.code == 401)
}

/// Whether there is no namespace to make something in, or soon none. Only who makes something is told that.
fn is_homeless(status: &kube::core::Status) -> bool {
    let Some(details) = &status.details else {
        return false;
    };
    let ends = |cause: &kube::core::response::StatusCause| cause.reason == "NamespaceTerminating";
    match status.code {
        403 => details.causes.iter().any(ends),
        404 => details.kind == "namespaces",
        _ => false,
    }
}

/// The cluster's own words, without the client's wrapping.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            "the cluster does not know our login (401): it has expired or was withdrawn, is of an \
             issuer that the API server does not trust, or this machine's clock is wrong"
                .to_owned()
        }
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
        other => deepest(other),
    }
}

fn kind(error: &kube::Error) -> ErrorKind {
    use kube::Error as E;
    match error {
        E::Api(status) => match status.code {
            400 | 422 => ErrorKind::InvalidSpec,
            401 => ErrorKind::Denied,
            // A quota that is full is told so, too.
            403 if status.message.contains("exceeded quota") => ErrorKind::Quota,
            403 => ErrorKind::Denied,
            404 if is_homeless(status) => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            408 | 504 => ErrorKind::Timeout,
            409 => ErrorKind::Conflict,
            410 | 429 | 500 | 502 | 503 => ErrorKind::Unavailable,
            _ => ErrorKind::Unexpected,
        },
        E::Service(_) if is_sign_in(error) => ErrorKind::Denied,
        E::HyperError(_) | E::Service(_) | E::ReadEvents(_) | E::UpgradeConnection(_) => {
            ErrorKind::Unavailable
        }
        E::Auth(_) => ErrorKind::Denied,
        E::FromUtf8(_) | E::SerdeError(_) | E::LinesCodecMaxLineLengthExceeded => {
            ErrorKind::Protocol
        }
        E::InferConfig(_)
        | E::ProxyProtocolDisabled { .. }
        | E::ProxyProtocolUnsupported { .. }
        | E::RustlsTls(_) => ErrorKind::InvalidSpec,
        _ => ErrorKind::Unexpected,
    }
}

impl From<Error> for Public {
    fn from(error: Error) -> Self {
        match error {
            Error::Contract(error) => error,
            Error::Api { step, source } => {
                let wait = match &*source {
                    kube::Error::Api(status) => status
                        .details
                        .as_ref()
                        .map(|details| details.retry_after_seconds)
                        .filter(|seconds| *seconds > 0)
                        .map(|seconds| Duration::from_secs(u64::from(seconds))),
                    _ => None,
                };
                let error = Public::new(kind(&source), format!("{step}: {}", words(&source)));
                let error = if error.is_retryable() && wait.is_some() || is_unknown(&source) {
                    error.with_retry(Retry::After(wait))
                } else {
                    error
                };
                match client_error(&source) {
                    // It has been told whole.
                    Some(_) => error,
                    None => error.with_source(source),
                }
            }
            Error::SignIn(_) => {
                Public::new(error.kind(), error.to_string()).with_retry(Retry::After(None))
            }
            other => Public::new(other.kind(), other.to_string()),
        }
    }
}
