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
        RuntimeKind::Docker => {
            use v6_runtime_docker::DockerConfig;
            let settings = &config.runtime;
            let docker = DockerConfig::new(settings.owner.clone());
            docker_api(config, docker, settings.docker_host.as_ref()).await
        }
        #[cfg(feature = "podman")]
        RuntimeKind::Podman => {
            use v6_runtime_docker::DockerConfig;
            let settings = &config.runtime;
            let podman = DockerConfig::for_podman(settings.owner.clone());
            docker_api(config, podman, settings.podman_host.as_ref()).await
        }
        #[cfg(feature = "singularity")]
        RuntimeKind::Singularity => singularity(config, None).await,
        #[cfg(feature = "singularity")]
        RuntimeKind::Slurm => singularity(config, Some(slurm(&config.runtime.slurm))).await,
        #[cfg(feature = "kubernetes")]
        RuntimeKind::Kubernetes => kubernetes(config).await,
        #[cfg(not(all(
            feature = "docker",
            feature = "podman",
            feature = "singularity",
            feature = "kubernetes"
        )))]
        kind => Err(v6_runtime::Error::unsupported(
            "runtime.kind",
            format!(
                "this v6-node was built without the feature \"{}\"",
                kind.name()
            ),
        )),
    }
}

#[cfg(any(
    feature = "docker",
    feature = "podman",
    feature = "singularity",
    feature = "kubernetes"
))]
fn credentials(config: &Config) -> Vec<v6_runtime::RegistryCredentials> {
    let logins = config.registries.iter().map(|login| {
        let (registry, username) = (login.registry.clone(), login.username.clone());
        v6_runtime::RegistryCredentials::new(registry, username, login.password.clone())
    });
    logins.collect()
}

#[cfg(feature = "kubernetes")]
async fn kubernetes(config: &Config) -> Result<Arc<dyn Runtime>> {
    use v6_runtime_kubernetes::{Gate, KubernetesConfig, KubernetesRuntime, Outputs};

    let own = &config.runtime.kubernetes;
    let Some(helper) = own.helper_image.clone() else {
        let why = "name the image that `v6-node helper-image` writes, in a registry that the cluster \
                   fetches from";
        return Err(v6_runtime::Error::invalid(
            "runtime.kubernetes.helper_image",
            why,
        ));
    };
    let by_step = own.steps.iter().map(|(action, own)| {
        let annotation = (crate::runs::STEP.to_owned(), action.as_str().to_owned());
        Ok((annotation, placement(own)?))
    });
    let by_image = own.images.iter();
    let by_image = by_image.map(|(image, own)| Ok((image.clone(), placement(own)?)));
    let mut cluster = KubernetesConfig::new(config.runtime.owner.clone(), helper)
        .with_kubeconfig(own.kubeconfig.clone())
        .with_context(own.context.clone())
        .with_namespace(own.namespace.clone())
        .with_image_pull_secrets(own.image_pull_secrets.clone())
        .with_insecure_registries(own.insecure_registries.clone())
        .with_placement(placement(&own.placement)?)
        .with_placement_by_annotation(by_step.collect::<Result<_>>()?)
        .with_placement_by_image(by_image.collect::<Result<_>>()?)
        .with_cpu_request_milli(own.booked_cpu_milli)
        .with_helper_cpu_milli(own.helper_cpu_milli)
        .with_ephemeral_storage_bytes(own.ephemeral_storage_bytes)
        .with_credentials(credentials(config))
        .with_gpu_resource(own.gpu.clone())
        .with_user_namespaces(own.user_namespaces);
    if let Some(most) = own.requests_per_second {
        cluster = cluster.with_requests_per_second(most);
    }
    if let Some(every) = own.canary {
        cluster = cluster.with_canary_every(every);
    }
    if !own.gate {
        cluster = cluster.with_gate(Gate::Off);
    }
    if own.claims {
        cluster = cluster.with_outputs(Outputs::Claim {
            storage_class: own.storage_class.clone(),
        });
    }
    if let Some(limit) = own.start_timeout {
        cluster = cluster.with_start_timeout(limit);
    }
    if let Some(limit) = own.pull_timeout {
        cluster = cluster.with_pull_timeout(limit);
    }
    let runtime = KubernetesRuntime::connect(cluster).await?;
    for notice in runtime.notices() {
        tracing::warn!("{notice}");
    }
    Ok(Arc::new(runtime))
}

#[cfg(feature = "kubernetes")]
fn placement(own: &crate::config::Placement) -> Result<v6_runtime_kubernetes::Placement> {
    let tolerations = own.tolerations.as_ref();
    let tolerations = tolerations.map_or(Ok(Vec::new()), v6_runtime_kubernetes::tolerations)?;
    let affinity = own.affinity.as_ref();
    let affinity = affinity.map(v6_runtime_kubernetes::affinity).transpose()?;
    Ok(v6_runtime_kubernetes::Placement::default()
        .with_node_selector(own.node_selector.clone())
        .with_tolerations(tolerations)
        .with_affinity(affinity)
        .with_labels(own.labels.clone())
        .with_annotations(own.annotations.clone())
        .with_runtime_class(own.runtime_class.clone())
        .with_priority_class(own.priority_class.clone()))
}

/// Whether a cluster would understand these tolerations, where that can be told.
pub(crate) fn judge_tolerations(value: &serde_json::Value) -> Result<()> {
    #[cfg(feature = "kubernetes")]
    return v6_runtime_kubernetes::tolerations(value).map(drop);
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = value;
        Ok(())
    }
}

/// Whether a cluster would understand this affinity, where that can be told.
pub(crate) fn judge_affinity(value: &serde_json::Value) -> Result<()> {
    #[cfg(feature = "kubernetes")]
    return v6_runtime_kubernetes::affinity(value).map(drop);
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = value;
        Ok(())
    }
}

/// What a cluster's administrator applies for a node that is `outside` of the cluster or not, and keeps
/// outputs on `claims` or not: [`v6_runtime_kubernetes::rbac`].
///
/// # Errors
/// A name that is no namespace's; a `v6-node` without this engine.
pub fn cluster_rights(namespace: &str, outside: bool, claims: bool) -> Result<String> {
    #[cfg(feature = "kubernetes")]
    {
        let options = v6_runtime_kubernetes::RbacOptions::default()
            .with_outside(outside)
            .with_claims(claims);
        v6_runtime_kubernetes::rbac(namespace, options)
    }
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = (namespace, outside, claims);
        Err(no_cluster())
    }
}

/// The image of the helper as an OCI archive, and its digest.
///
/// # Errors
/// A `v6-node` without this engine.
pub fn helper_image(name: &str) -> Result<(Vec<u8>, String)> {
    #[cfg(feature = "kubernetes")]
    return v6_runtime_kubernetes::helper_image(name).map_err(|error| {
        let what = "the archive could not be put together";
        v6_runtime::Error::new(v6_runtime::ErrorKind::Unexpected, what).with_source(error)
    });
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = name;
        Err(no_cluster())
    }
}

/// An image of the node, of the files that it needs, and of the helper: an OCI archive, and its digest. A
/// file is its path, its content, and whether it is executable.
///
/// # Errors
/// A `v6-node` without this engine; a path that no archive can hold.
pub fn node_image(
    name: &str,
    entrypoint: &str,
    environment: &[String],
    files: Vec<(String, Vec<u8>, bool)>,
) -> Result<(Vec<u8>, String)> {
    #[cfg(feature = "kubernetes")]
    {
        use v6_runtime_kubernetes::ImageFile;
        let files = files
            .into_iter()
            .map(|(path, content, executable)| ImageFile::new(&path, content, executable));
        let files: Vec<ImageFile> = files.chain([ImageFile::helper()]).collect();
        let archive = v6_runtime_kubernetes::image(name, entrypoint, environment, &files);
        archive.map_err(|error| {
            let what = "the archive could not be put together";
            v6_runtime::Error::new(v6_runtime::ErrorKind::Unexpected, what).with_source(error)
        })
    }
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = (name, entrypoint, environment, files);
        Err(no_cluster())
    }
}

#[cfg(not(feature = "kubernetes"))]
fn no_cluster() -> v6_runtime::Error {
    let what = "this v6-node was built without the feature \"kubernetes\"";
    v6_runtime::Error::new(v6_runtime::ErrorKind::Unsupported, what)
}

#[cfg(feature = "singularity")]
async fn singularity(
    config: &Config,
    slurm: Option<v6_runtime_singularity::SlurmConfig>,
) -> Result<Arc<dyn Runtime>> {
    use v6_runtime_singularity::{
        ControlGroup, GpuKind, ImageFormat, SingularityConfig, SingularityRuntime,
    };

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
        .with_gpu(own.gpu.map(|kind| match kind {
            crate::config::GpuKind::Nvidia => GpuKind::Nvidia,
            crate::config::GpuKind::Rocm => GpuKind::Rocm,
        }))
        .with_cgroup(own.cgroup.clone().map(|group| match group {
            crate::config::ControlGroup::Own => ControlGroup::Own,
            crate::config::ControlGroup::At(path) => ControlGroup::At(path),
        }))
        .with_slurm(slurm)
        .with_log_bytes(settings.run.log_bytes)
        .with_credentials(credentials(config));
    let runtime = SingularityRuntime::connect(singularity).await?;
    for notice in runtime.notices() {
        tracing::warn!("{notice}");
    }
    Ok(Arc::new(runtime))
}

#[cfg(feature = "singularity")]
fn slurm(own: &crate::config::Slurm) -> v6_runtime_singularity::SlurmConfig {
    use v6_runtime_singularity::{SlurmConfig, SlurmListen, SlurmOptions};

    let ask = |own: &crate::config::SlurmAsk| {
        SlurmOptions::default()
            .with_partition(own.partition.clone())
            .with_account(own.account.clone())
            .with_qos(own.qos.clone())
            .with_constraint(own.constraint.clone())
            .with_gres(own.gres.clone())
            .with_cpus(own.cpus)
            .with_time_limit(own.time_limit)
            .with_arguments(own.arguments.clone())
    };
    let by_step = own.steps.iter().map(|(action, own)| {
        let annotation = (crate::runs::STEP.to_owned(), action.as_str().to_owned());
        (annotation, ask(own))
    });
    let by_image = own.images.iter();
    let by_image = by_image.map(|(image, own)| (image.clone(), ask(own)));
    let mut slurm = SlurmConfig::default()
        .with_commands(own.commands.clone())
        .with_conf(own.conf.clone())
        .with_ask(ask(&own.ask))
        .with_ask_by_annotation(by_step.collect())
        .with_ask_by_image(by_image.collect())
        .with_listen(own.listen.clone().map(|listen| SlurmListen {
            address: listen.address,
            ports: listen.ports,
        }));
    if let Some(most) = std::num::NonZeroU32::new(own.max_jobs) {
        slurm = slurm.with_max_jobs(most);
    }
    slurm
}

/// An engine that speaks Docker's API, and is the one that was named.
#[cfg(any(feature = "docker", feature = "podman"))]
async fn docker_api(
    config: &Config,
    engine: v6_runtime_docker::DockerConfig,
    host: Option<&String>,
) -> Result<Arc<dyn Runtime>> {
    use v6_runtime::{Error, ErrorKind};
    use v6_runtime_docker::DockerRuntime;

    let settings = &config.runtime;
    let mut engine = engine
        .with_runtime_dir(settings.runtime_dir.clone())
        .with_log_bytes(settings.run.log_bytes)
        .with_credentials(credentials(config));
    if let Some(host) = host {
        engine = engine.with_host(host.clone());
    }
    let runtime = DockerRuntime::connect(engine).await?;
    let (wanted, found) = (settings.kind.name(), runtime.kind());
    if wanted != found {
        // Its settings would be those of another engine.
        let message =
            format!("runtime.kind is {wanted}, and what answers is {runtime}: write {found}");
        return Err(Error::new(ErrorKind::InvalidSpec, message));
    }
    for notice in runtime.notices() {
        tracing::warn!("{notice}");
    }
    Ok(Arc::new(runtime))
}
