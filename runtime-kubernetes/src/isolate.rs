//! The standing NetworkPolicy that denies every run all of the network.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::api::Cluster;
use crate::error::Result;
use crate::record::{PART, PART_RUN};

/// One for all owners of a namespace.
pub(crate) const POLICY: &str = "v6-runtime-deny-all";

/// Sees that there is a policy that denies, and makes it if there is none and we may. What is wrong
/// is told in words: whether a run is isolated is seen in each of them.
pub(crate) async fn ensure(cluster: &Cluster) -> Result<Option<String>> {
    let found = match cluster.policy(POLICY).await {
        Ok(found) => found,
        Err(error) if error.status() == Some(403) => {
            return Ok(Some(format!(
                "the NetworkPolicy {POLICY} cannot be looked at ({error}): it must be there, or no \
                 run starts"
            )));
        }
        Err(error) => return Err(error),
    };
    match found {
        Some(found) if denies(&found) => Ok(None),
        Some(_) => Ok(Some(format!(
            "the NetworkPolicy {POLICY} does not deny all traffic of runs: replace it"
        ))),
        None => match cluster.create_policy(&policy()).await {
            Ok(()) => Ok(None),
            Err(error) if error.status() == Some(409) => Ok(None),
            Err(error) if error.status() == Some(403) => Ok(Some(format!(
                "there is no NetworkPolicy {POLICY}, and it cannot be made ({error}): apply what \
                 `v6-node rbac` prints, or no run starts"
            ))),
            Err(error) => Err(error),
        },
    }
}

/// The policy: all pods that run programs, nothing in, nothing out.
pub(crate) fn policy() -> NetworkPolicy {
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(POLICY.into()),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector()),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ..NetworkPolicySpec::default()
        }),
    }
}

fn selector() -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(PART.to_owned(), PART_RUN.to_owned())])),
        match_expressions: None,
    }
}

fn denies(found: &NetworkPolicy) -> bool {
    let Some(spec) = &found.spec else {
        return false;
    };
    let selects_all = |selector: &LabelSelector| {
        let labels = selector
            .match_labels
            .as_ref()
            .is_none_or(|labels| labels.is_empty());
        labels
            && selector
                .match_expressions
                .as_ref()
                .is_none_or(|all| all.is_empty())
    };
    let selected = spec
        .pod_selector
        .as_ref()
        .is_none_or(|found| *found == selector() || selects_all(found));
    let kinds = spec.policy_types.as_deref().unwrap_or_default();
    let both = ["Ingress", "Egress"]
        .iter()
        .all(|kind| kinds.iter().any(|it| it == kind));
    let nothing = spec.ingress.as_ref().is_none_or(|rules| rules.is_empty())
        && spec.egress.as_ref().is_none_or(|rules| rules.is_empty());
    selected && both && nothing
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicyEgressRule;

    use super::*;

    #[test]
    fn what_lets_something_out_does_not_deny() {
        assert!(denies(&policy()));
        let mut open = policy();
        if let Some(spec) = &mut open.spec {
            spec.egress = Some(vec![NetworkPolicyEgressRule::default()]);
        }
        assert!(!denies(&open));
        let mut half = policy();
        if let Some(spec) = &mut half.spec {
            spec.policy_types = Some(vec!["Ingress".into()]);
        }
        assert!(!denies(&half));
        let mut other = policy();
        if let Some(spec) = &mut other.spec {
            let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
            spec.pod_selector = Some(LabelSelector {
                match_labels: Some(labels),
                match_expressions: None,
            });
        }
        assert!(!denies(&other));
    }
}
