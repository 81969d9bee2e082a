//! Tokens that are replaced or withdrawn, and OpenID Connect.

use futures_util::StreamExt;
use serde_json::json;
use v6_runtime::{ErrorKind, Outcome, RunPhase, Runtime, RuntimeExt};

use crate::common::{self, Bench, id, in_time};
use crate::given::{Given, Login, until};

const LIMIT: u64 = 120;

#[tokio::test]
async fn a_tokens_file_may_be_replaced_while_runs_are_watched() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let mut given = Given::node();
    let (old, new) = (Login::new(&bench).await, Login::new(&bench).await);
    *given.user() = json!({ "tokenFile": "token" });
    // With the end of a line, as most programs write it.
    given.put("token", format!("{}\n", old.token));
    let cluster = given.connect(&bench).await.unwrap();
    let mut watch = cluster.watch();
    in_time(LIMIT, watch.next()).await.unwrap().unwrap();
    old.withdraw().await;
    // Nobody has replaced it yet.
    let error = cluster.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.is_retryable(), "{error}");
    assert!(
        error.message().contains("expired or was withdrawn"),
        "{error}"
    );
    given.put("token", format!("{}\n", new.token));
    let believed = until(async || cluster.ping().await.is_ok());
    in_time(20, believed).await;
    let spec = bench.probe(&cluster, "echo there").await;
    let id = id("rotated");
    cluster.run(&id, &spec).await.unwrap();
    let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    assert_eq!(status.phase, RunPhase::Finished(Outcome::Exited(0)));
    assert_eq!(cluster.logs_bytes(&id, 100).await.unwrap(), "there\n");
    common::remove(&cluster, &id).await;
    drop(cluster);
    new.withdraw().await;
}

#[tokio::test]
async fn a_token_may_be_replaced_in_the_kubeconfig() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let mut given = Given::node();
    let (old, new) = (Login::new(&bench).await, Login::new(&bench).await);
    *given.user() = json!({ "token": old.token });
    let cluster = given.connect(&bench).await.unwrap();
    *given.user() = json!({ "token": new.token });
    given.write();
    old.withdraw().await;
    cluster.ping().await.unwrap();
    drop(cluster);
    new.withdraw().await;
}

#[tokio::test]
async fn a_token_that_is_not_believed_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let mut given = Given::node();
    *given.user() = json!({ "token": "hunter2" });
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(
        error.message().contains("expired or was withdrawn"),
        "{error}"
    );
    *given.user() = json!({ "token": "hunter2\nhunter2" });
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.message().contains("is it one word"), "{error}");
    *given.user() = json!({ "tokenFile": "gone" });
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.message().contains("/gone cannot be read"), "{error}");
}

#[tokio::test]
async fn an_id_token_that_has_expired_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    // {"alg":"none"}, {"exp":1}
    let token = "eyJhbGciOiJub25lIn0.eyJleHAiOjF9.c2ln";
    let mut given = Given::node();
    *given.user() = json!({ "auth-provider": { "name": "oidc", "config": {
        "id-token": token, "client-id": "v6", "idp-issuer-url": "https://127.0.0.1:1",
    }}});
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    for wanted in ["OpenID Connect", "expired", "refresh-token"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
    assert!(!error.message().contains(token), "{error}");
}
