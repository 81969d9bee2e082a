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
        #[cfg(feature = "singularity")]
        RuntimeKind::Singularity => singularity(config).await,
        #[cfg(not(feature = "singularity"))]
        RuntimeKind::Singularity => Err(v6_runtime::Error::unsupported(
            "runtime.kind",
            "this v6-node was built without the feature \"singularity\"",
        )),
    }
}

#[cfg(any(feature = "docker", feature = "singularity"))]
fn credentials(config: &Config) -> Vec<v6_runtime::RegistryCredentials> {
    let logins = config.registries.iter().map(|login| {
        let (registry, username) = (login.registry.clone(), login.username.clone());
        v6_runtime::RegistryCredentials::new(registry, username, login.password.clone())
    });
    logins.collect()
}

#[cfg(feature = "singularity")]
async fn singularity(config: &Config) -> Result<Arc<dyn Runtime>> {
    use v6_runtime_singularity::{ImageFormat, SingularityConfig, SingularityRuntime};

    let settings = &config.runtime;
    let own = &settings.singularity;
    let format = match own.sif {
        true => ImageFormat::Sif,
        false => ImageFormat::Folder,
    };
    // With the data: records must outlive a restart of the machine.
    let folder = settings.data_dir.join("singularity");
    let singularity = SingularityConfig::new(settings.owner.clone(), folder)
        .with_program(own.program.clone())
        .with_cache(own.cache.clone())
        .with_image_format(format)
        .with_images(own.images.clone())
        .with_log_bytes(settings.run.log_bytes)
        .with_credentials(credentials(config));
    let runtime = SingularityRuntime::connect(singularity).await?;
    for notice in runtime.notices() {
        tracing::warn!("{notice}");
    }
    Ok(Arc::new(runtime))
}

#[cfg(feature = "docker")]
async fn docker(config: &Config) -> Result<Arc<dyn Runtime>> {
    use v6_runtime_docker::{DockerConfig, DockerRuntime};

    let settings = &config.runtime;
    let mut docker = DockerConfig::new(settings.owner.clone())
        .with_runtime_dir(settings.runtime_dir.clone())
        .with_log_bytes(settings.run.log_bytes);
    if let Some(host) = &settings.docker_host {
        docker = docker.with_host(host.clone());
    }
    docker = docker.with_credentials(credentials(config));
    let runtime = DockerRuntime::connect(docker).await?;
    for notice in runtime.notices() {
        tracing::warn!("{notice}");
    }
    Ok(Arc::new(runtime))
}
