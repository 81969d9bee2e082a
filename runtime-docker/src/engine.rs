//! The connection: every call has a time limit and a name.

use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, SystemTime};

use bollard::auth::DockerCredentials;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummary, Volume, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptions, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptions, StartContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::TryStreamExt;
use serde::Deserialize;

use crate::about::About;
use crate::error::{Error, Result, found};
use crate::{error, quirks, time};

/// How often a call is made, at most, whose answer says that it came at a bad moment.
pub(crate) const ASKED: u32 = 5;

/// An image as Podman lists it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListedImage {
    /// In seconds since 1970.
    pub(crate) created: u64,
    #[serde(default)]
    pub(crate) names: Vec<String>,
}

/// One engine's API.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    limit: Duration,
    /// It is on this machine, with its clock.
    is_local: bool,
    /// See [`Quirks::other_states`](crate::quirks::Quirks::other_states).
    pub(crate) other_states: bool,
}

impl Engine {
    /// Connects to an engine, which says what it is, and agrees on an API version with it.
    pub(crate) async fn connect(host: &str, limit: Duration) -> Result<(Self, About)> {
        let seconds = limit.as_secs().max(1);
        let connect = |version| {
            let docker = if host.starts_with("unix://") {
                Docker::connect_with_unix(host, seconds, version)
            } else {
                Docker::connect_with_http(host, seconds, version)
            };
            docker.map_err(|source| Error::Engine {
                step: "connecting to the engine",
                source,
            })
        };
        let mut engine = Self {
            docker: connect(API_DEFAULT_VERSION)?,
            limit,
            is_local: host.starts_with("unix://"),
            other_states: false,
        };
        let about = engine.about().await?;
        if let Some(api) = about.api.filter(|api| *api < *API_DEFAULT_VERSION) {
            engine.docker = connect(&api)?;
        }
        Ok((engine, about))
    }

    /// What the engine says of itself.
    pub(crate) async fn about(&self) -> Result<About> {
        let step = "connecting to the engine";
        let path = |name| format!("/v4.0.0/libpod/{name}");
        let pinged = self.raw(step, "GET", path("_ping")).await;
        let unknown = |status| (400..500).contains(&status);
        if let Err(error) = pinged {
            if !error.status().is_some_and(unknown) {
                return Err(error);
            }
            // Not Podman. The version is the one thing that an engine tells in whatever version of
            // the API it is asked.
            let version = self.call(step, self.docker.version()).await?;
            let info = self.raw(step, "GET", "/info".to_owned()).await?;
            let info = serde_json::from_slice(&info);
            return Ok(About::docker(
                version,
                info.map_err(|error| not_understood(step, &error))?,
            ));
        }
        let step = "asking Podman about itself";
        let said = self.raw(step, "GET", path("info")).await?;
        let said = serde_json::from_slice(&said);
        Ok(About::podman(
            said.map_err(|error| not_understood(step, &error))?,
        ))
    }

    /// The time by the engine's clock, if it tells.
    pub(crate) async fn clock(&self) -> Result<Option<SystemTime>> {
        if self.is_local {
            return Ok(Some(SystemTime::now()));
        }
        let step = "asking for the engine's time";
        let told = self.call(step, self.docker.info()).await?.system_time;
        Ok(told.as_deref().and_then(time::from_engine))
    }

    /// Whether the engine answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        let pinged = self.call("asking whether the engine is there", self.docker.ping());
        pinged.await.map(drop)
    }

    #[cfg(test)]
    pub(crate) fn of(docker: Docker) -> Self {
        Self {
            docker,
            limit: Duration::from_secs(1),
            is_local: true,
            other_states: false,
        }
    }

    pub(crate) async fn call<T>(
        &self,
        step: &'static str,
        call: impl Future<Output = Result<T, bollard::errors::Error>> + Send,
    ) -> Result<T> {
        // The client's futures have some 10 KiB, which every future around them would carry.
        bounded(step, self.limit, Box::pin(call)).await
    }

    /// The answer to a call as it is, where the client has none like it or does not understand the
    /// answer: one whose answer it passes on is sent as another.
    pub(crate) async fn raw(
        &self,
        step: &'static str,
        method: &'static str,
        path: String,
    ) -> Result<Vec<u8>> {
        let docker = self.instead(method, path);
        let mut asked = 1;
        loop {
            let whole = docker.export_image("v6-runtime").try_fold(
                Vec::new(),
                |mut all, piece| async move {
                    all.extend_from_slice(&piece);
                    Ok(all)
                },
            );
            match self.call(step, whole).await {
                Err(error) if asked < ASKED && quirks::is_overtaken(&error) => asked += 1,
                answer => return answer,
            }
        }
    }

    /// Sends JSON and a login, where the client has no call like it: one that takes both is sent as
    /// another. It has no limit of its own but the client's.
    pub(crate) async fn put_with_login(
        &self,
        path: String,
        body: String,
        login: Option<DockerCredentials>,
    ) -> Result<(), bollard::errors::Error> {
        let docker = self.instead("PUT", path);
        let body = bollard::body_full(body.into());
        let lines = docker.create_image(None::<CreateImageOptions>, Some(body), login);
        lines.try_for_each(|_| async { Ok(()) }).await
    }

    /// A client that sends each of its calls as this one.
    fn instead(&self, method: &'static str, path: String) -> Docker {
        let docker = self.docker.clone();
        docker.with_request_modifier(move |mut request| {
            let uri = request.uri();
            let host = uri.authority().map_or("", |host| host.as_str());
            let uri = format!("{}://{host}{path}", uri.scheme_str().unwrap_or("http"));
            if let (Ok(uri), Ok(method)) = (uri.parse(), method.parse()) {
                *request.uri_mut() = uri;
                *request.method_mut() = method;
            }
            request
        })
    }

    /// The images of a repository, as Podman lists them.
    pub(crate) async fn images(&self, repository: &str) -> Result<Vec<ListedImage>> {
        let step = "listing images";
        let filters = HashMap::from([("reference", [repository])]);
        let filters = serde_json::to_string(&filters);
        let filters = filters.map_err(|error| not_understood(step, &error))?;
        let path = format!("/v4.0.0/libpod/images/json?filters={}", encoded(&filters));
        let answer = self.raw(step, "GET", path).await?;
        serde_json::from_slice(&answer).map_err(|error| not_understood(step, &error))
    }

    /// All volumes with these labels.
    pub(crate) async fn volumes(&self, labels: Vec<String>) -> Result<Vec<Volume>> {
        let filters = HashMap::from([("label", labels)]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let call = self.docker.list_volumes(Some(options));
        let list = self.call("listing volumes", call).await?;
        Ok(list.volumes.unwrap_or_default())
    }

    pub(crate) async fn volume(&self, name: &str) -> Result<Option<Volume>> {
        let call = self.docker.inspect_volume(name);
        found(self.call("looking at a volume", call).await)
    }

    /// Makes a volume, or returns the one that has the name already.
    pub(crate) async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<Volume> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..Default::default()
        };
        let call = self.docker.create_volume(request);
        match self.call("making a volume", call).await {
            Err(error) if quirks::is_made_already(&error) => {
                // Or it has gone again meanwhile.
                self.volume(name).await?.ok_or(error)
            }
            made => made,
        }
    }

    /// Removes a volume; whether there was one.
    pub(crate) async fn remove_volume(&self, name: &str) -> Result<bool> {
        let call = self.docker.remove_volume(name, None::<RemoveVolumeOptions>);
        Ok(found(self.call("removing a volume", call).await)?.is_some())
    }

    /// All containers with these labels, in any state.
    pub(crate) async fn containers(&self, labels: Vec<String>) -> Result<Vec<ContainerSummary>> {
        let filters = HashMap::from([("label", labels)]);
        let step = "listing containers";
        if self.other_states {
            let filters = serde_json::to_string(&filters);
            let filters = filters.map_err(|error| not_understood(step, &error))?;
            let path = format!("/containers/json?all=true&filters={}", encoded(&filters));
            let answer = self.raw(step, "GET", path).await?;
            return quirks::containers(&answer).map_err(|error| not_understood(step, &error));
        }
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let call = self.docker.list_containers(Some(options));
        self.call(step, call).await
    }

    pub(crate) async fn container(&self, name: &str) -> Result<Option<ContainerInspectResponse>> {
        let step = "looking at a container";
        if self.other_states {
            let path = format!("/containers/{name}/json");
            let answer = self.raw(step, "GET", path).await;
            let seen = found(answer)?.map(|answer| quirks::container(&answer));
            return seen
                .transpose()
                .map_err(|error| not_understood(step, &error));
        }
        let call = self
            .docker
            .inspect_container(name, None::<InspectContainerOptions>);
        found(self.call(step, call).await)
    }

    pub(crate) async fn create_container(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let call = self.docker.create_container(Some(options), body);
        Ok(self.call("making a container", call).await?.id)
    }

    /// Starts a container. One that runs already is as good.
    pub(crate) async fn start(&self, name: &str) -> Result<()> {
        let start = || async {
            let call = self
                .docker
                .start_container(name, None::<StartContainerOptions>);
            self.call("starting a container", call).await
        };
        match self.with_files(name, start).await {
            Err(error) if error.status() == Some(304) => Ok(()),
            other => other,
        }
    }

    /// Makes a call for which the engine needs a container's files; again, if it is wrong about them or
    /// could not read what it keeps of the container.
    pub(crate) async fn with_files<T, F: Future<Output = Result<T>> + Send>(
        &self,
        name: &str,
        mut call: impl FnMut() -> F + Send,
    ) -> Result<T> {
        let mut asked = 1;
        loop {
            match call().await {
                Err(Error::Engine { source, .. })
                    if asked < ASKED && quirks::is_half_mounted(&source) =>
                {
                    asked += 1;
                    self.unmount(name).await;
                }
                Err(Error::Engine { source, .. })
                    if asked < ASKED && quirks::is_spec_unread(&error::words(&source)) =>
                {
                    asked += 1;
                }
                answer => return answer,
            }
        }
    }

    /// Has Podman correct what it believes of a container's files, as far as it can: see
    /// [`quirks::is_half_mounted`]. One that runs keeps them.
    pub(crate) async fn unmount(&self, name: &str) {
        let path = format!("/v4.0.0/libpod/containers/{name}/unmount");
        let unmounted = self.raw("unmounting a container", "POST", path).await;
        if let Err(error) = unmounted {
            tracing::debug!(container = name, %error, "it could not be unmounted");
        }
    }

    /// Sends a signal; whether there was anything to send it to.
    pub(crate) async fn kill(&self, name: &str, signal: &str) -> Result<bool> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let call = self.docker.kill_container(name, Some(options));
        match self.call("stopping a container", call).await {
            Ok(()) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) if quirks::is_just_gone(&error) || quirks::is_not_running(&error) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Kills and removes a container with its anonymous volumes. `false`: there is none, or
    /// somebody else is removing it.
    pub(crate) async fn remove_container(&self, name: &str) -> Result<bool> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let call = self.docker.remove_container(name, Some(options));
        match found(self.call("removing a container", call).await) {
            Ok(gone) => Ok(gone.is_some()),
            Err(error) if error.status() == Some(409) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn not_understood(step: &str, error: &serde_json::Error) -> Error {
    let message = format!("{step}: {error}");
    v6_runtime::Error::new(v6_runtime::ErrorKind::Protocol, message).into()
}

/// Text as a value in the query of an address.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

async fn bounded<T>(
    step: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(bollard::errors::Error::RequestTimeoutError)) | Err(_) => {
            Err(Error::Timeout { step, after: limit })
        }
        Ok(Err(source)) => Err(Error::Engine { step, source }),
    }
}
