//! A way to the cluster on which requests are counted, and things go wrong.

use std::path::PathBuf;
use std::sync::Arc;

use v6_fault_proxy::{Address, FaultProxy};
use v6_runtime_kubernetes::KubernetesRuntime;

use super::Bench;

/// A way to an API server on which things go wrong.
pub struct Way {
    pub proxy: FaultProxy,
    folder: tempfile::TempDir,
}

impl Way {
    pub fn new(api: &str) -> Self {
        let api: Address = format!("tcp://{api}").parse().unwrap();
        let proxy = FaultProxy::start("tcp://127.0.0.1:0".parse().unwrap(), api).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self { proxy, folder }
    }

    /// A kubeconfig of a node's account that leads here.
    pub fn kubeconfig(&self, bench: &Bench) -> PathBuf {
        let server = self.proxy.address().to_string();
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server.replace("tcp://", "http://")}}],
            "users": [{"name": "u", "user": {"as": std::env::var("V6_KUBERNETES_AS").unwrap()}}],
            "contexts": [{"name": "c", "context":
                {"cluster": "c", "user": "u", "namespace": bench.namespace}}],
        });
        let file = self.folder.path().join("kubeconfig");
        std::fs::write(&file, text.to_string()).unwrap();
        file
    }

    pub async fn connect(&self, bench: &Bench) -> Arc<KubernetesRuntime> {
        let config = bench.config().with_kubeconfig(Some(self.kubeconfig(bench)));
        Arc::new(KubernetesRuntime::connect(config).await.unwrap())
    }
}
