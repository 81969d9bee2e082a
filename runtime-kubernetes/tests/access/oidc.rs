//! OpenID Connect, with a provider and an API server that trusts it.

use std::time::Duration;

use serde_json::{Value, json};
use v6_runtime::{ErrorKind, Outcome, RunPhase, Runtime, RuntimeExt};
use v6_runtime_kubernetes::KubernetesRuntime;

use crate::common::{self, Bench, id, in_time, services};
use crate::given::{Given, until};
use crate::issuer::{Issuer, SECRET, Way};
use crate::proxies::{self, ELSEWHERE, Proxy};
use crate::tls::Authority;

const LIMIT: u64 = 120;
/// The life of a token that will do for two seconds: one that ends within ten is not used any more.
const SHORT: i64 = 12;

/// An API server that trusts an issuer.
struct Trusting {
    address: String,
    issuer: Issuer,
    _file: tempfile::TempDir,
}

impl Trusting {
    async fn start() -> Self {
        let issuer = Issuer::start(&std::env::var("V6_KUBERNETES_AS").unwrap()).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authentication.json");
        std::fs::write(&file, issuer.trusted().to_string()).unwrap();
        let address = services("oidc-api", &[file.to_str().unwrap()]).await;
        let this = Self {
            address,
            issuer,
            _file: folder,
        };
        // It may be ready before it has the issuer's keys.
        let bench = Bench::new().await.unwrap();
        let given = this.given(id_token(this.issuer.token(600)));
        let known = until(async || given.connect(&bench).await.is_ok());
        in_time(60, known).await;
        this
    }

    /// A login there.
    fn given(&self, user: Value) -> Given {
        let mut given = Given::node();
        given.cluster()["server"] = json!(format!("https://{}", self.address));
        *given.user() = user;
        given
    }
}

impl Drop for Trusting {
    fn drop(&mut self) {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/services/kubernetes.sh"
        );
        let work = std::env::var("V6_KUBERNETES_WORK").unwrap();
        let mut stop = std::process::Command::new(script);
        stop.args(["oidc-api", &work, "stop"]);
        // What a failed test has to say is more important.
        let _ = stop.status();
    }
}

fn id_token(token: String) -> Value {
    json!({ "auth-provider": { "name": "oidc", "config": { "id-token": token } } })
}

fn fields(given: &mut Given) -> &mut Value {
    &mut given.user()["auth-provider"]["config"]
}

/// That a login is not taken, for these reasons, and without a secret in them.
fn refused(error: &v6_runtime::Error, wanted: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.is_retryable(), "{error}");
    for wanted in wanted {
        assert!(error.message().contains(wanted), "{wanted}: {error}");
    }
    let all = format!("{error} {error:?}");
    for secret in ["hunter2", "eyJ"] {
        assert!(!all.contains(secret), "{all}");
    }
}

/// One test, since it starts an API server.
#[tokio::test]
async fn an_api_server_trusts_an_issuer() {
    let Some(bench) = Bench::for_faults().await else {
        return;
    };
    let at = Trusting::start().await;
    a_token_that_is_valid_is_used(&bench, &at).await;
    tokens_are_renewed_while_a_run_is_watched(&bench, &at).await;
    clients_show_who_they_are(&bench, &at).await;
    another_login_is_taken_without_a_restart(&bench, &at).await;
    what_the_api_server_does_not_trust_is_told(&bench, &at).await;
}

async fn a_token_that_is_valid_is_used(bench: &Bench, at: &Trusting) {
    let mut given = at.given(at.issuer.expired());
    fields(&mut given)["id-token"] = json!(at.issuer.token(600));
    let cluster = given.connect(bench).await.unwrap();
    cluster.ping().await.unwrap();
    assert_eq!(at.issuer.manner().asked, 0);
}

async fn tokens_are_renewed_while_a_run_is_watched(bench: &Bench, at: &Trusting) {
    at.issuer.manner().life = SHORT;
    let cluster = at.given(at.issuer.expired()).connect(bench).await.unwrap();
    let spec = bench.probe(&cluster, "echo there").await;
    let id = id("oidc");
    cluster.run(&id, &spec).await.unwrap();
    let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    assert_eq!(status.phase, RunPhase::Finished(Outcome::Exited(0)));
    assert_eq!(cluster.logs_bytes(&id, 100).await.unwrap(), "there\n");
    common::remove(&cluster, &id).await;
    // With a new refresh token each time, of which the kubeconfig has the first.
    let renewed = until(async || {
        cluster.ping().await.unwrap();
        at.issuer.manner().given >= 3
    });
    in_time(60, renewed).await;
    let mut manner = at.issuer.manner();
    assert_eq!(manner.asked, manner.given);
    manner.life = 600;
}

async fn clients_show_who_they_are(bench: &Bench, at: &Trusting) {
    for way in [Way::Header, Way::Form, Way::Public] {
        at.issuer.manner().way = way;
        let mut given = at.given(at.issuer.expired());
        if way != Way::Public {
            fields(&mut given)["client-secret"] = json!(SECRET);
        }
        // Its authority may be in a file, too.
        given.put("authority.pem", at.issuer.authority.pem());
        let path = given.folder().join("authority.pem");
        let fields = fields(&mut given);
        fields["idp-certificate-authority"] = json!(path);
        let data = "idp-certificate-authority-data";
        fields.as_object_mut().unwrap().remove(data);
        // Nor need there be a token to begin with.
        fields.as_object_mut().unwrap().remove("id-token");
        let cluster = given.connect(bench).await;
        let cluster = cluster.unwrap_or_else(|error| panic!("{way:?}: {error}"));
        cluster.ping().await.unwrap();
    }
}

async fn another_login_is_taken_without_a_restart(bench: &Bench, at: &Trusting) {
    let mut given = at.given(at.issuer.expired());
    let fields = fields(&mut given);
    fields["id-token"] = json!(at.issuer.token(SHORT));
    fields["refresh-token"] = json!("refresh-hunter2-gone");
    let cluster = given.connect(bench).await.unwrap();
    let mut told = None;
    in_time(
        60,
        until(async || {
            told = cluster.ping().await.err();
            told.is_some()
        }),
    )
    .await;
    let issuer = at.issuer.url.as_str();
    refused(&told.unwrap(), &[issuer, "invalid_grant", "sign in again"]);
    // What is wrong with the file is told beside it.
    given.put("kubeconfig", "users:\n- user: {token: hunter2, ]\n");
    let mut told = None;
    let looked = until(async || {
        told = cluster.ping().await.err();
        told.as_ref().is_some_and(|told| {
            told.message()
                .contains("the kubeconfig cannot be understood")
        })
    });
    in_time(60, looked).await;
    refused(&told.unwrap(), &["invalid_grant", "sign in again"]);
    // As whatever signs in at the provider writes it.
    *given.user() = at.issuer.expired();
    given.write();
    in_time(60, until(async || cluster.ping().await.is_ok())).await;
}

async fn what_the_api_server_does_not_trust_is_told(bench: &Bench, at: &Trusting) {
    let other = Issuer::start("somebody").await;
    for token in [other.token(600), at.issuer.token_for("others")] {
        let error = at.given(id_token(token)).error(bench).await;
        refused(
            &error,
            &["(401)", "issuer that the API server does not trust"],
        );
    }
    // Nor what that gives for a refresh token, of which it is asked once.
    let error = at.given(other.expired()).error(bench).await;
    refused(&error, &["(401)"]);
    assert_eq!(other.manner().given, 1);
}

/// What is said of a login with a provider, at an API server that is never asked.
async fn told(bench: &Bench, user: Value) -> v6_runtime::Error {
    let mut given = Given::node();
    *given.user() = user;
    given.error(bench).await
}

#[tokio::test]
async fn a_provider_that_is_not_the_one_is_refused() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let issuer = Issuer::start("somebody").await;
    let data = "idp-certificate-authority-data";
    let mut user = issuer.expired();
    user["auth-provider"]["config"]
        .as_object_mut()
        .unwrap()
        .remove(data);
    let error = told(&bench, user.clone()).await;
    let name = "name its certificate's authority as `idp-certificate-authority`";
    refused(&error, &[issuer.url.as_str(), "UnknownIssuer", name]);
    let others = Authority::new().pem();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("others.pem");
    std::fs::write(&path, others).unwrap();
    user["auth-provider"]["config"]["idp-certificate-authority"] = json!(path);
    let error = told(&bench, user).await;
    let other = "of another authority than `idp-certificate-authority`";
    refused(&error, &[issuer.url.as_str(), other]);
    assert_eq!(issuer.manner().asked, 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_provider_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let issuer = Issuer::start("somebody").await;
    let with = |key: &str, value: &str| {
        let mut user = issuer.expired();
        user["auth-provider"]["config"][key] = json!(value);
        user
    };
    for (user, wanted) in [
        (
            with("idp-issuer-url", "https://127.0.0.1:1"),
            "Connection refused",
        ),
        (
            with("idp-issuer-url", &format!("{}/x", issuer.url)),
            "is `idp-issuer-url` right",
        ),
        (with("client-id", ""), "`client-id`"),
        (
            with("client-id", "others"),
            "are `client-id` and `client-secret` right",
        ),
        (with("refresh-token", ""), "no `refresh-token`"),
        (with("refresh-token", "hunter2"), "sign in again"),
    ] {
        let error = told(&bench, user).await;
        refused(&error, &["OpenID Connect", wanted]);
    }
    issuer.manner().life = -60;
    let error = told(&bench, issuer.expired()).await;
    refused(&error, &[issuer.url.as_str(), "clock"]);
}

#[tokio::test]
async fn a_provider_that_is_silent_is_given_up() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let issuer = Issuer::start("somebody").await;
    issuer.manner().silent = true;
    let mut given = Given::node();
    *given.user() = issuer.expired();
    let config = given
        .config(&bench)
        .with_call_timeout(Duration::from_secs(2));
    let error = in_time(30, KubernetesRuntime::connect(config)).await;
    refused(
        &error.unwrap_err(),
        &[issuer.url.as_str(), "has not answered"],
    );
}

#[tokio::test]
async fn the_proxy_of_the_environment_is_used() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    if let Some(path) = proxies::in_child() {
        let config = bench.config().with_kubeconfig(Some(path));
        let error = KubernetesRuntime::connect(config).await.unwrap_err();
        // It has got a token, of an issuer that this API server does not trust.
        refused(&error, &["(401)"]);
        return;
    }
    let issuer = Issuer::start("somebody").await;
    let address = issuer.url.strip_prefix("https://").unwrap();
    let proxy = Proxy::start(Some(address.to_owned())).await;
    let mut given = Given::node();
    *given.user() = issuer.expired();
    fields(&mut given)["idp-issuer-url"] = json!(format!("https://{ELSEWHERE}/"));
    let test = "oidc::the_proxy_of_the_environment_is_used";
    proxies::child(test, &given, &proxy).await;
    let asked = proxy.asked();
    let wanted = format!("CONNECT {ELSEWHERE} ");
    assert!(
        asked.len() == 1 && asked[0].starts_with(&wanted),
        "{asked:?}"
    );
    assert_eq!(issuer.manner().given, 1);
}
