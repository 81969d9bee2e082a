//! Granted connections: a folder of sockets for each run, one socket for each grant.
//!
//! Only the run sees its folder, so which run and which grant a connection belongs to is certain
//! without a word of the run's.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures_util::stream;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use v6_runtime::{Connection, EgressGrant, Owner, ResultStream, RunId};

use crate::error::{Error, Result};

/// Connections that have been accepted and not been read; further ones wait in the kernel.
const BACKLOG: usize = 16;

type Reader = Option<mpsc::Sender<v6_runtime::Result<Connection>>>;

/// The sockets of all runs, and whoever reads them.
pub(crate) struct Egress {
    /// As this process sees it.
    folder: PathBuf,
    /// As the engine sees it; `None` if it does not.
    engine_folder: Option<String>,
    reader: watch::Sender<Reader>,
    open: Mutex<HashMap<RunId, JoinSet<()>>>,
}

impl Egress {
    pub(crate) fn new(folder: PathBuf, engine_folder: Option<String>) -> Self {
        Self {
            folder,
            engine_folder,
            reader: watch::Sender::new(None),
            open: Mutex::default(),
        }
    }

    /// The engine's path of a run's folder.
    pub(crate) fn engine_path(&self, owner: &Owner, run: &RunId) -> Option<String> {
        let folder = self.engine_folder.as_ref()?;
        Some(format!("{folder}/{owner}.{run}"))
    }

    /// Whether somebody has ever asked for connections.
    pub(crate) fn is_wanted(&self) -> bool {
        self.reader.borrow().is_some()
    }

    /// Listens for a run. What is there already, goes on.
    pub(crate) fn open(&self, owner: &Owner, run: &RunId, grants: &[EgressGrant]) -> Result<()> {
        if grants.is_empty() {
            return Ok(());
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(run) {
            return Ok(());
        }
        let folder = self.run_folder(owner, run);
        let failed = |error| Error::host(format!("sockets in {}", folder.display()), error);
        make_folder(&folder).map_err(failed)?;
        let mut tasks = JoinSet::new();
        for (index, grant) in grants.iter().enumerate() {
            let listener = listen(&folder, &format!("{index}.sock")).map_err(failed)?;
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

    /// Stops listening and removes the sockets.
    pub(crate) fn remove(&self, owner: &Owner, run: &RunId) -> Result<()> {
        self.close(run);
        let folder = self.run_folder(owner, run);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let what = format!("{} cannot be removed", folder.display());
                Err(Error::host(what, error))
            }
            _ => Ok(()),
        }
    }

    /// The connections of all runs, to this reader from now on.
    pub(crate) fn connections(&self) -> ResultStream<Connection> {
        let (send, mut receive) = mpsc::channel(BACKLOG);
        self.reader.send_replace(Some(send));
        Box::pin(stream::poll_fn(move |context| receive.poll_recv(context)))
    }

    fn run_folder(&self, owner: &Owner, run: &RunId) -> PathBuf {
        self.folder.join(format!("{owner}.{run}"))
    }
}

/// Makes a folder that any user id inside a container may look into.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755))
}

fn listen(folder: &Path, name: &str) -> std::io::Result<UnixListener> {
    let path = folder.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A socket's path has at most 107 bytes; names of runs and owners may be longer.
    let opened = std::fs::File::open(folder)?;
    let short = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666))?;
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
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
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
