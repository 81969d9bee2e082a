//! Images: what a name stands for, and having exactly that.

use std::time::Duration;

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::errors::Error as Engine;
use bollard::models::ImageInspect;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use v6_runtime::{
    Digest, Error, ErrorKind, ImageIdentity, ImageRef, PullPolicy, RegistryCredentials,
    ResolvedImage, Result, StartFailure, StartFailureCause,
};

use crate::error::{Error as Step, words};
use crate::registry_words::{Trouble, trouble};

/// A pull that shows no progress for so long is given up.
const PULL_STALLED: Duration = Duration::from_secs(300);
/// The registry is asked for a digest no longer than this.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalImage {
    pub(crate) id: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) workdir: String,
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
    docker: &Docker,
    logins: &[RegistryCredentials],
    image: &ImageRef,
    policy: PullPolicy,
) -> Result<ResolvedImage> {
    // A digest says all there is to say, wherever the image is.
    if let Some(digest) = image.digest() {
        let platform = match local(docker, &image.pinned(digest.clone()).to_string()).await? {
            Some(found) => platform(&found),
            None => engine_platform(docker).await?,
        };
        return Ok(ResolvedImage::new(
            image.clone(),
            ImageIdentity::Manifest(digest.clone()),
            platform,
        ));
    }
    let here = match policy {
        PullPolicy::Always => None,
        _ => local(docker, &image.to_string()).await?,
    };
    match (here, policy) {
        (Some(found), _) => identify(image, &found),
        (None, PullPolicy::Never) => Err(Error::new(
            ErrorKind::NotFound,
            format!("the engine has no image {image}"),
        )),
        (None, _) => ask(docker, logins, image).await,
    }
}

/// Asks the registry, through the engine, what a tag stands for now.
async fn ask(
    docker: &Docker,
    logins: &[RegistryCredentials],
    image: &ImageRef,
) -> Result<ResolvedImage> {
    let credentials = credentials(logins, image);
    let name = image.to_string();
    let asking = docker.inspect_registry_image(&name, credentials);
    let answer = match tokio::time::timeout(ASK_LIMIT, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => return Err(refused(image, source)),
        Err(_) => {
            let message = format!(
                "the registry of {image} did not answer in {} s",
                ASK_LIMIT.as_secs()
            );
            return Err(Error::new(ErrorKind::Timeout, message));
        }
    };
    let digest = answer.descriptor.digest.unwrap_or_default();
    let digest = Digest::new(digest).map_err(|error| {
        Error::new(
            ErrorKind::Protocol,
            format!("the registry gave no digest for {image}"),
        )
        .with_source(error)
    })?;
    let ours = engine_platform(docker).await?;
    let offered: Vec<String> = answer
        .platforms
        .iter()
        .filter_map(|p| {
            Some(format!(
                "{}/{}",
                p.os.as_deref()?,
                p.architecture.as_deref()?
            ))
        })
        .filter(|p| !p.starts_with("unknown") && !p.starts_with('/') && !p.ends_with('/'))
        .collect();
    if !offered.is_empty() && !offered.contains(&ours) {
        let message = format!(
            "{image} is for {}, and this engine runs {ours}",
            offered.join(", ")
        );
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    Ok(ResolvedImage::new(
        image.clone(),
        ImageIdentity::Manifest(digest),
        ours,
    ))
}

/// The contract's error for a registry's refusal.
fn refused(image: &ImageRef, source: Engine) -> Error {
    let said = words(&source);
    let kind = match trouble(status(&source), &said) {
        Some(Trouble::Absent) => ErrorKind::NotFound,
        Some(Trouble::Denied) => ErrorKind::Denied,
        Some(Trouble::Unusable) => ErrorKind::NotFound,
        Some(Trouble::Unreachable) => ErrorKind::Unavailable,
        None => {
            return Step::Engine {
                step: "asking the registry",
                source,
            }
            .into();
        }
    };
    Error::new(kind, format!("{image}: {said}"))
}

/// Makes sure that the engine has exactly this image. `progress` hears a line now and then.
pub(crate) async fn ensure(
    docker: &Docker,
    logins: &[RegistryCredentials],
    image: &ResolvedImage,
    progress: &mut (dyn FnMut(String) + Send),
) -> std::result::Result<LocalImage, Fault> {
    if let Some(found) = find(docker, image).await.map_err(Fault::Engine)? {
        return Ok(found);
    }
    let failure = |cause, message: String| Err(Fault::Failure(StartFailure::new(cause, message)));
    let ImageIdentity::Manifest(digest) = &image.identity else {
        let message = format!(
            "{} ({}) was only ever on this engine, and is gone from it",
            image.reference,
            image.identity.digest()
        );
        return failure(StartFailureCause::ImageNotFound, message);
    };
    let name = image.reference.pinned(digest.clone()).to_string();
    if let Err(source) = pull(docker, logins, image, &name, progress).await? {
        let said = words(&source);
        let cause = match trouble(status(&source), &said) {
            Some(Trouble::Absent) => StartFailureCause::ImageNotFound,
            Some(Trouble::Denied) => StartFailureCause::ImageDenied,
            Some(Trouble::Unreachable) => StartFailureCause::RegistryUnreachable,
            Some(Trouble::Unusable) => StartFailureCause::ImageUnusable,
            None => {
                return Err(Fault::Engine(
                    Step::Engine {
                        step: "pulling the image",
                        source,
                    }
                    .into(),
                ));
            }
        };
        return failure(cause, format!("{name}: {said}"));
    }
    match find(docker, image).await.map_err(Fault::Engine)? {
        Some(found) => Ok(found),
        None => failure(
            StartFailureCause::ImageUnusable,
            format!("{name} was pulled, and the engine does not know it by that digest"),
        ),
    }
}

async fn pull(
    docker: &Docker,
    logins: &[RegistryCredentials],
    image: &ResolvedImage,
    name: &str,
    progress: &mut (dyn FnMut(String) + Send),
) -> std::result::Result<std::result::Result<(), Engine>, Fault> {
    let options = CreateImageOptionsBuilder::default()
        .from_image(name)
        .build();
    let credentials = credentials(logins, &image.reference);
    let mut lines = Box::pin(docker.create_image(Some(options), None, credentials));
    let mut told = tokio::time::Instant::now();
    loop {
        match tokio::time::timeout(PULL_STALLED, lines.next()).await {
            Ok(None) => return Ok(Ok(())),
            Ok(Some(Err(error))) => return Ok(Err(error)),
            Ok(Some(Ok(line))) => {
                if let Some(status) = line
                    .status
                    .filter(|_| told.elapsed() > Duration::from_secs(1))
                {
                    told = tokio::time::Instant::now();
                    progress(status);
                }
            }
            Err(_) => {
                let message = format!(
                    "{name}: the pull showed no progress for {} s",
                    PULL_STALLED.as_secs()
                );
                return Err(Fault::Failure(StartFailure::new(
                    StartFailureCause::RegistryUnreachable,
                    message,
                )));
            }
        }
    }
}

/// The image of exactly this identity, if the engine has it.
async fn find(docker: &Docker, image: &ResolvedImage) -> Result<Option<LocalImage>> {
    let name = match &image.identity {
        ImageIdentity::ImageId(id) => id.to_string(),
        ImageIdentity::Manifest(digest) => image.reference.pinned(digest.clone()).to_string(),
    };
    Ok(local(docker, &name).await?.and_then(describe))
}

fn describe(found: ImageInspect) -> Option<LocalImage> {
    let config = found.config.unwrap_or_default();
    Some(LocalImage {
        id: found.id?,
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        workdir: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
    })
}

async fn local(docker: &Docker, name: &str) -> Result<Option<ImageInspect>> {
    match tokio::time::timeout(ASK_LIMIT, docker.inspect_image(name)).await {
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
fn identify(image: &ImageRef, found: &ImageInspect) -> Result<ResolvedImage> {
    let from_registry = found.repo_digests.iter().flatten().find_map(|pinned| {
        let pinned = ImageRef::parse(pinned).ok()?;
        (pinned.name() == image.name())
            .then(|| pinned.digest().cloned())
            .flatten()
    });
    let identity = match from_registry {
        Some(digest) => ImageIdentity::Manifest(digest),
        None => {
            let id = found.id.clone().unwrap_or_default();
            ImageIdentity::ImageId(Digest::new(id).map_err(|error| {
                Error::new(ErrorKind::Protocol, "the engine gave no image id").with_source(error)
            })?)
        }
    };
    Ok(ResolvedImage::new(image.clone(), identity, platform(found)))
}

fn platform(found: &ImageInspect) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "unknown".into());
    format!("{}/{}", part(&found.os), part(&found.architecture))
}

async fn engine_platform(docker: &Docker) -> Result<String> {
    let version = match tokio::time::timeout(ASK_LIMIT, docker.version()).await {
        Ok(Ok(version)) => version,
        Ok(Err(source)) => {
            return Err(Step::Engine {
                step: "asking the engine's version",
                source,
            }
            .into());
        }
        Err(_) => {
            return Err(Step::Timeout {
                step: "asking the engine's version",
                after: ASK_LIMIT,
            }
            .into());
        }
    };
    let part = |part: Option<String>| part.unwrap_or_else(|| "unknown".into());
    Ok(format!("{}/{}", part(version.os), part(version.arch)))
}
