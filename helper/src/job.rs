//! A run whose monitor is a job of a batch system: maybe on another host, started once or more often.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::monitor::{MonitorOptions, RunFolder};

/// In place of who has begun a run that never will.
const FORESTALLED: &[u8] = b"forestalled";

/// Where a job's granted connections go: to an address that is read from a file for each, since
/// whoever answers may come back elsewhere, under a key that is in the run's file `key`
/// (see `program/src/tunnel.rs` for what passes).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TunnelOptions {
    /// The file with the address, as `HOST:PORT` in numbers.
    pub address: PathBuf,
    /// The run's name, which the other end is told.
    pub run: String,
    /// How many grants it has.
    pub grants: u16,
}

impl TunnelOptions {
    /// All there is to say.
    pub fn new(address: impl Into<PathBuf>, run: impl Into<String>, grants: u16) -> Self {
        let (address, run) = (address.into(), run.into());
        Self {
            address,
            run,
            grants,
        }
    }
}

impl RunFolder {
    /// Makes this attempt at the run ready to be a job, and gives the command line that the job has to
    /// become: a monitor, wherever it is executed. It runs the command once, whatever the batch system
    /// does, with this environment and no other; and never if there is a newer attempt by then.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn make_job(
        &self,
        attempt: &str,
        program: &Path,
        options: &MonitorOptions,
        command: &[OsString],
        environment: &[(OsString, OsString)],
    ) -> io::Result<Vec<OsString>> {
        let pairs = environment.iter().map(|(name, value)| {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            pair
        });
        self.write("job.environment", &strings(pairs))?;
        self.write("job.command", &strings(command.iter().cloned()))?;
        self.write("attempt", attempt.as_bytes())?;
        File::open(self.path())?.sync_all()?;
        let mut line = vec![program.into()];
        line.extend(options.arguments(self.path()));
        let words = [
            ["--job", attempt],
            ["--env-file", "job.environment"],
            ["--command-file", "job.command"],
        ];
        line.extend(words.iter().flatten().map(OsString::from));
        Ok(line)
    }

    /// Which attempt was made ready, if one was.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn attempt(&self) -> io::Result<Option<String>> {
        let bytes = self.read("attempt")?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Begins the run in place of its job, which then never does. `false` if that has begun.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forestall(&self) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        match options.open(self.path().join("begun")) {
            Ok(mut file) => {
                file.write_all(FORESTALLED)?;
                file.sync_data()?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.is_forestalled(),
            Err(error) => Err(error),
        }
    }

    /// Whether it can never begin.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn is_forestalled(&self) -> io::Result<bool> {
        Ok(self.read("begun")?.is_some_and(|text| text == FORESTALLED))
    }
}

/// Strings, each ended by a NUL.
fn strings(all: impl Iterator<Item = OsString>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for one in all {
        bytes.extend_from_slice(one.as_bytes());
        bytes.push(0);
    }
    bytes
}
