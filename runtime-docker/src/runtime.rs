//! The contract, method by method.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;
use v6_runtime::{
    Accepted, CancelOptions, Cancelled, Capabilities, CleanedUp, CleanupOptions, Connection,
    EngineInfo, Error, ErrorKind, ImageRef, Lease, LogChunk, LogOptions, OutputName, Owner,
    PullPolicy, ResolvedImage, Result, ResultStream, RunId, RunSpec, RunStatus, Runtime,
    WatchEvent,
};

use crate::config::DockerConfig;
use crate::container::collected_at;
use crate::image::Fault;
use crate::state::Shared;
use crate::{archive, connect, examine, image, lease, logs, look, translate};

/// Runs containers on one engine, Docker or Podman, for one owner.
///
/// Dropping it ends what this process does about its runs: runs that have been started go on in the
/// engine, others wait until [`run`](Runtime::run) is called again.
pub struct DockerRuntime {
    shared: Arc<Shared>,
}

impl DockerRuntime {
    /// Connects to an engine, and settles what it can do.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that cannot be used; `Unavailable`, `Timeout`, `Denied` or
    /// `Protocol` if the engine cannot be reached and understood.
    pub async fn connect(config: DockerConfig) -> Result<Self> {
        let shared = connect::connect(config).await;
        let shared = shared.map_err(|error| Error::from(error).with_operation("connect"))?;
        Ok(Self { shared })
    }

    /// What an operator should know about this engine: why something is not declared.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.shared.notices
    }
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl fmt::Debug for DockerRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerRuntime")
            .field("host", &self.shared.config.host)
            .field("owner", self.shared.owner())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for DockerRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.kind(), self.shared.config.host)
    }
}

/// Carries out a change to its end, also if the caller's future is dropped on the way: the engine
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
impl Runtime for DockerRuntime {
    fn kind(&self) -> &'static str {
        self.shared.about.kind.id()
    }

    fn owner(&self) -> &Owner {
        self.shared.owner()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn ping(&self) -> Result<EngineInfo> {
        let about = told(self.shared.engine.about().await, "ping", None)?;
        Ok(about.told())
    }

    async fn examine(&self) -> Result<Vec<v6_runtime::Observation>> {
        told(examine::examine(&self.shared.config).await, "examine", None)
    }

    async fn acquire(&self) -> Result<Lease> {
        told(
            lease::acquire(&self.shared.lease, self.owner()),
            "acquire",
            None,
        )
    }

    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
        let resolved = image::resolve(&self.shared, image, policy);
        told(resolved.await, "resolve", None)
    }

    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        let (engine, config) = (&self.shared.engine, &self.shared.config);
        let mut quiet = |_| {};
        let fetched = image::ensure(&engine.docker, &config.credentials, image, &mut quiet).await;
        let fetched = fetched.map(drop).map_err(|fault| match fault {
            Fault::Engine(error) => error,
            Fault::Failure(failure) => {
                use v6_runtime::StartFailureCause as Cause;
                let kind = match failure.cause {
                    Cause::ImageNotFound | Cause::ImageUnusable => ErrorKind::NotFound,
                    Cause::ImageDenied => ErrorKind::Denied,
                    Cause::RegistryUnreachable => ErrorKind::Unavailable,
                    _ => ErrorKind::Unexpected,
                };
                Error::new(kind, failure.message)
            }
        });
        told(fetched, "prefetch", None)
    }

    async fn run(&self, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
        let (shared, run, spec) = (self.shared.clone(), id.clone(), spec.clone());
        let dropped = CancellationToken::new();
        let _when_dropped = dropped.clone().drop_guard();
        let accepted = whole(async move { Box::pin(shared.run(&run, &spec, &dropped)).await });
        told(accepted.await, "run", Some(id))
    }

    async fn status(&self, id: &RunId) -> Result<RunStatus> {
        let look = told(self.shared.look(id).await, "status", Some(id))?;
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
        let (shared, id) = (self.shared.clone(), id.clone());
        let chunks = async move {
            let look = told(shared.look(&id).await, "logs", Some(&id))?;
            let look = look.ok_or_else(|| Error::no_such_run(&id).with_operation("logs"))?;
            let container = look.container.and_then(|container| container.id);
            let Some(container) = container else {
                if look.status.phase.is_finished() {
                    // It has never printed anything.
                    return Ok(Box::pin(stream::empty()) as ResultStream<LogChunk>);
                }
                let message = "the run has not started";
                let error = Error::new(ErrorKind::NotReady, message);
                return Err(error.with_run(&id).with_operation("logs"));
            };
            let quirks = shared.quirks();
            Ok(logs::read(
                shared.engine.clone(),
                quirks,
                container,
                options,
            ))
        };
        Box::pin(stream::once(chunks).try_flatten())
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        let (shared, run, output) = (self.shared.clone(), id.clone(), output.clone());
        let bytes = async move {
            let failed = |kind, message: String| Err(Error::new(kind, message));
            let look = shared.look(&run).await.map_err(Error::from)?;
            let look = look.ok_or_else(|| Error::no_such_run(&run))?;
            let Some(stored) = look.record.outputs.get(&output) else {
                return failed(ErrorKind::NotFound, format!("there is no output {output}"));
            };
            if !look.status.phase.is_finished() {
                return failed(ErrorKind::NotReady, "the run has not finished".into());
            }
            let state = look.container.as_ref().and_then(|c| c.state.as_ref());
            let ran = state.is_some_and(translate::was_started);
            let container = look.container.as_ref().and_then(|c| c.id.clone());
            let Some(container) = container.filter(|_| ran) else {
                return failed(
                    ErrorKind::NotFound,
                    "its program never ran, or its container is gone".into(),
                );
            };
            let (name, limit) = (stored.index.to_string(), stored.limit.get());
            Ok(if stored.folder {
                let engine = shared.engine.clone();
                let skip = stored.skip.clone();
                archive::get_folder(engine, container, collected_at(&name), limit, skip)
            } else {
                shared.collected(&container, &look.record, &look.volume, &name, limit)
            })
        };
        let id = id.clone();
        let bytes = stream::once(bytes).try_flatten();
        Box::pin(bytes.map_err(move |error: Error| error.with_run(&id).with_operation("collect")))
    }

    fn connections(&self) -> ResultStream<Connection> {
        // The reader is there at once, and the runs of an earlier process are taken up behind it.
        let connections = self.shared.egress.connections();
        let shared = self.shared.clone();
        let opening = async move {
            shared.open_sockets().await;
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
