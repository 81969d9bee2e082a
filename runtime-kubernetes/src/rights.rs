//! What the node must be allowed to do in its namespace, and nothing else.

use std::fmt::Write;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use crate::api::Cluster;
use crate::error::Result;
use crate::isolate::POLICY;
use crate::record::{PART, PART_RUN};

/// How many questions are asked at once.
const AT_ONCE: usize = 8;

/// One row of a role.
struct Right {
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verbs: &'static [&'static str],
    /// Without it, runs cannot be carried out.
    needed: bool,
}

const RIGHTS: &[Right] = &[
    right(
        "",
        "pods",
        "",
        &["create", "get", "list", "watch", "patch", "delete"],
    ),
    right("", "pods", "log", &["get"]),
    // Servers differ in which of the two they ask for.
    right("", "pods", "portforward", &["create", "get"]),
    right("", "secrets", "", &["create", "get", "delete"]),
    right(
        "coordination.k8s.io",
        "leases",
        "",
        &["create", "get", "update", "delete"],
    ),
    Right {
        needed: false,
        ..right("networking.k8s.io", "networkpolicies", "", &["get"])
    },
];

const fn right(
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verbs: &'static [&'static str],
) -> Right {
    Right {
        group,
        resource,
        subresource,
        verbs,
        needed: true,
    }
}

impl Right {
    fn name(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

/// What is needed and not allowed, as `verb resource`.
pub(crate) async fn missing(cluster: &Cluster) -> Result<Vec<String>> {
    let mut asked = Vec::new();
    for right in RIGHTS.iter().filter(|right| right.needed) {
        asked.extend(right.verbs.iter().map(|verb| (right, *verb)));
    }
    let mut missing = Vec::new();
    for some in asked.chunks(AT_ONCE) {
        let questions = some.iter().map(|(right, verb)| may(cluster, right, verb));
        let answers = futures_util::future::try_join_all(questions).await?;
        for ((right, verb), allowed) in some.iter().zip(answers) {
            if !allowed {
                missing.push(format!("{verb} {}", right.name()));
            }
        }
    }
    Ok(missing)
}

async fn may(cluster: &Cluster, right: &Right, verb: &str) -> Result<bool> {
    let question = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(cluster.namespace.clone()),
                group: Some(right.group.to_owned()),
                resource: Some(right.resource.to_owned()),
                subresource: Some(right.subresource.to_owned()).filter(|name| !name.is_empty()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let options = PostParams::default();
    let asking = reviews.create(&options, &question);
    let answer = cluster.call("asking for our rights", asking).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// The objects that an administrator makes for a node, as YAML: an account with the least rights
/// that work, and the policy that denies runs the network.
#[must_use]
pub fn rbac(namespace: &str) -> String {
    let mut text = format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: v6-node, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: v6-node, namespace: {namespace}}}
rules:
"
    );
    for right in RIGHTS {
        let (group, name, verbs) = (right.group, right.name(), right.verbs.join(", "));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "- {{apiGroups: [\"{group}\"], resources: [\"{name}\"], verbs: [{verbs}]}}"
        );
    }
    let _ = write!(
        text,
        "---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: v6-node, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: v6-node}}
subjects:
- {{kind: ServiceAccount, name: v6-node, namespace: {namespace}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {POLICY}, namespace: {namespace}}}
spec:
  podSelector: {{matchLabels: {{{PART}: {PART_RUN}}}}}
  policyTypes: [Ingress, Egress]
"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_right_is_wider_than_it_must_be() {
        let text = rbac("runs");
        assert!(text.contains("resources: [\"pods/portforward\"], verbs: [create, get]"));
        for wide in ["*", "exec", "attach", "Cluster", "nodes"] {
            assert!(!text.contains(wide), "{wide} in {text}");
        }
    }
}
