//! Clusters and namespaces in which no run can be.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use v6_runtime::{CleanupOptions, ErrorKind, Runtime};
use v6_runtime_kubernetes::KubernetesRuntime;

use crate::common::{Bench, administrator, id, in_time};
use crate::given::{Given, until};

#[tokio::test]
async fn a_namespace_that_is_not_there_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let name = format!("v6-tests-{:016x}", rand::random::<u64>());
    // Who may do everything everywhere, and who has no right there.
    for (given, said) in [
        (Given::administrator(&bench), "not found"),
        (Given::node(), "if there is that namespace"),
    ] {
        let config = given.config(&bench).with_namespace(Some(name.clone()));
        let error = KubernetesRuntime::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        for wanted in [said, &name] {
            assert!(error.message().contains(wanted), "{wanted}: {error}");
        }
    }
}

/// A namespace that does not end before it is let go.
struct Held {
    name: String,
    all: Api<Namespace>,
    maps: Api<ConfigMap>,
}

impl Held {
    async fn new() -> Self {
        let name = format!("v6-tests-{:016x}", rand::random::<u64>());
        let client = administrator().await;
        let all: Api<Namespace> = Api::all(client.clone());
        let enforce = "pod-security.kubernetes.io/enforce".to_owned();
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(BTreeMap::from([(enforce, "restricted".to_owned())])),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        let options = PostParams::default();
        all.create(&options, &namespace).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, &name);
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some("held".into()),
                finalizers: Some(vec!["v6-tests.example/held".into()]),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        maps.create(&options, &map).await.unwrap();
        Self { name, all, maps }
    }

    /// Begins its end.
    async fn end(&self) {
        let options = DeleteParams::default();
        self.all.delete(&self.name, &options).await.unwrap();
    }

    /// Lets it go, and sees that it is gone.
    async fn gone(self) {
        let change = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let options = PatchParams::default();
        self.maps.patch("held", &options, &change).await.unwrap();
        in_time(60, async {
            until(async || self.all.get_opt(&self.name).await.unwrap().is_none()).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_namespace_that_ends_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let held = Held::new().await;
    let given = Given::administrator(&bench);
    let config = given.config(&bench).with_namespace(Some(held.name.clone()));
    let cluster = KubernetesRuntime::connect(config.clone()).await.unwrap();
    let spec = bench.probe(&cluster, "echo never").await;
    held.end().await;
    let id = id("late");
    let late = cluster.run(&id, &spec).await.unwrap_err();
    let again = KubernetesRuntime::connect(config).await.unwrap_err();
    for error in [late, again] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        for wanted in ["being terminated", held.name.as_str()] {
            assert!(error.message().contains(wanted), "{wanted}: {error}");
        }
    }
    let force = CleanupOptions::default().with_force(true);
    cluster.cleanup(&id, force).await.unwrap();
    held.gone().await;
}

#[tokio::test]
async fn a_cluster_that_is_too_old_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut given = Given::node();
    let server = format!("http://{}", listener.local_addr().unwrap());
    *given.cluster() = json!({ "server": server });
    let answers = async {
        let version = json!({
            "major": "1", "minor": "29+", "gitVersion": "v1.29.4-eks", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        });
        let body = version.to_string();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"GET /version "));
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let (error, _open) = tokio::join!(given.error(&bench), answers);
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    for wanted in ["v1.29.4-eks", "1.30"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
}
