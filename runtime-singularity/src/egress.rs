//! Granted connections: in each run's folder a folder of sockets, one socket for each grant.
//!
//! Only the run sees its folder, so which run and which grant a connection belongs to is certain
//! without a word of the run's.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use tokio::net::UnixListener;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use v6_runtime::{Connection, EgressGrant, ResultStream, RunId};

use crate::error::{Error, Result};
use crate::record::Runs;

/// Connections that have been accepted and not been read; further ones wait in the kernel.
const BACKLOG: usize = 16;

type Reader = Option<mpsc::Sender<v6_runtime::Result<Connection>>>;

/// The sockets of all runs, and whoever reads them.
pub(crate) struct Egress {
    runs: Runs,
    reader: watch::Sender<Reader>,
    open: Mutex<HashMap<RunId, JoinSet<()>>>,
}

impl Egress {
    pub(crate) fn new(runs: Runs) -> Self {
        Self {
            runs,
            reader: watch::Sender::new(None),
            open: Mutex::default(),
        }
    }

    /// Whether somebody has ever asked for connections.
    pub(crate) fn is_wanted(&self) -> bool {
        self.reader.borrow().is_some()
    }

    /// A place for one connection at whoever reads them. Waits for somebody who does.
    pub(crate) async fn room(&self) -> OwnedPermit<v6_runtime::Result<Connection>> {
        let mut readers = self.reader.subscribe();
        loop {
            let reader = readers.borrow_and_update().clone();
            if let Some(reader) = reader
                && let Ok(room) = reader.reserve_owned().await
            {
                return room;
            }
            // The sender lives as long as we do.
            let _ = readers.changed().await;
        }
    }

    /// Listens for a run. What is there already, goes on.
    pub(crate) fn open(&self, run: &RunId, grants: &[EgressGrant]) -> Result<()> {
        if grants.is_empty() {
            return Ok(());
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(run) {
            return Ok(());
        }
        let folder = self.runs.place(run).inside("egress");
        if !folder.exists() {
            // Its files are not stored yet; its start comes here again.
            return Ok(());
        }
        let mut tasks = JoinSet::new();
        for (index, grant) in grants.iter().enumerate() {
            let listener = listen(&folder, &format!("{index}.sock"))
                .map_err(Error::host(format!("sockets in {}", folder.display())))?;
            let reader = self.reader.subscribe();
            tasks.spawn(accept(listener, run.clone(), grant.clone(), reader));
        }
        open.insert(run.clone(), tasks);
        Ok(())
    }

    /// Stops listening for a run.
    pub(crate) fn close(&self, run: &RunId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(run);
    }

    /// The connections of all runs, to this reader from now on.
    pub(crate) fn connections(&self) -> ResultStream<Connection> {
        let (send, mut receive) = mpsc::channel(BACKLOG);
        self.reader.send_replace(Some(send));
        Box::pin(stream::poll_fn(move |context| receive.poll_recv(context)))
    }
}

fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let path = folder.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A socket's path has at most 107 bytes; the folder's may be longer.
    let opened = File::open(folder)?;
    let short = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
    let listener = UnixListener::bind(short)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Hands over what is accepted. While nobody reads, nothing is accepted: connections wait in the
/// kernel, and before it in `init`.
async fn accept(
    listener: UnixListener,
    run: RunId,
    grant: EgressGrant,
    mut readers: watch::Receiver<Reader>,
) {
    loop {
        let reader = readers.borrow_and_update().clone();
        let Some(reader) = reader else {
            if readers.changed().await.is_err() {
                return;
            }
            continue;
        };
        let handed = async {
            loop {
                let Ok(room) = reader.reserve().await else {
                    // The reader is gone: wait for another.
                    return std::future::pending().await;
                };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = Connection::new(run.clone(), grant.clone(), stream);
                        room.send(Ok(connection));
                    }
                    Err(error) => {
                        tracing::warn!(%run, %error, "a connection could not be accepted");
                        // Out of files, most likely: others need time to close theirs.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        tokio::select! {
            () = handed => {}
            changed = readers.changed() => if changed.is_err() { return },
        }
    }
}
