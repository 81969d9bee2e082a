//! What a monitor writes: its state, and the frames of the log.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::monitor::StopCause;

/// How a run that a monitor held has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// What became of the command.
    pub verdict: Verdict,
    /// Why it ended.
    pub cause: StopCause,
    /// When the command was started, if it was.
    pub started: Option<SystemTime>,
    /// When it was over.
    pub finished: SystemTime,
    /// Bytes that it printed and the log had no room for.
    pub dropped: u64,
    /// Whether the kernel has killed a process of it for want of memory; known only in a control group.
    pub out_of_memory: bool,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It ended with this exit code.
    Exited(i32),
    /// It was killed together with its name spaces, by this signal.
    Signaled(i32),
    /// It was not started, since it had been told to end before.
    NotBegun,
    /// It could not be started, for the reason given.
    Failed(String),
}

/// A state, and during which boot of the machine it was written.
pub(crate) struct Recorded {
    pub(crate) state: State,
    pub(crate) boot: String,
}

pub(crate) enum State {
    Starting,
    Running { started: SystemTime },
    Ended(Ended),
}

#[derive(Deserialize)]
struct Raw {
    v: u64,
    phase: Phase,
    boot: String,
    started: Option<u64>,
    finished: Option<u64>,
    #[serde(default)]
    dropped: u64,
    #[serde(default)]
    out_of_memory: bool,
    cause: Option<String>,
    exit: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    not_begun: bool,
    failed: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    Starting,
    Running,
    Stopping,
    Ended,
}

/// Reads the file `state`; keys that are not known are passed over.
pub(crate) fn parse(bytes: &[u8]) -> Option<Recorded> {
    let raw: Raw = serde_json::from_slice(bytes).ok()?;
    if raw.v != 1 {
        return None;
    }
    let started = match raw.started {
        Some(nanos) => Some(time(nanos)?),
        None => None,
    };
    let state = match raw.phase {
        Phase::Starting => State::Starting,
        // Why it is stopping is in the decision, which was made before.
        Phase::Running | Phase::Stopping => State::Running { started: started? },
        Phase::Ended => {
            let verdict = match (raw.exit, raw.signal, raw.not_begun, raw.failed) {
                (Some(code), None, false, None) => Verdict::Exited(code),
                (None, Some(signal), false, None) => Verdict::Signaled(signal),
                (None, None, true, None) => Verdict::NotBegun,
                (None, None, false, Some(why)) => Verdict::Failed(why),
                _ => return None,
            };
            State::Ended(Ended {
                verdict,
                cause: StopCause::parse(raw.cause.as_deref()?)?,
                started,
                finished: time(raw.finished?)?,
                dropped: raw.dropped,
                out_of_memory: raw.out_of_memory,
            })
        }
    };
    let boot = raw.boot;
    Some(Recorded { state, boot })
}

pub(crate) fn time(nanos: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))
}

/// One piece of a run's log: the header, which the bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogFrame {
    /// Whether it was printed to standard error.
    pub is_stderr: bool,
    /// How many bytes follow.
    pub len: u32,
}

impl LogFrame {
    /// The bytes of a header.
    pub const HEADER: usize = 8;
    /// The most bytes that a frame has.
    pub const MAX: u32 = 16 << 10;

    /// Reads a header; `None` if it is none.
    #[must_use]
    pub fn parse(header: [u8; Self::HEADER]) -> Option<Self> {
        let [stream, 0, 0, 0, a, b, c, d] = header else {
            return None;
        };
        let is_stderr = match stream {
            1 => false,
            2 => true,
            _ => return None,
        };
        let len = u32::from_be_bytes([a, b, c, d]);
        (1..=Self::MAX)
            .contains(&len)
            .then_some(Self { is_stderr, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Option<State> {
        parse(text.as_bytes()).map(|recorded| recorded.state)
    }

    #[test]
    fn states_are_read() {
        let text = r#"{"v":1,"phase":"ended","boot":"b","pid":7,"start":9,"started":5,
            "finished":6,"dropped":3,"out_of_memory":true,"cause":"deadline","signal":9,"new":[]}"#;
        let Some(State::Ended(ended)) = read(text) else {
            panic!("{text} is an end");
        };
        assert_eq!(
            ended,
            Ended {
                verdict: Verdict::Signaled(9),
                cause: StopCause::Deadline,
                started: time(5),
                finished: time(6).expect("a time"),
                dropped: 3,
                out_of_memory: true,
            }
        );
    }

    #[test]
    fn nonsense_is_no_state() {
        for text in [
            "",
            "{}",
            r#"{"v":2,"phase":"starting","boot":"b"}"#,
            r#"{"v":1,"phase":"running","boot":"b"}"#,
            r#"{"v":1,"phase":"ended","boot":"b","finished":1,"cause":"end"}"#,
            r#"{"v":1,"phase":"ended","boot":"b","finished":1,"cause":"end","exit":1,"signal":9}"#,
            r#"{"v":1,"phase":"ended","boot":"b","finished":1,"cause":"x","exit":1}"#,
            r#"{"v":1,"phase":"ended","boot":"b","cause":"end","exit":1}"#,
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_in_a_file(bytes in proptest::collection::vec(any::<u8>(), 0..200), header in any::<[u8; 8]>()) {
            let _ = parse(&bytes);
            if let Some(frame) = LogFrame::parse(header) {
                prop_assert!(frame.len > 0 && frame.len <= LogFrame::MAX);
            }
        }
    }
}
