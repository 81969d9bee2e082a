//! What a case is.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use v6_runtime::Capabilities;

use crate::bench::Bench;

/// How a case ended, if it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The clause holds.
    Passed,
    /// It could not be tried, for this reason.
    Skipped(String),
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

pub(crate) type Outcome = Result<Verdict, Failure>;
type Work = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// One thing that a runtime must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, the same for ever.
    pub id: &'static str,
    /// What must hold, in the contract's sense.
    pub clause: &'static str,
    /// What has to be declared; the error names what is not.
    pub(crate) needs: fn(&Capabilities) -> Result<(), &'static str>,
    pub(crate) run: fn(Bench) -> Work,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Nothing beyond the core.
pub(crate) fn core(_: &Capabilities) -> Result<(), &'static str> {
    Ok(())
}

/// Declares the cases of a module: name, what it needs, clause.
macro_rules! cases {
    ($($(#[needs($needs:expr)])? $name:ident: $clause:literal;)+) => {
        pub(crate) fn all() -> Vec<$crate::case::Case> {
            vec![$($crate::case::Case {
                id: stringify!($name),
                clause: $clause,
                needs: {
                    #[allow(unused_variables)]
                    let needs: fn(&v6_runtime::Capabilities) -> Result<(), &'static str> =
                        $crate::case::core;
                    $(let needs = $needs;)?
                    needs
                },
                run: |bench| Box::pin($name(bench)),
            }),+]
        }
    };
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
