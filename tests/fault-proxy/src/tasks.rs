//! The tasks of all open connections, which can be ended together.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    over: CancellationToken,
    connections: Arc<AtomicUsize>,
}

/// Counts as an open connection.
pub(crate) struct Open(Arc<AtomicUsize>);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        self.tracker.spawn(async move {
            over.run_until_cancelled_owned(task).await;
        });
    }

    pub(crate) fn open(&self) -> Open {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Open(self.connections.clone())
    }

    /// Ends all tasks, and waits until what they held is dropped; returns how many connections
    /// there were.
    pub(crate) async fn end(self) -> usize {
        let connections = self.connections.load(Ordering::Relaxed);
        self.tracker.close();
        self.over.cancel();
        self.tracker.wait().await;
        connections
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
