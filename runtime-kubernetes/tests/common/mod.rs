//! A cluster for the tests: the one that `tests/services/kubernetes.sh` starts.
#![allow(dead_code, reason = "each test target uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

pub mod way;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use v6_runtime::{
    CleanupOptions, ContainerPath, ImageRef, Outcome, Output, OutputName, Owner, PullPolicy, RunId,
    RunPhase, RunSpec, Runtime, RuntimeExt,
};
use v6_runtime_kubernetes::{KubernetesConfig, KubernetesRuntime, Outputs};

/// What is needed: a cluster, a node's account in a namespace of it, the helper's image and the probe's
/// in a registry that it can reach.
const NEEDED: [&str; 5] = [
    "KUBECONFIG",
    "V6_KUBERNETES_CONFIG",
    "V6_KUBERNETES_NAMESPACE",
    "V6_KUBERNETES_HELPER",
    "V6_KUBERNETES_PROBE",
];

pub struct Bench {
    pub owner: Owner,
    pub namespace: String,
    account: PathBuf,
    helper: ImageRef,
    probe: ImageRef,
}

/// The same, with what it takes to do something to the cluster itself.
const FOR_FAULTS: [&str; 3] = [
    "V6_KUBERNETES_WORK",
    "V6_KUBERNETES_API",
    "V6_KUBERNETES_AS",
];

/// Whether what takes minutes is wanted; said aloud if not.
pub fn is_long() -> bool {
    let wanted = std::env::var_os("V6_TESTS_LONG").is_some();
    if !wanted {
        println!("SKIP it takes minutes: only with V6_TESTS_LONG");
    }
    wanted
}

impl Bench {
    /// `None`, said aloud, where there is no cluster; a failure where there has to be one. The runtime
    /// has a node's rights, the test an administrator's.
    pub async fn new() -> Option<Self> {
        Self::of(NEEDED)
    }

    /// The same, where a node keeps outputs on claims.
    pub async fn with_claims() -> Option<Self> {
        let [cluster, _, _, helper, probe] = NEEDED;
        let config = "V6_KUBERNETES_CLAIMS_CONFIG";
        let namespace = "V6_KUBERNETES_CLAIMS_NAMESPACE";
        Self::of([cluster, config, namespace, helper, probe])
    }

    fn of(needed: [&str; 5]) -> Option<Self> {
        let found: Vec<Option<String>> = needed
            .iter()
            .map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .collect();
        let [
            Some(_),
            Some(account),
            Some(namespace),
            Some(helper),
            Some(probe),
        ] = &found[..]
        else {
            let reason = format!("one of {} is not set", needed.join(", "));
            assert!(
                std::env::var_os("V6_REQUIRE_KUBERNETES").is_none(),
                "{reason}"
            );
            println!("SKIP {reason}");
            return None;
        };
        Some(Self {
            owner: Owner::new(format!("t-{:016x}", rand::random::<u64>())).unwrap(),
            namespace: namespace.clone(),
            account: account.into(),
            helper: ImageRef::parse(helper).unwrap(),
            probe: ImageRef::parse(probe).unwrap(),
        })
    }

    /// As [`Self::new`], for a cluster that `tests/services/kubernetes.sh` can do something to.
    pub async fn for_faults() -> Option<Self> {
        let bench = Self::new().await?;
        let missing = FOR_FAULTS.iter().find(|name| std::env::var(name).is_err());
        if let Some(missing) = missing {
            assert!(
                std::env::var_os("V6_REQUIRE_KUBERNETES").is_none(),
                "{missing} is not set"
            );
            println!("SKIP {missing} is not set");
            return None;
        }
        Some(bench)
    }

    pub fn config(&self) -> KubernetesConfig {
        KubernetesConfig::new(self.owner.clone(), self.helper.clone())
            .with_kubeconfig(Some(self.account.clone()))
            .with_memory_bytes(bytes(128 << 20))
            .with_scratch_bytes(bytes(16 << 20))
            .with_cpu_request_milli(Some(20.try_into().unwrap()))
            // Two pods more at each start; isolation.rs is about them.
            .with_canary_every(None)
    }

    /// With outputs on claims, which volumes.py of the tests' services gives volumes.
    pub fn claims(&self) -> KubernetesConfig {
        let storage_class = Some("v6-tests".to_owned());
        self.config().with_outputs(Outputs::Claim { storage_class })
    }

    /// What is this machine's or this test's alone, and what stands for it in a recording.
    pub fn private(&self) -> Vec<(String, &'static str)> {
        let registry = self.probe.registry().to_owned();
        vec![
            (self.owner.to_string(), "hospital-a"),
            (registry, "registry.example:5000"),
        ]
    }

    /// The name of a run's pod.
    pub fn pod(&self, id: &str) -> String {
        format!("v6-{}.{id}", self.owner)
    }

    pub fn probe_image(&self) -> &ImageRef {
        &self.probe
    }

    pub async fn connect(&self) -> KubernetesRuntime {
        KubernetesRuntime::connect(self.config()).await.unwrap()
    }

    /// A run of the probe that takes these steps.
    pub async fn probe(&self, runtime: &KubernetesRuntime, steps: &str) -> RunSpec {
        let image = runtime.resolve(&self.probe, PullPolicy::Always).await;
        RunSpec::new(image.unwrap()).with_args(steps.split(' '))
    }
}

/// Has the script of the cluster do something; gives what it says.
pub async fn services(verb: &str, more: &[&str]) -> String {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/services/kubernetes.sh"
    );
    let mut command = tokio::process::Command::new(script);
    command
        .arg(verb)
        .arg(std::env::var("V6_KUBERNETES_WORK").unwrap())
        .args(more)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let done = in_time(180, command.output()).await.unwrap();
    let words = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{verb} {more:?}: {words}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

pub async fn administrator() -> kube::Client {
    kube::Client::try_default().await.unwrap()
}

/// The pods of the namespace, for an administrator.
pub async fn pods(bench: &Bench) -> Api<Pod> {
    Api::namespaced(administrator().await, &bench.namespace)
}

/// Writes a pod as the cluster tells it, without what is this machine's.
pub async fn keep(bench: &Bench, id: &RunId) {
    if std::env::var_os("V6_RECORD").is_none() {
        return;
    }
    let mut pod = pods(bench)
        .await
        .get(&bench.pod(id.as_str()))
        .await
        .unwrap();
    pod.metadata.managed_fields = None;
    let mut text = serde_json::to_string_pretty(&pod).unwrap();
    for (from, to) in bench.private() {
        text = text.replace(&from, to);
    }
    let file = format!("{}/tests/data/states/{id}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::write(file, text + "\n").unwrap();
}

/// Waits until the program runs.
pub async fn until_running(cluster: &KubernetesRuntime, id: &RunId) {
    in_time(180, async {
        while cluster.status(id).await.unwrap().phase != RunPhase::Running {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

pub fn id(text: &str) -> RunId {
    RunId::new(text).unwrap()
}

pub fn output(text: &str) -> OutputName {
    OutputName::new(text).unwrap()
}

pub fn path(text: &str) -> ContainerPath {
    ContainerPath::new(text).unwrap()
}

pub fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).unwrap()
}

pub fn file(at: &str, limit: u64) -> Output {
    Output::file(path(at), bytes(limit))
}

/// What the probe's `connect HOST PORT hello` meets at the other end.
pub async fn answer(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut line = [0; 6];
    io.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"hello\n");
    io.write_all(b"answer\n").await.unwrap();
    io.shutdown().await.unwrap();
}

/// Waits for a run that ends with 0 and has said this, and removes it.
pub async fn ends_well(runtime: &KubernetesRuntime, id: &RunId, said: &str) {
    let status = in_time(120, runtime.wait(id)).await.unwrap();
    let log = runtime.logs_bytes(id, 10_000).await.unwrap();
    let log = String::from_utf8_lossy(&log).into_owned();
    assert_eq!(
        status.phase,
        RunPhase::Finished(Outcome::Exited(0)),
        "{log}"
    );
    assert!(log.contains(said), "{log}");
    remove(runtime, id).await;
}

pub async fn remove(runtime: &KubernetesRuntime, id: &RunId) {
    let force = CleanupOptions::default().with_force(true);
    runtime.cleanup(id, force).await.unwrap();
}

/// A bound on what must not take longer.
pub async fn in_time<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), what)
        .await
        .unwrap_or_else(|_| panic!("it took longer than {seconds} s"))
}
