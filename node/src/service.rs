//! `v6-node start`: a node from its configuration to its end.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use v6_runtime::{ErrorKind, Lease, Runtime, Tracker};

use crate::backends;
use crate::cli::{Exit, Failure, render};
use crate::config::Config;
use crate::gateway::{Gateway, Limits};
use crate::health::{Health, Stage};
use crate::hq::{Socket, SocketSettings};
use crate::join::{JoinError, Membership, join_patiently};
use crate::runs::{Capacity, Node, Room, Supervisor, patience, spool_folder};
use crate::session::Sessions;

/// How often a node that waits for another one says so.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// How long the node takes leave of HQ when it is told to stop. Runs are not waited for.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Runs the node until `stop`, and notes how far it has come. Its runs stay at the engine, and the
/// next start takes them up.
///
/// # Errors
/// What keeps the node from working and will not pass by itself.
pub async fn start(
    config: Config,
    health: &Health,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let alone = async {
        let runtime = connect(&config).await?;
        health.reached(Stage::Alone);
        let lease = only_one(&*runtime).await?;
        Ok::<_, Failure>((runtime, lease))
    };
    // Before the node serves, `stop` ends whatever it waits for.
    let (runtime, lease) = match stop.run_until_cancelled(Box::pin(alone)).await {
        Some(alone) => alone?,
        None => return Ok(()),
    };
    health.reached(Stage::Hq);
    let serving = Box::pin(serve(config, runtime, stop.clone()));
    let ended = match stop.run_until_cancelled(serving).await {
        Some(Ok(serving)) => {
            health.reached(Stage::Serving(serving.node.socket.online()));
            serving.until(stop, &lease).await
        }
        Some(Err(failure)) => Err(failure),
        None => Ok(()),
    };
    // What this process has not told by its end, its successor has to wait for.
    let _ = tokio::time::timeout(LEAVE_WITHIN, lease.give_back()).await;
    ended
}

struct Serving {
    node: Arc<Node>,
    supervisor: Supervisor,
    events: crate::hq::SocketEvents,
}

async fn serve(
    config: Config,
    runtime: Arc<dyn Runtime>,
    stop: CancellationToken,
) -> Result<Serving, Failure> {
    let Membership {
        hq,
        us,
        organization,
        collaboration,
        codec,
    } = join_patiently(&config).await.map_err(refused)?;
    tracing::info!(node = us.node, name = us.node_name, organization, collaboration = collaboration.name,
        encrypted = collaboration.encrypted, runtime = %runtime, "joined HQ");
    // Named files that a crash has left; their outputs are still at the engine.
    let _ = tokio::fs::remove_dir_all(spool_folder(&config)).await;
    let sessions = Sessions::open(&config.runtime.data_dir)
        .await
        .map_err(|error| Failure::new(Exit::Failed, error))?;
    let data_dir = &config.runtime.data_dir;
    let gateway = Gateway::new(
        hq.clone(),
        us.clone(),
        codec.clone(),
        data_dir,
        Limits::default(),
    )
    .map_err(|error| Failure::new(Exit::Failed, error))?;
    let (socket, events) = Socket::start(&hq, us.clone(), SocketSettings::default());
    let node = Arc::new(Node {
        capacity: Capacity::new(Room {
            runs: config.runtime.max_concurrent_runs,
            cpu_milli: config
                .runtime
                .total
                .cpu_milli
                .map(|milli| milli.get().into()),
            memory_bytes: config.runtime.total.memory_bytes.map(Into::into),
        }),
        tracker: Tracker::new(runtime.clone()),
        config,
        us,
        hq,
        socket,
        codec,
        runtime,
        sessions,
        gateway,
    });
    let supervisor = Supervisor::take_up(node.clone()).await?;
    let (gateway, runtime) = (node.gateway.clone(), node.runtime.clone());
    tokio::spawn(async move { gateway.serve(runtime, stop).await });
    Ok(Serving {
        node,
        supervisor,
        events,
    })
}

impl Serving {
    async fn until(self, stop: CancellationToken, lease: &Lease) -> Result<(), Failure> {
        let Self {
            node,
            supervisor,
            events,
        } = self;
        let ended = tokio::select! {
            () = supervisor.serve(events, stop.clone()) => Ok(()),
            why = lease.lost() => {
                Err(Failure::new(Exit::TryAgain, format!("the node has to stop: {why}")))
            }
        };
        stop.cancel();
        tracing::info!(
            "leaving; runs in progress go on at the engine and are taken up at the next start"
        );
        let _ = tokio::time::timeout(LEAVE_WITHIN, node.socket.close()).await;
        ended
    }
}

/// Connects to the engine, waiting for one that is not there yet.
async fn connect(config: &Config) -> Result<Arc<dyn Runtime>, Failure> {
    let mut pause = patience();
    loop {
        match backends::connect(config).await {
            Ok(runtime) => return Ok(runtime),
            Err(error) if error.is_retryable() => {
                let pause = pause.pause();
                tracing::warn!(
                    error = render(&error),
                    ?pause,
                    "the container engine cannot be used yet; trying again"
                );
                tokio::time::sleep(pause).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until this process is the only one of its owner.
async fn only_one(runtime: &dyn Runtime) -> Result<Lease, Failure> {
    loop {
        match runtime.acquire().await {
            Ok(lease) => return Ok(lease),
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::warn!(owner = %runtime.owner(), error = render(&error),
                    "another node works under this name; waiting for it to end");
                let until = tokio::time::Instant::now() + SAY_AGAIN;
                while tokio::time::Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    if let Ok(lease) = runtime.acquire().await {
                        return Ok(lease);
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn refused(error: JoinError) -> Failure {
    let exit = match &error {
        JoinError::SignIn(_) | JoinError::Hq(_) => Exit::Denied,
        _ => Exit::Usage,
    };
    Failure::new(exit, error)
}
