//! Volumes that are not the runtime's: those of strangers, as like a run's as can be, and one with
//! data in it.

use std::collections::HashMap;

use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListVolumesOptions, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, UploadToContainerOptionsBuilder,
};
use v6_runtime::{Owner, Result, RunId};
use v6_runtime_conformance::{Planted, Stranger, Untouched, probe};

use crate::engine::{failed, is_absent};

/// A label that no runtime of ours knows: for whose cases it was made, to tell that a volume is
/// still that one, and to find it again.
pub(crate) const MARK: &str = "org.v6-conformance.stranger";

/// Volumes that somebody else made.
struct Volumes {
    docker: Docker,
    names: Vec<String>,
    mark: String,
}

/// Makes them. `Beside`: names that begin and end like the record's, with labels whose keys or
/// values do.
pub(crate) async fn plant(
    docker: Docker,
    owner: &Owner,
    id: &RunId,
    place: Planted,
) -> Result<Stranger> {
    let record = format!("v6-{owner}.{id}");
    let labels = |pairs: &[(&str, String)]| -> HashMap<String, String> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()));
        pairs.collect()
    };
    let of = |owner: String| {
        labels(&[
            ("v6-runtime.owner", owner),
            ("v6-runtime.schema", "1".to_owned()),
            ("v6-runtime.run", id.to_string()),
            ("v6-runtime.part", "record".to_owned()),
        ])
    };
    let wanted: Vec<(String, HashMap<String, String>)> = match place {
        Planted::InPlace => vec![(record, HashMap::new())],
        Planted::Beside => vec![
            (format!("{record}-2"), of(format!("{owner}-2"))),
            (format!("x-{record}"), of(format!("x-{owner}"))),
            // The labels are this owner's, the name is not.
            (format!("elsewhere-{owner}-{id}"), of(owner.to_string())),
            (
                format!("v6-{owner}.{id}x"),
                labels(&[("v6-runtime.ownership", owner.to_string())]),
            ),
        ],
    };
    let mut volumes = Volumes {
        docker,
        names: Vec::new(),
        mark: format!("{owner}/{id}"),
    };
    for (name, mut labels) in wanted {
        labels.insert(MARK.to_owned(), volumes.mark.clone());
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        let made = volumes.docker.create_volume(request).await;
        made.map_err(failed("making a stranger's volume"))?;
        volumes.names.push(name);
    }
    Ok(Box::new(volumes))
}

#[async_trait]
impl Untouched for Volumes {
    async fn is_there(&self) -> Result<bool> {
        for name in &self.names {
            match self.docker.inspect_volume(name).await {
                Ok(volume) if volume.labels.get(MARK) == Some(&self.mark) => {}
                Ok(_) => return Ok(false),
                Err(error) if is_absent(&error) => return Ok(false),
                Err(error) => return Err(failed("looking at a stranger's volume")(error).into()),
            }
        }
        Ok(true)
    }

    async fn remove(&self) -> Result<()> {
        for name in &self.names {
            remove_volume(&self.docker, name).await?;
        }
        Ok(())
    }
}

async fn remove_volume(docker: &Docker, name: &str) -> Result<()> {
    match docker
        .remove_volume(name, None::<RemoveVolumeOptions>)
        .await
    {
        Err(error) if !is_absent(&error) => Err(failed("removing a volume")(error).into()),
        _ => Ok(()),
    }
}

/// Makes a volume with the file `data` in it, by a container that is never started.
pub(crate) async fn volume(docker: &Docker, owner: &Owner, probe: &str) -> Result<String> {
    const SIZE: usize = 1000;
    let name = format!("conformance-data-{owner}");
    let request = VolumeCreateRequest {
        name: Some(name.clone()),
        labels: Some(HashMap::from([(MARK.to_owned(), owner.to_string())])),
        ..VolumeCreateRequest::default()
    };
    let made = docker.create_volume(request).await;
    made.map_err(failed("making a volume"))?;
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(SIZE as u64);
    header.set_mode(0o644);
    let appended = archive.append_data(&mut header, "data", probe::pattern(SIZE).as_ref());
    let archive = appended.and_then(|()| archive.into_inner());
    let archive = archive.map_err(failed("packing a file"))?;
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(probe.to_owned()),
        host_config: Some(HostConfig {
            binds: Some(vec![format!("{name}:/volume")]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let made = docker.create_container(Some(options), body).await;
    made.map_err(failed("making a container for a volume"))?;
    let options = UploadToContainerOptionsBuilder::new()
        .path("/volume")
        .build();
    let put = docker
        .upload_to_container(&name, Some(options), bollard::body_full(archive.into()))
        .await;
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    let removed = docker.remove_container(&name, Some(options)).await;
    put.map_err(failed("filling a volume"))?;
    removed.map_err(failed("removing the container for a volume"))?;
    Ok(name)
}

/// Removes all that was made here for this owner.
pub(crate) async fn remove(docker: &Docker, owner: &Owner) -> Result<()> {
    let all = docker.list_volumes(None::<ListVolumesOptions>).await;
    let all = all.map_err(failed("listing volumes"))?;
    for volume in all.volumes.unwrap_or_default() {
        let ours = volume
            .labels
            .get(MARK)
            .is_some_and(|mark| mark.split('/').next() == Some(owner.as_str()));
        if !ours {
            continue;
        }
        remove_volume(docker, &volume.name).await?;
    }
    Ok(())
}
