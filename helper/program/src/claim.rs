//! The claim: what `init` saw, in one line of JSON, for whoever started the container.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::sys::End;

/// Why the command was not started.
#[derive(Clone, Copy, Debug)]
pub enum Cause {
    NotFound,
    NotExecutable,
    Other,
}

/// What became of the command.
#[derive(Debug)]
pub enum Verdict {
    Ended(End),
    NotStarted(Cause, String),
}

/// What is claimed.
#[derive(Debug)]
pub struct Claim {
    pub verdict: Verdict,
    /// The deadline came before the end.
    pub deadline: bool,
    /// SIGTERM or SIGINT came from outside before the end.
    pub terminated: bool,
    /// The command was killed, and the kernel has meanwhile killed for want of memory.
    pub out_of_memory: bool,
}

impl Claim {
    /// The exit code that says the same as far as it can.
    pub fn exit_code(&self) -> i32 {
        match self.verdict {
            Verdict::Ended(End::Exited(code)) => code,
            Verdict::Ended(End::Signaled(signal)) => 128 + signal,
            Verdict::NotStarted(Cause::Other, _) => 125,
            Verdict::NotStarted(Cause::NotExecutable, _) => 126,
            Verdict::NotStarted(Cause::NotFound, _) => 127,
        }
    }

    fn to_json(&self) -> String {
        let mut json = String::from("{\"v\":1,");
        match &self.verdict {
            Verdict::Ended(End::Exited(code)) => _ = write!(json, "\"exit\":{code}"),
            Verdict::Ended(End::Signaled(signal)) => _ = write!(json, "\"signal\":{signal}"),
            Verdict::NotStarted(cause, error) => {
                let cause = match cause {
                    Cause::NotFound => "not-found",
                    Cause::NotExecutable => "not-executable",
                    Cause::Other => "other",
                };
                _ = write!(json, "\"not_started\":\"{cause}\",\"error\":");
                quote(&mut json, error);
            }
        }
        if self.deadline {
            json.push_str(",\"deadline\":true");
        }
        if self.terminated {
            json.push_str(",\"terminated\":true");
        }
        if self.out_of_memory {
            json.push_str(",\"out_of_memory\":true");
        }
        json.push_str("}\n");
        json
    }
}

/// Adds a JSON string.
pub fn quote(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            character if character.is_control() => {
                _ = write!(json, "\\u{:04x}", u32::from(character))
            }
            character => json.push(character),
        }
    }
    json.push('"');
}

/// The file for the claim. Opened before the command starts, so that nothing which the
/// command puts in its place later can be written to.
#[derive(Debug)]
pub struct ClaimFile(File);

impl ClaimFile {
    /// Opens an existing regular file; neither a symbolic link nor anything that could block.
    pub fn open(path: &OsStr) -> io::Result<Self> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Self(file))
    }

    /// Replaces what is in the file.
    pub fn write(&self, claim: &Claim) -> io::Result<()> {
        self.0.set_len(0)?;
        let json = claim.to_json();
        match self.0.write_at(json.as_bytes(), 0)? {
            written if written == json.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}
