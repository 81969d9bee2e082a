//! A cluster behind a plain way to its API server, and ways to make life with it hard.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use clap::{Args, ValueEnum};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use v6_fault_proxy::{Address, Answer, Fault as Wrong, FaultProxy, Requests, Rule, RuleGuard};
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, Result, RunId, Runtime};
use v6_runtime_conformance::{
    Fault, Harness, Injected, Planted, Registries, Stranger, Tagged, suite_process,
};
use v6_runtime_kubernetes::{KubernetesConfig, KubernetesRuntime, Outputs};

use crate::cluster_images::{Change, Images};
use crate::cluster_objects::{MARK, Volumes, plant};
use crate::engine::{EngineOptions, Failed, failed};
use crate::registries::Started;
use crate::restart::Restart;

/// After how long a registry that does not answer is given up; less than a case waits.
const PULL_TIMEOUT: Duration = Duration::from_secs(40);
/// What the registry that stalls has.
const STALLED: &str = "v6-conformance/stalled:1";
/// For how long it does: more than a case takes that is about it.
const STALL: Duration = Duration::from_secs(30);
/// How long the machines may take to forget images.
const FORGET_LIMIT: Duration = Duration::from_secs(60);
/// Sizes in bytes of the pieces in which answers come, in turn.
const PIECES: [usize; 5] = [1, 3, 7, 64, 1021];
/// The label of what belongs to an owner.
pub(crate) const OWNER_LABEL: &str = "v6-runtime.owner";
/// An image that exits with 99, whatever arguments follow.
const OTHER: &[&str] = &["/probe", "exit", "99", "then"];

/// How a cluster is reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterOptions {
    /// Where the cluster's API is spoken to without encryption or a login, as `kubectl proxy`
    /// gives it [env: V6_KUBERNETES_API]
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "V6_KUBERNETES_API",
        hide_env = true
    )]
    api: Option<String>,
    /// The namespace for all runs [env: V6_KUBERNETES_NAMESPACE]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        env = "V6_KUBERNETES_NAMESPACE",
        hide_env = true
    )]
    namespace: String,
    /// Whose rights the runtime has, whoever asks at --api; the suite itself has those of the API
    /// [env: V6_KUBERNETES_AS]
    #[arg(
        long = "as",
        value_name = "USER",
        env = "V6_KUBERNETES_AS",
        hide_env = true
    )]
    acting_as: Option<String>,
    /// The helper's image, in a registry of the cluster's [env: V6_KUBERNETES_HELPER]
    #[arg(
        long,
        value_name = "IMAGE",
        env = "V6_KUBERNETES_HELPER",
        hide_env = true
    )]
    helper: Option<String>,
    /// The probe's image, there too [env: V6_KUBERNETES_PROBE]
    #[arg(
        long,
        value_name = "IMAGE",
        env = "V6_KUBERNETES_PROBE",
        hide_env = true
    )]
    cluster_probe: Option<String>,
    /// Where the runtime keeps outputs
    #[arg(long, value_enum, default_value = "pod")]
    outputs: Keeping,
    /// The class of storage for --outputs claim; the cluster's default without it
    #[arg(long, value_name = "NAME")]
    storage_class: Option<String>,
    /// Takes all images of the suite's registries from the cluster's machines; run by sh
    #[arg(long, value_name = "COMMAND")]
    forget_images: Option<String>,
}

/// Where outputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Keeping {
    /// In the run's pod
    Pod,
    /// On a claim of the run's own
    Claim,
}

/// A folder of the suite, with a kubeconfig for each owner.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if suite_process() == std::process::id() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// How one owner's runtime values reach the API server.
struct Way {
    proxy: FaultProxy,
    /// Dropped, it ends the watches.
    watches: RuleGuard,
}

/// The cluster, and a proxy before it for each owner.
pub(crate) struct ClusterHarness {
    api: Address,
    namespace: String,
    helper: ImageRef,
    probe: ImageRef,
    acting_as: Option<String>,
    outputs: Outputs,
    restart: Option<Restart>,
    registries: Option<Arc<Started>>,
    forget_images: Option<String>,
    folder: Folder,
    ways: Mutex<HashMap<Owner, Way>>,
}

impl ClusterHarness {
    /// The cluster of these options.
    ///
    /// # Errors
    /// What is missing or is no address or name; registries that cannot be read; no temporary folder.
    pub(crate) fn new(
        options: ClusterOptions,
        engine: EngineOptions,
    ) -> std::result::Result<Self, String> {
        let need = |value: Option<String>, name: &str| {
            value.ok_or_else(|| format!("a cluster needs --{name}; see --help"))
        };
        let api = need(options.api, "api")?;
        let api: Address = format!("tcp://{api}")
            .parse()
            .map_err(|error| format!("{api}: {error}"))?;
        let image =
            |value, name| ImageRef::parse(&need(value, name)?).map_err(|error| error.to_string());
        let folder = std::env::temp_dir().join(format!("v6-kubernetes-{}", suite_process()));
        std::fs::create_dir_all(&folder).map_err(|error| format!("a temporary folder: {error}"))?;
        Ok(Self {
            api,
            namespace: options.namespace,
            helper: image(options.helper, "helper")?,
            probe: image(options.cluster_probe, "cluster-probe")?,
            acting_as: options.acting_as,
            outputs: match options.outputs {
                Keeping::Pod => Outputs::Pod,
                Keeping::Claim => Outputs::Claim {
                    storage_class: options.storage_class,
                },
            },
            restart: Restart::of(engine.restart),
            registries: engine
                .registries
                .as_deref()
                .map(Started::read)
                .transpose()?
                .map(Arc::new),
            forget_images: options.forget_images,
            folder: Folder(folder),
            ways: Mutex::default(),
        })
    }

    /// Does something with the owner's way to the cluster, which is made the first time.
    fn way<T>(&self, owner: &Owner, act: impl FnOnce(&mut Way) -> T) -> Result<T> {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let way = match ways.entry(owner.clone()) {
            Entry::Occupied(way) => way.into_mut(),
            Entry::Vacant(place) => {
                let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
                let proxy = FaultProxy::start(Address::Tcp(anywhere), self.api.clone())
                    .map_err(failed("starting a proxy before the API server"))?;
                place.insert(Way {
                    watches: proxy.add(watches()),
                    proxy,
                })
            }
        };
        Ok(act(way))
    }

    /// The way past all proxies.
    fn client(&self) -> Result<Client> {
        let address = self.api.to_string().replace("tcp://", "http://");
        let address = address
            .parse()
            .map_err(failed("the API server's address"))?;
        let mut config = kube::Config::new(address);
        config.default_namespace.clone_from(&self.namespace);
        Ok(Client::try_from(config).map_err(failed("a way to the API server"))?)
    }

    fn kubeconfig(&self, owner: &Owner) -> Result<PathBuf> {
        let address = self.way(owner, |way| way.proxy.address().to_string())?;
        let server = address.replace("tcp://", "http://");
        let namespace = &self.namespace;
        let user = match &self.acting_as {
            Some(name) => serde_json::json!({ "as": name }),
            None => serde_json::json!({}),
        };
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": server } }],
            "users": [{ "name": "u", "user": user }],
            "contexts": [{
                "name": "c", "context": { "cluster": "c", "user": "u", "namespace": namespace }
            }],
        });
        // A child of the suite has the same owner and a proxy of its own.
        let file = self
            .folder
            .0
            .join(format!("{owner}-{}", std::process::id()));
        std::fs::write(&file, text.to_string()).map_err(failed("writing a kubeconfig"))?;
        Ok(file)
    }
}

impl ClusterHarness {
    fn volumes(&self) -> Result<Volumes> {
        Ok(Volumes::new(
            self.client()?,
            &self.namespace,
            &self.folder.0,
        ))
    }

    /// Puts the probe into both registries, with a file more, so that no machine has it.
    async fn fill(&self, started: &Started) -> std::result::Result<(), Failed> {
        let login = started.credentials();
        let images = Images::new(Some(login))?;
        let [open, private] = started.probes()?;
        let stalled = ImageRef::parse(&format!("{}/{STALLED}", open.registry()))?;
        for (to, file) in [(&open, "given"), (&private, "given"), (&stalled, "stalled")] {
            let change = Change::HasMore(file);
            images.derive(&self.probe, to, change).await?;
        }
        Ok(())
    }
}

/// Has the cluster's machines forget the images of the suite's registries.
async fn forget_images(command: &str) -> Result<()> {
    let mut shell = tokio::process::Command::new("sh");
    shell
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let what = "the suite, taking images from the cluster's machines";
    let ended = tokio::time::timeout(FORGET_LIMIT, shell.status()).await;
    let ended = ended.map_err(|late| Error::new(ErrorKind::Timeout, what).with_source(late))?;
    let ended = ended.map_err(failed("starting the command that forgets images"))?;
    if ended.success() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unexpected,
        format!("{what}: {ended}"),
    ))
}

#[async_trait]
impl Harness for ClusterHarness {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let mut config = KubernetesConfig::new(owner.clone(), self.helper.clone())
            .with_kubeconfig(Some(self.kubeconfig(owner)?))
            .with_credentials(self.registries.iter().map(|it| it.credentials()).collect());
        // Each run books these at a machine, and the suite has many at once.
        config = config
            .with_memory_bytes(NonZeroU64::new(192 << 20).unwrap_or(NonZeroU64::MIN))
            .with_scratch_bytes(NonZeroU64::new(64 << 20).unwrap_or(NonZeroU64::MIN))
            .with_cpu_request_milli(NonZeroU32::new(20))
            .with_outputs(self.outputs.clone())
            // Each case connects anew. That runs are denied the network is seen in each of them, as ever.
            .with_canary_every(None)
            .with_pull_timeout(PULL_TIMEOUT);
        Ok(Arc::new(KubernetesRuntime::connect(config).await?))
    }

    fn probe_image(&self) -> ImageRef {
        self.probe.clone()
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let client = self.client()?;
        let all = ListParams::default();
        let mut found = Vec::new();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        for pod in pods.list(&all).await.map_err(failed("listing pods"))? {
            if is_owners(owner, &pod.metadata) {
                let text = serde_json::to_string(&pod).map_err(failed("writing a pod"))?;
                found.push(format!("pod {text}"));
            }
        }
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &self.namespace);
        for claim in claims.list(&all).await.map_err(failed("listing claims"))? {
            if is_owners(owner, &claim.metadata) {
                found.push(format!("claim {:?}", claim.metadata));
            }
        }
        let secrets: Api<Secret> = Api::namespaced(client, &self.namespace);
        for secret in secrets
            .list(&all)
            .await
            .map_err(failed("listing Secrets"))?
        {
            if is_owners(owner, &secret.metadata) {
                // What it holds is where it belongs.
                found.push(format!("secret {:?}", secret.metadata));
            }
        }
        Ok(found)
    }

    fn outlives_us(&self) -> bool {
        true
    }

    /// Its machine looks after containers once a second, and each run has three, one after the other.
    fn slowness(&self) -> Duration {
        Duration::from_secs(8)
    }

    fn large(&self) -> usize {
        16 << 20
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        let all = Requests::any;
        let refusal = |status| Wrong::Answer(Answer::new(status).json(&status_object(status)));
        let rule = match fault {
            Fault::Cut => {
                self.way(owner, |way| way.proxy.cut())?;
                return Ok(Some(Injected::new(())));
            }
            Fault::WatchEnds => {
                self.way(owner, |way| way.watches = way.proxy.add(watches()))?;
                return Ok(Some(Injected::new(())));
            }
            Fault::Away => {
                let away = self.way(owner, |way| way.proxy.away())?;
                return Ok(Some(Injected::new(away)));
            }
            Fault::Errors(times) => Rule::new(all(), refusal(500)).times(times),
            Fault::Throttled(times) => Rule::new(all(), refusal(429)).times(times),
            Fault::ReplyLost => {
                let makes = all().method("POST").path_ends_with("/pods");
                Rule::new(makes, Wrong::LoseReply).times(1)
            }
            Fault::Slow(time) => Rule::new(all(), Wrong::Delay(time)),
            Fault::OddPieces => Rule::new(all(), Wrong::Split(PIECES.to_vec())),
            Fault::Stuck => {
                let removal = all().method("DELETE").path_contains("/secrets/");
                Rule::new(removal, refusal(500))
            }
            _ => return Ok(None),
        };
        let guard = self.way(owner, |way| way.proxy.add(rule))?;
        Ok(Some(Injected::new(guard)))
    }

    fn calls(&self, owner: &Owner) -> Option<u64> {
        self.way(owner, |way| way.proxy.requests()).ok()
    }

    async fn restart_engine(&self) -> Result<Option<()>> {
        Restart::hook(self.restart.as_ref()).await
    }

    async fn plant(&self, owner: &Owner, id: &RunId, place: Planted) -> Result<Option<Stranger>> {
        let pods: Api<Pod> = Api::namespaced(self.client()?, &self.namespace);
        Ok(Some(Box::new(plant(pods, owner, id, place).await?)))
    }

    async fn move_tag(&self, owner: &Owner, to: Tagged) -> Result<Option<ImageRef>> {
        let registry = self.probe.registry();
        let moving = ImageRef::parse(&format!("{registry}/v6-conformance/{owner}:moving"))?;
        let change = match to {
            Tagged::Probe => Change::Nothing,
            Tagged::Other => Change::Runs(OTHER),
        };
        let images = Images::new(None)?;
        images.derive(&self.probe, &moving, change).await?;
        Ok(Some(moving))
    }

    async fn registries(&self) -> Result<Option<Registries>> {
        let (Some(started), Some(forget)) = (&self.registries, &self.forget_images) else {
            return Ok(None);
        };
        let mut names = started.names(|| self.fill(started)).await?;
        // Of a content of its own: a machine that waits for one waits for no other.
        let stalled = names.stalled.registry();
        names.stalled = ImageRef::parse(&format!("{stalled}/{STALLED}"))?;
        forget_images(forget).await?;
        // A machine does not let go of what it fetches, and so of no pod either.
        let started = started.clone();
        tokio::spawn(async move {
            tokio::time::sleep(STALL).await;
            started.give_up();
        });
        Ok(Some(names))
    }

    async fn volume(&self, owner: &Owner) -> Result<Option<String>> {
        Ok(Some(self.volumes()?.make(owner).await?))
    }

    async fn tidy(&self, owner: &Owner) -> Result<()> {
        let made = self.folder.0.join(Volumes::name(owner)).exists();
        if made {
            self.volumes()?.remove(owner).await?;
        }
        // Of a process that was killed: nobody gives it back.
        let leases: Api<Lease> = Api::namespaced(self.client()?, &self.namespace);
        let name = format!("v6-{owner}");
        match leases.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            removed => drop(removed.map_err(failed("removing a lease"))?),
        }
        let way = {
            let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
            ways.remove(owner)
        };
        // Its end waits for its thread.
        drop(way);
        Ok(())
    }
}

/// By label and by name: what lacks one of them is not tidy either.
fn is_owners(owner: &Owner, about: &ObjectMeta) -> bool {
    let labels = about.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(MARK)) {
        return false;
    }
    let name = about.name.as_deref().unwrap_or_default();
    let label = labels.and_then(|labels| labels.get(OWNER_LABEL));
    name.starts_with(&format!("v6-{owner}.")) || label.map(String::as_str) == Some(owner.as_str())
}

/// Ends watches as soon as its guard is dropped.
fn watches() -> Rule {
    let streams = Requests::any()
        .path_ends_with("/pods")
        .query_contains("watch=true");
    Rule::new(streams, Wrong::EndReplyAtRelease)
}

/// What an API server says with an error.
fn status_object(code: u16) -> serde_json::Value {
    serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "made by the conformance suite", "reason": "", "code": code,
    })
}
