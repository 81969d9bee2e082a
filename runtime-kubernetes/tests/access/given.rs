//! What a test gives a node: a kubeconfig that differs in something from the environment's, and logins
//! that can be withdrawn.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use v6_runtime_kubernetes::{KubernetesConfig, KubernetesRuntime};

use crate::common::{Bench, administrator, in_time};

/// How often it is looked whether something has come.
const LOOK: Duration = Duration::from_millis(100);

pub struct Given {
    folder: tempfile::TempDir,
    pub file: Value,
}

impl Given {
    /// The account of a node.
    pub fn node() -> Self {
        Self::from(&std::env::var("V6_KUBERNETES_CONFIG").unwrap())
    }

    /// An administrator, by certificate, in the namespace of the tests.
    pub fn administrator(bench: &Bench) -> Self {
        let mut given = Self::from(&std::env::var("KUBECONFIG").unwrap());
        given.file["contexts"][0]["context"]["namespace"] = json!(bench.namespace);
        given
    }

    fn from(path: &str) -> Self {
        let file = Kubeconfig::read_from(path).unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            file: serde_json::to_value(file).unwrap(),
        }
    }

    pub fn cluster(&mut self) -> &mut Value {
        &mut self.file["clusters"][0]["cluster"]
    }

    pub fn user(&mut self) -> &mut Value {
        &mut self.file["users"][0]["user"]
    }

    /// The address of the API server, as `HOST:PORT`.
    pub fn address(&mut self) -> String {
        let server = self.cluster()["server"].as_str().unwrap();
        server.strip_prefix("https://").unwrap().to_owned()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file beside the kubeconfig, at once.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let new = self.folder().join(format!("{name}.new"));
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, self.folder().join(name)).unwrap();
    }

    pub fn write(&self) -> PathBuf {
        self.put("kubeconfig", self.file.to_string());
        self.folder().join("kubeconfig")
    }

    pub fn config(&self, bench: &Bench) -> KubernetesConfig {
        bench.config().with_kubeconfig(Some(self.write()))
    }

    pub async fn connect(&self, bench: &Bench) -> v6_runtime::Result<KubernetesRuntime> {
        in_time(60, KubernetesRuntime::connect(self.config(bench))).await
    }

    /// What is said where nothing comes of it.
    pub async fn error(&self, bench: &Bench) -> v6_runtime::Error {
        self.connect(bench).await.unwrap_err()
    }
}

/// A token of the node's account, valid for as long as a Secret is there.
pub struct Login {
    pub token: String,
    secret: String,
    secrets: Api<Secret>,
}

impl Login {
    pub async fn new(bench: &Bench) -> Self {
        let client = administrator().await;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &bench.namespace);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(format!("v6-tests-{:016x}", rand::random::<u64>())),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        };
        let made = secrets
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
        let request = TokenRequest {
            spec: TokenRequestSpec {
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Secret".into()),
                    name: made.metadata.name.clone(),
                    uid: made.metadata.uid,
                }),
                expiration_seconds: Some(600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client, &bench.namespace);
        let options = PostParams::default();
        let granted = accounts.create_token_request("v6-node", &options, &request);
        Self {
            token: granted.await.unwrap().status.unwrap().token,
            secret: made.metadata.name.unwrap(),
            secrets,
        }
    }

    /// Makes it invalid, and waits until the API server has forgotten that it was not: ten seconds at most.
    pub async fn withdraw(self) {
        let mut given = Given::node();
        *given.user() = json!({ "token": self.token });
        let file = Kubeconfig::read_from(given.write()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(file, &options).await;
        let client = Client::try_from(config.unwrap()).unwrap();
        let options = DeleteParams::default();
        self.secrets.delete(&self.secret, &options).await.unwrap();
        let refused = async {
            until(async || match client.apiserver_version().await {
                Err(kube::Error::Api(status)) => status.code == 401,
                _ => false,
            })
            .await;
        };
        in_time(30, refused).await;
    }
}

/// Waits until something is so; the caller bounds it.
pub async fn until(mut so: impl AsyncFnMut() -> bool) {
    while !so().await {
        tokio::time::sleep(LOOK).await;
    }
}
