//! From a configuration to a runtime.

use std::sync::Arc;

use v6_runtime::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};

use crate::api::Cluster;
use crate::config::{Gate, KubernetesConfig, Outputs};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::sign_in::Credentials;
use crate::state::Shared;
use crate::{access, client, clock, isolate, rights};

/// The oldest minor version of Kubernetes 1 that has what is used here: pods that wait at a gate.
const OLDEST: u32 = 30;

pub(crate) async fn connect(config: KubernetesConfig) -> Result<Arc<Shared>> {
    config.validate()?;
    let access = access::find(&config).await?;
    let namespace = match &config.namespace {
        Some(namespace) => namespace.clone(),
        None => access.config.default_namespace.clone(),
    };
    let server = access.config.cluster_url.to_string();
    let credentials = Credentials::new(&config, &access.config).await?;
    let client = client::open(access, credentials, config.requests_per_second).await?;
    let cluster = Cluster::new(client, &server, namespace, config.call_timeout);
    let version = cluster.version().await?;
    let minor: String = version
        .minor
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    if version.major == "1" && minor.parse().is_ok_and(|minor: u32| minor < OLDEST) {
        let why = format!(
            "the cluster has Kubernetes {}, and 1.{OLDEST} is needed",
            version.git_version
        );
        return Err(Error::Config(why));
    }
    let missing = rights::missing(&cluster, &config.outputs).await?;
    if !missing.is_empty() {
        let with = match config.outputs {
            Outputs::Pod => "",
            Outputs::Claim { .. } => " with claims",
        };
        let or = match missing.len() == rights::count(&config.outputs) {
            true => ", if there is that namespace: we may do nothing there",
            false => "",
        };
        let why = format!(
            "in the namespace {} these rights are missing: {}; apply what `rbac` gives{with}{or}",
            cluster.namespace,
            missing.join(", ")
        );
        let error = v6_runtime::Error::new(v6_runtime::ErrorKind::Denied, why);
        return Err(error.into());
    }
    let mut notices = Vec::new();
    notices.extend(cluster.see_namespace().await?);
    if config.gate == Gate::Off {
        notices
            .push("runs are not held back until their network is denied: `gate` is off".to_owned());
    }
    notices.extend(clock::compare(&cluster).await?);
    notices.extend(isolate::ensure(&cluster).await?);
    let registry = Registry::new(&config)?;
    let mut capabilities = capabilities();
    capabilities.resources.gpu = config.gpu_resource.is_some();
    Ok(Arc::new(Shared::new(
        cluster,
        config,
        capabilities,
        notices,
        registry,
    )))
}

/// What every cluster keeps.
fn capabilities() -> Capabilities {
    let mut can = Capabilities::none();
    can.mounts = MountKinds::all();
    // It is forbidden in a namespace whose pods are restricted, and would lean on one machine.
    can.mounts.host_path = false;
    can.outputs = OutputKinds::all();
    can.resources = ResourceKinds::all();
    // The limit of processes is the machine's, one for all pods, and not told.
    can.resources.pids = false;
    // Some, if the operator says under which name.
    can.resources.gpu = false;
    can.logs = LogFeatures::all();
    // One stream by the interface that every version has.
    can.logs.split = false;
    can.outcomes = OutcomeKinds::all();
    // Only 128 and the signal's number come back.
    can.outcomes.signaled = false;
    can.floor = Floor::all();
    // There is one that leads nowhere.
    can.floor.only_loopback = false;
    can.egress = true;
    can.deadline = true;
    can.grace = true;
    can.supplementary_groups = true;
    can.pull = true;
    can
}
