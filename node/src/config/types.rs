//! The configuration as the rest of the node sees it: parsed and checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;
use v6_runtime::{Gpu, ImageRef, Owner};

use super::database::Database;
use super::egress::Endpoint;
use super::problem::Notice;
use crate::hq::Action;
use crate::policy::{ImagePattern, Policies};
use crate::secret::Secret;

/// Everything that the operator decided. Made by [`super::load`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// `V6_NODE_NAME`: the name under which the node was made at HQ.
    pub name: String,
    /// `V6_API_KEY`: the client secret at Keycloak.
    pub api_key: Secret,
    /// The identity provider.
    pub keycloak: Keycloak,
    /// The V6 server.
    pub hq: Hq,
    /// End-to-end encryption.
    pub encryption: Encryption,
    /// The data of this node, in the operator's order; labels are unique also by
    /// their environment form.
    pub databases: Vec<Database>,
    /// Who may run what.
    pub policies: Policies,
    /// Tell HQ what this node allows (`share_config`).
    pub share_config: bool,
    /// Send the output of algorithms to HQ (`share_algorithm_logs`).
    pub share_algorithm_logs: bool,
    /// Variables for every algorithm, by name; names are valid identifiers.
    pub algorithm_env: BTreeMap<String, String>,
    /// Logins at image registries.
    pub registries: Vec<RegistryLogin>,
    /// `logging.level`, if the file has one.
    pub log_level: Option<tracing::Level>,
    /// Settings that V6 does not have.
    pub runtime: Runtime,
    /// What the operator should hear about this configuration.
    pub notices: Vec<Notice>,
}

/// Where the node signs in.
#[derive(Clone, Debug)]
pub struct Keycloak {
    /// Base address; its path ends with a slash, so that [`Url::join`] keeps it.
    pub url: Url,
    /// The realm's name.
    pub realm: String,
}

/// Where HQ is.
#[derive(Clone, Debug)]
pub struct Hq {
    /// Scheme, host and port. Socket.IO lives at this root.
    pub root: Url,
    /// The REST API's path, with a leading and without a trailing slash; empty for none.
    pub api_path: String,
}

impl Hq {
    /// The REST API's base, with a trailing slash, so that [`Url::join`] keeps it.
    pub fn api(&self) -> Url {
        let mut url = self.root.clone();
        url.set_path(&format!("{}/", self.api_path));
        url
    }
}

/// The collaboration's encryption, as the operator expects it.
#[derive(Clone, Debug)]
pub struct Encryption {
    /// Must equal the collaboration's own setting at HQ.
    pub enabled: bool,
    /// The private key's PEM file; absolute. Always there when `enabled`.
    pub private_key: Option<PathBuf>,
}

/// A login at one image registry.
#[derive(Clone, Debug)]
pub struct RegistryLogin {
    /// Host and optional port.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: Secret,
}

/// The `runtime:` section.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Which engine; `--runtime` overrides it.
    pub kind: RuntimeKind,
    /// Marks this node's runs at the engine: a DNS label of at most 40 bytes.
    pub owner: Owner,
    /// Sessions, keys and other files that stay. Absolute.
    pub data_dir: PathBuf,
    /// Sockets and the lock. Absolute; may vanish with a reboot.
    pub runtime_dir: PathBuf,
    /// Runs in progress at once; more wait.
    pub max_concurrent_runs: usize,
    /// Sum over all runs in progress; more wait.
    pub total: Total,
    /// What each run gets that has nothing of its own.
    pub run: RunLimits,
    /// What runs of these steps get instead.
    pub run_by_step: BTreeMap<Action, OwnLimits>,
    /// What runs of these images get instead of both.
    pub run_by_image: BTreeMap<ImageRef, OwnLimits>,
    /// How often HQ's open runs are compared with the engine's, apart from events.
    pub poll_interval: Duration,
    /// Images that get more than the others.
    pub images: Vec<ImageException>,
    /// Addresses that every run of an action may reach.
    pub egress: BTreeMap<Action, Vec<Endpoint>>,
    /// Where Docker listens; the client's own default if none.
    pub docker_host: Option<String>,
    /// Where Podman's service listens; its usual place if none.
    pub podman_host: Option<String>,
    /// What Apptainer or SingularityCE is to do.
    pub singularity: Singularity,
    /// How jobs are submitted to Slurm.
    pub slurm: Slurm,
    /// Which cluster, and what its pods are like.
    pub kubernetes: Kubernetes,
    /// HTTP proxies for the node's own connections.
    pub proxy: Proxy,
    /// PEM files of certificate authorities to trust besides the usual ones. Absolute.
    pub ca_certificates: Vec<PathBuf>,
}

impl Runtime {
    /// What a run of this step and image gets; the image by the name that was asked for.
    #[must_use]
    pub fn limits(&self, step: Option<Action>, image: &str) -> RunLimits {
        let step = step.and_then(|step| self.run_by_step.get(&step));
        let image = ImageRef::parse(image).ok();
        let image = image.and_then(|image| self.run_by_image.get(&image));
        let own = step.into_iter().chain(image);
        own.fold(self.run.clone(), |below, own| own.over(below))
    }

    /// What the runs get: those that have nothing of their own, and each exception over these.
    pub(crate) fn all_limits(&self) -> impl Iterator<Item = RunLimits> {
        let own = self.run_by_step.values().chain(self.run_by_image.values());
        let own = own.map(|own| own.over(self.run.clone()));
        std::iter::once(self.run.clone()).chain(own)
    }
}

/// Limits on the sum of all runs in progress; `None` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Processors, in thousandths.
    pub cpu_milli: Option<NonZeroU32>,
    /// Memory in bytes.
    pub memory_bytes: Option<NonZeroU64>,
}

/// Limits on one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Processors, in thousandths; `None` is no limit.
    pub cpu_milli: Option<NonZeroU32>,
    /// Memory in bytes; `None` is no limit.
    pub memory_bytes: Option<NonZeroU64>,
    /// Processes and threads; `None` is no limit.
    pub pids: Option<NonZeroU32>,
    /// Accelerators; `None` is none.
    pub gpus: Option<Gpu>,
    /// The temporary folder's size in bytes.
    pub scratch_bytes: NonZeroU64,
    /// The size of each output file in bytes.
    pub output_bytes: NonZeroU64,
    /// How long the run may last; `None` is for ever.
    pub deadline: Option<Duration>,
    /// Between the request to stop and the kill.
    pub grace: Duration,
    /// Bytes of output (stdout and stderr) that are kept.
    pub log_bytes: NonZeroU64,
}

/// The limits in which some runs differ; `None` is as all have it, and an inner `None` no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// [`RunLimits::cpu_milli`]
    pub cpu_milli: Option<Option<NonZeroU32>>,
    /// [`RunLimits::memory_bytes`]
    pub memory_bytes: Option<Option<NonZeroU64>>,
    /// [`RunLimits::pids`]
    pub pids: Option<Option<NonZeroU32>>,
    /// [`RunLimits::gpus`]
    pub gpus: Option<Option<Gpu>>,
    /// [`RunLimits::scratch_bytes`]
    pub scratch_bytes: Option<NonZeroU64>,
    /// [`RunLimits::output_bytes`]
    pub output_bytes: Option<NonZeroU64>,
    /// [`RunLimits::deadline`]
    pub deadline: Option<Option<Duration>>,
    /// [`RunLimits::grace`]
    pub grace: Option<Duration>,
}

impl OwnLimits {
    /// These, where something is set, and those below elsewhere.
    pub(super) fn over(&self, below: RunLimits) -> RunLimits {
        RunLimits {
            cpu_milli: self.cpu_milli.unwrap_or(below.cpu_milli),
            memory_bytes: self.memory_bytes.unwrap_or(below.memory_bytes),
            pids: self.pids.unwrap_or(below.pids),
            gpus: self.gpus.unwrap_or(below.gpus),
            scratch_bytes: self.scratch_bytes.unwrap_or(below.scratch_bytes),
            output_bytes: self.output_bytes.unwrap_or(below.output_bytes),
            deadline: self.deadline.unwrap_or(below.deadline),
            grace: self.grace.unwrap_or(below.grace),
            log_bytes: below.log_bytes,
        }
    }
}

/// The engines by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeKind {
    /// Docker, through its API.
    Docker,
    /// Podman's service, of root or of this user.
    Podman,
    /// Apptainer or SingularityCE on this machine, without a daemon.
    Singularity,
    /// Apptainer or SingularityCE in jobs of Slurm, from a submit host.
    Slurm,
    /// A namespace of a Kubernetes cluster, from within or outside.
    Kubernetes,
}

impl RuntimeKind {
    /// The name in the configuration and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Singularity => "singularity",
            Self::Slurm => "slurm",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// The `runtime.singularity:` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Singularity {
    /// The command; found by itself if none.
    pub program: Option<PathBuf>,
    /// The folder with the images; below `data_dir` if none. Absolute.
    pub cache: Option<PathBuf>,
    /// Whether images are kept as one file each instead of unpacked.
    pub sif: bool,
    /// Images of this machine by name: files or folders. Absolute.
    pub images: BTreeMap<ImageRef, PathBuf>,
    /// Which accelerators there are.
    pub gpu: Option<GpuKind>,
    /// What limits memory and processors of runs.
    pub cgroup: Option<ControlGroup>,
}

/// A part of the tree of control groups, of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlGroup {
    /// That of the node's service.
    Own,
    /// This one. Absolute.
    At(PathBuf),
}

/// Kinds of accelerators, by their drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuKind {
    /// NVIDIA's.
    Nvidia,
    /// AMD's.
    Rocm,
}

/// The `runtime.slurm:` section. What is not set is as the site has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slurm {
    /// The folder with Slurm's commands; found in `PATH` if none. Absolute.
    pub commands: Option<PathBuf>,
    /// Slurm's own configuration; where Slurm looks for it if none. Absolute.
    pub conf: Option<PathBuf>,
    /// What each job asks for.
    pub ask: SlurmAsk,
    /// What jobs of these steps ask for instead and in addition.
    pub steps: BTreeMap<Action, SlurmAsk>,
    /// What jobs of these images ask for instead and in addition to both.
    pub images: BTreeMap<ImageRef, SlurmAsk>,
    /// The most jobs of this node in Slurm's hands.
    pub max_jobs: u32,
    /// Where compute nodes reach this node; runs reach nobody if none.
    pub listen: Option<Listen>,
}

/// The `runtime.kubernetes:` section. What is not set is as the cluster has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// How the API server is reached; found by itself if none. Absolute.
    pub kubeconfig: Option<PathBuf>,
    /// Which context of it.
    pub context: Option<String>,
    /// The namespace of all runs; the context's if none.
    pub namespace: Option<String>,
    /// The image of the helper, in a registry of the cluster's.
    pub helper_image: Option<ImageRef>,
    /// Names of the namespace's Secrets by which machines fetch images.
    pub image_pull_secrets: Vec<String>,
    /// Registries that are spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// Where pods go, and how the cluster treats them.
    pub placement: Placement,
    /// The same for runs of a step, beyond that.
    pub steps: BTreeMap<Action, Placement>,
    /// The same for an image, beyond both.
    pub images: BTreeMap<ImageRef, Placement>,
    /// What is booked of a processor for each run, in thousandths; all that it may use if none.
    pub booked_cpu_milli: Option<NonZeroU32>,
    /// What each container of the helper may use of a processor at most, in thousandths.
    pub helper_cpu_milli: Option<NonZeroU32>,
    /// What a run may keep on its machine's disk, which is booked; in bytes.
    pub ephemeral_storage_bytes: Option<NonZeroU64>,
    /// Under which name the machines give accelerators.
    pub gpu: Option<String>,
    /// Whether each pod has users of its own.
    pub user_namespaces: bool,
    /// The most requests to the API server in each second.
    pub requests_per_second: Option<NonZeroU32>,
    /// Whether runs are held back until their network is seen to be denied.
    pub gate: bool,
    /// How often it is looked whether the network denies at all; never if `Some(None)`.
    pub canary: Option<Option<Duration>>,
    /// Whether outputs are kept on claims of their own.
    pub claims: bool,
    /// The class of storage of these; the cluster's default if none.
    pub storage_class: Option<String>,
    /// How long a pod may wait for a machine.
    pub start_timeout: Option<Duration>,
    /// How long for a registry.
    pub pull_timeout: Option<Duration>,
}

/// Where a pod goes, and how the cluster treats it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Labels of the machines that get runs.
    pub node_selector: BTreeMap<String, String>,
    /// The taints that pods tolerate, as the cluster's API has them.
    pub tolerations: Option<serde_json::Value>,
    /// Which machines pods are to have, as the API has it.
    pub affinity: Option<serde_json::Value>,
    /// Further labels of each pod.
    pub labels: BTreeMap<String, String>,
    /// Further annotations of each pod.
    pub annotations: BTreeMap<String, String>,
    /// The class of container runtime.
    pub runtime_class: Option<String>,
    /// The class by which pods go first.
    pub priority_class: Option<String>,
}

/// What a job asks Slurm for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlurmAsk {
    /// `--partition`
    pub partition: Option<String>,
    /// `--account`
    pub account: Option<String>,
    /// `--qos`
    pub qos: Option<String>,
    /// `--constraint`
    pub constraint: Option<String>,
    /// `--gres`
    pub gres: Option<String>,
    /// `--cpus-per-task`
    pub cpus: Option<NonZeroU32>,
    /// How long a job may take whose run has no deadline.
    pub time_limit: Option<Duration>,
    /// Further options of `sbatch`.
    pub arguments: Vec<String>,
}

/// A place on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// An address of this host.
    pub address: IpAddr,
    /// The first of these ports that is free.
    pub ports: RangeInclusive<u16>,
}

/// More than the floor, for the images that match, at a risk that the operator named.
#[derive(Clone, Debug)]
pub struct ImageException {
    /// Which images.
    pub pattern: ImagePattern,
    /// Run as the image's own user, root included.
    pub run_as_image: bool,
    /// Let the run write to its root file system.
    pub writable_root: bool,
    /// The operator's own words on the risk; never blank.
    pub risk_accepted: String,
}

/// HTTP proxies for the node's own connections.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// For `http` addresses; a secret, since it may hold a password.
    pub http: Option<Secret>,
    /// For `https` addresses.
    pub https: Option<Secret>,
    /// Hosts that are reached without a proxy, comma-separated as in `NO_PROXY`.
    pub no_proxy: Option<String>,
}
