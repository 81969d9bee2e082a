//! As whom this measures.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Runs this program again as this user, in a folder of his, if root has started it; its exit code.
///
/// # Errors
/// A user that this machine does not have; whatever keeps it from being started.
pub(crate) fn again_as(user: Option<&str>) -> io::Result<Option<ExitCode>> {
    let we = File::open("/proc/self")?.metadata()?.uid();
    let Some(user) = user.filter(|_| we == 0) else {
        return Ok(None);
    };
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let known = || io::Error::other(format!("there is no user {user}"));
    let (uid, gid) = ids_of(&passwd, user).ok_or_else(known)?;
    let folder = tempfile::tempdir()?;
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

fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    let mut fields = lines.find(|fields| fields.clone().next() == Some(name))?;
    let mut number = |at| fields.nth(at)?.parse().ok();
    Some((number(2)?, number(0)?))
}
