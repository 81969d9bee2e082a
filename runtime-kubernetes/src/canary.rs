//! Whether the cluster's network denies what it is told to deny: two pods that differ in the label
//! by which the standing policy knows a run. The one must reach what the other must not.
//!
//! Without the first, that the second reaches nothing would say nothing. Each run is looked at once more, before its
//! program starts (`receive` of the helper); this shows that there is something to see by, and that runs need not be
//! tried at all where policies are not enforced.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use v6_helper::PodOptions;
use v6_runtime::{Error as Public, ErrorKind, Observation};

use crate::config::Gate;
use crate::error::{Error, Result};
use crate::isolate::POLICY;
use crate::obstacle;
use crate::pod::{helper, pod_floor};
use crate::record;
use crate::state::Shared;
use crate::translate;

const CONTAINER: &str = "canary";
/// For so long the first is to reach it, over and over; and after so long without, it does not.
const WATCHED: Duration = Duration::from_secs(4);
const SETTLED: Duration = Duration::from_secs(2);
/// A network has so long to deny a new pod.
const DENIED: Duration = Duration::from_secs(30);
/// How long a machine may take for both.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(300);
/// After so long it is looked again whether what was wrong still is.
const AGAIN: Duration = Duration::from_secs(60);
/// A canary that is so much older than ours was left behind.
const STALE: Duration = Duration::from_secs(600);

/// What was last seen, and when.
#[derive(Debug, Default)]
pub(crate) struct Canary(tokio::sync::Mutex<Option<(Instant, Verdict)>>);

/// Enforced, or why not and what to do about it.
type Verdict = std::result::Result<(), String>;

impl Shared {
    /// Looks, if that was not done for so long as the operator says. Whoever comes meanwhile waits for the same
    /// look, which goes on if the future is dropped.
    ///
    /// # Errors
    /// `Denied` where a run would not be isolated; others if that could not be seen.
    pub(crate) async fn see_denial(self: &Arc<Self>) -> Result<()> {
        let Some(every) = self.config.canary_every else {
            return Ok(());
        };
        let mut last = self.canary.0.lock().await;
        let holds = |seen: &(Instant, Verdict)| match seen {
            (at, Ok(())) => at.elapsed() < every,
            (at, Err(_)) => at.elapsed() < AGAIN.min(every),
        };
        if !last.as_ref().is_some_and(holds) {
            let shared = self.clone();
            let look = tokio::spawn(async move { look(&shared).await });
            let look = look.await.map_err(|error| {
                Public::new(ErrorKind::Unexpected, "the look broke off").with_source(error)
            })?;
            match look {
                Ok(seen) => *last = Some((Instant::now(), seen.verdict())),
                // A cluster without room for two small pods is not one without policies.
                Err(error) => match last.as_ref() {
                    Some((at, Ok(()))) if at.elapsed() < every.saturating_mul(2) => {
                        tracing::warn!(%error, "whether the network denies what it is told to could not be seen anew");
                    }
                    _ => return Err(error),
                },
            }
        }
        match last.as_ref() {
            Some((_, Err(why))) => Err(Error::NotEnforced(why.clone())),
            _ => Ok(()),
        }
    }
}

/// What the two pods have told.
#[derive(Debug)]
struct Seen {
    /// The pod that is no run's reached it.
    open_reached: bool,
    open_words: String,
    /// The other was denied it.
    denied: bool,
    denied_words: String,
}

impl Seen {
    fn verdict(&self) -> Verdict {
        if !self.open_reached {
            return Err(format!(
                "what a run's denial is seen by is out of reach where nothing is denied, too ({}): \
                 allow pods of this namespace that are no runs to reach it, or name another address as the control",
                self.open_words
            ));
        }
        if !self.denied {
            return Err(format!(
                "the cluster does not deny runs the network ({}): see that its network plugin enforces \
                 NetworkPolicies, and that {POLICY} is there",
                self.denied_words
            ));
        }
        Ok(())
    }
}

/// The same for an operator to read.
pub(crate) async fn observe(shared: &Shared) -> Result<Vec<Observation>> {
    let seen = look(shared).await?;
    let told = |holds, words: &str, else_: String| match holds {
        true => words.to_owned(),
        false => else_,
    };
    Ok(vec![
        Observation::new(
            "what shows the denial is reached where nothing is denied",
            seen.open_reached,
            told(
                seen.open_reached,
                "it is",
                format!(
                    "it is not ({}): name another address as the control",
                    seen.open_words
                ),
            ),
        ),
        Observation::new(
            "a pod with a run's labels is denied it",
            seen.denied,
            told(seen.denied, "it is", seen.denied_words),
        ),
    ])
}

/// Looks from both pods, and removes them.
async fn look(shared: &Shared) -> Result<Seen> {
    let control = match &shared.config.gate {
        Gate::Denial { control, .. } => control.map(|address| address.to_string()),
        Gate::Off => None,
    };
    let waits = PodOptions::new("", "/");
    // Each ends well when nothing gets out any more; the first waits in vain.
    let open = waits.clone().with_denial(control.clone(), SETTLED, WATCHED);
    // Where runs are not held back, the first instruction must find itself denied.
    let patience = match shared.config.gate {
        Gate::Off => Duration::ZERO,
        Gate::Denial { .. } => DENIED,
    };
    let denied = waits.with_denial(control, SETTLED, patience);
    let mark = format!("{:016x}", rand::random::<u64>());
    let (open, denied) = tokio::join!(
        one(shared, record::canary(&mark, false), open),
        one(shared, record::canary(&mark, true), denied),
    );
    let ((open, open_words), (denied, denied_words)) = (open?, denied?);
    Ok(Seen {
        open_reached: open == v6_helper::EXIT_NOT_ISOLATED,
        open_words,
        denied: denied == 0,
        denied_words,
    })
}

/// With which code a pod's program ended, and its words.
async fn one(
    shared: &Shared,
    (name, labels): (String, BTreeMap<String, String>),
    options: PodOptions,
) -> Result<(i32, String)> {
    let made = shared
        .cluster
        .create_pod(&body(shared, &name, labels, &options))
        .await?;
    remove_stale(shared, &made).await;
    let seen = tokio::time::timeout(LIMIT, ended(shared, &name)).await;
    let why = match seen {
        Ok(_) => String::new(),
        Err(_) => standing_in_its_way(shared, &name).await,
    };
    let uid = made.metadata.uid.unwrap_or_default();
    let removed = shared.cluster.delete_pod(&name, &uid, 1).await;
    let seen = seen.map_err(|_| {
        let message = format!(
            "whether the network denies could not be seen: the pod {name} did not end in {} s{why}",
            LIMIT.as_secs()
        );
        Public::new(ErrorKind::Timeout, message)
    })??;
    removed?;
    Ok(seen)
}

async fn standing_in_its_way(shared: &Shared, name: &str) -> String {
    let pod = shared.cluster.pod(name).await.ok().flatten();
    let obstacle = pod.as_ref().and_then(obstacle::obstacle);
    obstacle.map_or_else(String::new, |(failure, _)| format!(": {}", failure.message))
}

fn body(
    shared: &Shared,
    name: &str,
    labels: BTreeMap<String, String>,
    options: &PodOptions,
) -> Pod {
    let config = &shared.config;
    let placement = config.placement.clone();
    let mut all = placement.labels;
    all.extend(labels);
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(all),
            annotations: Some(placement.annotations),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".into()),
            active_deadline_seconds: Some(i64::try_from(LIMIT.as_secs()).unwrap_or(i64::MAX)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            node_selector: Some(placement.node_selector),
            tolerations: Some(placement.tolerations),
            affinity: placement.affinity,
            runtime_class_name: placement.runtime_class,
            priority_class_name: placement.priority_class,
            security_context: Some(pod_floor(config)),
            containers: vec![helper(config, CONTAINER, options.receive(), Vec::new())],
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

async fn ended(shared: &Shared, name: &str) -> Result<(i32, String)> {
    loop {
        let Some(pod) = shared.cluster.pod(name).await? else {
            let message = format!("somebody has removed the pod {name}");
            return Err(Public::new(ErrorKind::Unavailable, message).into());
        };
        if let Some(ended) = translate::terminated(&pod, CONTAINER) {
            return Ok((ended.exit_code, ended.message.clone().unwrap_or_default()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes what processes that were killed have left.
async fn remove_stale(shared: &Shared, ours: &Pod) {
    let cluster = &shared.cluster;
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let Some(now) = created(ours) else {
        return;
    };
    let found = match cluster.list_pods(record::CANARY).await {
        Ok((found, _)) => found,
        Err(error) => {
            tracing::debug!(%error, "canaries that were left behind could not be looked for");
            return;
        }
    };
    let is_stale = |pod: &&Pod| {
        created(pod).is_some_and(|then| now.duration_since(then).unsigned_abs() > STALE)
    };
    for pod in found.iter().filter(is_stale) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Err(error) = cluster.delete_pod(name, uid, 1).await {
            tracing::debug!(%error, pod = name, "a canary stays behind");
        }
    }
}
