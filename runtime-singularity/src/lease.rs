//! One owner, one live process: a locked file beside the runs.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use v6_runtime::{ErrorKind, Held, Lease, Owner};

use crate::error::{Error, Result};

/// How long a lease that this process has given back may still be held by a program that it was just
/// starting: such a one has all open files for a moment.
const GIVEN_BACK: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Takes the lease.
pub(crate) async fn acquire(path: &Path, owner: &Owner) -> Result<Lease> {
    let until = tokio::time::Instant::now() + GIVEN_BACK;
    loop {
        match try_acquire(path)? {
            Ok(lease) => return Ok(lease),
            Err(holder) if holder.is_us && tokio::time::Instant::now() < until => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            Err(holder) => {
                let message = format!("{} is at work for owner {owner}", holder.name);
                return Err(v6_runtime::Error::new(ErrorKind::Conflict, message).into());
            }
        }
    }
}

/// Who has the lease.
struct Holder {
    name: String,
    is_us: bool,
}

fn try_acquire(path: &Path) -> Result<Result<Lease, Holder>> {
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
            let name = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            let is_us = holder.trim() == std::process::id().to_string();
            return Ok(Err(Holder { name, is_us }));
        }
    }
    file.set_len(0).map_err(failed())?;
    file.rewind().map_err(failed())?;
    writeln!(file, "{}", std::process::id()).map_err(failed())?;
    Ok(Ok(Lease::new(Locked { _file: file })))
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

    #[tokio::test]
    async fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner::new("o").unwrap();
        let path = folder.path().join("lease");
        let first = acquire(&path, &owner).await.unwrap();
        let error = v6_runtime::Error::from(acquire(&path, &owner).await.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains(&std::process::id().to_string()));
        drop(first);
        let _again = acquire(&path, &owner).await.unwrap();
    }
}
