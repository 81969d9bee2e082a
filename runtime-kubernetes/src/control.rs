//! What the denial is seen by, seen to be there: a pod that the standing policy does not select reaches it.
//! Where it does not, that a run's pod does not reach it says nothing.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use v6_helper::PodOptions;
use v6_runtime::{Error as Public, ErrorKind, Observation};

use crate::config::Gate;
use crate::error::Result;
use crate::pod::{helper, pod_floor};
use crate::record;
use crate::state::Shared;
use crate::translate;

const NAME: &str = "what shows the denial is reached where nothing is denied";
const CONTAINER: &str = "control";
/// For so long it is to be reached, over and over; and after so long without, it is not.
const WATCHED: Duration = Duration::from_secs(5);
const SETTLED: Duration = Duration::from_secs(2);
/// How long a machine may take for it.
const LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(300);

/// Looks from a pod that is not a run's.
pub(crate) async fn can_be_reached(shared: &Shared) -> Result<Observation> {
    let Gate::Denial { control, .. } = &shared.config.gate else {
        return Ok(Observation::new(NAME, true, "runs are not held back"));
    };
    let control = control.map(|address| address.to_string());
    let (name, labels) = record::control(shared.owner());
    // Waits until nothing gets out any more: here, it waits in vain.
    let options = PodOptions::new("", "/").with_denial(control, SETTLED, WATCHED);
    let config = &shared.config;
    let body = Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels),
            annotations: Some(config.annotations.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".into()),
            active_deadline_seconds: Some(i64::try_from(LIMIT.as_secs()).unwrap_or(i64::MAX)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            node_selector: Some(config.node_selector.clone()),
            tolerations: Some(config.tolerations.clone()),
            affinity: config.affinity.clone(),
            runtime_class_name: config.runtime_class.clone(),
            security_context: Some(pod_floor(config)),
            containers: vec![helper(config, CONTAINER, options.receive(), Vec::new())],
            ..PodSpec::default()
        }),
        ..Pod::default()
    };
    let made = shared.cluster.create_pod(&body).await?;
    let seen = ended(shared, &name).await;
    let uid = made.metadata.uid.unwrap_or_default();
    let removed = shared.cluster.delete_pod(&name, &uid, 1).await;
    let (code, words) = seen?;
    removed?;
    let reached = code == v6_helper::EXIT_NOT_ISOLATED;
    let seen = match reached {
        true => "it is".to_owned(),
        false => format!("it is not ({code} {words}): name another address as the control"),
    };
    Ok(Observation::new(NAME, reached, seen))
}

/// With which code it ended, and its words.
async fn ended(shared: &Shared, name: &str) -> Result<(i32, String)> {
    let began = Instant::now();
    loop {
        if let Some(pod) = shared.cluster.pod(name).await?
            && let Some(ended) = translate::terminated(&pod, CONTAINER)
        {
            return Ok((ended.exit_code, ended.message.clone().unwrap_or_default()));
        }
        if began.elapsed() >= LIMIT {
            let message = format!("the pod {name} did not end");
            return Err(Public::new(ErrorKind::Timeout, message).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
