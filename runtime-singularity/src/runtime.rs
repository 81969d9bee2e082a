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
    StartFailureCause, WatchEvent,
};

use crate::config::SingularityConfig;
use crate::image::Fault;
use crate::state::Shared;
use crate::{collect, connect, examine, lease, logs, look};

/// Runs containers on this machine with Apptainer or SingularityCE, for one owner.
///
/// Dropping it ends what this process does about its runs: runs that have been started go on, each
/// held by a monitor of its own; others wait until [`run`](Runtime::run) is called again.
pub struct SingularityRuntime {
    shared: Arc<Shared>,
}

impl SingularityRuntime {
    /// Finds the command, and settles what this machine can do.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that cannot be used, root included; `Denied` where this user
    /// cannot make name spaces; `Quota` for a full disk.
    pub async fn connect(config: SingularityConfig) -> Result<Self> {
        let shared = Box::pin(connect::connect(config)).await;
        let shared = shared.map_err(|error| Error::from(error).with_operation("connect"))?;
        Ok(Self { shared })
    }

    /// What an operator should know about this machine: why something is not declared.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.shared.notices
    }
}

impl Drop for SingularityRuntime {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl fmt::Debug for SingularityRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingularityRuntime")
            .field("program", &self.shared.engine.program)
            .field("owner", self.shared.owner())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for SingularityRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.shared.engine;
        let by = match self.shared.slurm {
            Some(_) => ", in jobs of Slurm",
            None => "",
        };
        write!(f, "{} at {}{by}", engine.name, engine.program.display())
    }
}

/// Carries out a change to its end, also if the caller's future is dropped on the way: the next call
/// must not meet it half done. It holds the run's lock meanwhile.
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
impl Runtime for SingularityRuntime {
    fn kind(&self) -> &'static str {
        match self.shared.slurm {
            Some(_) => "slurm",
            None => "singularity",
        }
    }

    fn owner(&self) -> &Owner {
        self.shared.owner()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn ping(&self) -> Result<EngineInfo> {
        let mut engine = self.shared.engine.clone();
        let asked = engine.ask_version(self.shared.config.call_timeout).await;
        told(asked, "ping", None)?;
        let mut said = EngineInfo::new(engine.name, engine.version);
        let facts = [
            ("program", engine.program.display().to_string()),
            ("kernel", connect::kernel_release()),
            ("architecture", v6_helper::ARCHITECTURE.to_owned()),
            ("folder", self.shared.config.folder.display().to_string()),
            (
                "images",
                self.shared.config.cache_folder().display().to_string(),
            ),
        ];
        let facts = facts
            .into_iter()
            .map(|(name, fact)| (name.to_owned(), fact));
        said.facts.extend(facts);
        if let Some(slurm) = &self.shared.slurm {
            let version = told(slurm.version().await, "ping", None)?;
            said.facts.insert("slurm".to_owned(), version);
        }
        Ok(said)
    }

    async fn examine(&self) -> Result<Vec<v6_runtime::Observation>> {
        told(examine::examine(&self.shared.config).await, "examine", None)
    }

    async fn acquire(&self) -> Result<Lease> {
        let path = self.shared.runs.path().with_file_name("lease");
        let lease = told(lease::acquire(&path, self.owner()).await, "acquire", None)?;
        // What a killed process has left half made or half removed.
        told(self.shared.remove_hidden(None).await, "acquire", None)?;
        Ok(lease)
    }

    async fn resolve(&self, image: &ImageRef, policy: PullPolicy) -> Result<ResolvedImage> {
        let resolved = self.shared.images.resolve(image, policy);
        told(resolved.await, "resolve", None)
    }

    async fn prefetch(&self, image: &ResolvedImage) -> Result<()> {
        let fetched = Box::pin(self.shared.images.ensure(image)).await;
        let fetched = fetched.map(drop).map_err(|fault| match fault {
            Fault::Step(error) => Error::from(error),
            Fault::Failure(failure) => {
                use StartFailureCause as Cause;
                let kind = match failure.cause {
                    Cause::ImageNotFound | Cause::ImageUnusable => ErrorKind::NotFound,
                    Cause::ImageDenied => ErrorKind::Denied,
                    Cause::RegistryUnreachable => ErrorKind::Unavailable,
                    Cause::Unschedulable => ErrorKind::Quota,
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
            let chunks = logs::read(shared, id.clone(), options).await;
            told(chunks, "logs", Some(&id))
        };
        Box::pin(stream::once(chunks).try_flatten())
    }

    fn collect(&self, id: &RunId, output: &OutputName) -> ResultStream<Bytes> {
        let (shared, id, output) = (self.shared.clone(), id.clone(), output.clone());
        let bytes = async move {
            let failed = |kind, message: String| {
                Err(Error::new(kind, message)
                    .with_run(&id)
                    .with_operation("collect"))
            };
            let look = told(shared.look(&id).await, "collect", Some(&id))?;
            let look = look.ok_or_else(|| Error::no_such_run(&id).with_operation("collect"))?;
            let Some(stored) = look.record.outputs.get(&output) else {
                return failed(ErrorKind::NotFound, format!("there is no output {output}"));
            };
            if !look.status.phase.is_finished() {
                return failed(ErrorKind::NotReady, "the run has not finished".into());
            }
            if !look.has_begun() {
                return failed(ErrorKind::NotFound, "its program never ran".into());
            }
            let (path, limit) = (
                shared.runs.place(&id).output(stored.index),
                stored.limit.get(),
            );
            if stored.folder {
                Ok(collect::folder(path, limit, stored.skip.clone()))
            } else {
                told(collect::file(path, limit).await, "collect", Some(&id))
            }
        };
        Box::pin(stream::once(bytes).try_flatten())
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
