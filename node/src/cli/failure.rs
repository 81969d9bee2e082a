//! How a command ends badly, and how that is told.

use std::error::Error;
use std::fmt::Write as _;

use super::exit::Exit;
use crate::config::Problems;

/// Why a command ended, and with which code.
#[derive(Debug)]
pub struct Failure {
    /// The code that the shell sees.
    pub exit: Exit,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// A failure with its cause.
    pub fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit,
            error: error.into(),
        }
    }

    /// The error and its causes, one a line; what a level repeats of the one above it is
    /// left out.
    pub fn render(&self) -> String {
        render(self.error.as_ref())
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(Exit::Usage, problems)
    }
}

impl From<v6_runtime::Error> for Failure {
    fn from(error: v6_runtime::Error) -> Self {
        Self::new(error.kind().into(), error)
    }
}

/// An error and its causes, one a line. Many libraries print their cause as part of
/// themselves; such a level is not printed twice.
pub fn render(error: &dyn Error) -> String {
    let mut shown = error.to_string();
    let mut last = shown.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !last.contains(&text) {
            let _ = write!(shown, "\n  because: {}", text.replace('\n', "\n    "));
            last = text;
        }
        cause = error.source();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Level(&'static str, #[source] Option<Box<Level>>);

    #[test]
    fn each_level_is_printed_once() {
        let inner = Level("connection refused", None);
        let middle = Level("send: connection refused", Some(Box::new(inner)));
        let outer = Level("HQ can't be reached", Some(Box::new(middle)));
        assert_eq!(
            render(&outer),
            "HQ can't be reached\n  because: send: connection refused"
        );
    }
}
