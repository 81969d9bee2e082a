//! Images made of the probe's, at the engine, without a registry.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::{ContainerConfig, ContainerCreateBody};
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, ListImagesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};

use crate::engine::{Failed, failed};

/// Makes the image `repository:tag` of another, with this instruction of a Dockerfile, by a
/// container that is never started.
pub(crate) async fn derive(
    docker: &Docker,
    from: &str,
    instruction: &str,
    repository: &str,
    tag: &str,
) -> Result<(), Failed> {
    let name = format!("{}-{tag}", repository.replace(['/', ':', '.'], "-"));
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(from.to_owned()),
        ..ContainerCreateBody::default()
    };
    let made = docker.create_container(Some(options), body);
    made.await
        .map_err(failed("making a container of the probe"))?;
    let options = CommitContainerOptionsBuilder::new()
        .container(&name)
        .repo(repository)
        .tag(tag)
        .changes(instruction)
        .build();
    let committed = docker.commit_container(options, ContainerConfig::default());
    let committed = committed.await.map_err(failed("making an image of it"));
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    let removed = docker.remove_container(&name, Some(options)).await;
    committed?;
    removed.map_err(failed("removing the container again"))
}

/// Gives an image another name.
pub(crate) async fn tag(
    docker: &Docker,
    image: &str,
    repository: &str,
    tag: &str,
) -> Result<(), Failed> {
    let options = TagImageOptionsBuilder::new()
        .repo(repository)
        .tag(tag)
        .build();
    let tagged = docker.tag_image(image, Some(options)).await;
    tagged.map_err(failed("naming an image"))
}

/// Takes a name away, and the image with its last one. One that is not there is no error.
pub(crate) async fn forget(docker: &Docker, image: &str) -> Result<(), Failed> {
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    match docker.remove_image(image, Some(options), None).await {
        Ok(_) => Ok(()),
        Err(error) if crate::engine::is_absent(&error) => Ok(()),
        Err(error) => Err(failed("removing an image")(error)),
    }
}

/// Removes every image with this label, under whatever names: an engine may remember what it fetched
/// by its digest, too.
pub(crate) async fn forget_all(docker: &Docker, label: &str) -> Result<(), Failed> {
    let filters = HashMap::from([("label", vec![label])]);
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let found = docker.list_images(Some(options)).await;
    for image in found.map_err(failed("listing images"))? {
        forget(docker, &image.id).await?;
    }
    Ok(())
}
