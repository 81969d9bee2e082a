//! As whom the suite works.
//!
//! A node works with an ordinary user's engine as that user, since the engine reaches only that
//! user's files. So the suite does: started by root, it starts itself once more as the owner of the
//! engine's socket. Root's process stays, since only root may restart such an engine as it was started.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::restart;

/// Runs this program again as the owner of the engine's socket, if that is somebody else and we may;
/// its exit code. The engine is restarted by this command, as us.
///
/// # Errors
/// Whatever keeps it from being started.
pub(crate) fn again_as_owner_of(
    socket: &Path,
    command: Option<&str>,
) -> io::Result<Option<ExitCode>> {
    let Ok(socket) = std::fs::metadata(socket) else {
        // There is none: connecting to it says so better.
        return Ok(None);
    };
    // A folder that we make is ours.
    let folder = tempfile::tempdir()?;
    let we = folder.path().metadata()?.uid();
    if we == socket.uid() || we != 0 {
        return Ok(None);
    }
    let (uid, gid) = (Some(socket.uid()), Some(socket.gid()));
    let mut again = Command::new("/proc/self/exe");
    if let Some(command) = command {
        let at = folder.path().join("restart.sock");
        let (variable, at) = restart::for_others(&at, command.to_owned())?;
        chown(&at, uid, gid)?;
        again.env(variable, at);
    }
    chown(folder.path(), uid, gid)?;
    // Not by the program's path, which only root may be able to reach.
    let ended = again
        .args(std::env::args_os().skip(1))
        .uid(socket.uid())
        .gid(socket.gid())
        .current_dir("/")
        .env("TMPDIR", folder.path())
        .env("HOME", folder.path())
        .env_remove("XDG_RUNTIME_DIR")
        .status()?;
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}
