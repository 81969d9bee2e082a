//! As whom the suite works.
//!
//! A node works with an ordinary user's engine as that user, since the engine reaches only that
//! user's files. So the suite does: started by root, it starts itself once more as the owner of the
//! engine's socket.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs this program again as the owner of the engine's socket, if that is somebody else and we may;
/// its exit code.
///
/// # Errors
/// Whatever keeps it from being started.
pub(crate) fn again_as_owner_of(socket: &Path) -> io::Result<Option<ExitCode>> {
    let Ok(socket) = std::fs::metadata(socket) else {
        // There is none: connecting to it says so better.
        return Ok(None);
    };
    again(socket.uid(), socket.gid())
}

/// Runs this program again as this user, if that is somebody else and we may; its exit code.
///
/// # Errors
/// A user that this machine does not have; whatever keeps it from being started.
pub(crate) fn again_as(user: &str) -> io::Result<Option<ExitCode>> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        (name == user).then_some((uid.parse().ok()?, gid.parse().ok()?))
    });
    let (uid, gid) = ids.ok_or_else(|| io::Error::other(format!("there is no user {user}")))?;
    again(uid, gid)
}

fn again(uid: u32, gid: u32) -> io::Result<Option<ExitCode>> {
    // A folder that we make is ours.
    let folder = tempfile::tempdir()?;
    let we = folder.path().metadata()?.uid();
    if we == uid || we != 0 {
        return Ok(None);
    }
    chown(folder.path(), Some(uid), Some(gid))?;
    // Not by the program's path, which only root may be able to reach.
    let ended = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .uid(uid)
        .gid(gid)
        .current_dir("/")
        .env("TMPDIR", folder.path())
        .env("HOME", folder.path())
        .env_remove("XDG_RUNTIME_DIR")
        .status()?;
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}
