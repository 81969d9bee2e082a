//! What the node says of itself to a probe, over a socket of this machine.
//!
//! It is answered by the very task that drives the node, between two of its steps: no answer
//! means that this task is stuck, which a restart helps. Whoever else is away has a word of its
//! own, and is no reason to end the node.

use std::convert::Infallible;
use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The answer of a node that takes work.
pub const READY: &str = "ready";
/// An answer has a line, and whoever does not read it may not hold up the node.
const WRITE_WITHIN: Duration = Duration::from_millis(200);
/// When no file descriptor is left for whoever asks.
const AFTER_ERROR: Duration = Duration::from_secs(1);
const LONGEST: u64 = 200;

/// How far the node has come.
#[derive(Debug, Default)]
pub enum Stage {
    /// It connects to the container engine.
    #[default]
    Engine,
    /// It makes sure to be the only one of its owner.
    Alone,
    /// It joins HQ.
    Hq,
    /// It serves; whether HQ knows it at present is what the socket to HQ tells.
    Serving(watch::Receiver<bool>),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "waits for the container engine",
            Self::Alone => "waits for another node of this owner to end",
            Self::Hq => "waits for HQ",
            Self::Serving(online) if *online.borrow() => READY,
            Self::Serving(_) => "serves, without a connection to HQ at present",
        })
    }
}

/// The stage that the node is at.
#[derive(Debug, Default)]
pub struct Health(Mutex<Stage>);

impl Health {
    /// Notes that the node has come to a stage.
    pub fn reached(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn line(&self) -> String {
        let stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{stage}\n")
    }
}

/// Where the node is asked. Dropping it removes the socket.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at a path, in the place of a process that has left its socket there. Must be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// If the socket cannot be made, as where another process listens.
    pub fn bind(path: &Path) -> Result<Self> {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            _ => {}
        }
        Ok(Self {
            listener: UnixListener::bind(path)?,
            path: path.to_owned(),
        })
    }

    /// Answers whoever asks, for ever. Cancel-safe.
    pub async fn answer(&self, health: &Health) -> Infallible {
        loop {
            match self.listener.accept().await {
                Ok((mut asking, _)) => {
                    let line = health.line();
                    let _ = timeout(WRITE_WITHIN, asking.write_all(line.as_bytes())).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "a probe of the node's health cannot be answered");
                    sleep(AFTER_ERROR).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Asks the node that listens at a path; its answer is a line without its end.
///
/// # Errors
/// If nobody listens there, or there is no answer in time.
pub async fn ask(path: &Path, within: Duration) -> Result<String> {
    let asking = async {
        let stream = UnixStream::connect(path).await?;
        let mut answer = String::new();
        stream.take(LONGEST).read_to_string(&mut answer).await?;
        match answer.strip_suffix('\n') {
            Some(line) => Ok(line.to_owned()),
            None => Err(Error::from(ErrorKind::UnexpectedEof)),
        }
    };
    match timeout(within, asking).await {
        Ok(answered) => answered,
        Err(_) => Err(Error::new(
            ErrorKind::TimedOut,
            format!("no answer within {} s", within.as_secs()),
        )),
    }
}
