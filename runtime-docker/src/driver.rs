//! From a stored run to a started program. A task of its own, so that a slow pull delays nobody.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use v6_runtime::{
    ErrorKind, MountSource, Outcome, Pending, RunPhase, RunSpec, StartFailure, StartFailureCause,
};

use crate::container::{self, Parts};
use crate::error::Error;
use crate::image::{self, Fault, LocalImage};
use crate::record::{self, Part, Record};
use crate::state::Shared;
use crate::stop::sleep_until;
use crate::translate;

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// A run whose record and files are stored.
pub(crate) struct Job {
    pub(crate) record: Record,
    /// Without the content of its files.
    pub(crate) spec: RunSpec,
    /// The engine's path of the volume.
    pub(crate) volume: String,
}

/// Why the driver ends without a program that runs.
enum End {
    /// It was told to.
    Stopped,
    /// The deadline came first.
    Late,
    /// A verdict.
    Failed(StartFailure),
}

impl From<StartFailure> for End {
    fn from(failure: StartFailure) -> Self {
        Self::Failed(failure)
    }
}

/// Brings a run to its start, or notes why it could not be.
pub(crate) async fn drive(shared: Arc<Shared>, job: Job, stop: CancellationToken) {
    let driver = Driver {
        shared: &shared,
        job: &job,
        stop,
        began: Instant::now(),
    };
    driver.say(Pending::Accepted);
    let id = &job.record.id;
    match driver.start().await {
        Ok(()) => shared.set_pending(id, None),
        Err(End::Stopped) => {}
        Err(End::Late) => driver.conclude(Outcome::DeadlineExceeded).await,
        Err(End::Failed(failure)) => driver.conclude(Outcome::FailedToStart(failure)).await,
    }
}

struct Driver<'a> {
    shared: &'a Arc<Shared>,
    job: &'a Job,
    stop: CancellationToken,
    began: Instant,
}

impl Driver<'_> {
    async fn start(&self) -> Result<(), End> {
        let (record, spec) = (&self.job.record, &self.job.spec);
        let opened = self
            .shared
            .egress
            .open(self.shared.owner(), &record.id, &spec.egress);
        opened.map_err(|error| StartFailure::new(StartFailureCause::Engine, text(error)))?;
        self.say(Pending::PullingImage);
        let late = async {
            match spec.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let image = tokio::select! {
            image = self.image() => image?,
            () = late => return Err(End::Late),
            () = self.stop.cancelled() => return Err(End::Stopped),
        };
        let room = tokio::select! {
            room = self.shared.starts.acquire() => room,
            () = self.stop.cancelled() => return Err(End::Stopped),
        };
        // Never closed, so there is always room at last.
        let _room = room.map_err(|_| End::Stopped)?;
        self.say(Pending::Starting);
        self.check_mounts().await?;
        self.create(&image).await?;
        self.begin().await
    }

    /// Has the image fetched, however often the engine goes away meanwhile.
    async fn image(&self) -> Result<LocalImage, End> {
        let mut pause = Pause::new(self);
        loop {
            let hub = self.shared.hub.clone();
            let id = self.job.record.id.clone();
            let mut progress = move |line: String| hub.notice(&id, line);
            let docker = &self.shared.engine.docker;
            let logins = &self.shared.config.credentials;
            match image::ensure(docker, logins, &self.job.spec.image, &mut progress).await {
                Ok(image) => return Ok(image),
                Err(Fault::Failure(failure)) => return Err(failure.into()),
                Err(Fault::Engine(error))
                    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) =>
                {
                    pause.after(text(error)).await?;
                }
                Err(Fault::Engine(error)) => {
                    return Err(StartFailure::new(StartFailureCause::Engine, text(error)).into());
                }
            }
        }
    }

    /// The engine would make a volume that is not there (Podman also a folder), and would give away
    /// another run's.
    async fn check_mounts(&self) -> Result<(), End> {
        let mut pause = Pause::new(self);
        for mount in &self.job.spec.mounts {
            let name = match &mount.source {
                MountSource::Volume(name) => name,
                MountSource::HostPath(path) if self.shared.quirks().makes_missing_paths => {
                    tokio::fs::metadata(path).await.map_err(|error| {
                        let message = format!("{}: {error}", path.display());
                        StartFailure::new(StartFailureCause::MountUnusable, message)
                    })?;
                    continue;
                }
                _ => continue,
            };
            let volume = loop {
                match self.shared.engine.volume(name).await {
                    Ok(volume) => break volume,
                    Err(error) if error.is_unanswered() => pause.after(text(error)).await?,
                    Err(error) => return Err(refused(error)),
                }
            };
            let why = match volume {
                None => "there is no such volume",
                Some(volume) if record::is_any(&volume.labels) => "it belongs to a run",
                Some(_) => continue,
            };
            let message = format!("{name}: {why}");
            return Err(StartFailure::new(StartFailureCause::MountUnusable, message).into());
        }
        Ok(())
    }

    async fn create(&self, image: &LocalImage) -> Result<(), End> {
        let (shared, record) = (self.shared, &self.job.record);
        let sockets = match self.job.spec.egress.as_slice() {
            [] => None,
            _ => shared.egress.engine_path(shared.owner(), &record.id),
        };
        let body = container::run_container(&Parts {
            owner: shared.owner(),
            record,
            spec: &self.job.spec,
            image,
            config: &shared.config,
            traits: &shared.traits,
            volume: &self.job.volume,
            sockets: sockets.as_deref(),
        })?;
        let name = shared.name(&record.id, Part::Run);
        let mut pause = Pause::new(self);
        loop {
            if self.stop.is_cancelled() {
                return Err(End::Stopped);
            }
            match shared.engine.create_container(&name, body.clone()).await {
                Ok(_) => return Ok(()),
                // An earlier call got through, and its answer did not.
                Err(error) if error.status() == Some(409) && self.is_there(&name).await => {
                    return Ok(());
                }
                Err(error) if error.is_unanswered() => pause.after(text(error)).await?,
                Err(error) => return Err(refused(error)),
            }
        }
    }

    async fn is_there(&self, name: &str) -> bool {
        let Ok(Some(container)) = self.shared.engine.container(name).await else {
            return false;
        };
        let labels = container.config.and_then(|config| config.labels);
        labels.is_some_and(|labels| record::attempt(&labels) == Some(&self.job.record.attempt))
    }

    /// Starts the program, once: a call that may have got through is never simply repeated.
    async fn begin(&self) -> Result<(), End> {
        if self.stop.is_cancelled() {
            return Err(End::Stopped);
        }
        let shared = self.shared;
        let id = &self.job.record.id;
        let (name, files) = (shared.name(id, Part::Run), shared.name(id, Part::Files));
        // From here on the program may have been started, which the absence of the other
        // container tells should this one be removed by somebody.
        let started = shared.engine.start(&name);
        let (mut started, removed) = tokio::join!(started, shared.engine.remove_container(&files));
        if let Err(error) = removed {
            tracing::warn!(run = %id, %error, "the container for files stays until the cleanup");
        }
        let mut pause = Pause::new(self);
        loop {
            let error = match started {
                Ok(()) => return Ok(()),
                Err(error) if error.is_unanswered() => error,
                Err(error) => return Err(refused(error)),
            };
            let may_be_under_way = matches!(error, Error::Timeout { .. });
            pause.after(text(error)).await?;
            let container = match shared.engine.container(&name).await {
                Ok(container) => container,
                Err(error) => {
                    started = Err(error);
                    continue;
                }
            };
            let Some(state) = container.and_then(|container| container.state) else {
                let message = "its container was removed by somebody else";
                return Err(StartFailure::new(StartFailureCause::Engine, message).into());
            };
            if translate::was_started(&state) || translate::is_live(&state) {
                return Ok(());
            }
            if let Some(message) = translate::refused(&state) {
                return Err(StartFailure::new(translate::refusal(message), message).into());
            }
            started = if may_be_under_way {
                Err(Error::Timeout {
                    step: "starting a container",
                    after: self.began.elapsed(),
                })
            } else {
                shared.engine.start(&name).await
            };
        }
    }

    /// Notes how the run ended without having begun.
    async fn conclude(&self, outcome: Outcome) {
        let (shared, record) = (self.shared, &self.job.record);
        let mut delay = FIRST_DELAY;
        loop {
            let noted = match &outcome {
                Outcome::FailedToStart(failure) => {
                    let base = record.labels_of(shared.owner(), Part::Failed);
                    match record::failure_labels(failure, base) {
                        Ok(labels) => shared.note(Part::Failed, record, labels).await,
                        Err(error) => Err(error),
                    }
                }
                _ => shared.mark_deadline(record, SystemTime::now()).await,
            };
            match noted {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(run = %record.id, %error, "a run's failure could not be noted");
                }
            }
            // It stays pending until this is durable: a failure that is forgotten would be run again.
            tokio::select! {
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(LAST_DELAY),
                () = self.stop.cancelled() => return,
            }
        }
        shared.set_pending(&record.id, None);
        shared.egress.close(&record.id);
        shared.hub.update(self.status(RunPhase::Finished(outcome)));
    }

    /// Tells everybody how far it is.
    fn say(&self, pending: Pending) {
        self.shared.set_pending(&self.job.record.id, Some(pending));
        self.shared
            .hub
            .update(self.status(RunPhase::Pending(pending)));
    }

    fn status(&self, phase: RunPhase) -> v6_runtime::RunStatus {
        translate::status_at(&self.job.record, phase)
    }
}

/// Waits between attempts, until there have been enough.
struct Pause<'a> {
    driver: &'a Driver<'a>,
    delay: Duration,
    since: Instant,
}

impl<'a> Pause<'a> {
    fn new(driver: &'a Driver<'a>) -> Self {
        Self {
            driver,
            delay: FIRST_DELAY,
            since: Instant::now(),
        }
    }

    async fn after(&mut self, message: String) -> Result<(), End> {
        if self.since.elapsed() >= self.driver.shared.config.start_timeout {
            return Err(StartFailure::new(StartFailureCause::Engine, message).into());
        }
        tokio::select! {
            () = tokio::time::sleep(self.delay) => {}
            () = self.driver.stop.cancelled() => return Err(End::Stopped),
        }
        self.delay = (self.delay * 2).min(LAST_DELAY);
        Ok(())
    }
}

fn text(error: impl Into<v6_runtime::Error>) -> String {
    error.into().message().to_owned()
}

fn refused(error: Error) -> End {
    let status = error.status();
    let message = text(error);
    let cause = match status {
        Some(404) if message.contains("image") => StartFailureCause::ImageNotFound,
        _ => translate::refusal(&message),
    };
    StartFailure::new(cause, message).into()
}
