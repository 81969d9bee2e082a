//! The pod that reads a run's outputs from their claim: the run's own has ended by then, or is gone
//! with its machine. In it is the helper alone. It is found again by its name, serves all outputs of
//! its run, and ends by itself when nobody asks any more; what is left of it
//! then goes with the leftovers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, NodeSelectorRequirement, NodeSelectorTerm,
    PersistentVolumeClaimVolumeSource, Pod, PodSpec, PreferredSchedulingTerm, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use v6_helper::PodOptions;
use v6_runtime::{Error as Public, ErrorKind, RunId};

use crate::config::KubernetesConfig;
use crate::error::{Error, Result};
use crate::look::Look;
use crate::obstacle;
use crate::placement::Placement;
use crate::pod::{KEY_DIR, OUT_DIR, SIDECAR, dns, helper, pod_floor};
use crate::record;
use crate::state::Shared;
use crate::translate;
use crate::tunnel::Tunnel;
use crate::volumes::{OUT, key, mount};

/// When nothing was asked of it for so long, it ends.
const IDLE: Duration = Duration::from_secs(120);
/// How long one call waits for it. It goes on to start, and the next call finds it.
const LIMIT: Duration = Duration::from_secs(90);
/// How many that fail are enough.
const TRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(150);
const LONG_PAUSE: Duration = Duration::from_secs(1);

impl Shared {
    /// The tunnel into the pod that reads this claim, which is made if need be.
    pub(crate) async fn reader(self: &Arc<Self>, look: &Look, claim: &str) -> Result<Tunnel> {
        let record = &look.record;
        let name = record::reader_name(self.owner(), &record.id, &record.attempt);
        let key = self.key(record).await?;
        let began = Instant::now();
        let (mut pause, mut failures) = (PAUSE, 0);
        loop {
            let found = self.cluster.pod(&name).await?;
            let why = match &found {
                None => {
                    self.make_reader(look, claim, &name).await?;
                    "it was only just made".to_owned()
                }
                Some(pod) if !self.is_reader(&record.id, pod) => {
                    let what = format!("the pod {name} belongs to somebody else");
                    return Err(Error::Stranger(what));
                }
                Some(pod) if translate::is_deleted(pod) => "its machine is ending it".to_owned(),
                Some(pod) if translate::has_ended(pod) => {
                    self.remove_reader(pod).await?;
                    failures += u32::from(has_failed(pod));
                    if failures >= TRIES {
                        return Err(failed(&name, pod));
                    }
                    "one that had ended is being removed".to_owned()
                }
                Some(pod) if translate::has_sidecar(pod) => {
                    let incoming = self.egress.incoming(&record.id, &[]);
                    let opened =
                        self.tunnels
                            .sidecar(&self.cluster, &record.id, pod, &key, incoming);
                    match Box::pin(opened).await.map_err(Public::from) {
                        Ok(tunnel) => return Ok(tunnel),
                        Err(error) if error.is_retryable() => error.to_string(),
                        Err(error) => return Err(error.into()),
                    }
                }
                Some(pod) => waits_for(pod, claim, translate::node(&look.pod)),
            };
            if began.elapsed() >= LIMIT {
                let message = format!("the pod {name}, which is to read the outputs, waits: {why}");
                return Err(Public::new(ErrorKind::Unavailable, message).into());
            }
            tokio::time::sleep(pause).await;
            if began.elapsed() > PAUSE * 20 {
                pause = LONG_PAUSE;
            }
        }
    }

    async fn make_reader(&self, look: &Look, claim: &str, name: &str) -> Result<()> {
        let id = &look.record.id;
        // Against a cleanup of this process. One of another takes it along with its owner.
        let _lock = self.lock(id).await;
        let fresh = self.look(id).await?;
        let gone = || Public::no_such_run(id);
        let fresh = fresh.filter(|fresh| fresh.uid() == look.uid());
        let fresh = fresh.ok_or_else(gone)?;
        let found = self.cluster.claim(claim).await?;
        if found.is_none_or(|claim| claim.metadata.deletion_timestamp.is_some()) {
            let message = format!("its outputs are gone: somebody has removed their claim {claim}");
            return Err(Public::new(ErrorKind::NotFound, message).into());
        }
        match self
            .cluster
            .create_pod(&self.body(&fresh, claim, name))
            .await
        {
            // Another call was faster.
            Err(error) if error.status() == Some(409) => Ok(()),
            made => made.map(drop),
        }
    }

    fn body(&self, look: &Look, claim: &str, name: &str) -> Pod {
        let (config, owner) = (&self.config, self.owner());
        // It goes where the run could go.
        let record = &look.record;
        let placement = config.placement_of(&record.image.reference, &record.annotations);
        let mut labels = placement.labels.clone();
        labels.extend(look.record.reader_labels(owner));
        Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: self.name(&look.record.id),
                    uid: look.uid().to_owned(),
                    ..OwnerReference::default()
                }]),
                annotations: Some(placement.annotations.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(spec(
                config,
                placement,
                look.record.secret_name(owner, 0),
                claim,
                translate::node(&look.pod),
            )),
            ..Pod::default()
        }
    }

    /// Whether a pod is of ours and reads for this run.
    fn is_reader(&self, id: &RunId, pod: &Pod) -> bool {
        record::part_of(self.owner(), &pod.metadata).is_some_and(|(run, _)| run == *id)
    }

    /// Has a pod that reads removed.
    pub(crate) async fn remove_reader(&self, pod: &Pod) -> Result<()> {
        let about = &pod.metadata;
        if record::part_of(self.owner(), about).is_none() {
            return Ok(());
        }
        let name = about.name.as_deref().unwrap_or_default();
        let uid = about.uid.as_deref().unwrap_or_default();
        self.cluster.delete_pod(name, uid, 1).await.map(drop)
    }
}

fn spec(
    config: &KubernetesConfig,
    placement: Placement,
    secret: String,
    claim: &str,
    machine: Option<&str>,
) -> PodSpec {
    let options = PodOptions::new(format!("{KEY_DIR}/key"), OUT_DIR).with_idle(IDLE);
    let mounts = vec![mount("key", KEY_DIR, true), mount(OUT, OUT_DIR, true)];
    let pull = config.image_pull_secrets.iter();
    let (dns_policy, dns_config) = dns();
    PodSpec {
        restart_policy: Some("Never".into()),
        host_users: config.user_namespaces.then_some(false),
        termination_grace_period_seconds: Some(1),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        dns_policy,
        dns_config,
        image_pull_secrets: Some(
            pull.map(|name| LocalObjectReference { name: name.clone() })
                .collect(),
        ),
        affinity: match machine {
            Some(machine) => Some(near(machine, placement.affinity.unwrap_or_default())),
            None => placement.affinity,
        },
        tolerations: Some(placement.tolerations),
        node_selector: Some(placement.node_selector),
        runtime_class_name: placement.runtime_class,
        priority_class_name: placement.priority_class,
        security_context: Some(pod_floor(config)),
        volumes: Some(vec![
            key(secret),
            Volume {
                name: OUT.into(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.to_owned(),
                    read_only: None,
                }),
                ..Volume::default()
            },
        ]),
        containers: vec![helper(config, SIDECAR, options.sidecar(), mounts)],
        ..PodSpec::default()
    }
}

/// On the run's machine if it is there: it has the volume already, and the helper's image.
fn near(machine: &str, mut affinity: Affinity) -> Affinity {
    let machine = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![machine.to_owned()]),
        }]),
        match_expressions: None,
    };
    let of_machines = affinity.node_affinity.get_or_insert_default();
    of_machines
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .push(PreferredSchedulingTerm {
            preference: machine,
            weight: 100,
        });
    affinity
}

fn has_failed(pod: &Pod) -> bool {
    translate::terminated(pod, SIDECAR).is_none_or(|ended| ended.exit_code != 0)
}

/// What is said of a pod that cannot read.
fn failed(name: &str, pod: &Pod) -> Error {
    let ended = translate::terminated(pod, SIDECAR);
    let code = ended.map(|ended| ended.exit_code).unwrap_or_default();
    let words = ended.and_then(|ended| ended.message.as_deref());
    let message = format!(
        "the pod {name}, which is to read the outputs, ended with code {code} {}: is the helper's image \
         that of this version?",
        words.unwrap_or_default()
    );
    Public::new(ErrorKind::Unavailable, message).into()
}

/// What a pod that reads has not got yet.
fn waits_for(pod: &Pod, claim: &str, had: Option<&str>) -> String {
    if let Some((failure, _)) = obstacle::obstacle(pod) {
        return failure.message;
    }
    let had = had.unwrap_or("that of the run");
    match translate::node(pod) {
        None => "no machine has it yet".to_owned(),
        Some(machine) => format!(
            "machine {machine} has not started it. A claim is at one machine at a time: if {claim} is \
             still at {had}, and that is gone for good, delete its Node, or taint it \
             node.kubernetes.io/out-of-service"
        ),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

    use super::*;

    /// What the cluster says of a volume that is elsewhere is in no pod: it has to be guessed.
    #[test]
    fn a_claim_that_another_machine_may_hold_is_told() {
        let mut pod = Pod {
            spec: Some(PodSpec::default()),
            ..Pod::default()
        };
        assert_eq!(waits_for(&pod, "c", Some("one")), "no machine has it yet");
        pod.spec.get_or_insert_default().node_name = Some("two".into());
        let said = waits_for(&pod, "c", Some("one"));
        for word in ["machine two", "c is still at one", "out-of-service"] {
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn the_scheduler_has_the_word_where_it_has_one() {
        let message = "0/2 nodes are available: 2 node(s) had volume node affinity conflict";
        let pod = Pod {
            status: Some(PodStatus {
                conditions: Some(vec![PodCondition {
                    type_: "PodScheduled".into(),
                    status: "False".into(),
                    reason: Some("Unschedulable".into()),
                    message: Some(message.into()),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        assert_eq!(waits_for(&pod, "c", None), message);
    }
}
