//! Granted connections: what comes out of a run's tunnel, given to whoever reads.
//!
//! The tunnel is the run's own, and proven by its key, so which run a connection belongs to is
//! certain; which of its grants it is for, the helper says, and it can only name one of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use v6_runtime::{Connection, EgressGrant, ResultStream, RunId};

use crate::look::Look;
use crate::state::Shared;
use crate::translate;
use crate::tunnel::{Incoming, Stream, read_line};

/// Connections that have been accepted and not been read; further ones wait in the pod.
const BACKLOG: usize = 16;
/// How long the helper may take to say what a stream is for.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);

type Reader = Option<mpsc::Sender<v6_runtime::Result<Connection>>>;

/// The runs whose connections are taken, and whoever reads them.
pub(crate) struct Egress {
    reader: watch::Sender<Reader>,
    open: Mutex<HashMap<RunId, AbortHandle>>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            reader: watch::Sender::new(None),
            open: Mutex::default(),
        }
    }
}

impl Egress {
    /// Whether somebody has ever asked for connections.
    pub(crate) fn is_wanted(&self) -> bool {
        self.reader.borrow().is_some()
    }

    /// The connections of all runs, to this reader from now on.
    pub(crate) fn connections(&self) -> ResultStream<Connection> {
        let (send, mut receive) = mpsc::channel(BACKLOG);
        self.reader.send_replace(Some(send));
        Box::pin(stream::poll_fn(move |context| receive.poll_recv(context)))
    }

    /// Stops taking a run's connections.
    pub(crate) fn close(&self, id: &RunId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = open.remove(id) {
            task.abort();
        }
    }

    /// What takes the streams that a run's pod opens.
    pub(crate) fn incoming(&self, id: &RunId, grants: &[EgressGrant]) -> Incoming {
        let (id, reader) = (id.clone(), self.reader.clone());
        let grants: Arc<[EgressGrant]> = grants.into();
        Arc::new(move |stream| {
            let (id, readers, grants) = (id.clone(), reader.subscribe(), grants.clone());
            tokio::spawn(async move {
                // The helper has many more of them, and the program tries again.
                let _ = hand_over(stream, id, readers, &grants).await;
            });
        })
    }
}

/// Gives one connection to the reader. Until somebody has it, the helper keeps it.
async fn hand_over(
    mut stream: Stream,
    run: RunId,
    mut readers: watch::Receiver<Reader>,
    grants: &[EgressGrant],
) -> std::io::Result<()> {
    let said = tokio::time::timeout(PATIENCE, read_line(&mut stream)).await;
    let said = said.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let grant = said
        .strip_prefix("CONN ")
        .and_then(|index| index.parse::<usize>().ok())
        .and_then(|index| grants.get(index));
    let Some(grant) = grant else {
        tracing::warn!(%run, "a pod asked for a connection that is not granted");
        stream.write_all(b"NO\n").await?;
        return stream.shutdown().await;
    };
    loop {
        let reader = readers.borrow_and_update().clone();
        let room = async {
            match reader {
                Some(reader) => match reader.reserve_owned().await {
                    Ok(room) => room,
                    // The reader is gone: wait for another.
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            room = room => {
                stream.write_all(b"OK\n").await?;
                stream.flush().await?;
                room.send(Ok(Connection::new(run, grant.clone(), stream)));
                return Ok(());
            }
            changed = readers.changed() => {
                changed.map_err(|_| std::io::Error::from(std::io::ErrorKind::NotConnected))?;
            }
        }
    }
}

impl Shared {
    /// Takes a run's connections for as long as it runs, if somebody wants them.
    pub(crate) fn take_connections(self: &Arc<Self>, look: &Look) {
        let id = &look.record.id;
        if look.record.egress.is_empty() || !self.egress.is_wanted() {
            return;
        }
        if !translate::has_sidecar(&look.pod) {
            return;
        }
        let mut open = self
            .egress
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if open.get(id).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (shared, of) = (self.clone(), id.clone());
        let task = self.spawn(async move { shared.keep_tunnel(&of).await });
        open.insert(id.clone(), task);
    }

    /// Keeps a tunnel open until the run is over.
    async fn keep_tunnel(self: &Arc<Self>, id: &RunId) {
        let mut delay = FIRST_DELAY;
        loop {
            match self.look(id).await {
                Ok(Some(look)) if look.status.phase.is_finished() => return,
                Ok(Some(look)) => match self.tunnel(&look).await {
                    Ok(tunnel) => {
                        delay = FIRST_DELAY;
                        tunnel.ended().await;
                        self.tunnels.close(id);
                    }
                    Err(error) => {
                        tracing::debug!(run = %id, %error, "a run's connections wait");
                    }
                },
                Ok(None) => return,
                Err(error) => tracing::debug!(run = %id, %error, "a run's connections wait"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LAST_DELAY);
        }
    }
}
