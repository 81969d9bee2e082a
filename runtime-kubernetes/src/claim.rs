//! The claim that a run's outputs are on, where the operator wants them to outlive the pod.
//!
//! The run's pod names it, and so nothing else has to say that there is one. It is made while the pod
//! waits at its gate: a claim without its pod is a leftover, whenever it is seen. No owner of its takes
//! it along, however its pod is deleted.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use v6_runtime::{Access, Error as Public, ErrorKind, Owner, RunId, RunSpec};

use crate::config::{KubernetesConfig, Outputs};
use crate::error::Result;
use crate::pod::Parts;
use crate::record;
use crate::state::Shared;
use crate::translate;
use crate::volumes::{OUT, claim_of, most_output};

/// How long the cluster may take to let go of one that nothing has any more.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Whether the outputs of such a run go on a claim.
pub(crate) fn is_wanted(spec: &RunSpec, config: &KubernetesConfig) -> bool {
    // A claim's folder is made the run's by a setting of the whole pod, which would give it all files of
    // a volume that it may change, too.
    let changes = spec
        .mounts
        .iter()
        .any(|mount| claim_of(&mount.source).is_some() && mount.access == Access::ReadWrite);
    let wanted = matches!(config.outputs, Outputs::Claim { .. });
    wanted && !spec.outputs.is_empty() && !changes
}

/// The claim of these parts.
pub(crate) fn body(parts: &Parts<'_>) -> PersistentVolumeClaim {
    let Parts {
        owner,
        record,
        spec,
        config,
        ..
    } = parts;
    let storage_class = match &config.outputs {
        Outputs::Claim { storage_class } => storage_class.clone(),
        Outputs::Pod => None,
    };
    let size = Quantity(most_output(spec).to_string());
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(record::claim_name(owner, &record.id, &record.attempt)),
            labels: Some(record.claim_labels(owner)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size)])),
                limits: None,
            }),
            storage_class_name: storage_class,
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The claim with the outputs of a run's pod, if they are on one of ours.
pub(crate) fn of(owner: &Owner, id: &RunId, pod: &Pod) -> Option<String> {
    let name = record::claim_name(owner, id, record::attempt(pod)?);
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    let out = volumes.iter().find(|volume| volume.name == OUT)?;
    let named = out.persistent_volume_claim.as_ref()?;
    (named.claim_name == name).then_some(name)
}

impl Shared {
    /// The claim with the outputs of a run's pod, if they are on one.
    pub(crate) fn claim_of(&self, id: &RunId, pod: &Pod) -> Option<String> {
        of(self.owner(), id, pod)
    }

    /// Has a claim removed, as soon as no pod has it any more.
    pub(crate) async fn remove_claim(&self, name: &str) -> Result<()> {
        let Some(claim) = self.cluster.claim(name).await? else {
            return Ok(());
        };
        if record::part_of(self.owner(), &claim.metadata).is_none() {
            return Ok(());
        }
        let uid = claim.metadata.uid.unwrap_or_default();
        self.cluster.delete_claim(name, &uid).await
    }

    /// Waits until a claim is gone, which nothing has any more.
    pub(crate) async fn await_claim_gone(&self, name: &str) -> Result<()> {
        let began = Instant::now();
        let mut pause = PAUSE;
        while self.cluster.claim(name).await?.is_some() {
            if began.elapsed() >= LIMIT {
                let message = format!("the claim {name} is still being removed by the cluster");
                return Err(Public::new(ErrorKind::Timeout, message).into());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Removes what has lost its run, as when somebody took its pod away by hand, and readers that have
    /// ended.
    pub(crate) fn remove_leftovers(self: &Arc<Self>) {
        if self.config.outputs == Outputs::Pod {
            return;
        }
        let shared = self.clone();
        self.spawn(async move {
            if let Err(error) = Box::pin(shared.remove_orphans()).await {
                tracing::warn!(%error, "claims that have lost their run are left behind");
            }
        });
    }

    async fn remove_orphans(&self) -> Result<()> {
        let owner = self.owner();
        // In this order: each claim was made after its pod.
        let claims = self.cluster.list_claims(&record::claims_of(owner)).await?;
        if !claims.is_empty() {
            let (pods, _) = self.cluster.list_pods(&record::of_owner(owner)).await?;
            let there: HashSet<String> = pods
                .iter()
                .filter_map(|pod| of(owner, &record::identify(owner, pod)?, pod))
                .collect();
            for claim in claims {
                let Some((run, attempt)) = record::part_of(owner, &claim.metadata) else {
                    continue;
                };
                let name = record::claim_name(owner, &run, attempt);
                if claim.metadata.name.as_ref() == Some(&name) && !there.contains(&name) {
                    tracing::info!(%run, name, "a claim has lost its run, and is removed");
                    self.remove_claim(&name).await?;
                }
            }
        }
        let (readers, _) = self.cluster.list_pods(&record::readers_of(owner)).await?;
        for reader in readers.iter().filter(|pod| translate::has_ended(pod)) {
            self.remove_reader(reader).await?;
        }
        Ok(())
    }
}
