//! As whom the suite works.
//!
//! A node works with an ordinary user's engine as that user, since the engine reaches only that
//! user's files. So the suite does: started by root, it starts itself once more as the owner of the
//! engine's socket. Root's process stays, since only root may restart such an engine as it was started.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::restart;

/// Tells the suite in which folder whoever started it looks for its reports.
const REPORTS: &str = "V6_CONFORMANCE_REPORTS";

/// Runs this program again as the owner of the engine's socket, if that is somebody else and we may;
/// its exit code. The engine is restarted by this command, as us.
///
/// # Errors
/// Whatever keeps it from being started.
pub(crate) fn again_as_owner_of(
    socket: &Path,
    command: Option<&str>,
    reports: &[PathBuf],
) -> io::Result<Option<ExitCode>> {
    let Ok(socket) = std::fs::metadata(socket) else {
        // There is none: connecting to it says so better.
        return Ok(None);
    };
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    // The socket's own group may be one that only the engine's name space knows.
    let group = group_of(&passwd, socket.uid()).unwrap_or(socket.gid());
    again(socket.uid(), group, command, reports)
}

/// Runs this program again as this user, if that is somebody else and we may; its exit code. The engine
/// is restarted by this command, as us.
///
/// # Errors
/// A user that this machine does not have; whatever keeps it from being started.
pub(crate) fn again_as(
    user: &str,
    command: Option<&str>,
    reports: &[PathBuf],
) -> io::Result<Option<ExitCode>> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let ids = ids_of(&passwd, user);
    let (uid, gid) = ids.ok_or_else(|| io::Error::other(format!("there is no user {user}")))?;
    again(uid, gid, command, reports)
}

fn again(
    user: u32,
    group: u32,
    command: Option<&str>,
    reports: &[PathBuf],
) -> io::Result<Option<ExitCode>> {
    // A folder that we make is ours.
    let folder = tempfile::tempdir()?;
    let we = folder.path().metadata()?.uid();
    if we == user || we != 0 {
        return Ok(None);
    }
    let (uid, gid) = (Some(user), Some(group));
    let mut again = Command::new("/proc/self/exe");
    if let Some(command) = command {
        let at = folder.path().join("restart.sock");
        let (variable, at) = restart::for_others(&at, command.to_owned())?;
        chown(&at, uid, gid)?;
        again.env(variable, at);
    }
    chown(folder.path(), uid, gid)?;
    again.env(REPORTS, folder.path());
    // Not by the program's path, which only root may be able to reach.
    let ended = again
        .args(std::env::args_os().skip(1))
        .uid(user)
        .gid(group)
        .current_dir("/")
        .env("TMPDIR", folder.path())
        .env("HOME", folder.path())
        .env_remove("XDG_RUNTIME_DIR")
        .status()?;
    for (theirs, ours) in theirs(folder.path(), reports).zip(reports) {
        if theirs.exists() {
            std::fs::copy(theirs, ours)?;
        }
    }
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.map_or(ExitCode::FAILURE, ExitCode::from)))
}

/// Where the suite has to write these reports: into the folder of the one who started it as somebody
/// else, if he did, who may write where it may not.
pub(crate) fn reports(named: Vec<PathBuf>) -> Vec<PathBuf> {
    match std::env::var_os(REPORTS) {
        Some(folder) => theirs(Path::new(&folder), &named).collect(),
        None => named,
    }
}

fn theirs(folder: &Path, reports: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    reports.iter().enumerate().map(|(number, report)| {
        // The ending tells its form.
        let name = report.file_name().unwrap_or_default().to_string_lossy();
        folder.join(format!("{number}-{name}"))
    })
}

/// A user and the first group, by the lines of `/etc/passwd`.
fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2).map(str::parse::<u32>);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// The first group of a user, by the lines of `/etc/passwd`.
fn group_of(passwd: &str, uid: u32) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2).map(str::parse::<u32>);
        let (user, group) = (fields.next()?.ok()?, fields.next()?.ok()?);
        (user == uid).then_some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::{group_of, ids_of};

    #[test]
    fn a_user_has_a_group() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nx\nu:x:999:995::/nonexistent:/bin/false\n";
        assert_eq!(group_of(passwd, 0), Some(0));
        assert_eq!(group_of(passwd, 999), Some(995));
        assert_eq!(group_of(passwd, 995), None);
        assert_eq!(ids_of(passwd, "u"), Some((999, 995)));
        assert_eq!(ids_of(passwd, "root:x"), None);
    }
}
