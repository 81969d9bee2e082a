//! The claim that mode `init` leaves.

use serde::Deserialize;

/// A claim is never longer than this, in bytes. Whoever reads the file need not read more.
pub const MAX_CLAIM: usize = 64 * 1024;

/// What `init` says that it saw.
///
/// It is written inside the sandbox, in reach of the command, and so is a claim and never
/// proof: it can refine what the engine says, for instance tell a signal from an exit code,
/// where the two agree ([`Claim::exit_code`]); it must not overrule it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// What became of the command.
    pub end: End,
    /// The deadline came before the end.
    pub deadline: bool,
    /// SIGTERM or SIGINT came from outside the container before the end.
    pub terminated: bool,
    /// SIGKILL ended the command, and the kernel had meanwhile killed some process of the
    /// container's control group for want of memory.
    pub out_of_memory: bool,
}

/// What became of the command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// It ended by itself with this code, 0 to 255.
    Exited(u8),
    /// This signal ended it, 1 to 64.
    Signaled(u8),
    /// It never ran.
    NotStarted {
        /// Why.
        cause: NotStarted,
        /// The same in words, without control characters. It may hold anything that the
        /// command can think of.
        error: String,
    },
}

/// Why a command never ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NotStarted {
    /// There is no such command in the image, or no interpreter for it.
    NotFound,
    /// It is there and is not a program that the user may execute.
    NotExecutable,
    /// The program failed: a listener, a file, the deadline, memory.
    Other,
}

/// The bytes are not a claim.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Nothing was written, since the end came too suddenly.
    #[error("no claim was written")]
    Empty,
    /// More bytes than [`MAX_CLAIM`].
    #[error("the claim is over {MAX_CLAIM} bytes")]
    TooLong,
    /// Not JSON of the known shape.
    #[error("the claim is not readable")]
    Malformed(#[source] serde_json::Error),
    /// JSON that says nothing, or two things at once, or impossible numbers.
    #[error("the claim contradicts itself")]
    Contradictory,
    /// Written by a program of another generation.
    #[error("the claim has the unknown version {0}")]
    Version(u64),
}

#[derive(Deserialize)]
struct Raw {
    v: u64,
    exit: Option<u8>,
    signal: Option<u8>,
    not_started: Option<NotStarted>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    deadline: bool,
    #[serde(default)]
    terminated: bool,
    #[serde(default)]
    out_of_memory: bool,
}

impl Claim {
    /// Reads the content of a claim's file. Keys that are not known are passed over.
    ///
    /// # Errors
    ///
    /// [`ClaimError`]; an empty file is the usual case of a killed container.
    pub fn parse(bytes: &[u8]) -> Result<Self, ClaimError> {
        if bytes.is_empty() {
            return Err(ClaimError::Empty);
        }
        if bytes.len() > MAX_CLAIM {
            return Err(ClaimError::TooLong);
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(ClaimError::Malformed)?;
        if raw.v != 1 {
            return Err(ClaimError::Version(raw.v));
        }
        let end = match (raw.exit, raw.signal, raw.not_started) {
            (Some(code), None, None) => End::Exited(code),
            (None, Some(signal @ 1..=64), None) => End::Signaled(signal),
            (None, None, Some(cause)) => {
                let error = raw
                    .error
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .collect();
                End::NotStarted { cause, error }
            }
            _ => return Err(ClaimError::Contradictory),
        };
        Ok(Self {
            end,
            deadline: raw.deadline,
            terminated: raw.terminated,
            out_of_memory: raw.out_of_memory,
        })
    }

    /// The exit code that the program ends with after such a claim. Where the engine saw
    /// another one, the claim is not to be believed.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match &self.end {
            End::Exited(code) => i32::from(*code),
            End::Signaled(signal) => 128 + i32::from(*signal),
            End::NotStarted { cause, .. } => match cause {
                NotStarted::NotFound => crate::EXIT_NOT_FOUND,
                NotStarted::NotExecutable => crate::EXIT_NOT_EXECUTABLE,
                NotStarted::Other => crate::EXIT_FAILED,
            },
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read() {
        let claim = Claim::parse(b"{\"v\":1,\"signal\":9,\"deadline\":true,\"new\":[]}\n").unwrap();
        assert_eq!(
            claim,
            Claim {
                end: End::Signaled(9),
                deadline: true,
                terminated: false,
                out_of_memory: false,
            }
        );
        assert_eq!(claim.exit_code(), 137);
        let claim =
            Claim::parse(br#"{"v":1,"not_started":"not-found","error":"a\u001b[2Jb"}"#).unwrap();
        let end = End::NotStarted {
            cause: NotStarted::NotFound,
            error: "a [2Jb".into(),
        };
        assert_eq!(claim.end, end);
        assert_eq!(claim.exit_code(), 127);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |text: &str| Claim::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(refused(""), ClaimError::Empty));
        assert!(matches!(
            refused(&" ".repeat(MAX_CLAIM + 1)),
            ClaimError::TooLong
        ));
        assert!(matches!(
            refused(r#"{"v":2,"exit":0}"#),
            ClaimError::Version(2)
        ));
        for text in [
            r#"{"v":1}"#,
            r#"{"v":1,"exit":0,"signal":9}"#,
            r#"{"v":1,"signal":0}"#,
            r#"{"v":1,"signal":65}"#,
        ] {
            assert!(matches!(refused(text), ClaimError::Contradictory), "{text}");
        }
        for text in [
            r#"{"v":1,"exit":256}"#,
            r#"{"v":1,"exit":-1}"#,
            "[",
            r#"{"v":1,"not_started":"x"}"#,
        ] {
            assert!(matches!(refused(text), ClaimError::Malformed(_)), "{text}");
        }
    }
}
