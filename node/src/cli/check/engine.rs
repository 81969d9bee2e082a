//! Whether the container engine can be used, and keeps what it is trusted with.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use v6_runtime::{ErrorKind, Floor, ImageRef, PullPolicy, Runtime};

use super::{Finding, Probe};
use crate::cli::render;
use crate::config::{Config, RuntimeKind, Source, VolumeData};

/// Probes of a runtime that was connected to.
#[must_use]
pub fn probes(config: &Arc<Config>, runtime: &Arc<dyn Runtime>) -> Vec<Box<dyn Probe>> {
    let mut probes: Vec<Box<dyn Probe>> = vec![
        Box::new(Engine(runtime.clone())),
        Box::new(Floors(runtime.clone())),
        Box::new(Limits {
            runtime: runtime.clone(),
            config: config.clone(),
        }),
        Box::new(Volumes {
            runtime: runtime.clone(),
            config: config.clone(),
        }),
        Box::new(Connections(runtime.clone())),
        Box::new(Isolation(runtime.clone())),
    ];
    for entry in config
        .policies
        .allowed_algorithms
        .iter()
        .filter_map(|entry| entry.image())
    {
        probes.push(Box::new(Image {
            runtime: runtime.clone(),
            image: entry.clone(),
            policy: if config.policies.require_pull {
                PullPolicy::Always
            } else {
                PullPolicy::IfNotPresent
            },
        }));
    }
    probes
}

/// The one probe when there is no connection.
#[must_use]
pub fn unusable(config: &Config, error: &v6_runtime::Error) -> Finding {
    let kind = config.runtime.kind.name();
    let remedy = match (config.runtime.kind, error.kind()) {
        (RuntimeKind::Singularity | RuntimeKind::Slurm, ErrorKind::Denied) => {
            "let this user make user name spaces, and own the folder; docs/operating.md says how"
                .to_owned()
        }
        (RuntimeKind::Singularity, ErrorKind::Unavailable | ErrorKind::NotFound) => {
            "install Apptainer, or set runtime.singularity.program to where it is".to_owned()
        }
        (RuntimeKind::Slurm, ErrorKind::Unavailable | ErrorKind::Timeout) => {
            "see that slurmctld answers (scontrol ping), or set runtime.slurm.conf".to_owned()
        }
        (RuntimeKind::Kubernetes, ErrorKind::Denied) => {
            let claims = match config.runtime.kubernetes.claims {
                true => " --claims",
                false => "",
            };
            format!(
                "see that the kubeconfig's login is valid, and have the cluster's administrator apply what \
                 `v6-node rbac{claims}` prints"
            )
        }
        (RuntimeKind::Kubernetes, ErrorKind::Unavailable | ErrorKind::Timeout) => {
            "see that the API server answers (kubectl version), or set runtime.kubernetes.kubeconfig"
                .to_owned()
        }
        (_, ErrorKind::Denied) => {
            "give this user access to the engine; who may use the socket of root's is root on this machine"
                .to_owned()
        }
        (_, ErrorKind::Unavailable | ErrorKind::Timeout) => {
            format!("start the engine, or set runtime.{kind}.host to where it listens")
        }
        (_, ErrorKind::Quota) => "make room on the disk of runtime.data_dir".to_owned(),
        _ => "correct the runtime: section of the configuration".to_owned(),
    };
    let message = format!("{kind} cannot be used: {}", render(error));
    Finding::fail(message, remedy).with_exit(error.kind().into())
}

struct Engine(Arc<dyn Runtime>);

#[async_trait]
impl Probe for Engine {
    fn name(&self) -> Cow<'_, str> {
        "engine".into()
    }

    async fn run(&self) -> Finding {
        match self.0.ping().await {
            Ok(info) => {
                let facts: Vec<String> = info
                    .facts
                    .iter()
                    .map(|(name, value)| format!("{name} {value}"))
                    .collect();
                Finding::ok(format!(
                    "{} {} ({})",
                    info.name,
                    info.version,
                    facts.join(", ")
                ))
            }
            Err(error) => Finding::fail(render(&error), "look at the engine's own log")
                .with_exit(error.kind().into()),
        }
    }
}

/// What the engine enforces on every run, as it declares it.
struct Floors(Arc<dyn Runtime>);

#[async_trait]
impl Probe for Floors {
    fn name(&self) -> Cow<'_, str> {
        "floor".into()
    }

    async fn run(&self) -> Finding {
        let floor: &Floor = &self.0.capabilities().floor;
        // An interface behind which everything is denied is no way out.
        let denied = floor.no_network && !floor.only_loopback;
        let missing: Vec<&str> = floor
            .iter()
            .filter(|(name, kept)| !(*kept || denied && *name == "only_loopback"))
            .map(|(name, _)| name)
            .collect();
        if missing.is_empty() {
            let how = match denied {
                true => "; runs have a network interface, and the network denies them everything",
                false => "",
            };
            return Finding::ok(format!(
                "every part of the isolation floor is enforced{how}"
            ));
        }
        let message = format!(
            "the engine does not enforce: {}",
            missing.join(", ").replace('_', " ")
        );
        Finding::fail(
            message,
            "change the engine's settings; until then algorithms are held less tightly than docs/security.md says",
        )
    }
}

/// What the engine limits, and what runs are to have no limit of.
struct Limits {
    runtime: Arc<dyn Runtime>,
    config: Arc<Config>,
}

#[async_trait]
impl Probe for Limits {
    fn name(&self) -> Cow<'_, str> {
        "limits".into()
    }

    async fn run(&self) -> Finding {
        let runs: Vec<_> = self.config.runtime.all_limits().collect();
        let wanted = |name: &str| match name {
            "cpu" => runs.iter().any(|run| run.cpu_milli.is_some()),
            "memory" => runs.iter().any(|run| run.memory_bytes.is_some()),
            "pids" => runs.iter().any(|run| run.pids.is_some()),
            "gpu" => false,
            _ => true,
        };
        let kinds = self.runtime.capabilities().resources;
        if !kinds.gpu && runs.iter().any(|run| run.gpus.is_some()) {
            return Finding::fail(
                "the engine has no accelerators to give",
                "say which there are (runtime.singularity.gpu, runtime.kubernetes.gpu), or write runtime.run.gpus: none; runs that \
                 ask for some are refused",
            );
        }
        let missing: Vec<&str> = kinds
            .iter()
            .filter(|(name, kept)| !kept && wanted(name))
            .map(|(name, _)| name)
            .collect();
        if !missing.is_empty() {
            let message = format!("the engine cannot limit: {}", missing.join(", "));
            return Finding::fail(
                message,
                "enable what this needs at the engine, or write none for it (runtime.run.cpus, .memory, .pids); \
                 runs that ask for such a limit are refused",
            );
        }
        let without = [
            ("cpu", runs.iter().all(|run| run.cpu_milli.is_some())),
            ("memory", runs.iter().all(|run| run.memory_bytes.is_some())),
            ("pids", runs.iter().all(|run| run.pids.is_some())),
        ];
        let without = without.into_iter().filter(|(_, limited)| !limited);
        let without: Vec<&str> = without.map(|(name, _)| name).collect();
        if without.is_empty() {
            return Finding::ok(
                "processor, memory, processes and temporary files of each run are limited",
            );
        }
        let message = format!(
            "there are runs without a limit of {}: one can use up this machine's",
            without.join(" and ")
        );
        Finding::warn(
            message,
            "that is what runtime.run says; keep other work off this machine",
        )
    }
}

/// Whether data in volumes can be mounted. Whether it is there, only a run shows.
struct Volumes {
    runtime: Arc<dyn Runtime>,
    config: Arc<Config>,
}

#[async_trait]
impl Probe for Volumes {
    fn name(&self) -> Cow<'_, str> {
        "volumes".into()
    }

    async fn run(&self) -> Finding {
        let can = self.runtime.capabilities().mounts;
        let databases = self.config.databases.iter();
        let refused: Vec<&str> = databases
            .filter(|database| match &database.source {
                Source::Volume(VolumeData { path: None, .. }) => !can.volume,
                Source::Volume(VolumeData { path: Some(_), .. }) => !can.volume_part,
                _ => false,
            })
            .map(|database| database.label.as_str())
            .collect();
        if refused.is_empty() {
            return Finding::ok("the engine can mount the data as it is configured");
        }
        let message = format!("the engine cannot mount the data of {}", refused.join(", "));
        let remedy = if can.volume {
            "leave out runtime.databases.LABEL.path: the engine mounts a volume whole, or not at all"
        } else {
            "leave out runtime.databases.LABEL.volume: the engine has none"
        };
        Finding::fail(message, remedy)
    }
}

/// Whether runs can be given connections. The backend's reason, if not, is in the log.
struct Connections(Arc<dyn Runtime>);

#[async_trait]
impl Probe for Connections {
    fn name(&self) -> Cow<'_, str> {
        "connections".into()
    }

    async fn run(&self) -> Finding {
        if self.0.capabilities().egress {
            return Finding::ok(
                "runs can be given connections to HQ and to what runtime.egress grants",
            );
        }
        let message = "runs cannot be given connections: central tasks and databases that are services are refused";
        Finding::warn(
            message,
            "the log on standard error says why; docs/operating.md says what a node in a container needs",
        )
    }
}

/// Starts a run of the engine's own and tries, from inside, what must not work.
struct Isolation(Arc<dyn Runtime>);

#[async_trait]
impl Probe for Isolation {
    fn name(&self) -> Cow<'_, str> {
        "isolation".into()
    }

    fn timeout(&self) -> Duration {
        // A machine of a cluster may have to fetch an image first.
        Duration::from_secs(150)
    }

    async fn run(&self) -> Finding {
        let flows = match self.0.examine().await {
            Ok(flows) => flows,
            Err(error) => {
                let message = format!("the isolation could not be examined: {}", render(&error));
                return Finding::fail(message, "no algorithm should run before this passes")
                    .with_exit(error.kind().into());
            }
        };
        let wrong: Vec<String> = flows
            .iter()
            .filter(|flow| !flow.holds)
            .map(|flow| format!("{}: {}", flow.name, flow.seen))
            .collect();
        if wrong.is_empty() {
            Finding::ok(format!(
                "{} ways in and out tried from inside a container, all as they must be",
                flows.len()
            ))
        } else {
            Finding::fail(
                wrong.join("; "),
                "do not start the node; the engine lets containers do what they must not",
            )
        }
    }
}

/// An image of the operator's list can be had.
struct Image {
    runtime: Arc<dyn Runtime>,
    image: ImageRef,
    policy: PullPolicy,
}

#[async_trait]
impl Probe for Image {
    fn name(&self) -> Cow<'_, str> {
        format!("image {}", self.image).into()
    }

    async fn run(&self) -> Finding {
        match self.runtime.resolve(&self.image, self.policy).await {
            Ok(image) => Finding::ok(format!("{} ({})", image.identity.digest(), image.platform)),
            Err(error) => {
                let remedy = match error.kind() {
                    ErrorKind::Denied => "add the registry's login to private_docker_registries",
                    ErrorKind::NotFound => "correct its name in policies.allowed_algorithms",
                    _ => "check the way to the registry, its proxy and certificates included",
                };
                Finding::warn(render(&error), remedy)
            }
        }
    }
}
