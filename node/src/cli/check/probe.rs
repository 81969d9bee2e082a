//! What a check is, and running them.

use std::borrow::Cow;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use crate::cli::exit::Exit;

/// How long a probe may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// One thing that the node needs.
#[async_trait]
pub trait Probe: Send + Sync {
    /// A short name, the same in each run, such as `disk` or `data patients`.
    fn name(&self) -> Cow<'_, str>;

    /// How long [`Self::run`] may take; afterwards it is dropped and counts as failed.
    fn timeout(&self) -> Duration {
        DEFAULT_TIMEOUT
    }

    /// Looks. It must be safe to drop at any point.
    async fn run(&self) -> Finding;
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The node works, but the operator should know.
    Warn,
    /// The node, or runs that need this, will not work.
    Fail,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Good or bad.
    pub verdict: Verdict,
    /// What was seen.
    pub message: String,
    /// What to do; always there unless the verdict is ok.
    pub remedy: Option<String>,
    /// The exit code of the whole check if this is its first failure.
    pub exit: Exit,
}

impl Finding {
    /// As it should be.
    pub fn ok(message: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            message: message.into(),
            remedy: None,
            exit: Exit::Ok,
        }
    }

    /// Worth a warning.
    pub fn warn(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self {
            verdict: Verdict::Warn,
            message: message.into(),
            remedy,
            exit: Exit::Ok,
        }
    }

    /// Not usable.
    pub fn fail(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self {
            verdict: Verdict::Fail,
            message: message.into(),
            remedy,
            exit: Exit::Failed,
        }
    }

    /// The same with another exit code for the whole check.
    pub fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The probe's name.
    pub name: String,
    /// What it found.
    pub finding: Finding,
}

impl Line {
    /// A finding under a name.
    pub fn new(name: impl Into<String>, finding: Finding) -> Self {
        Self {
            name: name.into(),
            finding,
        }
    }
}

/// What is known before it is looked at, in its place in the report.
pub struct Settled {
    /// The probe's name.
    pub name: &'static str,
    /// What is known.
    pub finding: Finding,
}

#[async_trait]
impl Probe for Settled {
    fn name(&self) -> Cow<'_, str> {
        self.name.into()
    }

    async fn run(&self) -> Finding {
        self.finding.clone()
    }
}

/// Runs one probe within its time limit.
pub async fn run(probe: &dyn Probe) -> Line {
    let limit = probe.timeout();
    let finding = tokio::time::timeout(limit, probe.run())
        .await
        .unwrap_or_else(|_| {
            let message = format!("no answer within {} s", limit.as_secs_f32());
            Finding::fail(message, "find out why it does not answer, then check again")
                .with_exit(Exit::Unavailable)
        });
    Line::new(probe.name(), finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Silent;

    #[async_trait]
    impl Probe for Silent {
        fn name(&self) -> Cow<'_, str> {
            "silent".into()
        }

        fn timeout(&self) -> Duration {
            Duration::from_millis(10)
        }

        async fn run(&self) -> Finding {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_probe_that_hangs_fails_in_time() {
        let line = run(&Silent).await;
        assert_eq!(line.finding.verdict, Verdict::Fail);
        assert_eq!(line.finding.exit, Exit::Unavailable);
    }
}
