//! Registries with the probe in them.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::query_parameters::PushImageOptionsBuilder;
use futures_util::TryStreamExt;
use tokio::sync::OnceCell;
use v6_fault_proxy::{Address, Fault, FaultProxy, Requests, Rule, RuleGuard};
use v6_runtime::{ImageRef, RegistryCredentials, Result};
use v6_runtime_conformance::Registries;

use crate::engine::{Failed, failed};
use crate::images;

/// What is put into the registries: the probe's program in an image of another id, so that the
/// engine has to fetch it.
const REPOSITORY: &str = "v6-conformance/probe";
const TAG: &str = "1";
const LABEL: &str = "org.v6-conformance.registry=1";
/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

/// Two registries of this machine, as `tests/services/registry.sh` starts them.
#[derive(Debug)]
pub(crate) struct Started {
    open: String,
    private: String,
    /// Where nobody listens but us.
    stalled: String,
    user: String,
    password: String,
    /// A way to the open one that stalls, once they are filled.
    filled: OnceCell<FaultProxy>,
    stall: Mutex<Option<RuleGuard>>,
}

impl Started {
    /// Reads the file that `registry.sh` writes: `export NAME=VALUE NAME=VALUE` lines.
    ///
    /// # Errors
    /// A file that cannot be read or lacks one of them.
    pub(crate) fn read(file: &Path) -> std::result::Result<Self, String> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let get = |name: &str| {
            let words = text.split_whitespace();
            let found = words
                .filter_map(|word| word.split_once('='))
                .find(|(key, _)| *key == name);
            found
                .map(|(_, value)| value.to_owned())
                .ok_or_else(|| format!("{} does not set {name}", file.display()))
        };
        Ok(Self {
            open: get("V6_REGISTRY_OPEN")?,
            private: get("V6_REGISTRY_PRIVATE")?,
            stalled: get("V6_REGISTRY_STALLED")?,
            user: get("V6_REGISTRY_USER")?,
            password: get("V6_REGISTRY_PASSWORD")?,
            filled: OnceCell::new(),
            stall: Mutex::default(),
        })
    }

    /// What the runtime is told of the private one.
    pub(crate) fn credentials(&self) -> RegistryCredentials {
        RegistryCredentials::new(&self.private, &self.user, self.password.clone().into())
    }

    /// The probe's names in both.
    pub(crate) fn probes(&self) -> Result<[ImageRef; 2]> {
        let name = |registry: &str| ImageRef::parse(&format!("{registry}/{REPOSITORY}:{TAG}"));
        Ok([name(&self.open)?, name(&self.private)?])
    }

    /// Lets what waits at the one that stalls come to nothing.
    pub(crate) fn give_up(&self) {
        drop(
            self.stall
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        if let Some(stalled) = self.filled.get() {
            stalled.cut();
        }
    }

    /// Fills them the first time, and takes all that was fetched from the engine.
    pub(crate) async fn ready(&self, docker: &Docker, probe: &str) -> Result<Registries> {
        let registries = self.names(|| self.fill(docker, probe)).await?;
        images::forget_all(docker, LABEL).await?;
        Ok(registries)
    }

    /// The names in them, once they are filled.
    pub(crate) async fn names<F>(&self, fill: impl FnOnce() -> F) -> Result<Registries>
    where
        F: Future<Output = std::result::Result<(), Failed>>,
    {
        let ready = || async {
            fill().await?;
            self.way()
        };
        let stalled = self.filled.get_or_try_init(ready).await?;
        let image = |registry: &str, repository: &str| {
            ImageRef::parse(&format!("{registry}/{repository}:{TAG}"))
        };
        // The engine asks for one part when it is to tell what a name stands for. What comes after
        // that is the content.
        let content = Requests::any().path_contains("/blobs/");
        let rule = Rule::new(content, Fault::Hold).skip(1);
        // What an earlier case has left waiting does not arrive after all.
        stalled.cut();
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = Some(stalled.add(rule));
        let stalled = stalled.address().to_string().replace("tcp://", "");
        // The same registry under a name that no credentials are for.
        let refused = self.private.replace("127.0.0.1", "localhost");
        Ok(Registries {
            open: image(&self.open, REPOSITORY)?,
            absent: image(&self.open, "v6-conformance/absent")?,
            private: image(&self.private, REPOSITORY)?,
            refused: image(&refused, REPOSITORY)?,
            unreachable: image(NOWHERE, REPOSITORY)?,
            stalled: image(&stalled, REPOSITORY)?,
        })
    }

    async fn fill(&self, docker: &Docker, probe: &str) -> std::result::Result<(), Failed> {
        let instruction = format!("LABEL {LABEL}");
        for registry in [&self.open, &self.private] {
            let repository = format!("{registry}/{REPOSITORY}");
            images::derive(docker, probe, &instruction, &repository, TAG).await?;
            let options = PushImageOptionsBuilder::new().tag(TAG).build();
            let credentials = DockerCredentials {
                username: Some(self.user.clone()),
                password: Some(self.password.clone()),
                serveraddress: Some(registry.to_string()),
                ..DockerCredentials::default()
            };
            let pushed = docker.push_image(&repository, Some(options), Some(credentials));
            let pushed: std::result::Result<Vec<_>, _> = pushed.try_collect().await;
            pushed.map_err(failed("filling a registry"))?;
        }
        Ok(())
    }

    /// To the open one, and it can be made to stall.
    fn way(&self) -> std::result::Result<FaultProxy, Failed> {
        let address = |text: &str| text.parse().map_err(failed("a registry's address"));
        // Not just anywhere: an engine may want to be told of each registry without TLS.
        let way = FaultProxy::start(
            Address::Tcp(address(&self.stalled)?),
            Address::Tcp(address(&self.open)?),
        );
        way.map_err(failed("making a way to the registry that stalls"))
    }
}
