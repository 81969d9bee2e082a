//! Asking a registry, through the engine, what a name stands for now. Nothing of the image is
//! fetched but the small part that says for which platform it is.

use std::time::{Duration, SystemTime};

use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::time::timeout;
use v6_runtime::{Digest, Error, ErrorKind, ImageRef, Owner, Result};

use crate::engine::Engine;
use crate::error::Error as Step;
use crate::image::refused;
use crate::quirks::list_refusal;

/// The registry is asked for a digest no longer than this.
pub(crate) const ASK_LIMIT: Duration = Duration::from_secs(60);
/// A list that is older than this has been left by a process that died while it asked.
const STALE: Duration = Duration::from_secs(600);

/// What a registry has under a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) digest: Digest,
    /// `SYSTEM/ARCHITECTURE` each; none at all says nothing.
    pub(crate) platforms: Vec<String>,
}

/// Asks by Docker's call for it.
pub(crate) async fn by_inspection(
    engine: &Engine,
    login: Option<DockerCredentials>,
    image: &ImageRef,
) -> Result<Offer> {
    let name = image.to_string();
    let asking = engine.docker.inspect_registry_image(&name, login);
    let answer = match timeout(ASK_LIMIT, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => return Err(refused(image, source)),
        Err(_) => return Err(late(image)),
    };
    let offered = answer.platforms.iter();
    let offered = offered.map(|p| join(p.os.as_deref(), p.architecture.as_deref()));
    Ok(Offer {
        digest: digest(image, answer.descriptor.digest)?,
        platforms: offered.collect(),
    })
}

/// Asks by a list of images that is made at the engine for that, has the image added, and is removed
/// again: [`Quirks::asks_by_list`](crate::quirks::Quirks::asks_by_list). Of an image for several
/// platforms this gives the one for the engine's.
pub(crate) async fn by_list(
    engine: &Engine,
    owner: &Owner,
    login: Option<DockerCredentials>,
    image: &ImageRef,
) -> Result<Offer> {
    let (engine, owner, image) = (engine.clone(), owner.clone(), image.clone());
    // Also if nobody waits for the answer any more, the list is removed.
    let asking = tokio::spawn(async move {
        remove_stale(&engine, &owner).await?;
        let name = format!("{}:ask-{:032x}", repository(&owner), rand::random::<u128>());
        let path = format!("/v4.0.0/libpod/manifests/{name}");
        let step = "making a list of images to ask a registry with";
        engine.raw(step, "POST", path.clone()).await?;
        let offer = offer(&engine, &path, login, &image).await;
        let step = "removing the list of images that a registry was asked with";
        if let Err(error) = engine.raw(step, "DELETE", path).await {
            // The next one who asks removes it.
            tracing::warn!("{error}");
        }
        offer
    });
    asking.await.unwrap_or_else(|error| {
        let message = "asking the registry broke off";
        Err(Error::new(ErrorKind::Unexpected, message).with_source(error))
    })
}

async fn offer(
    engine: &Engine,
    path: &str,
    login: Option<DockerCredentials>,
    image: &ImageRef,
) -> Result<Offer> {
    let addition = serde_json::json!({
        "operation": "update",
        "images": [format!("docker://{image}")],
    });
    let adding = engine.put_with_login(path.to_owned(), addition.to_string(), login);
    match timeout(ASK_LIMIT, adding).await {
        Ok(Ok(())) => {}
        Ok(Err(source)) => return Err(refused(image, list_refusal(source))),
        Err(_) => return Err(late(image)),
    }
    let step = "reading the list of images that a registry was asked with";
    let answer = engine.raw(step, "GET", format!("{path}/json")).await?;
    let list: List = serde_json::from_slice(&answer)
        .map_err(|error| Error::new(ErrorKind::Protocol, step).with_source(error))?;
    list.offer(image)
}

/// What a list of images says of its members.
#[derive(Debug, Deserialize)]
struct List {
    manifests: Option<Vec<Member>>,
}

#[derive(Debug, Deserialize)]
struct Member {
    digest: Option<String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: Option<String>,
    architecture: Option<String>,
}

impl List {
    fn offer(self, image: &ImageRef) -> Result<Offer> {
        let member = self.manifests.into_iter().flatten().next();
        let (found, platform) = member.map_or((None, None), |it| (it.digest, it.platform));
        let platform = platform.map(|it| join(it.os.as_deref(), it.architecture.as_deref()));
        Ok(Offer {
            digest: digest(image, found)?,
            platforms: platform.into_iter().collect(),
        })
    }
}

/// Removes the lists of processes that died while they asked.
async fn remove_stale(engine: &Engine, owner: &Owner) -> std::result::Result<(), Step> {
    let now = SystemTime::now();
    for image in engine.images(&repository(owner)).await? {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(image.created);
        if now.duration_since(made).unwrap_or_default() < STALE {
            continue;
        }
        for name in image.names.iter().filter(|name| is_list(name, owner)) {
            let step = "removing a list of images that was left";
            let path = format!("/v4.0.0/libpod/manifests/{name}");
            crate::error::found(engine.raw(step, "DELETE", path).await)?;
        }
    }
    Ok(())
}

/// Where an owner's lists are.
fn repository(owner: &Owner) -> String {
    format!("localhost/v6-runtime/{owner}")
}

fn is_list(name: &str, owner: &Owner) -> bool {
    let tag = name.strip_prefix(&repository(owner));
    tag.is_some_and(|tag| tag.starts_with(":ask-"))
}

fn digest(image: &ImageRef, told: Option<String>) -> Result<Digest> {
    Digest::new(told.unwrap_or_default()).map_err(|error| {
        let message = format!("the registry gave no digest for {image}");
        Error::new(ErrorKind::Protocol, message).with_source(error)
    })
}

fn late(image: &ImageRef) -> Error {
    let seconds = ASK_LIMIT.as_secs();
    let message = format!("the registry of {image} did not answer in {seconds} s");
    Error::new(ErrorKind::Timeout, message)
}

/// A platform as one word.
pub(crate) fn join(os: Option<&str>, architecture: Option<&str>) -> String {
    let known = |part: Option<&str>| {
        part.filter(|part| !part.is_empty())
            .unwrap_or("unknown")
            .to_owned()
    };
    format!("{}/{}", known(os), known(architecture))
}
