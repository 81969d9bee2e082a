//! What the exit code of `v6-node` says.

use std::process::ExitCode;

/// The exit codes, all of them; numbers after `sysexits.h` where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Ok,
    /// 1: what was asked for was tried and found wanting, such as a failed check.
    Failed,
    /// 64: the command line or the configuration has a mistake.
    Usage,
    /// 69: the engine or HQ can't be reached.
    Unavailable,
    /// 70: a mistake in `v6-node` itself.
    Internal,
    /// 75: not now; the same command may work later.
    TryAgain,
    /// 77: HQ, Keycloak or the engine refuses this node.
    Denied,
}

impl Exit {
    /// All codes, for the help text and the documentation.
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Unavailable,
        Self::Internal,
        Self::TryAgain,
        Self::Denied,
    ];

    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::TryAgain => 75,
            Self::Denied => 77,
        }
    }

    /// What it means, for the person who sees it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Failed => "it was tried and did not succeed, such as a failed check",
            Self::Usage => "the command line or the configuration has a mistake",
            Self::Unavailable => "the container engine or HQ can't be reached",
            Self::Internal => "a mistake in v6-node itself; please report it",
            Self::TryAgain => "not now, but the same command may work later",
            Self::Denied => "HQ, Keycloak or the container engine refuses this node",
        }
    }

    /// The table as it stands at the end of the help text.
    pub(super) fn table() -> String {
        let lines = Self::ALL.map(|exit| format!("  {:>2}  {}", exit.code(), exit.meaning()));
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<v6_runtime::ErrorKind> for Exit {
    /// What a failed call to the engine means for the whole command.
    fn from(kind: v6_runtime::ErrorKind) -> Self {
        use v6_runtime::ErrorKind as Kind;
        match kind {
            Kind::Unavailable | Kind::Timeout => Self::Unavailable,
            Kind::Denied => Self::Denied,
            Kind::Quota | Kind::NotReady => Self::TryAgain,
            _ => Self::Failed,
        }
    }
}
