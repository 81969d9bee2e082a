//! From a configuration to a runtime.

use std::sync::Arc;

use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::ServiceBuilder;
use tower::retry::RetryLayer;
use v6_runtime::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};

use crate::api::Cluster;
use crate::config::{Gate, KubernetesConfig, Outputs};
use crate::error::{Error, Result};
use crate::isolate;
use crate::registry::Registry;
use crate::rights;
use crate::state::Shared;

/// The oldest minor version of Kubernetes 1 that has what is used here: pods that wait at a gate.
const OLDEST: u32 = 30;

pub(crate) async fn connect(config: KubernetesConfig) -> Result<Arc<Shared>> {
    config.validate()?;
    let found = find(&config).await?;
    let namespace = match &config.namespace {
        Some(namespace) => namespace.clone(),
        None => found.default_namespace.clone(),
    };
    let server = found.cluster_url.to_string();
    let client = client(found)?;
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
        let why = format!(
            "in the namespace {} these rights are missing: {}; apply what `rbac` gives{with}",
            cluster.namespace,
            missing.join(", ")
        );
        let error = v6_runtime::Error::new(v6_runtime::ErrorKind::Denied, why);
        return Err(error.into());
    }
    let mut notices = Vec::new();
    if config.gate == Gate::Off {
        notices
            .push("runs are not held back until their network is denied: `gate` is off".to_owned());
    }
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

/// The way to the API server and who we are, as the operator says or the surroundings do.
async fn find(config: &KubernetesConfig) -> Result<Config> {
    let options = KubeConfigOptions {
        context: config.context.clone(),
        ..KubeConfigOptions::default()
    };
    let bad = |error: &dyn std::error::Error| {
        let mut words = error.to_string();
        let mut next = error.source();
        while let Some(error) = next {
            words = format!("{words}: {error}");
            next = error.source();
        }
        Error::Config(words)
    };
    let found = match &config.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| bad(&error))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None if config.context.is_some() => Config::from_kubeconfig(&options).await,
        None => return Config::infer().await.map_err(|error| bad(&error)),
    };
    found.map_err(|error| bad(&error))
}

/// A client whose connections do not wait to fill a packet: through a tunnel, that is 40 ms now and
/// again. Where a proxy is on the way, the library's own.
fn client(mut config: Config) -> Result<Client> {
    let failed = Error::api("connecting to the API server");
    // Calls have a limit of their own; the others are streams.
    config.read_timeout = None;
    config.write_timeout = None;
    if config.proxy_url.is_some() {
        return Client::try_from(config).map_err(failed);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(std::time::Duration::from_secs(30)));
    // One implementation of cryptography in the process; it may be there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let connector = config
        .rustls_https_connector_with_connector(connector)
        .map_err(&failed)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        // Honours Retry-After.
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer().map_err(&failed)?)
        // Whom we act as, if the operator's file says so.
        .layer(config.extra_headers_layer().map_err(&failed)?)
        .map_err(tower::BoxError::from)
        .service(Http::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
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
