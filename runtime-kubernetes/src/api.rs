//! The API server, with a bound on every call.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use hyper::{Request, Uri};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
    WatchParams,
};
use kube::client::Body;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, Result, found};
use crate::forward::Forward;

/// What is booked of a processor for a container that has ended.
pub(crate) const LEAST_CPU: &str = "1m";
/// How often a question is asked whose connection breaks.
const TRIES: u32 = 3;
/// Between two looks, if nothing tells of a change.
const PAUSE: Duration = Duration::from_millis(500);
/// So many pods come in one answer.
const PAGE: u32 = 250;

/// The objects of one namespace.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Which namespace of which API server.
    pub(crate) place: String,
    pub(crate) namespace: String,
    pub(crate) pods: Api<Pod>,
    secrets: Api<Secret>,
    claims: Api<PersistentVolumeClaim>,
    leases: Api<Lease>,
    policies: Api<NetworkPolicy>,
    timeout: Duration,
}

impl Cluster {
    pub(crate) fn new(client: Client, server: &str, namespace: String, timeout: Duration) -> Self {
        Self {
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            claims: Api::namespaced(client.clone(), &namespace),
            leases: Api::namespaced(client.clone(), &namespace),
            policies: Api::namespaced(client.clone(), &namespace),
            client,
            place: format!("{server} {namespace}"),
            namespace,
            timeout,
        }
    }

    /// Makes one call, with its time limit.
    pub(crate) async fn call<T>(
        &self,
        step: &'static str,
        call: impl Future<Output = kube::Result<T>> + Send,
    ) -> Result<T> {
        match tokio::time::timeout(self.timeout, Box::pin(call)).await {
            Ok(result) => result.map_err(Error::api(step)),
            Err(_) => Err(Error::Timeout {
                step,
                after: self.timeout,
            }),
        }
    }

    /// Makes one call that can be made twice, again if its connection breaks: one that was kept may have been
    /// closed by the other end just then.
    pub(crate) async fn read<T, F>(&self, step: &'static str, make: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let mut tries = 1;
        loop {
            match self.call(step, make()).await {
                Err(error) if error.is_broken() && tries < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    pub(crate) async fn version(&self) -> Result<k8s_openapi::apimachinery::pkg::version::Info> {
        let ask = || self.client.apiserver_version();
        self.read("asking for the version", ask).await
    }

    /// What time it is at the API server, in its words.
    pub(crate) async fn date(&self) -> Result<Option<String>> {
        let ask = async || {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = Uri::from_static("/version");
            self.client.send(request).await
        };
        let answer = self.read("asking for the time", ask).await?;
        let date = answer.headers().get(hyper::header::DATE);
        Ok(date.and_then(|date| Some(date.to_str().ok()?.to_owned())))
    }

    pub(crate) async fn pod(&self, name: &str) -> Result<Option<Pod>> {
        let look = || self.pods.get(name);
        found(self.read("looking at a pod", look).await)
    }

    /// Opens a way to a port of a pod, which listens on its loopback address.
    pub(crate) async fn forward(
        &self,
        pod: &str,
        port: u16,
    ) -> Result<Forward<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>> {
        let request = kube::core::Request::new(self.pods.resource_url()).portforward(pod, &[port]);
        let opening = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            self.client.connect(request).await
        };
        let opened = self.call("opening a way into the pod", opening).await?;
        Ok(Forward::new(opened.into_stream()))
    }

    pub(crate) async fn create_pod(&self, pod: &Pod) -> Result<Pod> {
        let options = PostParams::default();
        self.call("making a pod", self.pods.create(&options, pod))
            .await
    }

    /// Changes a pod; `None` if it is gone.
    pub(crate) async fn patch_pod(
        &self,
        name: &str,
        change: &serde_json::Value,
    ) -> Result<Option<Pod>> {
        let (options, change) = (PatchParams::default(), Patch::Merge(change));
        let call = self.pods.patch(name, &options, &change);
        found(self.call("changing a pod", call).await)
    }

    /// Has the cluster book next to nothing for a container, whose limits stay.
    pub(crate) async fn shrink_pod(&self, name: &str, container: &str) -> Result<()> {
        let requests = serde_json::json!({ "cpu": LEAST_CPU, "memory": "1Mi" });
        let change = serde_json::json!({
            "spec": { "containers": [{ "name": container, "resources": { "requests": requests } }] }
        });
        let (options, change) = (PatchParams::default(), Patch::Strategic(&change));
        let call = self
            .pods
            .patch_subresource("resize", name, &options, &change);
        self.call("giving back what was booked", call)
            .await
            .map(drop)
    }

    /// Ends this very pod; `false` if it is gone.
    pub(crate) async fn delete_pod(&self, name: &str, uid: &str, grace: u32) -> Result<bool> {
        let options = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default().grace_period(grace)
        };
        let end = || self.pods.delete(name, &options);
        match self.read("ending a pod", end).await {
            Ok(_) => Ok(true),
            // Another pod has the name by now, or none.
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until this very pod is gone; `false` if it is there still after so long.
    pub(crate) async fn goes_within(&self, name: &str, uid: &str, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        let is_it = |pod: &Pod| pod.metadata.uid.as_deref() == Some(uid);
        loop {
            let Some(pod) = self.pod(name).await?.filter(is_it) else {
                return Ok(true);
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let only = WatchParams::default().fields(&format!("metadata.name={name}"));
            let from = pod.metadata.resource_version.unwrap_or_default();
            let gone = async {
                let mut events = Box::pin(self.pods.watch(&only, &from).await?);
                while let Some(event) = events.try_next().await? {
                    if matches!(event, WatchEvent::Deleted(pod) if is_it(&pod)) {
                        return Ok(true);
                    }
                }
                Ok::<_, kube::Error>(false)
            };
            if let Ok(Ok(true)) = tokio::time::timeout(left, gone).await {
                return Ok(true);
            }
            // Whatever the watch met, or missed, the next look shows.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sees that the namespace is there. Of one that is about to go an operator should know; what runs have
    /// left there can still be had, and waits for that.
    pub(crate) async fn see_namespace(&self) -> Result<Option<String>> {
        let nothing = Secret {
            metadata: ObjectMeta {
                name: Some(format!("v6-check-{:016x}", rand::random::<u64>())),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        };
        let options = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let make = || self.secrets.create(&options, &nothing);
        match self.read("looking for the namespace", make).await {
            Err(error) if error.is_homeless() && error.status() == Some(403) => Ok(Some(format!(
                "the namespace {} is being terminated: no run can start there",
                self.namespace
            ))),
            // Whatever else it is, a full quota or a webhook without dry runs, is for the runs to hear.
            Err(error) if !error.is_homeless() && error.status().is_some() => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(None),
        }
    }

    /// Whether we may see pods at all.
    pub(crate) async fn may_list_pods(&self) -> Result<()> {
        let options = ListParams::default().limit(1);
        let look = || self.pods.list_metadata(&options);
        self.read("listing pods", look).await.map(drop)
    }

    /// All pods with these labels, in pages, and the version at which they were so.
    pub(crate) async fn list_pods(&self, labels: &str) -> Result<(Vec<Pod>, String)> {
        list(self, "listing pods", &self.pods, labels).await
    }

    pub(crate) async fn create_secret(&self, secret: &Secret) -> Result<()> {
        let options = PostParams::default();
        let call = self.secrets.create(&options, secret);
        self.call("storing input", call).await.map(drop)
    }

    pub(crate) async fn secret(&self, name: &str) -> Result<Option<Secret>> {
        let look = || self.secrets.get(name);
        found(self.read("reading a Secret", look).await)
    }

    pub(crate) async fn delete_secret(&self, name: &str) -> Result<bool> {
        let options = DeleteParams::default();
        let remove = || self.secrets.delete(name, &options);
        let gone = found(self.read("removing a Secret", remove).await);
        gone.map(|gone| gone.is_some())
    }

    pub(crate) async fn create_claim(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let options = PostParams::default();
        let call = self.claims.create(&options, claim);
        self.call("making a claim for outputs", call)
            .await
            .map(drop)
    }

    pub(crate) async fn claim(&self, name: &str) -> Result<Option<PersistentVolumeClaim>> {
        let look = || self.claims.get(name);
        found(self.read("looking at a claim", look).await)
    }

    pub(crate) async fn list_claims(&self, labels: &str) -> Result<Vec<PersistentVolumeClaim>> {
        let listed = list(self, "listing claims", &self.claims, labels).await;
        listed.map(|(claims, _)| claims)
    }

    /// Removes this very claim. While a pod has it, the cluster only notes that.
    pub(crate) async fn delete_claim(&self, name: &str, uid: &str) -> Result<()> {
        let options = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let remove = || self.claims.delete(name, &options);
        match self.read("removing a claim", remove).await {
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            done => done.map(drop),
        }
    }

    pub(crate) async fn lease(&self, name: &str) -> Result<Option<Lease>> {
        let look = || self.leases.get(name);
        found(self.read("looking at a lease", look).await)
    }

    pub(crate) async fn create_lease(&self, lease: &Lease) -> Result<Lease> {
        let options = PostParams::default();
        let call = self.leases.create(&options, lease);
        self.call("taking a lease", call).await
    }

    /// Replaces a lease that has not changed since it was read.
    pub(crate) async fn replace_lease(&self, name: &str, lease: &Lease) -> Result<Lease> {
        let options = PostParams::default();
        let call = self.leases.replace(name, &options, lease);
        self.call("renewing a lease", call).await
    }

    pub(crate) async fn delete_lease(&self, name: &str, version: Option<String>) -> Result<()> {
        let options = DeleteParams {
            preconditions: Some(Preconditions {
                uid: None,
                resource_version: version,
            }),
            ..DeleteParams::default()
        };
        let call = self.leases.delete(name, &options);
        found(self.call("giving a lease back", call).await).map(drop)
    }

    pub(crate) async fn policy(&self, name: &str) -> Result<Option<NetworkPolicy>> {
        let look = || self.policies.get(name);
        found(self.read("looking at the network policy", look).await)
    }

    pub(crate) async fn create_policy(&self, policy: &NetworkPolicy) -> Result<()> {
        let options = PostParams::default();
        let call = self.policies.create(&options, policy);
        self.call("making the network policy", call).await.map(drop)
    }
}

async fn list<K>(
    cluster: &Cluster,
    step: &'static str,
    api: &Api<K>,
    labels: &str,
) -> Result<(Vec<K>, String)>
where
    K: Clone + DeserializeOwned + Debug + Send + Sync,
{
    let mut options = ListParams::default().labels(labels).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = cluster.read(step, || api.list(&options)).await;
        let page = match page {
            // The listing took so long that its version is forgotten: from the start.
            Err(error) if error.status() == Some(410) && options.continue_token.is_some() => {
                options.continue_token = None;
                all.clear();
                continue;
            }
            page => page?,
        };
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => options.continue_token = Some(token),
            None => return Ok((all, page.metadata.resource_version.unwrap_or_default())),
        }
    }
}
