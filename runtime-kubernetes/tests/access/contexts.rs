//! A kubeconfig with several contexts.

use serde_json::{Value, json};
use v6_runtime::{ErrorKind, Runtime};
use v6_runtime_kubernetes::KubernetesRuntime;

use crate::common::{Bench, in_time};
use crate::given::Given;

/// With one more, which is the current one and leads nowhere.
fn two() -> Given {
    let mut given = Given::node();
    let mut add = |list: &str, what: Value| given.file[list].as_array_mut().unwrap().push(what);
    add(
        "clusters",
        json!({ "name": "away", "cluster": { "server": "https://127.0.0.1:1" } }),
    );
    let context = json!({ "cluster": "away", "user": "tests" });
    add("contexts", json!({ "name": "away", "context": context }));
    given.file["current-context"] = json!("away");
    given
}

#[tokio::test]
async fn the_named_one_is_taken() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let given = two();
    let named = given.config(&bench).with_context(Some("tests".into()));
    let cluster = in_time(60, KubernetesRuntime::connect(named))
        .await
        .unwrap();
    assert_eq!(cluster.namespace(), bench.namespace);
    cluster.ping().await.unwrap();
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.message().contains("https://127.0.0.1:1/"), "{error}");
}

#[tokio::test]
async fn one_that_is_not_there_is_told_with_those_that_are() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let mut given = two();
    let named = given.config(&bench).with_context(Some("home".into()));
    let error = KubernetesRuntime::connect(named).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    for wanted in ["\"home\"", "tests, away"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
    given.file["contexts"][1]["context"]["user"] = json!("nobody");
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    for wanted in ["\"away\"", "\"nobody\""] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
}
