//! Running a command of the site's to its end, and taking what it says.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::error::{Error, Result};

/// The most that is kept of what it says, of each kind: more than 100,000 jobs in a queue take.
const MAX_WORDS: u64 = 16 << 20;

/// What a command has said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command. Dropping the future ends it, and all that it has started.
pub(crate) async fn run(
    mut command: Command,
    patience: Duration,
    step: &'static str,
) -> Result<Said> {
    let program = command.as_std().get_program().display().to_string();
    let cannot = || Error::host(format!("{program} cannot be started"));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(cannot())?;
    let mut group = Group(child);
    let (out, err) = (group.0.stdout.take(), group.0.stderr.take());
    let ended = async {
        let (out, err) = tokio::join!(read(out), read(err));
        (group.0.wait().await, out, err)
    };
    // Added to now it must not overflow.
    let patience = patience.min(Duration::from_secs(366 * 86_400));
    let Ok((status, out, err)) = tokio::time::timeout(patience, ended).await else {
        return Err(Error::Timeout {
            step,
            after: patience,
        });
    };
    let status = status.map_err(cannot())?;
    Ok(Said { status, out, err })
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        let _ = (&mut from).take(MAX_WORDS).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process and all of its group, which end with this value.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Not reaped yet, so that its number is nobody else's.
        let pid = self.0.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
