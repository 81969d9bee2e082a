//! What the tests against a real HQ 5.0 share: its contents, its nodes and its user.
//!
//! A variable of the environment names the JSON file that `tests/services` writes when it has
//! filled an HQ: addresses, two nodes, and a service account that acts as the user (`seed.py
//! --role "Collaboration Admin" --service-user NAME`; it makes sessions and tasks, and kills).

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libtest_mimic::Trial;
use serde_json::{Value, json};
use url::Url;
use v6_node::hq::{Credentials, Hq, HqAddress, Http, HttpSettings, Identity, Tokens};
use v6_node::secret::Secret;

/// A test under way, see [`trial`].
pub type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The file that `variable` names, and whether it is needed whole.
pub struct Needs {
    pub variable: &'static str,
    pub user: bool,
}

impl Needs {
    fn seed(&self) -> Result<Arc<Value>, String> {
        let variable = self.variable;
        let Ok(path) = std::env::var(variable) else {
            return Err(format!(
                "needs a real HQ 5.0 ({variable} names the file of its contents)"
            ));
        };
        let seed: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        if self.user && seed["service_user"].is_null() {
            return Err(format!("needs a service account in the file of {variable}"));
        }
        Ok(Arc::new(seed))
    }
}

/// A test of at most a minute with the contents of HQ. Without what it needs it is listed as
/// ignored; unless `quiet`, a line `SKIP name: reason` says why.
pub fn trial(
    suite: &str,
    name: &str,
    needs: &Needs,
    quiet: bool,
    test: impl FnOnce(Arc<Value>) -> Running + Send + 'static,
) -> Trial {
    let seed = needs.seed();
    if let Err(reason) = &seed
        && !quiet
    {
        println!("SKIP {suite}::{name}: {reason}");
    }
    let ignored = seed.is_err();
    Trial::test(name, move || {
        let seed = seed?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), test(seed))
                .await
                .map_err(|_| "not done after 60 s")
        })?;
        Ok(())
    })
    .with_ignored_flag(ignored)
}

pub fn http() -> Http {
    Http::new(HttpSettings::default()).unwrap()
}

pub fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap()
}

pub fn credentials(seed: &Value, index: usize) -> Credentials {
    let node = &seed["nodes"][index];
    Credentials {
        keycloak: Url::parse(text(seed, "auth_url")).unwrap(),
        realm: text(seed, "realm").to_owned(),
        node_name: text(node, "name").to_owned(),
        api_key: Secret::new(text(node, "api_key")),
    }
}

pub async fn node(seed: &Value, index: usize) -> (Hq, Identity) {
    let http = http();
    let tokens = Tokens::sign_in(&http, credentials(seed, index))
        .await
        .unwrap();
    let address = HqAddress::new(Url::parse(text(seed, "hq_url")).unwrap()).unwrap();
    let hq = Hq::new(http, address, tokens);
    let identity = hq.whoami().await.unwrap();
    (hq, identity)
}

/// The user: a service account, so that no browser is needed.
pub struct User {
    pub client: reqwest::Client,
    pub base: String,
    token: String,
}

impl User {
    pub async fn new(seed: &Value) -> Self {
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        let account = &seed["service_user"];
        let url = format!(
            "{}/realms/{}/protocol/openid-connect/token",
            text(seed, "auth_url"),
            text(seed, "realm")
        );
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", text(account, "client_id")),
            ("client_secret", text(account, "client_secret")),
            ("scope", "openid"),
        ];
        let answer = client.post(url).form(&form).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        Self {
            client,
            base: text(seed, "hq_url").to_owned(),
            token: text(&answer, "access_token").to_owned(),
        }
    }

    pub async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self
            .client
            .request(method, format!("{}/{path}", self.base))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let body = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {body}");
        serde_json::from_str(&body).unwrap_or_default()
    }

    /// Makes a thing at HQ and tells its number.
    pub async fn create(&self, path: &str, body: Value) -> i64 {
        let answer = self.call(reqwest::Method::POST, path, Some(body)).await;
        answer["id"].as_i64().unwrap()
    }

    pub async fn session(&self, seed: &Value) -> i64 {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let body = json!({
            "name": format!("s{}", now.as_nanos()),
            "collaboration_id": seed["collaboration"]["id"],
            "scope": "own",
        });
        self.create("session", body).await
    }
}
