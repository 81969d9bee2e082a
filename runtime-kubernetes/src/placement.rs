//! Where pods go and how the cluster treats them, in the API's own types, as an operator writes them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use v6_runtime::{Error, ErrorKind, Result};

use crate::error::{Error as Step, Result as StepResult};

/// Where a run's pod goes, and how the cluster treats it.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Placement {
    /// Labels that a machine must have to be given runs.
    pub node_selector: BTreeMap<String, String>,
    /// The taints of machines that pods tolerate, as the API has them: see [`tolerations`].
    pub tolerations: Vec<Toleration>,
    /// Which machines pods are to have, or would rather: see [`affinity`].
    pub affinity: Option<Affinity>,
    /// The class of container runtime, where it is not to be the cluster's default.
    pub runtime_class: Option<String>,
    /// The class by which the cluster tells which pods go first.
    pub priority_class: Option<String>,
    /// Further labels of the pod, for instance a queue's.
    pub labels: BTreeMap<String, String>,
    /// Further annotations of the pod, for what the cluster adds to pods by them.
    pub annotations: BTreeMap<String, String>,
}

setters! { Placement:
    with_node_selector node_selector: BTreeMap<String, String>,
    with_tolerations tolerations: Vec<Toleration>,
    with_affinity affinity: Option<Affinity>,
    with_runtime_class runtime_class: Option<String>,
    with_priority_class priority_class: Option<String>,
    with_labels labels: BTreeMap<String, String>,
    with_annotations annotations: BTreeMap<String, String>,
}

impl Placement {
    pub(crate) fn validate(&self) -> StepResult<()> {
        let ours = |name: &&String| name.starts_with("v6-runtime.");
        for (kind, set) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if let Some(name) = set.keys().find(ours) {
                return Err(Step::Config(format!("{kind}: {name} is the runtime's own")));
            }
        }
        Ok(())
    }

    /// These, where something is set, and what is set below them elsewhere.
    pub(crate) fn over(&self, below: Self) -> Self {
        let own = self.clone();
        let both = |mut below: BTreeMap<_, _>, own: BTreeMap<_, _>| {
            below.extend(own);
            below
        };
        Self {
            node_selector: both(below.node_selector, own.node_selector),
            tolerations: [below.tolerations, own.tolerations].concat(),
            affinity: own.affinity.or(below.affinity),
            runtime_class: own.runtime_class.or(below.runtime_class),
            priority_class: own.priority_class.or(below.priority_class),
            labels: both(below.labels, own.labels),
            annotations: both(below.annotations, own.annotations),
        }
    }
}

/// Reads a list of tolerations as the API has them.
///
/// # Errors
/// `InvalidSpec`, with the key that is not one of the API's or has a value of another kind.
pub fn tolerations(value: &Value) -> Result<Vec<Toleration>> {
    let read: Vec<Toleration> = exactly(value)?;
    for (index, one) in read.iter().enumerate() {
        let bad = |what: String| Err(refused(&format!("[{index}]: {what}")));
        if let Some(effect) = &one.effect
            && !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.as_str())
        {
            return bad(format!(
                "the effect {effect} is none of NoSchedule, PreferNoSchedule and NoExecute"
            ));
        }
        match one.operator.as_deref() {
            None | Some("Equal" | "Exists") => {}
            Some(other) => return bad(format!("the operator {other} is neither Equal nor Exists")),
        }
        if one.key.is_none() && one.operator.as_deref() != Some("Exists") {
            return bad("without a key the operator is Exists".into());
        }
    }
    Ok(read)
}

/// Reads an affinity as the API has it.
///
/// # Errors
/// As [`tolerations`].
pub fn affinity(value: &Value) -> Result<Affinity> {
    exactly(value)
}

/// A key that the API does not have would be dropped without a word.
fn exactly<T: Serialize + DeserializeOwned>(value: &Value) -> Result<T> {
    let read: T = serde_json::from_value(value.clone()).map_err(|e| refused(&e.to_string()))?;
    let kept = serde_json::to_value(&read).map_err(|error| refused(&error.to_string()))?;
    match dropped(value, &kept) {
        None => Ok(read),
        Some(key) => Err(refused(&format!("{key} is no key of the cluster's API"))),
    }
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidSpec, what)
}

/// The first key that was written and is not kept.
fn dropped(written: &Value, kept: &Value) -> Option<String> {
    match (written, kept) {
        (Value::Object(written), kept) => {
            let mut entries = written.iter().filter(|(_, value)| !value.is_null());
            entries.find_map(|(key, value)| match kept.get(key) {
                None => Some(key.clone()),
                Some(kept) => dropped(value, kept).map(|below| format!("{key}.{below}")),
            })
        }
        (Value::Array(written), Value::Array(kept)) => {
            let mut pairs = written.iter().zip(kept).enumerate();
            pairs.find_map(|(index, (written, kept))| {
                dropped(written, kept).map(|below| format!("[{index}].{below}"))
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message<T: std::fmt::Debug>(read: Result<T>) -> String {
        match read {
            Err(error) => error.message().to_owned(),
            Ok(read) => panic!("{read:?} was taken"),
        }
    }

    #[test]
    fn what_the_api_has_is_read() {
        let read = tolerations(&json!([
            {"key": "dedicated", "value": "research", "effect": "NoSchedule"},
            {"operator": "Exists", "tolerationSeconds": 30, "effect": "NoExecute"},
        ]));
        let read = read.expect("tolerations");
        assert_eq!(read[0].value.as_deref(), Some("research"));
        assert_eq!(read[1].toleration_seconds, Some(30));
        let read = affinity(
            &json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}}),
        );
        let terms = read.expect("an affinity").node_affinity;
        let terms = terms.and_then(|it| it.required_during_scheduling_ignored_during_execution);
        assert_eq!(terms.map(|it| it.node_selector_terms.len()), Some(1));
    }

    #[test]
    fn what_it_has_not_is_named() {
        let typo = message(tolerations(&json!([{"key": "a", "efect": "NoSchedule"}])));
        assert!(typo.contains("[0].efect"), "{typo}");
        let kind = message(tolerations(&json!([{"key": "a", "value": 1}])));
        assert!(kind.contains("string"), "{kind}");
        let effect = message(tolerations(&json!([{"key": "a", "effect": "Never"}])));
        assert!(effect.contains("Never"), "{effect}");
        message(tolerations(&json!([{"effect": "NoExecute"}])));
        message(tolerations(&json!({"key": "a"})));
        let typo = message(affinity(&json!({"nodeAffinity": {"prefered": []}})));
        assert!(typo.contains("nodeAffinity.prefered"), "{typo}");
    }
}
