//! Putting a run's files where its container finds them.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use v6_runtime::{Error as Public, ErrorKind, InputStream};

use crate::error::{Error, Result, blocking};
use crate::plan::{Content, Entry};
use crate::record::Place;

/// Makes files and folders, in this order.
pub(crate) async fn make(entries: Vec<Entry>) -> Result<()> {
    let mut waiting = Vec::new();
    // All that is at hand at once.
    for entry in entries {
        if let Content::Stream(stream) = &entry.content {
            blocking_make(std::mem::take(&mut waiting)).await?;
            take_in(&entry.path, entry.mode, stream).await?;
        } else {
            waiting.push(entry);
        }
    }
    blocking_make(waiting).await
}

async fn blocking_make(entries: Vec<Entry>) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    blocking(move || {
        for entry in &entries {
            let path = &entry.path;
            make_one(entry).map_err(Error::host(format!("{} cannot be made", path.display())))?;
        }
        Ok(())
    })
    .await
}

fn make_one(entry: &Entry) -> io::Result<()> {
    let Content::Bytes(bytes) = &entry.content else {
        let made = fs::DirBuilder::new().mode(0o700).create(&entry.path);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        return fs::set_permissions(&entry.path, Permissions::from_mode(entry.mode));
    };
    // What was made as a place for something else, or by an attempt before.
    match fs::remove_file(&entry.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&entry.path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.set_permissions(Permissions::from_mode(entry.mode))
}

/// Stores exactly as many bytes as were announced.
async fn take_in(path: &Path, mode: u32, stream: &InputStream) -> Result<()> {
    const PIECE: usize = 64 << 10;
    let failed = || Error::host(format!("{} cannot be written", path.display()));
    let _ = tokio::fs::remove_file(path).await;
    let mut options = tokio::fs::OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await;
    let mut file = file.map_err(failed())?;
    let mut reader = stream.open().await?;
    let wrong = |message: String| Public::new(ErrorKind::InvalidSpec, message);
    let mut left = stream.len();
    let mut buffer = vec![0; PIECE];
    loop {
        let read = reader.read(&mut buffer).await.map_err(|error| {
            Public::new(ErrorKind::Unexpected, "an input could not be read").with_source(error)
        })?;
        let Some(rest) = left.checked_sub(read as u64) else {
            return Err(wrong(format!("an input has more than its {} bytes", stream.len())).into());
        };
        if read == 0 {
            break;
        }
        left = rest;
        file.write_all(&buffer[..read]).await.map_err(failed())?;
    }
    if left > 0 {
        let message = format!("an input has {left} bytes less than its {}", stream.len());
        return Err(wrong(message).into());
    }
    file.flush().await.map_err(failed())?;
    let permissions = Permissions::from_mode(mode);
    file.set_permissions(permissions).await.map_err(failed())
}

/// Gives the container our program: the same file for all runs, where that can be.
pub(crate) fn link_helper(program: &Path, place: &Place) -> Result<()> {
    let to = place.inside("helper");
    let linked = match fs::hard_link(program, &to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // Another file system, or one without links.
        Err(_) => fs::copy(program, &to).map(drop),
        Ok(()) => Ok(()),
    };
    linked.map_err(Error::host(format!("{} cannot be made", to.display())))
}
