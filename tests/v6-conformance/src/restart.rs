//! Ending and starting the engine, for the cases about that.
//!
//! The operator's command may need rights that the suite gives up where the engine is an ordinary
//! user's. Then the process that gave them up stays, and runs the command when the suite connects to
//! its socket: this command and nothing else, whoever asks.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// How long an engine may take to come back.
const LIMIT: Duration = Duration::from_secs(120);
/// Tells the suite where somebody listens who restarts the engine.
const VARIABLE: &str = "V6_CONFORMANCE_RESTART";
/// What is answered to whoever asked, when all went well.
const DONE: &str = "done";

/// How the engine is restarted.
#[derive(Debug, Clone)]
pub(crate) enum Restart {
    /// By this command, run by sh.
    Command(String),
    /// By whoever listens there.
    Asked(PathBuf),
}

impl Restart {
    /// By the one who started us as somebody else, if he did, or else by this command.
    pub(crate) fn of(command: Option<String>) -> Option<Self> {
        let asked = std::env::var_os(VARIABLE).map(|path| Self::Asked(path.into()));
        asked
            .filter(|_| command.is_some())
            .or(command.map(Self::Command))
    }

    /// What the suite asks for: `None` where nobody has said how.
    ///
    /// # Errors
    /// Those of [`restart`](Self::restart).
    pub(crate) async fn hook(how: Option<&Self>) -> v6_runtime::Result<Option<()>> {
        let Some(how) = how else {
            return Ok(None);
        };
        how.restart().await.map_err(|error| {
            let what = "the suite, restarting the engine";
            v6_runtime::Error::new(v6_runtime::ErrorKind::Unexpected, what).with_source(error)
        })?;
        Ok(Some(()))
    }

    /// Returns when the engine has been restarted.
    ///
    /// # Errors
    /// Whatever kept it from coming back, or the time that it took.
    pub(crate) async fn restart(&self) -> io::Result<()> {
        let answer = tokio::time::timeout(LIMIT, async {
            match self {
                Self::Command(command) => {
                    let mut shell = tokio::process::Command::from(shell(command));
                    Ok(told(shell.kill_on_drop(true).status().await))
                }
                Self::Asked(socket) => {
                    let mut answer = String::new();
                    let mut asked = UnixStream::connect(socket).await?;
                    asked.read_to_string(&mut answer).await?;
                    Ok(answer)
                }
            }
        });
        let answer: io::Result<String> = answer.await.map_err(|_| {
            let message = format!("it took more than {} s", LIMIT.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, message)
        })?;
        match answer?.as_str() {
            DONE => Ok(()),
            "" => Err(io::Error::other("whoever restarts the engine is gone")),
            other => Err(io::Error::other(other.to_owned())),
        }
    }
}

/// Restarts the engine by this command for whoever connects to the socket, one after the other,
/// until this process ends; and what tells the suite so.
///
/// # Errors
/// A socket that cannot be made.
pub(crate) fn for_others(socket: &Path, command: String) -> io::Result<(&'static str, PathBuf)> {
    let listener = UnixListener::bind(socket)?;
    std::thread::Builder::new()
        .name("restart".to_owned())
        .spawn(move || {
            for asked in listener.incoming().map_while(Result::ok) {
                // Whoever has gone meanwhile does not want to know.
                let _ = (&asked).write_all(told(shell(&command).status()).as_bytes());
            }
        })?;
    Ok((VARIABLE, socket.to_owned()))
}

fn shell(command: &str) -> std::process::Command {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", command]);
    shell.stdin(Stdio::null()).stdout(Stdio::null());
    shell
}

fn told(ended: io::Result<std::process::ExitStatus>) -> String {
    match ended {
        Ok(status) if status.success() => DONE.to_owned(),
        Ok(status) => format!("the command for it ended with {status}"),
        Err(error) => format!("the command for it cannot be run: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Restart, for_others};

    #[tokio::test]
    async fn it_is_done_for_whoever_asks() {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = folder.path().join("seen");
        let socket = folder.path().join("socket");
        let command = format!(
            "printf x >>{}; ! [ -e {}.bad ]",
            seen.display(),
            seen.display()
        );
        let (_, at) = for_others(&socket, command.clone()).expect("a socket");
        for restart in [Restart::Asked(at), Restart::Command(command)] {
            let before = std::fs::read(&seen).unwrap_or_default().len();
            restart.restart().await.expect("it is restarted");
            assert_eq!(std::fs::read(&seen).expect("it has run").len(), before + 1);
            std::fs::write(seen.with_extension("bad"), "").expect("a file");
            let error = restart.restart().await.expect_err("it fails");
            assert!(error.to_string().contains("exit status: 1"), "{error}");
            std::fs::remove_file(seen.with_extension("bad")).expect("it was there");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("socket");
        let asked = Restart::Asked(socket.clone());
        asked.restart().await.expect_err("there is no socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let gone = std::thread::spawn(move || drop(listener.accept()));
        let error = asked.restart().await.expect_err("nobody answers");
        assert!(error.to_string().contains("is gone"), "{error}");
        gone.join().expect("it ends");
    }
}
