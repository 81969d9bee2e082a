//! What an operator sets.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use v6_runtime::{Annotations, ImageRef, Owner, RegistryCredentials};

use crate::error::{Error, Result};
use crate::placement::Placement;

/// The user and group id inside containers.
pub(crate) const ORDINARY_ID: u32 = 65_532;

/// How to reach a cluster, and the limits of runs that name none themselves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KubernetesConfig {
    /// Whose runs these are.
    pub owner: Owner,
    /// The file that tells how to reach the API server; `None` is `KUBECONFIG`, the user's own, or
    /// the service account of the pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Which context of that file; `None` is its current one.
    pub context: Option<String>,
    /// The namespace of all runs; `None` is that of the context.
    pub namespace: Option<String>,
    /// The image with the helper's program, as [`helper_image`](crate::helper_image) makes it, in a
    /// registry that the cluster can fetch from.
    pub helper_image: ImageRef,
    /// The user id that runs have; 65532.
    pub uid: u32,
    /// Their group id; 65532.
    pub gid: u32,
    /// Memory in bytes; 2 GiB. It is booked at a machine of the cluster for each run.
    pub memory_bytes: NonZeroU64,
    /// Processor time in thousandths of a core, at most; 1000.
    pub cpu_milli: NonZeroU32,
    /// Processor time that is booked for each run, whatever it may use at most; `None` books all of that.
    pub cpu_request_milli: Option<NonZeroU32>,
    /// Processor time that each container of the helper may use at most, in thousandths of one core. `None` is no limit, which is
    /// refused where a quota counts `limits.cpu` and no LimitRange gives one. A small one was seen to delay a start by seconds.
    pub helper_cpu_milli: Option<NonZeroU32>,
    /// What a run may keep on its machine's disk, and books of it (`ephemeral-storage`), in bytes: its streamed input, its
    /// outputs where they are in its pod, and its log, all together. A run that keeps more is evicted. `None` books nothing; outputs have
    /// their limits all the same.
    pub ephemeral_storage_bytes: Option<NonZeroU64>,
    /// The temporary folder's size in bytes; 256 MiB. It is in memory, and counts there.
    pub scratch_bytes: NonZeroU64,
    /// Private registries: asked with these, and given to the cluster with each run.
    pub credentials: Vec<RegistryCredentials>,
    /// Registries (`host:port`) that are spoken to without encryption, beside those on loopback.
    pub insecure_registries: Vec<String>,
    /// Names of Secrets of the namespace by which the cluster fetches images.
    pub image_pull_secrets: Vec<String>,
    /// Where pods go, and how the cluster treats them.
    pub placement: Placement,
    /// What holds instead and in addition for runs with one of these annotations of the contract, by name and value.
    pub placement_by_annotation: BTreeMap<(String, String), Placement>,
    /// What holds instead and in addition to both for these images, by the name that was asked for.
    pub placement_by_image: BTreeMap<ImageRef, Placement>,
    /// Under which name the cluster's machines give accelerators, such as `nvidia.com/gpu`; `None` is
    /// that there are none.
    pub gpu_resource: Option<String>,
    /// Whether each pod has users of its own, none of them the machine's (`hostUsers: false`): a cluster of 1.33, whose machines have a
    /// container runtime for it, such as containerd 2. `false` is as the cluster has it.
    pub user_namespaces: bool,
    /// The most requests to the API server in each second; 100. What is more waits.
    pub requests_per_second: NonZeroU32,
    /// How a run is held back until its network is denied.
    pub gate: Gate,
    /// How often it is looked whether the network denies what it is told to, from two small pods: before the first run of a process, and then
    /// after so long; a day. `None` is never.
    pub canary_every: Option<Duration>,
    /// Where what a run leaves is kept until it is collected.
    pub outputs: Outputs,
    /// After how long a run that has ended is booked no more than its waiting outputs need; 30 s. It takes
    /// Kubernetes 1.33, and is about outputs that are kept in the pod.
    pub keep_booked: Duration,
    /// The longest wait for an answer to one call; 30 s. Transfers of files may take longer.
    pub call_timeout: Duration,
    /// How long a pod may wait for a machine; 10 minutes.
    pub start_timeout: Duration,
    /// How long for a registry that does not answer; 3 minutes.
    pub pull_timeout: Duration,
}

/// Where the outputs of a run are from its start until its cleanup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outputs {
    /// In its pod, which waits until they were collected: nothing but the cluster's machines is
    /// needed, and they go when the pod is ended, as by a drain of its machine.
    #[default]
    Pod,
    /// On a claim of its own. They outlive the pod, which ends with the program; a small pod reads them.
    /// A run that may change a volume keeps them in its pod all the same.
    Claim {
        /// The class of storage; `None` is the cluster's default.
        storage_class: Option<String>,
    },
}

/// What must be seen from inside a pod before its program starts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// An address that is reached wherever the network is open has become unreachable.
    Denial {
        /// Which address, as `IP:PORT`; `None` is the cluster's own API, which every pod can reach
        /// unless it is denied.
        control: Option<std::net::SocketAddr>,
        /// How long it must stay unreachable; 1.5 s.
        settle: Duration,
        /// After how long the run is given up; 60 s.
        limit: Duration,
    },
    /// Nothing. Only for a cluster whose network denies from a pod's first instant, which many do
    /// not.
    Off,
}

impl Default for Gate {
    fn default() -> Self {
        Self::Denial {
            control: None,
            settle: Duration::from_millis(1500),
            limit: Duration::from_secs(60),
        }
    }
}

impl KubernetesConfig {
    /// The defaults for this owner, with this image of the helper.
    #[must_use]
    pub fn new(owner: Owner, helper_image: ImageRef) -> Self {
        Self {
            owner,
            kubeconfig: None,
            context: None,
            namespace: None,
            helper_image,
            uid: ORDINARY_ID,
            gid: ORDINARY_ID,
            memory_bytes: bytes(2 << 30),
            cpu_milli: NonZeroU32::new(1000).unwrap_or(NonZeroU32::MIN),
            cpu_request_milli: None,
            helper_cpu_milli: None,
            ephemeral_storage_bytes: None,
            scratch_bytes: bytes(256 << 20),
            credentials: Vec::new(),
            insecure_registries: Vec::new(),
            image_pull_secrets: Vec::new(),
            placement: Placement::default(),
            placement_by_annotation: BTreeMap::new(),
            placement_by_image: BTreeMap::new(),
            gpu_resource: None,
            user_namespaces: false,
            requests_per_second: NonZeroU32::new(100).unwrap_or(NonZeroU32::MIN),
            gate: Gate::default(),
            canary_every: Some(Duration::from_secs(24 * 3600)),
            outputs: Outputs::default(),
            keep_booked: Duration::from_secs(30),
            call_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(600),
            pull_timeout: Duration::from_secs(180),
        }
    }

    /// Whether this can be used at all.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.uid == 0 || self.gid == 0 {
            let why = "uid and gid: runs are not root";
            return Err(Error::Config(why.into()));
        }
        if let Some(name) = &self.gpu_resource {
            // What the cluster itself has has no such prefix: a run that is booked `memory` twice.
            let own = name.split_once('/').is_some_and(|(by, what)| {
                !by.is_empty() && !what.is_empty() && !by.ends_with("kubernetes.io")
            });
            if !own {
                let why = format!("gpu_resource: {name:?} is not of the form vendor.example/gpu");
                return Err(Error::Config(why));
            }
        }
        [&self.placement]
            .into_iter()
            .chain(self.placement_by_annotation.values())
            .chain(self.placement_by_image.values())
            .try_for_each(Placement::validate)?;
        Ok(())
    }

    /// What holds for a run of this image with these annotations.
    pub(crate) fn placement_of(&self, image: &ImageRef, annotations: &Annotations) -> Placement {
        let annotated = self.placement_by_annotation.iter();
        let annotated = annotated
            .filter(|((name, value), _)| annotations.get(name) == Some(value))
            .map(|(_, own)| own);
        annotated
            .chain(self.placement_by_image.get(image))
            .fold(self.placement.clone(), |below, own| own.over(below))
    }
}

fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN)
}

setters! { KubernetesConfig:
    with_kubeconfig kubeconfig: Option<PathBuf>,
    with_context context: Option<String>,
    with_namespace namespace: Option<String>,
    with_memory_bytes memory_bytes: NonZeroU64,
    with_cpu_milli cpu_milli: NonZeroU32,
    with_cpu_request_milli cpu_request_milli: Option<NonZeroU32>,
    with_helper_cpu_milli helper_cpu_milli: Option<NonZeroU32>,
    with_ephemeral_storage_bytes ephemeral_storage_bytes: Option<NonZeroU64>,
    with_scratch_bytes scratch_bytes: NonZeroU64,
    with_credentials credentials: Vec<RegistryCredentials>,
    with_insecure_registries insecure_registries: Vec<String>,
    with_image_pull_secrets image_pull_secrets: Vec<String>,
    with_placement placement: Placement,
    with_placement_by_annotation placement_by_annotation: BTreeMap<(String, String), Placement>,
    with_placement_by_image placement_by_image: BTreeMap<ImageRef, Placement>,
    with_gpu_resource gpu_resource: Option<String>,
    with_user_namespaces user_namespaces: bool,
    with_requests_per_second requests_per_second: NonZeroU32,
    with_gate gate: Gate,
    with_canary_every canary_every: Option<Duration>,
    with_outputs outputs: Outputs,
    with_keep_booked keep_booked: Duration,
    with_call_timeout call_timeout: Duration,
    with_start_timeout start_timeout: Duration,
    with_pull_timeout pull_timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> KubernetesConfig {
        let owner = Owner::new("o").expect("an owner");
        KubernetesConfig::new(owner, ImageRef::parse("localhost/helper").expect("a name"))
    }

    #[test]
    fn what_is_the_runtimes_own_cannot_be_set() {
        let set = |name: &str| BTreeMap::from([(name.to_owned(), String::new())]);
        let is_taken = |placement| {
            let image = ImageRef::parse("localhost/large").expect("a name");
            let by_image = BTreeMap::from([(image, placement)]);
            config()
                .with_placement_by_image(by_image)
                .validate()
                .is_ok()
        };
        let queue = Placement::default().with_labels(set("kueue.x-k8s.io/queue-name"));
        assert!(is_taken(queue));
        let ours = set("v6-runtime.owner");
        assert!(!is_taken(Placement::default().with_labels(ours.clone())));
        assert!(!is_taken(Placement::default().with_annotations(ours)));
    }

    #[test]
    fn an_image_says_more_than_an_annotation_and_that_more_than_the_rest() {
        let set = |value: &str| BTreeMap::from([("zone".to_owned(), value.to_owned())]);
        let zone = |value| Placement::default().with_node_selector(set(value));
        let image = ImageRef::parse("localhost/large").expect("a name");
        let config = config()
            .with_placement(zone("a").with_priority_class(Some("low".into())))
            .with_placement_by_annotation(BTreeMap::from([(
                ("step".into(), "central".into()),
                zone("b").with_labels(set("queue")),
            )]))
            .with_placement_by_image(BTreeMap::from([(image.clone(), zone("c"))]));
        let other = ImageRef::parse("localhost/other").expect("a name");
        let central = [("step", "central")].into_iter().collect::<Annotations>();
        let of = |image: &ImageRef, notes: &Annotations| {
            let placement = config.placement_of(image, notes);
            assert_eq!(placement.priority_class.as_deref(), Some("low"));
            (
                placement.node_selector["zone"].clone(),
                placement.labels.len(),
            )
        };
        assert_eq!(of(&other, &Annotations::default()), ("a".to_owned(), 0));
        assert_eq!(of(&other, &central), ("b".to_owned(), 1));
        assert_eq!(of(&image, &central), ("c".to_owned(), 1));
    }

    #[test]
    fn accelerators_have_the_name_of_whoever_makes_them() {
        let named = |name: &str| config().with_gpu_resource(Some(name.into())).validate();
        assert!(named("nvidia.com/gpu").is_ok());
        for wrong in ["gpu", "memory", "/gpu", "nvidia.com/", "kubernetes.io/gpu"] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials =
            RegistryCredentials::new("r.example.org", "u", "hunter2".to_owned().into());
        let config = config().with_credentials(vec![credentials]);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
