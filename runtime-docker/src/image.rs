//! Images: what a name stands for, and having exactly that.

use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as Engine;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::{CreateImageOptionsBuilder, TagImageOptionsBuilder};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout};
use v6_runtime::{
    Digest, Error, ErrorKind, ImageIdentity, ImageRef, PullPolicy, RegistryCredentials,
    ResolvedImage, Result, StartFailure, StartFailureCause,
};

use crate::ask::{self, ASK_LIMIT, join};
use crate::error::{Error as Step, words};
use crate::quirks::is_half_stored;
use crate::registry_words::{Trouble, trouble};
use crate::state::Shared;

/// A pull that shows no progress for so long is given up.
const PULL_STALLED: Duration = Duration::from_secs(300);
/// How long an image may be there in part, because another call fetches it.
const BEING_STORED: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often a pull's progress is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalImage {
    pub(crate) id: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) workdir: String,
    /// Folders for which the engine would make a writable volume each.
    pub(crate) volumes: Vec<String>,
    /// As the image names it; empty is root.
    pub(crate) user: String,
}

/// Why an image is not to be had.
pub(crate) enum Fault {
    /// A verdict about the run.
    Failure(StartFailure),
    /// The engine did not answer.
    Engine(Error),
}

/// What to sign in with to the registry of an image.
fn credentials(all: &[RegistryCredentials], image: &ImageRef) -> Option<DockerCredentials> {
    let found = all
        .iter()
        .find(|login| login.registry == image.registry())?;
    Some(DockerCredentials {
        username: Some(found.username.clone()),
        password: Some(found.password.expose().to_owned()),
        serveraddress: Some(found.registry.clone()),
        ..Default::default()
    })
}

fn status(error: &Engine) -> Option<u16> {
    match error {
        Engine::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Settles what a name stands for, without fetching the image.
pub(crate) async fn resolve(
    shared: &Shared,
    image: &ImageRef,
    policy: PullPolicy,
) -> Result<ResolvedImage> {
    let docker = &shared.engine.docker;
    // A digest says all there is to say, wherever the image is.
    if let Some(digest) = image.digest() {
        let identity = ImageIdentity::Manifest(digest.clone());
        let here = local(docker, &image.pinned(digest.clone()).to_string()).await?;
        let platform = fitting(shared, image, here.as_ref().map(platform))?;
        return Ok(ResolvedImage::new(image.clone(), identity, platform));
    }
    let here = match policy {
        PullPolicy::Always => None,
        _ => local(docker, &image.to_string()).await?,
    };
    match (here, policy) {
        (Some(found), _) => identify(shared, image, &found),
        (None, PullPolicy::Never) => Err(Error::new(
            ErrorKind::NotFound,
            format!("the engine has no image {image}"),
        )),
        (None, _) => {
            let login = credentials(&shared.config.credentials, image);
            let offer = if shared.quirks().asks_by_list {
                ask::by_list(&shared.engine, shared.owner(), login, image).await?
            } else {
                ask::by_inspection(&shared.engine, login, image).await?
            };
            let platform = fitting(shared, image, offer.platforms)?;
            let identity = ImageIdentity::Manifest(offer.digest);
            Ok(ResolvedImage::new(image.clone(), identity, platform))
        }
    }
}

/// The contract's error for a registry's refusal.
pub(crate) fn refused(image: &ImageRef, source: Engine) -> Error {
    let kind = match meaning(&source) {
        Some(Trouble::Absent | Trouble::Unusable) => ErrorKind::NotFound,
        Some(Trouble::Denied) => ErrorKind::Denied,
        Some(Trouble::Unreachable) => ErrorKind::Unavailable,
        None => {
            return Step::Engine {
                step: "asking the registry",
                source,
            }
            .into();
        }
    };
    Error::new(kind, format!("{image}: {}", words(&source)))
}

/// What the engine says about an image. The client's own troubles with the engine say nothing.
fn meaning(error: &Engine) -> Option<Trouble> {
    match error {
        Engine::DockerResponseServerError { .. } | Engine::DockerStreamError { .. } => {
            trouble(status(error), &words(error))
        }
        _ => None,
    }
}

/// Makes sure that the engine has exactly this image. `progress` hears a line now and then.
pub(crate) async fn ensure(
    docker: &Docker,
    logins: &[RegistryCredentials],
    image: &ResolvedImage,
    progress: &mut (dyn FnMut(String) + Send),
) -> std::result::Result<LocalImage, Fault> {
    if let Some(found) = find(docker, image).await? {
        return Ok(found);
    }
    let ImageIdentity::Manifest(digest) = &image.identity else {
        let message = format!(
            "{} ({}) was only ever on this engine, and is gone from it",
            image.reference,
            image.identity.digest()
        );
        return Err(failure(StartFailureCause::ImageNotFound, message));
    };
    let name = image.reference.pinned(digest.clone()).to_string();
    match pull(docker, logins, &image.reference, &name, progress).await {
        Ok(()) => {}
        Err(Pull::Stalled(message)) => {
            return Err(failure(StartFailureCause::RegistryUnreachable, message));
        }
        Err(Pull::Refused(source)) => {
            let cause = match meaning(&source) {
                Some(Trouble::Absent) => StartFailureCause::ImageNotFound,
                Some(Trouble::Denied) => StartFailureCause::ImageDenied,
                Some(Trouble::Unreachable) => StartFailureCause::RegistryUnreachable,
                Some(Trouble::Unusable) => StartFailureCause::ImageUnusable,
                None => {
                    let step = "pulling the image";
                    return Err(Fault::Engine(Step::Engine { step, source }.into()));
                }
            };
            return Err(failure(cause, format!("{name}: {}", words(&source))));
        }
    }
    let found = find(docker, image).await?.ok_or_else(|| {
        let message = format!("{name} was pulled, and the engine does not know it by that digest");
        failure(StartFailureCause::ImageUnusable, message)
    })?;
    keep_name(docker, &image.reference, &name).await;
    Ok(found)
}

/// What was pulled by its digest gets the name that it was resolved from, as `docker pull` gives
/// it: so that the next one who asks for the name finds it here, also without the registry.
async fn keep_name(docker: &Docker, image: &ImageRef, pulled: &str) {
    let Some(tag) = image.tag() else { return };
    let options = TagImageOptionsBuilder::new()
        .repo(&image.name())
        .tag(tag)
        .build();
    if let Err(error) = docker.tag_image(pulled, Some(options)).await {
        tracing::debug!(%image, %error, "a pulled image did not get its name");
    }
}

fn failure(cause: StartFailureCause, message: String) -> Fault {
    Fault::Failure(StartFailure::new(cause, message))
}

/// Why a pull came to nothing.
enum Pull {
    Refused(Engine),
    Stalled(String),
}

async fn pull(
    docker: &Docker,
    logins: &[RegistryCredentials],
    image: &ImageRef,
    name: &str,
    progress: &mut (dyn FnMut(String) + Send),
) -> std::result::Result<(), Pull> {
    let options = CreateImageOptionsBuilder::default()
        .from_image(name)
        .build();
    let docker = docker.clone().with_timeout(PULL_STALLED);
    let lines = docker.create_image(Some(options), None, credentials(logins, image));
    let mut lines = std::pin::pin!(lines);
    let mut told: Option<Instant> = None;
    loop {
        let line = match timeout(PULL_STALLED, lines.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(line)) => line.map_err(Pull::Refused)?,
            Err(_) => {
                let seconds = PULL_STALLED.as_secs();
                let message = format!("{name}: the pull showed no progress for {seconds} s");
                return Err(Pull::Stalled(message));
            }
        };
        let is_time = told.is_none_or(|told| told.elapsed() >= TELL_EVERY);
        if let (Some(status), true) = (&line.status, is_time) {
            told = Some(Instant::now());
            progress(tell(&line, status));
        }
    }
}

/// A line of a pull's progress as `docker pull` would show it.
fn tell(line: &CreateImageInfo, status: &str) -> String {
    let layer = line.id.as_deref().map(|id| format!("{id}: "));
    let detail = line.progress_detail.as_ref();
    let bytes = detail.and_then(|detail| Some((detail.current?, detail.total?)));
    let bytes = bytes.map(|(done, all)| format!(" {done} of {all} bytes"));
    let parts = (layer.unwrap_or_default(), bytes.unwrap_or_default());
    format!("{}{status}{}", parts.0, parts.1)
}

/// The image of exactly this identity, if the engine has it.
async fn find(
    docker: &Docker,
    image: &ResolvedImage,
) -> std::result::Result<Option<LocalImage>, Fault> {
    let name = match &image.identity {
        ImageIdentity::ImageId(id) => id.to_string(),
        ImageIdentity::Manifest(digest) => image.reference.pinned(digest.clone()).to_string(),
    };
    let Some(found) = local(docker, &name).await.map_err(Fault::Engine)? else {
        return Ok(None);
    };
    let theirs = platform(&found);
    if !fits(&image.platform, &theirs) {
        let message = format!(
            "{name} is for {theirs}, and the engine runs {}",
            image.platform
        );
        return Err(failure(StartFailureCause::ImageUnusable, message));
    }
    let Some(described) = describe(found) else {
        let message = format!("the engine gave no id for {name}");
        return Err(Fault::Engine(Error::new(ErrorKind::Protocol, message)));
    };
    if let ImageIdentity::ImageId(id) = &image.identity
        && described.id != id.as_str()
    {
        return Ok(None);
    }
    Ok(Some(described))
}

fn describe(found: ImageInspect) -> Option<LocalImage> {
    let id = image_id(&found)?;
    let config = found.config.unwrap_or_default();
    Some(LocalImage {
        id,
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        workdir: config.working_dir.unwrap_or_default(),
        volumes: config.volumes.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
    })
}

/// Podman leaves the algorithm out.
fn image_id(found: &ImageInspect) -> Option<String> {
    let id = found.id.as_deref().filter(|id| !id.is_empty())?;
    Some(if id.contains(':') {
        id.to_owned()
    } else {
        format!("sha256:{id}")
    })
}

async fn local(docker: &Docker, name: &str) -> Result<Option<ImageInspect>> {
    let since = Instant::now();
    let asked = loop {
        match timeout(ASK_LIMIT, docker.inspect_image(name)).await {
            Ok(Err(source)) if is_half_stored(&source) && since.elapsed() < BEING_STORED => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            asked => break asked,
        }
    };
    match asked {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(source)) if status(&source) == Some(404) => Ok(None),
        Ok(Err(source)) => Err(Step::Engine {
            step: "looking at an image",
            source,
        }
        .into()),
        Err(_) => Err(Step::Timeout {
            step: "looking at an image",
            after: ASK_LIMIT,
        }
        .into()),
    }
}

/// What identifies an image that the engine has under this name: the registry's digest, if it came
/// from this repository.
fn identify(shared: &Shared, image: &ImageRef, found: &ImageInspect) -> Result<ResolvedImage> {
    let platform = fitting(shared, image, [platform(found)])?;
    let from_registry = found.repo_digests.iter().flatten().find_map(|pinned| {
        let pinned = ImageRef::parse(pinned).ok()?;
        let digest = pinned.digest().filter(|_| pinned.name() == image.name());
        digest.cloned()
    });
    let identity = match from_registry {
        Some(digest) => ImageIdentity::Manifest(digest),
        None => {
            let id = Digest::new(image_id(found).unwrap_or_default());
            ImageIdentity::ImageId(id.map_err(|error| {
                Error::new(ErrorKind::Protocol, "the engine gave no image id").with_source(error)
            })?)
        }
    };
    Ok(ResolvedImage::new(image.clone(), identity, platform))
}

/// The engine's platform, if an image that is offered for these can run on it. None at all says
/// nothing.
fn fitting(
    shared: &Shared,
    image: &ImageRef,
    offered: impl IntoIterator<Item = String>,
) -> Result<String> {
    let ours = shared.about.platform();
    let offered: Vec<String> = offered.into_iter().collect();
    if offered.is_empty() || offered.iter().any(|theirs| fits(&ours, theirs)) {
        return Ok(ours);
    }
    let offered = offered.join(", ");
    let message = format!("{image} is for {offered}, and this engine runs {ours}");
    Err(Error::new(ErrorKind::NotFound, message))
}

/// Whether system and architecture are the same, as far as both are known.
fn fits(ours: &str, theirs: &str) -> bool {
    let parts = ours.split('/').zip(theirs.split('/')).take(2);
    let known = |part: &str| !part.is_empty() && part != "unknown";
    parts
        .filter(|(ours, theirs)| known(ours) && known(theirs))
        .all(|(ours, theirs)| ours == theirs)
}

fn platform(found: &ImageInspect) -> String {
    join(found.os.as_deref(), found.architecture.as_deref())
}

#[cfg(test)]
mod tests {
    use super::{Engine, fits, join, meaning};
    use crate::registry_words::Trouble;

    fn answer(status_code: u16, message: &str) -> Engine {
        let message = message.to_owned();
        Engine::DockerResponseServerError {
            status_code,
            message,
        }
    }

    #[test]
    fn system_and_architecture_decide() {
        assert!(fits("linux/amd64", "linux/amd64"));
        assert!(fits("linux/arm64", "linux/arm64/v8"));
        assert!(!fits("linux/amd64", "linux/arm64"));
        assert!(!fits("linux/amd64", "windows/amd64"));
        // An image that says nothing may run anywhere.
        assert!(fits("linux/amd64", &join(None, Some(""))));
    }

    #[test]
    fn only_the_engine_speaks_for_a_registry() {
        let gone = answer(404, "manifest unknown: manifest unknown");
        assert_eq!(meaning(&gone), Some(Trouble::Absent));
        assert_eq!(meaning(&Engine::RequestTimeoutError), None);
        let error = "dial tcp 127.0.0.1:9: connect: connection refused".to_owned();
        let within = Engine::DockerStreamError { error };
        assert_eq!(meaning(&within), Some(Trouble::Unreachable));
    }
}
