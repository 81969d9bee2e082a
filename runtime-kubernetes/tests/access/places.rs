//! Clusters and namespaces in which no run can be.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::fmt::rfc2822::DateTimePrinter;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
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
    assert_eq!(late.kind(), ErrorKind::Denied, "{late}");
    // What is there can still be had.
    let again = KubernetesRuntime::connect(config).await.unwrap();
    let notices = again.notices().join("\n");
    for wanted in ["being terminated", held.name.as_str()] {
        assert!(late.message().contains(wanted), "{wanted}: {late}");
        assert!(notices.contains(wanted), "{wanted}: {notices}");
    }
    let force = CleanupOptions::default().with_force(true);
    cluster.cleanup(&id, force).await.unwrap();
    held.gone().await;
}

/// An API server that allows and has everything, of this version and with this time.
struct Scripted {
    address: String,
    _work: AbortOnDropHandle<()>,
}

impl Scripted {
    async fn start(minor: &str, time: Timestamp) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&time);
        let version = json!({
            "major": "1", "minor": minor, "gitVersion": format!("v1.{minor}-eks"), "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        });
        let (date, version) = (date.unwrap(), version.to_string());
        let work = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(answer(stream, version.clone(), date.clone()));
            }
        });
        Self {
            address,
            _work: AbortOnDropHandle::new(work),
        }
    }

    async fn connect(&self, bench: &Bench) -> v6_runtime::Result<KubernetesRuntime> {
        let mut given = Given::node();
        *given.cluster() = json!({ "server": self.address });
        given.connect(bench).await
    }
}

async fn answer(stream: TcpStream, version: String, date: String) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut path, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            match line.trim_end() {
                "" => break,
                line if path.is_empty() => path = line.to_owned(),
                line => {
                    if let Some(said) = line.strip_prefix("content-length: ") {
                        length = said.parse().unwrap();
                    }
                }
            }
        }
        if path.is_empty() {
            return;
        }
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        let body = match path {
            path if path.contains("/version") => version.clone(),
            path if path.contains("accessreviews") => {
                json!({ "metadata": {}, "spec": {}, "status": { "allowed": true } }).to_string()
            }
            _ => json!({ "metadata": {}, "spec": { "podSelector": {} } }).to_string(),
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: {}",
            body.len()
        );
        let answer = format!("{head}\r\n\r\n{body}");
        stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_cluster_that_is_too_old_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let old = Scripted::start("29+", Timestamp::now()).await;
    let error = old.connect(&bench).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    for wanted in ["v1.29+-eks", "1.30"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let told = async |ahead: i64| {
        let time = Timestamp::now() + SignedDuration::from_secs(ahead);
        let cluster = Scripted::start("34", time).await;
        let cluster = cluster.connect(&bench).await.unwrap();
        let notices = cluster.notices().join("\n");
        notices.contains("clock").then_some(notices)
    };
    assert_eq!(told(0).await, None);
    let behind = told(600).await.unwrap();
    assert!(behind.contains("s behind the API server's"), "{behind}");
    let ahead = told(-600).await.unwrap();
    assert!(ahead.contains("s ahead of the API server's"), "{ahead}");
}
