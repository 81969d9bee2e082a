//! What a node's account may do, on a real cluster: all that is needed, and nothing else.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use common::Bench;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use v6_runtime::ErrorKind;
use v6_runtime_kubernetes::KubernetesRuntime;

#[tokio::test]
async fn each_right_that_is_missing_is_named() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // An administrator who acts as somebody whom nobody has given anything.
    let mut file = Kubeconfig::read_from(std::env::var("KUBECONFIG").unwrap()).unwrap();
    for user in &mut file.auth_infos {
        let nobody = format!("system:serviceaccount:{}:nobody", bench.namespace);
        user.auth_info.as_mut().unwrap().impersonate = Some(nobody);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
    let config = bench
        .config()
        .with_kubeconfig(Some(path))
        .with_namespace(Some(bench.namespace.clone()));
    let error = KubernetesRuntime::connect(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    for wanted in [
        "create pods",
        "get pods/log",
        "create pods/portforward",
        "create secrets",
        "update leases",
        "rbac",
    ] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
}

#[tokio::test]
async fn the_account_may_do_nothing_else() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let file = Kubeconfig::read_from(std::env::var("V6_KUBERNETES_CONFIG").unwrap()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options)
        .await
        .unwrap();
    let reviews: Api<SelfSubjectAccessReview> = Api::all(Client::try_from(config).unwrap());
    let may = |namespace: &str, verb: &str, resource: &str, subresource: Option<&str>| {
        let question = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(namespace.to_owned()),
                    verb: Some(verb.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource: subresource.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews = reviews.clone();
        async move {
            let answer = reviews.create(&PostParams::default(), &question).await;
            answer.unwrap().status.unwrap().allowed
        }
    };
    let own = bench.namespace.as_str();
    // So that a refusal below says something.
    assert!(may(own, "create", "pods", None).await);
    for (namespace, verb, resource, subresource) in [
        (own, "create", "pods", Some("exec")),
        (own, "create", "pods", Some("attach")),
        (own, "create", "pods", Some("ephemeralcontainers")),
        (own, "list", "secrets", None),
        (own, "get", "configmaps", None),
        (own, "create", "serviceaccounts", Some("token")),
        ("default", "create", "pods", None),
        ("default", "get", "secrets", None),
        ("", "list", "nodes", None),
    ] {
        let allowed = may(namespace, verb, resource, subresource).await;
        let what = format!("{verb} {resource}/{subresource:?} in {namespace:?}");
        assert!(!allowed, "{what}");
    }
}
