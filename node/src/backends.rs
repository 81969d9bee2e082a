//! The one file that names the engines: from the configuration to a runtime.

use std::sync::Arc;

use v6_runtime::{Result, Runtime};

use crate::config::{Config, RuntimeKind};

/// Connects to the engine that the configuration names.
///
/// # Errors
/// What the backend says; retryable if the engine is merely not there now.
pub async fn connect(config: &Config) -> Result<Arc<dyn Runtime>> {
    match config.runtime.kind {
        #[cfg(feature = "docker")]
        RuntimeKind::Docker => docker(config).await,
        #[cfg(not(feature = "docker"))]
        RuntimeKind::Docker => Err(v6_runtime::Error::unsupported(
            "runtime.kind",
            "this v6-node was built without the feature \"docker\"",
        )),
    }
}

#[cfg(feature = "docker")]
async fn docker(config: &Config) -> Result<Arc<dyn Runtime>> {
    use v6_runtime::RegistryCredentials;
    use v6_runtime_docker::{DockerConfig, DockerRuntime};

    let settings = &config.runtime;
    let mut docker = DockerConfig::new(settings.owner.clone())
        .with_runtime_dir(settings.runtime_dir.clone())
        .with_log_bytes(settings.run.log_bytes);
    if let Some(host) = &settings.docker_host {
        docker = docker.with_host(host.clone());
    }
    let logins = config.registries.iter().map(|login| {
        let (registry, username) = (login.registry.clone(), login.username.clone());
        RegistryCredentials::new(registry, username, login.password.clone())
    });
    docker = docker.with_credentials(logins.collect());
    let runtime = DockerRuntime::connect(docker).await?;
    for notice in runtime.notices() {
        tracing::warn!("{notice}");
    }
    Ok(Arc::new(runtime))
}
