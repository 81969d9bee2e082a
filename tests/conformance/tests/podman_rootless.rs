//! The suite on the Podman, run by an ordinary user, that `V6_PODMAN_ROOTLESS_HOST` names
//! (`tests/services/podman.sh`). Without one that answers every case is skipped, with the reason;
//! with `V6_REQUIRE_PODMAN=1` that is a failure.
//!
//! A node works with such an engine as the same user, since the engine reaches only that user's
//! files. So the suite does: started by root, it starts itself once more as the socket's owner.

mod support;

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const HOST: &str = "V6_PODMAN_ROOTLESS_HOST";

fn main() -> ExitCode {
    let host = std::env::var(HOST).ok();
    match host.as_deref().map(as_owner) {
        Some(Ok(Some(code))) => code,
        Some(Err(error)) => {
            eprintln!("the suite cannot be run as the owner of {HOST}: {error}");
            ExitCode::FAILURE
        }
        Some(Ok(None)) | None => support::run_at(host, "podman", "V6_REQUIRE_PODMAN"),
    }
}

/// Runs this program again as the one who has made the engine's socket, if that is somebody else
/// and we may; its exit code.
fn as_owner(host: &str) -> io::Result<Option<ExitCode>> {
    let Some(socket) = host.strip_prefix("unix://") else {
        return Ok(None);
    };
    let Ok(socket) = std::fs::metadata(socket) else {
        return Ok(None);
    };
    // A folder that we make is ours.
    let folder = tempfile::tempdir()?;
    let we = folder.path().metadata()?.uid();
    if we == socket.uid() || we != 0 {
        return Ok(None);
    }
    chown(folder.path(), Some(socket.uid()), Some(socket.gid()))?;
    // Not by the program's path, which only root may be able to reach.
    let ended = Command::new("/proc/self/exe")
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
