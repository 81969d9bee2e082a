//! One owner, one live process: a locked file beside the runs.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;

use v6_runtime::{ErrorKind, Held, Lease, Owner};

use crate::error::{Error, Result};

/// Takes the lease.
pub(crate) fn acquire(path: &Path, owner: &Owner) -> Result<Lease> {
    let failed = || Error::host(format!("the lease {} cannot be taken", path.display()));
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let mut file = options.open(path).map_err(failed())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::Error(error)) => return Err(failed()(error)),
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who it is, is for people only.
            let _ = (&mut file).take(64).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            let message = format!("{holder} is at work for owner {owner}");
            return Err(v6_runtime::Error::new(ErrorKind::Conflict, message).into());
        }
    }
    file.set_len(0).map_err(failed())?;
    file.rewind().map_err(failed())?;
    writeln!(file, "{}", std::process::id()).map_err(failed())?;
    Ok(Lease::new(Locked { _file: file }))
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
        let path = folder.path().join("lease");
        let first = acquire(&path, &owner).unwrap();
        let error = v6_runtime::Error::from(acquire(&path, &owner).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains(&std::process::id().to_string()));
        drop(first);
        let _again = acquire(&path, &owner).unwrap();
    }
}
