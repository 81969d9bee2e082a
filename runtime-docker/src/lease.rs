//! One owner, one live process: a locked file of this machine.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use rustix::fs::{FlockOperation, flock};
use v6_runtime::{ErrorKind, Held, Lease, Owner};

use crate::error::{Error, Result};

/// Where the lease of an owner at an engine is.
pub(crate) fn path(folder: &Path, engine: &str, owner: &Owner) -> PathBuf {
    let engine: String = engine
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect();
    folder.join(format!("{engine}.{owner}.lock"))
}

/// Takes the lease.
pub(crate) fn acquire(path: &Path, owner: &Owner) -> Result<Lease> {
    let failed = |error| {
        Error::host(
            format!("the lease {} cannot be taken", path.display()),
            error,
        )
    };
    let mut file = open(path).map_err(failed)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        // Who it is, is for people only.
        let _ = file.read_to_string(&mut holder);
        let holder = match holder.trim() {
            "" => "another process".to_owned(),
            pid => format!("process {pid}"),
        };
        let message = format!("{holder} is at work for owner {owner}");
        return Err(v6_runtime::Error::new(ErrorKind::Conflict, message).into());
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(Lease::new(Locked { _file: file }))
}

/// Whether a process holds the lease, and it is not this one.
pub(crate) fn is_held_elsewhere(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else {
        return false;
    };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return false;
    }
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    holder.trim() != std::process::id().to_string()
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// The file is unlocked when it is closed, however its process ends.
struct Locked {
    _file: File,
}

impl Held for Locked {
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner::new("o").unwrap();
        let path = path(folder.path(), "AB:CD", &owner);
        let first = acquire(&path, &owner).unwrap();
        let error = v6_runtime::Error::from(acquire(&path, &owner).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains(&std::process::id().to_string()));
        assert!(!is_held_elsewhere(&path));
        drop(first);
        let _again = acquire(&path, &owner).unwrap();
    }
}
