//! The node's end of every connection that a run opens.
//!
//! A run has no network but its grants. Each connection to one arrives here as a byte stream
//! ([`Runtime::connections`]), and the run's [`RunContext`] says where the grant leads: to the
//! proxy for vantage6 HQ, or to one address that the operator allows. Whatever is said on the
//! stream cannot change which run it belongs to, nor where it leads.
//!
//! - [`Gateway`]: takes the connections, within limits, and writes the audit log;
//! - HQ's tokens for containers stay here; a container gets one with claims and without power;
//! - the proxy for `central_compute` (protocol 6), with a journal that keeps a repeated
//!   `POST /task` from making a second subtask.
//!
//! Memory: a run has one request at a time that may carry values, each way at most 256 MiB, of
//! which up to three copies exist while it is parsed and encrypted. All other requests of a run
//! have at most 1 MiB, on at most [`Limits::connections_per_run`] connections.

mod audit;
mod contexts;
mod dial;
mod io;
mod journal;
mod proxy;
mod reply;
mod rewrite;
mod subtask;
mod token;
mod upstream;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use v6_runtime::{Connection, EgressGrant, GrantName, ResultStream, RunId, Runtime};

use self::audit::{Audit, Record};
use self::contexts::Contexts;
use self::io::{Meter, Metered};
use self::proxy::{Proxy, RunState};
use self::rewrite::Directory;
use self::subtask::Subtasks;
use self::token::ContainerTokens;
use self::upstream::Upstream;
use crate::crypto::Codec;
use crate::hq::{Action, Backoff, Hq, HqError, Identity};
use crate::runs::{RunContext, Target};
use crate::secret::Secret;

/// The host by which an algorithm reaches the proxy: its `HOST` is `http://` and this. The last
/// label is reserved for private use, so it can hide no real host.
pub const PROXY_HOST: &str = "hq-proxy.internal";
/// The algorithm's `PORT`.
pub const PROXY_PORT: u16 = 7654;
/// The name of the proxy's grant.
const PROXY_GRANT: &str = "hq-proxy";

/// How long connections may take to end when the node stops.
const STOP_WAIT: Duration = Duration::from_millis(1500);

/// The grant that leads to the proxy, for `central_compute` only.
///
/// # Panics
/// Never: the names are valid.
#[must_use]
pub fn proxy_grant() -> EgressGrant {
    GrantName::new(PROXY_GRANT)
        .and_then(|name| EgressGrant::new(name, PROXY_HOST, PROXY_PORT))
        .expect("constants that a test looks at")
}

/// Bounds of the gateway.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections of one run; more are closed at once.
    pub connections_per_run: usize,
    /// Open connections of all runs.
    pub connections: usize,
    /// For name look-up, and for the connection to each address found.
    pub dial: Duration,
    /// A connection over which nothing passes for this long is closed; one to the proxy also
    /// has [`hq_wait`](Self::hq_wait) for its answer.
    pub idle: Duration,
    /// How long a request waits for an HQ that is away, until it is told 503.
    pub hq_wait: Duration,
    /// How long HQ may still work at a request whose connection broke.
    pub settle: Duration,
    /// How long a connection waits for its run to become known, after a restart.
    pub unknown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_run: 64,
            connections: 1024,
            dial: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            hq_wait: Duration::from_secs(600),
            settle: Duration::from_secs(10),
            unknown: Duration::from_secs(30),
        }
    }
}

/// Serves the connections of all runs of this node. Clones share it.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    contexts: Contexts,
    proxy: Arc<Proxy>,
    audit: Arc<Audit>,
    limits: Limits,
    runs: Mutex<HashMap<RunId, Arc<RunState>>>,
    /// Open connections of each run.
    open: Mutex<HashMap<RunId, usize>>,
}

impl Gateway {
    /// A gateway for the node that `identity` names, with the audit log in
    /// `data_dir/audit.jsonl` and the journals in `data_dir/gateway/`.
    ///
    /// # Errors
    /// The folder or the audit log cannot be made or written.
    pub fn new(
        hq: Hq,
        identity: Identity,
        codec: Codec,
        data_dir: &Path,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let folder = data_dir.join("gateway");
        std::fs::create_dir_all(&folder)?;
        let audit = Arc::new(Audit::open(data_dir)?);
        let upstream = Upstream {
            hq: hq.clone(),
            tokens: ContainerTokens::new(hq.clone(), identity.clone()),
        };
        let subtasks = Arc::new(Subtasks {
            upstream,
            directory: Directory::new(hq),
            codec,
            identity,
            folder,
            settle: limits.settle,
        });
        let proxy = Arc::new(Proxy {
            subtasks,
            audit: audit.clone(),
            wait: limits.hq_wait,
        });
        Ok(Self(Arc::new(Inner {
            contexts: Contexts::default(),
            proxy,
            audit,
            limits,
            runs: Mutex::default(),
            open: Mutex::default(),
        })))
    }

    /// Serves the connections of this run from now on; called before the run is started, and
    /// for each run that a restarted node finds at the engine.
    pub fn admit(&self, context: RunContext) {
        self.0.contexts.insert(context);
    }

    /// Asks HQ for the run's token, keeps it, and gives one for the container: the same claims
    /// under a signature that is none. [`forget`](Self::forget) ends it.
    ///
    /// # Errors
    /// See [`HqError`]: status 400 if the task is finished, 401 if it is no central one;
    /// [`HqError::Answer`] for a token that is not one of this task and node.
    pub async fn issue_token(&self, context: &RunContext) -> Result<Secret, HqError> {
        self.tokens().issue(context).await
    }

    fn tokens(&self) -> &ContainerTokens {
        &self.0.proxy.subtasks.upstream.tokens
    }

    /// Serves all connections of the runtime's runs until `shutdown`; then open ones get a
    /// moment to end, and are closed. A stream that ends or fails is opened again, with growing
    /// pauses. Dropping the future stops taking connections.
    pub async fn serve(&self, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) {
        self.serve_from(|| runtime.connections(), shutdown).await;
    }

    /// As [`serve`](Self::serve), with the connections from elsewhere.
    pub async fn serve_from(
        &self,
        mut connections: impl FnMut() -> ResultStream<Connection>,
        shutdown: CancellationToken,
    ) {
        let tracker = TaskTracker::new();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let mut stream = connections();
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => break,
                next = stream.next() => next,
            };
            let ended = match next {
                Some(Ok(connection)) => {
                    backoff.reset();
                    let (gateway, stop) = (self.clone(), shutdown.clone());
                    tracker.spawn(async move { gateway.handle(connection, stop).await });
                    continue;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "connections of runs cannot be taken at the moment");
                    !error.is_retryable()
                }
                None => true,
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(backoff.pause()) => {}
            }
            if ended {
                stream = connections();
            }
        }
        drop(stream);
        tracker.close();
        if tokio::time::timeout(STOP_WAIT, tracker.wait())
            .await
            .is_err()
        {
            tracing::debug!(open = tracker.len(), "connections of runs are cut off");
        }
    }

    /// Ends what the gateway holds of a run that is over: its context, token and journal.
    pub fn forget(&self, run: &RunId) {
        self.0.contexts.remove(run);
        self.tokens().forget(run);
        let state = lock(&self.0.runs).remove(run).unwrap_or_default();
        let journal = self.0.proxy.subtasks.journal(run);
        if let Err(error) = state.journal.end.reached(&journal) {
            tracing::warn!(%run, %error, "the journal of a run's subtasks could not be removed");
        }
    }

    /// Serves one connection to its end.
    async fn handle(&self, connection: Connection, stop: CancellationToken) {
        let time = Record::now();
        let meter = Meter::new();
        let Connection { run, grant, io, .. } = connection;
        let mut record = Record {
            time,
            event: "connection",
            run: run.to_string(),
            task: None,
            grant: grant.name.to_string(),
            destination: format!("{}:{}", grant.host, grant.port),
            method: None,
            path: None,
            status: None,
            from_run: 0,
            to_run: 0,
            milliseconds: 0,
            outcome: String::new(),
        };
        let io = Metered::new(io, meter.clone());
        record.outcome = match self
            .route(&run, &grant, io, &meter, &mut record, stop)
            .await
        {
            Ok(()) => "ok".to_owned(),
            Err(why) => why,
        };
        (record.from_run, record.to_run) = (meter.received(), meter.sent());
        record.milliseconds = Record::milliseconds(meter.age());
        self.0.audit.write(&record);
    }

    async fn route(
        &self,
        run: &RunId,
        grant: &EgressGrant,
        io: Metered<Box<dyn v6_runtime::Io>>,
        meter: &Meter,
        record: &mut Record,
        stop: CancellationToken,
    ) -> Result<(), String> {
        let limits = &self.0.limits;
        let _place = Place::take(&self.0, run)?;
        let known = tokio::select! {
            () = stop.cancelled() => return Err("the node stops".to_owned()),
            known = self.0.contexts.wait(run, limits.unknown) => known,
        };
        let context = known.ok_or("refused: the run is not known")?;
        record.task = Some(context.task);
        match context.destination(&grant.name) {
            None => Err("refused: the run has no such grant".to_owned()),
            Some(Target::Proxy) => {
                "vantage6 HQ".clone_into(&mut record.destination);
                self.to_proxy(context, grant, io, meter, stop).await
            }
            Some(Target::Address { host, port }) => {
                record.destination = format!("{host}:{port}");
                let through = async {
                    let there = dial::dial(host, *port, limits.dial)
                        .await
                        .map_err(|error| format!("no connection: {error}"))?;
                    dial::copy(io, there)
                        .await
                        .map_err(|error| format!("broken: {error}"))
                };
                tokio::select! {
                    done = through => done,
                    () = meter.idle(limits.idle) => Err("closed: nothing passed for too long".to_owned()),
                    () = stop.cancelled() => Err("the node stops".to_owned()),
                }
            }
        }
    }

    async fn to_proxy(
        &self,
        context: Arc<RunContext>,
        grant: &EgressGrant,
        io: Metered<Box<dyn v6_runtime::Io>>,
        meter: &Meter,
        stop: CancellationToken,
    ) -> Result<(), String> {
        if context.action() != Ok(Action::CentralCompute) {
            return Err("refused: only central_compute may speak with HQ".to_owned());
        }
        let state = lock(&self.0.runs)
            .entry(context.run_id())
            .or_default()
            .clone();
        let proxy = self.0.proxy.clone();
        // A request that waits for HQ and one that waits for the one before it are not idle.
        let idle = self.0.limits.idle.max(2 * self.0.limits.hq_wait);
        tokio::select! {
            done = proxy.serve(io, state, context, grant.name.to_string(), stop) => {
                done.map_err(|error| format!("broken: {error}"))
            }
            () = meter.idle(idle) => Err("closed: nothing passed for too long".to_owned()),
        }
    }
}

/// One of the places that a run's connections have.
struct Place<'a> {
    gateway: &'a Inner,
    run: &'a RunId,
}

impl<'a> Place<'a> {
    fn take(gateway: &'a Inner, run: &'a RunId) -> Result<Self, String> {
        let mut open = lock(&gateway.open);
        if open.values().sum::<usize>() >= gateway.limits.connections {
            return Err("refused: too many connections at this node".to_owned());
        }
        let of_run = open.entry(run.clone()).or_default();
        if *of_run >= gateway.limits.connections_per_run {
            return Err("refused: too many connections of this run".to_owned());
        }
        *of_run += 1;
        Ok(Self { gateway, run })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = lock(&self.gateway.open);
        if let Some(of_run) = open.get_mut(self.run) {
            *of_run -= 1;
            if *of_run == 0 {
                open.remove(self.run);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_proxys_grant_is_one() {
        let grant = super::proxy_grant();
        assert_eq!(
            (grant.host.as_str(), grant.port),
            ("hq-proxy.internal", 7654)
        );
    }
}
