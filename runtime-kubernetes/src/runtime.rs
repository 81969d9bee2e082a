//! The contract, method by method.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use v6_runtime::{
    Accepted, CancelOptions, Cancelled, Capabilities, CleanedUp, CleanupOptions, Connection,
    EngineInfo, Error, ErrorKind, ImageRef, Lease, LogChunk, LogOptions, Observation, OutputName,
    Owner, PullPolicy, ResolvedImage, Result, ResultStream, RunId, RunSpec, RunStatus, Runtime,
    WatchEvent,
};

use crate::config::KubernetesConfig;
use crate::state::Shared;
use crate::{collect, connect, examine, logs, look, watch};

/// Runs containers in one namespace of a cluster, for one owner.
///
/// Dropping it ends what this process does about its runs: the runs themselves go on in the
/// cluster.
pub struct KubernetesRuntime {
    pub(crate) shared: Arc<Shared>,
}

impl KubernetesRuntime {
    /// Connects to a cluster, and sees to the policy that denies runs the network.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that cannot be used; `Unavailable`, `Timeout`, `Denied` or
    /// `Protocol` if the cluster cannot be reached and understood.
    pub async fn connect(config: KubernetesConfig) -> Result<Self> {
        let shared = Box::pin(connect::connect(config)).await;
        let shared = shared.map_err(|error| Error::from(error).with_operation("connect"))?;
        Ok(Self { shared })
    }

    /// What an operator should know about this cluster.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.shared.notices
    }

    /// The namespace of all runs.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.shared.cluster.namespace
    }
}

impl Drop for KubernetesRuntime {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl fmt::Debug for KubernetesRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesRuntime")
            .field("namespace", &self.shared.cluster.namespace)
            .field("owner", self.shared.owner())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for KubernetesRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubernetes, namespace {}", self.shared.cluster.namespace)
    }
}

/// Carries out a change to its end, also if the caller's future is dropped on the way: the cluster
/// does what it was asked even if nobody waits for the answer, and the next call must not meet it
/// half done. It holds the run's lock meanwhile.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Error::new(ErrorKind::Unexpected, "the call broke off").with_source(error))
        }
    }
}

/// Says what was being done, and for which run.
fn told<T>(
    result: std::result::Result<T, impl Into<Error>>,
    operation: &'static str,
    run: Option<&RunId>,
) -> Result<T> {
    result.map_err(|error| {
        let error = error.into().with_operation(operation);
        match run {
            Some(run) => error.with_run(run),
            None => error,
        }
    })
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Runtime for KubernetesRuntime {
    fn kind(&self) -> &'static str {
        "kubernetes"
    }

    fn owner(&self) -> &Owner {
        self.shared.owner()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn ping(&self) -> Result<EngineInfo> {
        let cluster = &self.shared.cluster;
        let version = told(cluster.version().await, "ping", None)?;
        // The version is told to anybody: whether we may work here, only this shows.
        told(cluster.may_list_pods().await, "ping", None)?;
        let mut said = EngineInfo::new("Kubernetes", version.git_version);
        let facts = [
            ("platform", version.platform),
            ("namespace", cluster.namespace.clone()),
        ];
        said.facts
            .extend(facts.map(|(name, fact)| (name.to_owned(), fact)));
        Ok(said)
    }

    async fn examine(&self) -> Result<Vec<Observation>> {
        let seen = examine::examine(&self.shared.config);
        told(Box::pin(seen).await, "examine", None)
    }

    async fn acquire(&self) -> Result<Lease> {
        told(Box::pin(self.shared.acquire()).await, "acquire", None)
    }

    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
        let resolved = Box::pin(self.shared.registry.resolve(image, policy));
        told(resolved.await, "resolve", None)
    }

    /// Sees that the image can be had: which machine of the cluster will fetch it is not known
    /// before the run.
    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        told(
            Box::pin(self.shared.registry.check(image)).await,
            "prefetch",
            None,
        )
    }

    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        let (shared, run, spec) = (self.shared.clone(), id.clone(), spec.clone());
        let dropped = CancellationToken::new();
        let _when_dropped = dropped.clone().drop_guard();
        let accepted = whole(async move { Box::pin(shared.run(&run, &spec, &dropped)).await });
        told(accepted.await, "run", Some(id))
    }

    async fn status(&self, id: &RunId) -> Result<RunStatus> {
        let look = told(Box::pin(self.shared.look(id)).await, "status", Some(id))?;
        let look = look.ok_or_else(|| Error::no_such_run(id).with_operation("status"))?;
        Ok(look.status)
    }

    fn list(&self) -> ResultStream<RunStatus> {
        look::list(self.shared.clone())
    }

    fn watch(&self) -> ResultStream<WatchEvent> {
        let shared = self.shared.clone();
        let events = async move {
            shared.start_watching().await;
            shared.hub.watch()
        };
        Box::pin(stream::once(events).flatten())
    }

    fn logs(&self, id: &RunId, options: LogOptions) -> ResultStream<LogChunk> {
        logs::read(self.shared.clone(), id.clone(), options)
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        collect::collect(self.shared.clone(), id.clone(), output.clone())
    }

    fn connections(&self) -> ResultStream<Connection> {
        // The reader is there at once, and the runs of an earlier process are taken up behind it.
        let connections = self.shared.egress.connections();
        let shared = self.shared.clone();
        let opening = async move {
            if shared.watching.initialized() {
                // The runs that the watch has seen before anybody wanted connections.
                shared.spawn(watch::take_up_all(shared.clone()));
            } else {
                shared.start_watching().await;
            }
            connections
        };
        Box::pin(stream::once(opening).flatten())
    }

    async fn cancel(&self, id: &RunId, options: CancelOptions) -> Result<Cancelled> {
        let (shared, run) = (self.shared.clone(), id.clone());
        let told_it = whole(async move {
            Box::pin(shared.cancel(&run, options))
                .await
                .map_err(Error::from)
        });
        told(told_it.await, "cancel", Some(id))
    }

    async fn cleanup(&self, id: &RunId, options: CleanupOptions) -> Result<CleanedUp> {
        let (shared, run) = (self.shared.clone(), id.clone());
        let removed = whole(async move {
            Box::pin(shared.cleanup(&run, options))
                .await
                .map_err(Error::from)
        });
        told(removed.await, "cleanup", Some(id))
    }
}
