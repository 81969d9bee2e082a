//! The engine driven by hand, as directly as it can be, with the same effects as a run of ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, Mount, MountType, MountVolumeOptions,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder, EventsOptionsBuilder,
    InspectContainerOptions, ListContainersOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptions, StartContainerOptions,
    UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;
use v6_runtime::RunId;

use crate::Result;

/// On everything that is made by hand.
const LABEL: &str = "v6-bench";

/// Somebody who wants to know that a container has ended.
type Waiting = HashMap<String, oneshot::Sender<()>>;

/// The engine, and what a run of ours looked like in it.
pub(crate) struct Raw {
    pub(crate) docker: Docker,
    pub(crate) image: String,
    waiting: Arc<Mutex<Waiting>>,
    /// The container's name of the run that is copied, and what it was made from.
    pattern: Option<(String, ContainerCreateBody)>,
    volume_labels: HashMap<String, String>,
    archive: Bytes,
}

impl Raw {
    /// Connects, and listens for ends.
    pub(crate) async fn connect(image: &str) -> Result<Self> {
        let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
        let waiting = Arc::new(Mutex::new(Waiting::new()));
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("event", vec!["die".to_owned()]),
            ("label", vec![label()]),
        ]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        let mut events = Box::pin(docker.events(Some(options)));
        let told = waiting.clone();
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let attributes = event.actor.and_then(|actor| actor.attributes);
                let name = attributes.and_then(|mut all| all.remove("name"));
                let mut waiting = told.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(tell) = name.and_then(|name| waiting.remove(&name)) {
                    let _ = tell.send(());
                }
            }
        });
        Ok(Self {
            docker,
            image: image.to_owned(),
            waiting,
            pattern: None,
            volume_labels: HashMap::new(),
            archive: Bytes::new(),
        })
    }

    /// Which engine it is.
    pub(crate) async fn engine(&self) -> Result<String> {
        let version = self.docker.version().await?.version;
        let version = version.unwrap_or_else(|| "of an unknown version".into());
        let api = self.docker.client_version();
        Ok(format!("Docker {version}, API {api}"))
    }

    /// Takes a run of ours that has ended as the pattern: what it is made of, with which limits.
    pub(crate) async fn copy(&mut self, owner: &str, run: &RunId, input: &[u8]) -> Result<()> {
        let name = format!("v6-{owner}.{run}");
        let seen = self
            .docker
            .inspect_container(&name, None::<InspectContainerOptions>)
            .await?;
        self.pattern = Some((name.clone(), body_of(seen)?));
        self.volume_labels = self.docker.inspect_volume(&name).await?.labels;
        self.archive = archive(input)?;
        Ok(())
    }

    /// One run from its record to its removal; gives the output's bytes.
    pub(crate) async fn cycle(&self, number: usize) -> Result<u64> {
        let name = name(number);
        let files = self.store(&name).await?;
        self.docker.inspect_image(&self.image).await?;
        let body = self.body(&name)?;
        let ended = self.ended(&name);
        self.create(&name, body).await?;
        let (started, removed) = tokio::join!(self.start(&name), self.remove(&files));
        started?;
        removed?;
        ended.await?;
        self.docker
            .inspect_container(&name, None::<InspectContainerOptions>)
            .await?;
        let output = self.download(&name, "/.v6/out/0").await?;
        self.remove(&name).await?;
        self.docker
            .remove_volume(&name, None::<RemoveVolumeOptions>)
            .await?;
        Ok(output)
    }

    /// The record and the files, as ours are made; gives the name of the container with them.
    pub(crate) async fn store(&self, name: &str) -> Result<String> {
        let files = format!("{name}.files");
        self.create(&files, self.files_body(name)).await?;
        self.docker.inspect_volume(name).await?;
        let options = UploadToContainerOptionsBuilder::default()
            .path("/v6")
            .build();
        let body = bollard::body_full(self.archive.clone());
        self.docker
            .upload_to_container(&files, Some(options), body)
            .await?;
        Ok(files)
    }

    /// The container that our pattern had, for another name.
    pub(crate) fn body(&self, name: &str) -> Result<ContainerCreateBody> {
        let (old, body) = self.pattern.as_ref().ok_or("there is no pattern")?;
        let text = serde_json::to_string(body)?.replace(old, name);
        let mut body: ContainerCreateBody = serde_json::from_str(&text)?;
        body.labels.get_or_insert_default().extend(labels());
        Ok(body)
    }

    fn files_body(&self, volume: &str) -> ContainerCreateBody {
        let mut volume_labels = self.volume_labels.clone();
        // Not ours to list.
        volume_labels.retain(|name, _| !name.starts_with("v6-runtime.owner"));
        volume_labels.extend(labels());
        ContainerCreateBody {
            image: Some("localhost/v6-runtime-files:1".to_owned()),
            cmd: Some(vec!["-".to_owned()]),
            labels: Some(labels()),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                mounts: Some(vec![Mount {
                    typ: Some(MountType::VOLUME),
                    source: Some(volume.to_owned()),
                    target: Some("/v6".to_owned()),
                    volume_options: Some(MountVolumeOptions {
                        no_copy: Some(true),
                        labels: Some(volume_labels),
                        ..Default::default()
                    }),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// The least that a container can be: made, started, over, removed.
    pub(crate) async fn bare(&self, number: usize) -> Result<()> {
        let name = name(number);
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            entrypoint: Some(vec!["true".to_owned()]),
            labels: Some(labels()),
            host_config: Some(HostConfig {
                network_mode: Some("none".to_owned()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let ended = self.ended(&name);
        self.create(&name, body).await?;
        self.start(&name).await?;
        ended.await?;
        self.remove(&name).await
    }

    /// Ready when a container of this name has ended. Call it before the start.
    pub(crate) fn ended(&self, name: &str) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(name.to_owned(), tell);
        told
    }

    pub(crate) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<()> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        self.docker.create_container(Some(options), body).await?;
        Ok(())
    }

    pub(crate) async fn start(&self, name: &str) -> Result<()> {
        let start = self
            .docker
            .start_container(name, None::<StartContainerOptions>);
        Ok(start.await?)
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        Ok(self.docker.remove_container(name, Some(options)).await?)
    }

    /// How many bytes the engine gives for a path.
    pub(crate) async fn download(&self, container: &str, path: &str) -> Result<u64> {
        let options = DownloadFromContainerOptionsBuilder::default()
            .path(path)
            .build();
        let bytes = self
            .docker
            .download_from_container(container, Some(options));
        let count = bytes.try_fold(0, |sum, piece| async move { Ok(sum + piece.len() as u64) });
        Ok(count.await?)
    }

    /// Removes all that carries this process's label.
    pub(crate) async fn sweep(&self) -> Result<()> {
        let filters = HashMap::from([("label", vec![label()])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        for container in self.docker.list_containers(Some(options)).await? {
            self.remove(container.id.as_deref().unwrap_or_default())
                .await?;
        }
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self.docker.list_volumes(Some(options)).await?.volumes;
        for volume in volumes.unwrap_or_default() {
            self.docker
                .remove_volume(&volume.name, None::<RemoveVolumeOptions>)
                .await?;
        }
        Ok(())
    }
}

pub(crate) fn name(number: usize) -> String {
    format!("v6-bench-{}-{number}", std::process::id())
}

fn label() -> String {
    format!("{LABEL}={}", std::process::id())
}

fn labels() -> HashMap<String, String> {
    HashMap::from([(LABEL.to_owned(), std::process::id().to_string())])
}

/// What a container was made from, without the owner's mark.
fn body_of(seen: ContainerInspectResponse) -> Result<ContainerCreateBody> {
    let config = seen.config.ok_or("the engine tells no configuration")?;
    let mut value = serde_json::to_value(config)?;
    value["HostConfig"] = serde_json::to_value(seen.host_config)?;
    let mut body: ContainerCreateBody = serde_json::from_value(value)?;
    body.labels
        .get_or_insert_default()
        .retain(|name, _| !name.starts_with("v6-runtime.owner"));
    Ok(body)
}

/// The files that a run with one input and one output has.
fn archive(input: &[u8]) -> Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    let files: [(&str, u32, Option<&[u8]>); 7] = [
        ("helper", 0o555, Some(v6_helper::PROGRAM)),
        ("attempt", 0o444, Some(&[b'0'; 32])),
        ("in", 0o755, None),
        ("out", 0o755, None),
        ("out/claim", 0o600, Some(b"")),
        ("out/0", 0o644, Some(b"")),
        ("in/0", 0o444, Some(input)),
    ];
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_entry_type(match content {
            Some(_) => tar::EntryType::Regular,
            None => tar::EntryType::Directory,
        });
        if path.starts_with("out/") {
            header.set_uid(65_532);
            header.set_gid(65_532);
        }
        let content = content.unwrap_or_default();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content)?;
    }
    Ok(archive.into_inner()?.into())
}
