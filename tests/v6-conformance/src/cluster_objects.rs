//! What the suite makes in a cluster past the runtime: strangers' pods, and volumes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeSpec, Pod, PodSchedulingGate, PodSpec,
    SeccompProfile, SecurityContext, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use v6_runtime::{Error, ErrorKind, Owner, Result, RunId};
use v6_runtime_conformance::probe::pattern;
use v6_runtime_conformance::{Planted, Untouched};

use crate::cluster::OWNER_LABEL;
use crate::engine::failed;

/// A label that no runtime of ours knows: for whose cases something was made.
pub(crate) const MARK: &str = "org.v6-conformance.stranger";
/// How long the cluster may take to give a claim its volume, or to let go of one.
const SETTLED: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Pods that somebody else made.
pub(crate) struct Pods {
    api: Api<Pod>,
    made: Vec<(String, String)>,
}

/// Makes them. `Beside`: names that begin and end like a run's, with labels whose keys or values do.
pub(crate) async fn plant(
    api: Api<Pod>,
    owner: &Owner,
    id: &RunId,
    place: Planted,
) -> Result<Pods> {
    let name = format!("v6-{owner}.{id}");
    let of = |owner: String| {
        BTreeMap::from([
            (OWNER_LABEL.to_owned(), owner),
            ("v6-runtime.schema".to_owned(), "1".to_owned()),
            ("v6-runtime.run".to_owned(), id.to_string()),
            ("v6-runtime.part".to_owned(), "run".to_owned()),
        ])
    };
    let wanted = match place {
        Planted::InPlace => vec![(name, BTreeMap::new())],
        Planted::Beside => vec![
            (format!("{name}-2"), of(format!("{owner}-2"))),
            (format!("x-{name}"), of(format!("x-{owner}"))),
            // The labels are this owner's, the name is not.
            (format!("elsewhere-{owner}-{id}"), of(owner.to_string())),
            (
                format!("{name}x"),
                BTreeMap::from([("v6-runtime.ownership".to_owned(), owner.to_string())]),
            ),
        ],
    };
    let mut pods = Pods {
        api,
        made: Vec::new(),
    };
    for (name, mut labels) in wanted {
        labels.insert(MARK.to_owned(), owner.to_string());
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                // No machine gets it.
                scheduling_gates: Some(vec![PodSchedulingGate {
                    name: "org.v6-conformance/stranger".into(),
                }]),
                containers: vec![Container {
                    name: "stranger".into(),
                    image: Some("localhost/none".into()),
                    security_context: Some(restricted()),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        let made = pods.api.create(&PostParams::default(), &pod).await;
        let made = made.map_err(failed("making a stranger's pod"))?;
        pods.made
            .push((name, made.metadata.uid.unwrap_or_default()));
    }
    Ok(pods)
}

/// What a namespace of restricted pods asks of every container.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: None,
        }),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".into(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

#[async_trait]
impl Untouched for Pods {
    async fn is_there(&self) -> Result<bool> {
        for (name, uid) in &self.made {
            let found = self.api.get_opt(name).await;
            let found = found.map_err(failed("looking at a stranger's pod"))?;
            let as_it_was = |pod: &Pod| {
                pod.metadata.uid.as_ref() == Some(uid)
                    && pod.metadata.deletion_timestamp.is_none()
                    && pod.metadata.annotations.is_none()
            };
            if !found.as_ref().is_some_and(as_it_was) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn remove(&self) -> Result<()> {
        for (name, _) in &self.made {
            match self.api.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                done => {
                    done.map_err(failed("removing a stranger's pod"))?;
                }
            }
        }
        Ok(())
    }
}

/// A volume of a folder of this machine, and a claim to it of the same name.
pub(crate) struct Volumes {
    client: Client,
    namespace: String,
    /// Where the folders are.
    folder: PathBuf,
}

impl Volumes {
    pub(crate) fn new(client: Client, namespace: &str, folder: &Path) -> Self {
        let (namespace, folder) = (namespace.to_owned(), folder.to_owned());
        Self {
            client,
            namespace,
            folder,
        }
    }

    pub(crate) fn name(owner: &Owner) -> String {
        format!("v6-conformance-{owner}")
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    /// Makes it, with the file `data` in it.
    pub(crate) async fn make(&self, owner: &Owner) -> Result<String> {
        let name = Self::name(owner);
        let folder = self.folder.join(&name);
        let readable =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        for folder in [folder.clone(), folder.join("folder")] {
            let file = folder.join("data");
            fs::create_dir_all(&folder)
                .and_then(|()| readable(&folder, 0o755))
                .and_then(|()| fs::write(&file, pattern(1000)))
                .and_then(|()| readable(&file, 0o644))
                .map_err(failed("making a volume's folder"))?;
        }
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(MARK.to_owned(), owner.to_string())])),
            ..ObjectMeta::default()
        };
        let size = BTreeMap::from([("storage".to_owned(), Quantity("1Mi".into()))]);
        let once = Some(vec!["ReadWriteOnce".to_owned()]);
        let volume = PersistentVolume {
            metadata: metadata.clone(),
            spec: Some(PersistentVolumeSpec {
                access_modes: once.clone(),
                capacity: Some(size.clone()),
                host_path: Some(HostPathVolumeSource {
                    path: folder.display().to_string(),
                    type_: Some("Directory".into()),
                }),
                persistent_volume_reclaim_policy: Some("Retain".into()),
                ..PersistentVolumeSpec::default()
            }),
            ..PersistentVolume::default()
        };
        let claim = PersistentVolumeClaim {
            metadata,
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: once,
                resources: Some(VolumeResourceRequirements {
                    requests: Some(size),
                    limits: None,
                }),
                // Of no class: nothing makes another one for it.
                storage_class_name: Some(String::new()),
                volume_name: Some(name.clone()),
                ..PersistentVolumeClaimSpec::default()
            }),
            ..PersistentVolumeClaim::default()
        };
        let options = PostParams::default();
        let made = self.volumes().create(&options, &volume).await;
        made.map_err(failed("making a volume"))?;
        let made = self.claims().create(&options, &claim).await;
        made.map_err(failed("making a claim"))?;
        let bound = || async {
            let claim = self.claims().get(&name).await;
            let claim = claim.map_err(failed("looking at a claim"))?;
            let phase = claim.status.and_then(|status| status.phase);
            Ok(phase.as_deref() == Some("Bound"))
        };
        until("a claim has its volume", bound).await?;
        Ok(name)
    }

    /// Removes it, if it is there.
    pub(crate) async fn remove(&self, owner: &Owner) -> Result<()> {
        let name = Self::name(owner);
        let options = DeleteParams::default();
        gone(self.claims().delete(&name, &options).await)?;
        let absent = || async {
            let claim = self.claims().get_opt(&name).await;
            Ok(claim.map_err(failed("looking at a claim"))?.is_none())
        };
        // While a pod has it, it stays.
        until("a claim is gone", absent).await?;
        gone(self.volumes().delete(&name, &options).await)?;
        match fs::remove_dir_all(self.folder.join(&name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("removing a volume's folder")(error).into())
            }
            _ => Ok(()),
        }
    }
}

fn gone<T>(removed: kube::Result<T>) -> Result<()> {
    match removed {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        removed => Ok(removed.map(drop).map_err(failed("removing a volume"))?),
    }
}

async fn until<F>(what: &str, mut holds: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let began = Instant::now();
    while !holds().await? {
        if began.elapsed() > SETTLED {
            let message = format!("the suite, waiting until {what}: in vain");
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
