//! Certificates, of the API server and of ours.

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use v6_runtime::{ErrorKind, Runtime};

use crate::common::Bench;
use crate::given::Given;

/// What is PEM, out of the base64 that a kubeconfig has.
fn pem(given: &mut Given, key: &str) -> Vec<u8> {
    let ByteString(decoded) = serde_json::from_value(given.user()[key].clone()).unwrap();
    decoded
}

/// An administrator who acts as the node's account, which has no certificate.
fn certified(bench: &Bench) -> (Given, Vec<u8>, Vec<u8>) {
    let mut given = Given::administrator(bench);
    let account = format!("system:serviceaccount:{}:v6-node", bench.namespace);
    given.user()["as"] = json!(account);
    let certificate = pem(&mut given, "client-certificate-data");
    let key = pem(&mut given, "client-key-data");
    (given, certificate, key)
}

async fn works(bench: &Bench, given: &Given) {
    let cluster = given.connect(bench).await.unwrap();
    cluster.ping().await.unwrap();
}

#[tokio::test]
async fn a_certificate_shows_who_we_are() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let (mut given, certificate, key) = certified(&bench);
    works(&bench, &given).await;
    given.put("client.crt", &certificate);
    given.put("client.key", &key);
    let account = given.user()["as"].clone();
    *given.user() = json!({
        "client-certificate": "client.crt", "client-key": "client.key", "as": account,
    });
    works(&bench, &given).await;
    given.put("client.key", "");
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
}

#[tokio::test]
async fn a_plugin_may_give_a_certificate() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let (mut given, certificate, key) = certified(&bench);
    let text = |pem: Vec<u8>| Value::from(String::from_utf8(pem).unwrap());
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": { "clientCertificateData": text(certificate), "clientKeyData": text(key) },
    });
    given.put("credential", credential.to_string());
    let file = given.folder().join("credential");
    let account = given.user()["as"].clone();
    *given.user() = json!({ "as": account, "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [file],
    }});
    works(&bench, &given).await;
}

#[tokio::test]
async fn a_server_that_is_not_the_one_is_refused() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let other = Given::administrator(&bench).user()["client-certificate-data"].clone();
    let mut given = Given::node();
    *given.cluster() = json!({
        "server": given.cluster()["server"], "certificate-authority-data": other,
    });
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    for wanted in [
        "certificate is of another authority",
        "`certificate-authority`",
    ] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
    let mut given = Given::node();
    given.cluster()["tls-server-name"] = json!("elsewhere.example");
    let error = given.error(&bench).await;
    for wanted in ["elsewhere.example", "`tls-server-name`"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
    let mut given = Given::node();
    given.cluster()["certificate-authority"] = json!("gone.crt");
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    assert!(error.message().contains("gone.crt"), "{error}");
}

#[tokio::test]
async fn a_server_has_to_show_a_certificate() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let mut given = Given::node();
    *given.cluster() = json!({
        "server": given.cluster()["server"], "insecure-skip-tls-verify": true,
    });
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    for wanted in ["insecure-skip-tls-verify", "`certificate-authority`"] {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
}
