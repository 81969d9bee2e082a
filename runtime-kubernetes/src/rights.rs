//! What the node must be allowed to do in its namespace, and nothing else.

use std::fmt::Write;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use crate::api::Cluster;
use crate::config::Outputs;
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
    /// Only for outputs on claims.
    claims: bool,
}

const RIGHTS: &[Right] = &[
    right(
        "",
        "pods",
        "",
        &["create", "get", "list", "watch", "patch", "delete"],
    ),
    right("", "pods", "log", &["get"]),
    // Since 1.33.
    Right {
        needed: false,
        ..right("", "pods", "resize", &["patch"])
    },
    // Servers differ in which of the two they ask for.
    right("", "pods", "portforward", &["create", "get"]),
    right("", "secrets", "", &["create", "get", "delete"]),
    Right {
        claims: true,
        ..right(
            "",
            "persistentvolumeclaims",
            "",
            &["create", "get", "list", "delete"],
        )
    },
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
        claims: false,
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

/// The rights of a node, with outputs on claims or without.
fn rights(claims: bool) -> impl Iterator<Item = &'static Right> {
    RIGHTS.iter().filter(move |right| claims || !right.claims)
}

/// How many are needed.
pub(crate) fn count(outputs: &Outputs) -> usize {
    let needed = rights(matches!(outputs, Outputs::Claim { .. })).filter(|right| right.needed);
    needed.map(|right| right.verbs.len()).sum()
}

/// What is needed and not allowed, as `verb resource`.
pub(crate) async fn missing(cluster: &Cluster, outputs: &Outputs) -> Result<Vec<String>> {
    let claims = matches!(outputs, Outputs::Claim { .. });
    let mut asked = Vec::new();
    for right in rights(claims).filter(|right| right.needed) {
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
    let ask = || reviews.create(&options, &question);
    let answer = cluster.read("asking for our rights", ask).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// What a node is given beside the least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RbacOptions {
    /// It is outside of the cluster: with a token of its account, which does not expire.
    pub outside: bool,
    /// It keeps outputs on claims ([`Outputs::Claim`]).
    pub claims: bool,
}

impl RbacOptions {
    /// Sets [`outside`](Self::outside).
    #[must_use]
    pub fn with_outside(mut self, outside: bool) -> Self {
        self.outside = outside;
        self
    }

    /// Sets [`claims`](Self::claims).
    #[must_use]
    pub fn with_claims(mut self, claims: bool) -> Self {
        self.claims = claims;
        self
    }
}

/// The objects that an administrator makes for a node, as YAML: an account with the least rights
/// that work, and the policy that denies runs the network.
///
/// # Errors
/// `InvalidSpec` for a name that is no namespace's.
pub fn rbac(namespace: &str, options: RbacOptions) -> v6_runtime::Result<String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let right = (1..=63).contains(&namespace.len())
        && namespace.bytes().all(allowed)
        && !namespace.starts_with('-')
        && !namespace.ends_with('-');
    if !right {
        let why = format!("{namespace:?}: small letters, digits and -, at most 63");
        return Err(v6_runtime::Error::invalid("namespace", why));
    }
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
    for right in rights(options.claims) {
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
    if options.outside {
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {{name: v6-node-token, namespace: {namespace}, annotations: {{kubernetes.io/service-account.name: v6-node}}}}
"
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_right_is_wider_than_it_must_be() {
        let options = RbacOptions::default().with_outside(true);
        let text = rbac("runs", options).expect("a name");
        assert!(text.contains("resources: [\"pods/portforward\"], verbs: [create, get]"));
        for wide in ["*", "exec", "attach", "Cluster", "nodes", "volume"] {
            assert!(!text.contains(wide), "{wide} in {text}");
        }
    }

    #[test]
    fn claims_are_only_for_who_keeps_outputs_there() {
        let options = RbacOptions::default().with_claims(true);
        let text = rbac("runs", options).expect("a name");
        assert!(
            text.contains(
                "resources: [\"persistentvolumeclaims\"], verbs: [create, get, list, delete]"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_token_is_only_for_outside() {
        let of =
            |outside| rbac("runs", RbacOptions::default().with_outside(outside)).expect("a name");
        assert!(of(true).contains("service-account-token"));
        assert!(!of(false).contains("service-account-token"));
    }

    #[test]
    fn a_name_cannot_say_more_than_a_name() {
        for name in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a}, x: {",
            "a\nb",
            &"a".repeat(64),
        ] {
            assert!(rbac(name, RbacOptions::default()).is_err(), "{name:?}");
        }
    }
}
