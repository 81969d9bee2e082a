//! What a case is, and what can come of it.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use v6_runtime::Capabilities;

use crate::bench::Bench;
use crate::harness::Harness;

/// No case takes longer; one that does has failed.
const CASE_LIMIT: Duration = Duration::from_secs(180);

/// How binding a case is, in the words of RFC 2119.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Without it, callers that keep to the contract break.
    Must,
    /// Callers can live without it, and will be the worse for it.
    Should,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Verdict {
    /// The clause holds.
    Passed,
    /// It does not.
    Failed {
        /// What was wanted and what was seen.
        evidence: String,
    },
    /// It was not tried.
    Skipped {
        /// Whose doing that is.
        by: SkippedBy,
        /// What is not there.
        reason: String,
    },
    /// It could not be tried: the harness lacks the hook of this name.
    Inconclusive {
        /// The method of [`Harness`] that the case needs.
        hook: String,
    },
}

/// Why a case was not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SkippedBy {
    /// The runtime does not declare what the case is about (or, for a case about refusing what is
    /// not declared, declares it).
    Undeclared,
    /// This machine lacks something.
    Environment,
    /// Whoever started the suite left it out; the report is then a partial one.
    Operator,
}

/// Evidence that a clause does not hold.
#[derive(Debug)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<v6_runtime::Error> for Failure {
    fn from(error: v6_runtime::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Self(text)
    }
}

/// Why a case ends before its end.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Failure),
    /// The runtime does not declare this (or does, where the case is about what it does not).
    Undeclared(String),
    /// The machine lacks this.
    Environment(String),
    /// The harness lacks this hook.
    NoHook(&'static str),
}

impl<T: Into<Failure>> From<T> for Stop {
    fn from(failure: T) -> Self {
        Self::Failed(failure.into())
    }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        let skipped = |by, reason| Self::Skipped { by, reason };
        match outcome {
            Ok(()) => Self::Passed,
            Err(Stop::Failed(failure)) => Self::Failed {
                evidence: failure.to_string(),
            },
            Err(Stop::Undeclared(what)) => skipped(SkippedBy::Undeclared, what),
            Err(Stop::Environment(what)) => skipped(SkippedBy::Environment, what),
            Err(Stop::NoHook(hook)) => Self::Inconclusive {
                hook: hook.to_owned(),
            },
        }
    }
}

pub(crate) type Outcome = Result<(), Stop>;
type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// One thing that a runtime must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, the same for ever.
    pub id: &'static str,
    /// How binding it is.
    pub level: Level,
    /// The clauses of the contract (`docs/contract.md`) that it tries.
    pub clauses: &'static [&'static str],
    /// What must hold, in a sentence.
    pub claim: &'static str,
    /// It disturbs the whole engine, so no other case may run beside it.
    pub alone: bool,
    /// What has to be declared; the error names what is not.
    pub(crate) needs: fn(&Capabilities) -> Result<(), &'static str>,
    pub(crate) work: fn(Bench) -> Work,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("id", &self.id)
            .field("level", &self.level)
            .field("clauses", &self.clauses)
            .finish_non_exhaustive()
    }
}

impl Case {
    /// Tries the case on a fresh runtime of this harness, and cleans up after it.
    ///
    /// Not cancel-safe: dropped, it leaves the runs of the case behind.
    pub async fn check(&self, harness: Arc<dyn Harness>) -> Verdict {
        self.attempt(harness).await.into()
    }

    async fn attempt(&self, harness: Arc<dyn Harness>) -> Outcome {
        let bench = Bench::new(harness).await?;
        if let Err(what) = (self.needs)(bench.runtime.capabilities()) {
            return Err(Stop::Undeclared(format!("{what} is not declared")));
        }
        let limit = CASE_LIMIT + bench.slowness() * 20;
        let work = AssertUnwindSafe((self.work)(bench.clone())).catch_unwind();
        let worked = match tokio::time::timeout(limit, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => Err(format!("it panicked: {}", words(&*panic)).into()),
            Err(_) => Err(format!("it did not end within {limit:?}").into()),
        };
        let left = tokio::time::timeout(limit, bench.end()).await;
        worked?;
        let Ok(left) = left else {
            return Err(format!("cleaning up did not end within {limit:?}").into());
        };
        match left? {
            left if left.is_empty() => Ok(()),
            left => Err(format!("left behind: {}", left.join(", ")).into()),
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}

/// Nothing beyond the core.
pub(crate) fn core(_: &Capabilities) -> Result<(), &'static str> {
    Ok(())
}

/// Declares the cases of a module, with `async fn`s of the same names beside it:
///
/// ```text
/// #[needs(what has to be declared)]   a function from &Capabilities; without it, the core
/// #[should]                           without it, MUST
/// #[alone]                            no other case beside it
/// name ["CLAUSE-1", "CLAUSE-2"]: "what must hold";
/// ```
macro_rules! cases {
    ($($(#[$attribute:ident $(($value:expr))?])* $name:ident [$($clause:literal),+]: $claim:expr;)+) => {
        pub(crate) fn all() -> Vec<$crate::case::Case> {
            vec![$({
                #[allow(unused_mut)]
                let mut case = $crate::case::Case {
                    id: stringify!($name),
                    level: $crate::case::Level::Must,
                    clauses: &[$($clause),+],
                    claim: $claim,
                    alone: false,
                    needs: $crate::case::core,
                    work: |bench| Box::pin($name(bench)),
                };
                $($crate::case::cases!(@ case $attribute $(($value))?);)*
                case
            }),+]
        }
    };
    (@ $case:ident needs ($needs:expr)) => { $case.needs = $needs; };
    (@ $case:ident should) => { $case.level = $crate::case::Level::Should; };
    (@ $case:ident alone) => { $case.alone = true; };
}
pub(crate) use cases;

/// Fails the case unless two values are equal.
pub(crate) fn equal<T: PartialEq + fmt::Debug>(
    what: &str,
    got: T,
    wanted: T,
) -> Result<(), Failure> {
    if got == wanted {
        return Ok(());
    }
    let short = |value: &T| {
        let mut text = format!("{value:?}");
        if text.len() > 400 {
            let cut = (0..=400)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            text.truncate(cut);
            text.push('…');
        }
        text
    };
    Err(format!("{what}: wanted {}, got {}", short(&wanted), short(&got)).into())
}

/// Fails the case unless something holds.
pub(crate) fn holds(what: &str, it: bool) -> Result<(), Failure> {
    if it { Ok(()) } else { Err(what.into()) }
}

/// Fails the case unless a call failed with this kind of error.
pub(crate) fn fails<T: fmt::Debug>(
    what: &str,
    got: v6_runtime::Result<T>,
    kind: v6_runtime::ErrorKind,
) -> Result<v6_runtime::Error, Failure> {
    match got {
        Err(error) if error.kind() == kind => Ok(error),
        Err(error) => Err(format!("{what}: wanted {kind:?}, got {error}").into()),
        Ok(value) => Err(format!("{what}: wanted {kind:?}, got {value:?}").into()),
    }
}
