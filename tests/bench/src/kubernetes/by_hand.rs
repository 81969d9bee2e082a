//! Pods made, watched and deleted by hand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, Pod, PodSecurityContext, PodSpec, SeccompProfile, Secret,
    SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use v6_runtime::{RunId, Runtime};

use crate::Result;
use crate::ours::{Ours, check};

/// On everything that is made by hand.
const LABEL: &str = "v6-bench";
/// The container that a verdict comes from.
const PROGRAM: &str = "program";

/// The API server, and what a run of ours looked like there.
pub(crate) struct ByHand {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    image: String,
    next: AtomicUsize,
}

/// What a run of ours is made of, without what makes it one of ours.
pub(crate) struct Shape {
    name: String,
    pod: Pod,
    secrets: Vec<Secret>,
}

impl ByHand {
    pub(crate) fn new(client: Client, image: &str) -> Self {
        Self {
            pods: Api::default_namespaced(client.clone()),
            secrets: Api::default_namespaced(client),
            image: image.to_owned(),
            next: AtomicUsize::new(0),
        }
    }

    /// The shape of a run of ours that is there.
    pub(crate) async fn shape(&self, ours: &Ours, run: &RunId) -> Result<Shape> {
        let name = pod_name(ours, run);
        let mut pod = self.pods.get(&name).await?;
        pod.metadata = about(&pod.metadata);
        pod.status = None;
        let spec = pod.spec.as_mut().ok_or("a pod without a spec")?;
        spec.node_name = None;
        let mut secrets = Vec::new();
        for secret in names_of_secrets(spec) {
            let mut secret = self.secrets.get(&secret).await?;
            secret.metadata = about(&secret.metadata);
            secrets.push(secret);
        }
        Ok(Shape { name, pod, secrets })
    }

    /// From the making of a pod of this shape until it is gone. Nobody reads its output.
    pub(crate) async fn cycle(&self, shape: &Shape) -> Result<()> {
        let name = self.name();
        for secret in &shape.secrets {
            let secret = renamed(secret, &shape.name, &name)?;
            self.secrets.create(&PostParams::default(), &secret).await?;
        }
        let pod = renamed(&shape.pod, &shape.name, &name)?;
        self.through(&pod).await?;
        for secret in &shape.secrets {
            let secret = renamed(secret, &shape.name, &name)?;
            let delete = DeleteParams::default();
            self.secrets.delete(&secret.name_any(), &delete).await?;
        }
        Ok(())
    }

    /// The least that a pod can be where pods are restricted.
    pub(crate) async fn bare(&self) -> Result<()> {
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(self.name()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                restart_policy: Some("Never".into()),
                automount_service_account_token: Some(false),
                security_context: Some(PodSecurityContext {
                    run_as_non_root: Some(true),
                    run_as_user: Some(65_532),
                    seccomp_profile: Some(SeccompProfile {
                        type_: "RuntimeDefault".into(),
                        ..SeccompProfile::default()
                    }),
                    ..PodSecurityContext::default()
                }),
                containers: vec![Container {
                    name: PROGRAM.into(),
                    image: Some(self.image.clone()),
                    command: Some(vec!["true".into()]),
                    security_context: Some(SecurityContext {
                        allow_privilege_escalation: Some(false),
                        capabilities: Some(Capabilities {
                            drop: Some(vec!["ALL".into()]),
                            add: None,
                        }),
                        ..SecurityContext::default()
                    }),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        self.through(&pod).await
    }

    async fn through(&self, pod: &Pod) -> Result<()> {
        let made = self.pods.create(&PostParams::default(), pod).await?;
        let ended = self.when(&made, |pod| exit_code(pod).is_some()).await?;
        let code = ended.as_ref().and_then(exit_code);
        check(code == Some(0), &format!("by hand it ended with {code:?}"))?;
        let delete = DeleteParams::default().grace_period(1);
        self.pods.delete(&made.name_any(), &delete).await?;
        let last = ended.unwrap_or(made);
        let left = self.when(&last, |_| false).await?;
        check(left.is_none(), "the pod is still there")
    }

    /// Waits until a pod is so, or gone (`None`).
    async fn when(&self, seen: &Pod, so: impl Fn(&Pod) -> bool) -> Result<Option<Pod>> {
        let only = format!("metadata.name={}", seen.name_any());
        let watch = WatchParams::default().fields(&only);
        let from = seen.resource_version().unwrap_or_default();
        let mut events = Box::pin(self.pods.watch(&watch, &from).await?);
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) if so(&pod) => {
                    return Ok(Some(pod));
                }
                WatchEvent::Deleted(_) => return Ok(None),
                WatchEvent::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        Err("the watch ended".into())
    }

    /// When the API server tells that the program of a run of ours has ended.
    pub(crate) async fn end_of(&self, ours: &Ours, run: &RunId) -> Result<std::time::Instant> {
        let pod = self.pods.get(&pod_name(ours, run)).await?;
        if exit_code(&pod).is_none() {
            self.when(&pod, |pod| exit_code(pod).is_some()).await?;
        }
        Ok(std::time::Instant::now())
    }

    /// Removes what a failed measure has left.
    pub(crate) async fn sweep(&self) -> Result<()> {
        let mark = format!("{LABEL}={}", std::process::id());
        let only = ListParams::default().labels(&mark);
        let delete = DeleteParams::default().grace_period(1);
        for pod in self.pods.list(&only).await?.items {
            for secret in pod.spec.iter().flat_map(names_of_secrets) {
                let _ = self.secrets.delete(&secret, &delete).await;
            }
            self.pods.delete(&pod.name_any(), &delete).await?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("v6-bench-{}.{number}", std::process::id())
    }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL.to_owned(), std::process::id().to_string())])
}

/// Name, labels and annotations, marked as made by hand and not as a run: the network stays denied.
fn about(of: &ObjectMeta) -> ObjectMeta {
    let mut all = of.labels.clone().unwrap_or_default();
    all.remove("v6-runtime.owner");
    all.extend(labels());
    ObjectMeta {
        name: of.name.clone(),
        labels: Some(all),
        annotations: of.annotations.clone(),
        ..ObjectMeta::default()
    }
}

fn pod_name(ours: &Ours, run: &RunId) -> String {
    format!("v6-{}.{run}", ours.runtime.owner())
}

fn names_of_secrets(spec: &PodSpec) -> Vec<String> {
    let volumes = spec.volumes.iter().flatten();
    let mut names: Vec<String> = volumes
        .flat_map(|volume| {
            let own = volume.secret.as_ref();
            let own = own.and_then(|secret| secret.secret_name.clone());
            let parts = volume.projected.iter().flat_map(|all| &all.sources);
            let parts = parts.flatten().filter_map(|part| part.secret.as_ref());
            own.into_iter()
                .chain(parts.map(|secret| secret.name.clone()))
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The same for another name, which is also part of other names in it.
fn renamed<T: serde::Serialize + serde::de::DeserializeOwned>(
    object: &T,
    from: &str,
    to: &str,
) -> Result<T> {
    let text = serde_json::to_string(object)?.replace(from, to);
    Ok(serde_json::from_str(&text)?)
}

fn exit_code(pod: &Pod) -> Option<i32> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let program = statuses.iter().find(|status| status.name == PROGRAM)?;
    let ended = program.state.as_ref()?.terminated.as_ref()?;
    Some(ended.exit_code)
}
