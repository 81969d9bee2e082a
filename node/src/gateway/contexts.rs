//! Which runs may open connections, and where these lead.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use v6_runtime::RunId;

use crate::runs::RunContext;

/// The contexts of the runs that this node holds.
#[derive(Debug)]
pub(super) struct Contexts {
    map: RwLock<HashMap<RunId, Arc<RunContext>>>,
    changed: watch::Sender<()>,
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            map: RwLock::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Contexts {
    /// Puts a run in, in place of what was known of it.
    pub(super) fn insert(&self, context: RunContext) {
        self.map
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(context.run_id(), Arc::new(context));
        self.changed.send_replace(());
    }

    /// Takes a run out; its later connections are refused.
    pub(super) fn remove(&self, run: &RunId) {
        self.map
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(run);
    }

    fn get(&self, run: &RunId) -> Option<Arc<RunContext>> {
        self.map
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(run)
            .cloned()
    }

    /// What is known of a run. Waits for one that is not known yet: after a restart
    /// connections may come before all runs have been adopted.
    pub(super) async fn wait(&self, run: &RunId, limit: Duration) -> Option<Arc<RunContext>> {
        let mut changes = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(context) = self.get(run) {
                    return context;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(limit, found).await.ok()
    }
}
