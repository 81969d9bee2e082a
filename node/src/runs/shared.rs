//! What every run's task needs of the node.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use v6_runtime::{Runtime, Tracker};

use super::capacity::{Capacity, Share};
use crate::config::Config;
use crate::crypto::Codec;
use crate::gateway::Gateway;
use crate::hq::{Action, Backoff, Emit, Hq, Identity, RunStatus, Socket};
use crate::session::Sessions;

use super::context::RunContext;

/// First and longest pause between two tries of what has to succeed in the end.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The node, as its runs see it.
#[derive(Debug)]
pub struct Node {
    /// What the operator decided.
    pub config: Config,
    /// Who the node is at HQ.
    pub us: Identity,
    /// HQ's REST interface.
    pub hq: Hq,
    /// HQ's socket.
    pub socket: Socket,
    /// How values are written in this collaboration.
    pub codec: Codec,
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// All runs' ends, from one watch.
    pub tracker: Tracker,
    /// Dataframes.
    pub sessions: Sessions,
    /// The way out of the containers.
    pub gateway: Gateway,
    /// Room for runs.
    pub capacity: Capacity,
}

impl Node {
    /// What a run of this step and image takes of the machine.
    #[must_use]
    pub fn share(&self, step: Option<Action>, image: &str) -> Share {
        let run = self.config.runtime.limits(step, image);
        Share {
            cpu_milli: run.cpu_milli.map_or(0, |milli| milli.get().into()),
            memory_bytes: run.memory_bytes.map_or(0, NonZero::get),
        }
    }

    /// Where outputs are kept on their way to HQ.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        spool_folder(&self.config)
    }

    /// Announces a run's status to the collaboration. A status that comes to nothing because HQ
    /// is away is repeated by the socket.
    pub async fn announce(&self, context: &RunContext, status: RunStatus) {
        let event = Emit::StatusChange {
            run: context.run,
            task: context.task,
            parent: context.parent,
            status,
        };
        if let Err(error) = self.socket.emit(event).await {
            tracing::warn!(run = context.run, %error, "the run's status could not be announced");
        }
    }
}

/// Where outputs are kept on their way to HQ; nothing in it outlives the process.
#[must_use]
pub fn spool_folder(config: &Config) -> PathBuf {
    config.runtime.data_dir.join("spool")
}

/// Pauses between tries of what has to succeed in the end.
#[must_use]
pub fn patience() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Whether the engine is asked again. An engine that is away or busy is waited for; one that has
/// failed inside, which may be so for ever, gets ten more chances.
#[derive(Debug, Default)]
pub struct EngineTries {
    failures: u32,
}

impl EngineTries {
    /// Counts an answer.
    pub fn again(&mut self, error: &v6_runtime::Error) -> bool {
        const FAILURES_MAX: u32 = 10;
        if error.kind() == v6_runtime::ErrorKind::Unexpected {
            self.failures += 1;
        }
        error.is_retryable() && self.failures <= FAILURES_MAX
    }
}
