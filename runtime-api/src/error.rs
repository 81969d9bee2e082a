//! One error type for every backend: what kind, during which operation, of which run, and what a
//! caller can do about it.

use std::fmt;
use std::time::Duration;

use crate::RunId;

/// The contract's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What an error means, told apart by what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong on any backend: fix the spec.
    InvalidSpec,
    /// This backend cannot do what was asked: choose another backend or ask for less.
    Unsupported,
    /// There is no such run, output or image.
    NotFound,
    /// The name is taken by something else: another spec, or a stranger's object.
    Conflict,
    /// The run is in a phase in which this cannot be answered yet.
    NotReady,
    /// The engine or registry refused for lack of rights: ask an operator.
    Denied,
    /// A limit is reached: wait, or ask for a larger one.
    Quota,
    /// The engine or registry cannot be reached: back off and repeat.
    Unavailable,
    /// No answer in time: back off and repeat.
    Timeout,
    /// The engine answered something that this backend does not understand.
    Protocol,
    /// A bug, here or in the engine: report it.
    Unexpected,
}

impl ErrorKind {
    /// The kind in words, as the first part of a message.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "invalid spec",
            Self::Unsupported => "not supported by this runtime",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::NotReady => "not ready",
            Self::Denied => "denied",
            Self::Quota => "limit reached",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timed out",
            Self::Protocol => "answer not understood",
            Self::Unexpected => "unexpected",
        }
    }
}

/// Whether repeating the same call can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// The same call may succeed, after this long if the backend knows it.
    After(Option<Duration>),
    /// The same call might succeed, but an inner layer has already tried long enough.
    Exhausted,
}

/// An infrastructure error: the backend could not do or answer what was asked.
///
/// How a run *ended* is never an error; it is an [`Outcome`](crate::Outcome).
///
/// `Display` prints this level only, as a lower-case fragment; the cause is in
/// [`source`](std::error::Error::source). The wording is not part of the contract, the
/// [`kind`](Self::kind) is.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: Option<&'static str>,
    run: Option<RunId>,
    message: Box<str>,
    may_have_started: bool,
    retry: Retry,
    source: Option<Source>,
}

impl Error {
    /// An error of this kind with a message for people. `Unavailable`, `Timeout` and `NotReady`
    /// are retryable unless said otherwise, all others not.
    pub fn new(kind: ErrorKind, message: impl Into<Box<str>>) -> Self {
        let retry = match kind {
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NotReady => Retry::After(None),
            _ => Retry::Never,
        };
        Self(Box::new(Inner {
            kind,
            operation: None,
            run: None,
            message: message.into(),
            may_have_started: false,
            retry,
            source: None,
        }))
    }

    /// Shorthand for an [`ErrorKind::Unsupported`] that names the field of the spec.
    pub fn unsupported(field: &str, why: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unsupported, format!("{field}: {why}"))
    }

    /// Shorthand for an [`ErrorKind::InvalidSpec`] that names the field of the spec.
    pub fn invalid(field: &str, why: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidSpec, format!("{field}: {why}"))
    }

    /// Shorthand for "there is no run of this id".
    #[must_use]
    pub fn no_such_run(run: &RunId) -> Self {
        Self::new(ErrorKind::NotFound, "there is no such run").with_run(run)
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says during which of the contract's operations it happened. The first one said stays.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Says which run it concerns. The first one said stays.
    #[must_use]
    pub fn with_run(mut self, run: &RunId) -> Self {
        self.0.run.get_or_insert_with(|| run.clone());
        self
    }

    /// Says that the run's program may have been started all the same.
    #[must_use]
    pub fn with_may_have_started(mut self, may: bool) -> Self {
        self.0.may_have_started = may;
        self
    }

    /// Overrides the advice on repeating.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// What it means.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// During which of the contract's operations it happened, where known.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// Which run it concerns, where it concerns one.
    #[must_use]
    pub fn run(&self) -> Option<&RunId> {
        self.0.run.as_ref()
    }

    /// What happened, without kind, operation, run and cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether the run's program may have been started although the call failed.
    #[must_use]
    pub fn may_have_started(&self) -> bool {
        self.0.may_have_started
    }

    /// The advice on repeating the call.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Whether repeating the same call can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.retry, Retry::After(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if let Some(run) = &inner.run {
            write!(f, "run {run}: ")?;
        }
        if let Some(operation) = inner.operation {
            write!(f, "{operation}: ")?;
        }
        write!(f, "{}: {}", inner.kind.as_str(), inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        f.debug_struct("Error")
            .field("kind", &inner.kind)
            .field("operation", &inner.operation)
            .field("run", &inner.run)
            .field("message", &inner.message)
            .field("may_have_started", &inner.may_have_started)
            .field("retry", &inner.retry)
            .field("source", &inner.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
