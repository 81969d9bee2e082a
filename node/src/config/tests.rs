#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::num::NonZero;
use std::time::Duration;

use super::*;

pub(super) const CHART: &str = include_str!("../../examples/config.yaml");
const FLAT: &str = include_str!("../../examples/config-flat.yaml");

/// Every test starts from a known home, whoever runs it.
pub(super) fn environment<const N: usize>(variables: [(&str, &str); N]) -> Environment {
    let fixed = [
        ("HOME", "/home/v6"),
        ("XDG_DATA_HOME", "/home/v6/data"),
        ("XDG_RUNTIME_DIR", "/run/user/1"),
    ];
    fixed.into_iter().chain(variables).collect()
}

pub(super) fn flat_environment() -> Environment {
    environment([
        ("V6_NODE_NAME", "hospital-a"),
        ("V6_API_KEY", "0123"),
        ("KEYCLOAK_URL", "http://auth:8080/auth"),
        ("KEYCLOAK_REALM", "vantage6"),
    ])
}

pub(super) fn read(text: &str, environment: &Environment) -> Result<Config, Problems> {
    parse(Path::new("/etc/v6/node.yaml"), text, environment)
}

pub(super) fn problems(text: &str, environment: &Environment) -> String {
    read(text, environment).unwrap_err().to_string()
}

#[test]
fn the_sample_is_read_in_full() {
    let config = read(CHART, &environment([])).unwrap();
    assert_eq!(config.name, "hospital-a");
    assert_eq!(config.api_key.expose(), "put-the-api-key-here");
    assert_eq!(config.keycloak.url.as_str(), "https://auth.example.org/");
    assert_eq!(config.hq.api().as_str(), "https://hq.example.org/hq/");
    assert_eq!(config.policies.allowed_algorithms.len(), 3);
    assert_eq!(config.policies.allowed_organizations, ["3", "Hospital B"]);
    assert!(!config.share_algorithm_logs);
    let [lung, omop] = config.databases.as_slice() else {
        panic!("{:?}", config.databases)
    };
    assert_eq!(lung.source, Source::Path("/srv/data/lung.csv".into()));
    assert_eq!(
        (lung.group, lung.read_only, lung.file_name().as_str()),
        (Some(1500), true, "lung.csv")
    );
    assert_eq!(omop.egress[0].to_string(), "db.example.org:5432");
    assert_eq!(
        omop.parameters["PASSWORD"].expose(),
        "put-the-password-here"
    );
    let runtime = &config.runtime;
    assert_eq!(runtime.run.deadline, Some(Duration::from_secs(12 * 3600)));
    assert_eq!(runtime.run.cpu_milli.map(NonZero::get), Some(2000));
    assert_eq!(runtime.run.memory_bytes.map(NonZero::get), Some(4 << 30));
    assert_eq!(runtime.total.memory_bytes.unwrap().get(), 24 << 30);
    assert_eq!(
        runtime.egress[&crate::hq::Action::DataExtraction][0].port,
        443
    );
    assert!(runtime.images[0].run_as_image && runtime.images[0].writable_root);
    assert_eq!(config.notices, []);
}

#[test]
fn nothing_secret_is_in_the_debug_form() {
    let shown = format!("{:?}", read(CHART, &environment([])).unwrap());
    for secret in ["put-the", "reader@"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
}

#[test]
fn the_flat_form_takes_the_rest_from_the_environment() {
    let config = read(FLAT, &flat_environment()).unwrap();
    assert_eq!(config.api_key.expose(), "0123");
    assert_eq!(config.keycloak.url.as_str(), "http://auth:8080/auth/");
    assert_eq!(
        config.encryption.private_key,
        Some(config.runtime.data_dir.join("privkey_hospital-a.pem"))
    );
    assert_eq!(config.runtime.run.deadline, None);
    assert_eq!(config.log_level, Some(tracing::Level::INFO));
    let unused: Vec<&str> = config
        .notices
        .iter()
        .map(|notice| notice.key.as_str())
        .collect();
    assert_eq!(unused, ["task_dir", "task_namespace", "node_proxy_port"]);
}

#[test]
fn an_empty_file_names_everything_that_is_missing() {
    insta::assert_snapshot!(problems("", &environment([])));
}

#[test]
fn mistakes_are_reported_together() {
    let text = r#"
node:
  name: a
  apiKey: [x]
  hq: {url: "https://hq.example.org:7601/hq", prt: 443, path: "../x"}
  keycloack: {url: "https://auth.example.org"}
  encryption: {enabled: maybe}
  share_algoritm_logs: false
  databases:
    fileBased:
      - {name: ../etc, type: csv, uri: /x}
      - {name: a-b, type: csv, uri: /x}
      - {name: A_B, type: csv, uri: /y}
      - {name: noplace, type: csv}
  policies:
    allowed_users: [alice]
    allowed_algorithms: ["(?=x)y", "Not An Image"]
  algorithm_env: {"9A": 1, PKG_NAME: x}
  private_docker_registries:
    - {registry: "https://r.example.org", username: u, password: hunter2}
  runtime: {}
runtime:
  kind: dokcer
  owner: Not_A_Label
  run: {memory: 4 gigs, deadline: 12, cpus: -1, scratsh: 1GiB, pids: 0}
  total: {memory: 1GiB}
  egress: {data_extration: ["db:1"], preprocessing: ["*.example.org:1", "db"]}
  databases: {a_b: {egress: ["db:1"]}}
  images: [{pattern: x/y}, {pattern: x/y, run_as: root, risk_accepted: " "}]
  docker: {host: /var/run/docker.sock}
  podman: {host: "ssh://elsewhere", socket: x}
  proxy: {https: "secret-proxy"}
sevrer: x
"#;
    let shown = problems(text, &environment([]));
    assert!(
        !shown.contains("hunter2") && !shown.contains("secret-proxy"),
        "{shown}"
    );
    insta::assert_snapshot!(shown);
}

/// A flat file with as little as will do, and these lines of `runtime:`.
fn with_runtime(lines: &str) -> String {
    format!(
        "hq_url: https://hq.example.org\nport: 443\napi_path: /hq\nencryption: {{enabled: false}}\n\
         runtime:{lines}"
    )
}

/// Reading it tells of mistakes in all of these words.
fn complains(text: &str, words: &[&str]) {
    let shown = problems(text, &flat_environment());
    for wrong in words {
        assert!(shown.contains(wrong), "{wrong}: {shown}");
    }
}

#[test]
fn what_jobs_ask_for_is_read() {
    let text = &with_runtime(
        r#"
  kind: slurm
  slurm:
    partition: main
    arguments: [--nice=10]
    cpus: 2
    time_limit: 2h
    listen: {address: 10.0.0.5, ports: 50000-50009}
    images: {"localhost/large:1": {gres: "gpu:1"}}
    steps: {central_compute: {partition: long, time_limit: 3d}, preprocessing: {}}
"#,
    );
    let runtime = read(text, &flat_environment()).unwrap().runtime;
    assert_eq!(runtime.kind, RuntimeKind::Slurm);
    let slurm = runtime.slurm;
    assert_eq!(slurm.ask.partition.as_deref(), Some("main"));
    assert_eq!(slurm.ask.arguments, ["--nice=10"]);
    assert_eq!(slurm.ask.cpus.map(NonZero::get), Some(2));
    assert_eq!(slurm.ask.time_limit, Some(Duration::from_secs(7200)));
    assert_eq!(slurm.max_jobs, 100);
    assert_eq!(slurm.listen.unwrap().ports, 50_000..=50_009);
    let (image, own) = slurm.images.first_key_value().unwrap();
    assert_eq!(image.to_string(), "localhost/large:1");
    assert_eq!(own.gres.as_deref(), Some("gpu:1"));
    let steps: Vec<_> = slurm.steps.into_iter().collect();
    let [(crate::hq::Action::CentralCompute, own)] = &steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!(own.partition.as_deref(), Some("long"));
    assert_eq!(own.time_limit, Some(Duration::from_secs(3 * 86_400)));

    let text = text
        .replace("10.0.0.5", "submit.example.org")
        .replace("50000-50009", "50009-50000")
        .replace("{gres", "{gers")
        .replace("central_compute", "central")
        .replace("preprocessing: {}", "preprocessing: {nodes: 2}");
    complains(
        &text,
        &[
            "submit.example.org",
            "50009-50000",
            "gers",
            "steps.central",
            "nodes",
        ],
    );
}

#[test]
fn a_clusters_settings_are_read() {
    let text = r#"
hq_url: https://hq.example.org
port: 443
api_path: /hq
encryption: {enabled: false}
runtime:
  kind: kubernetes
  run: {pids: none}
  kubernetes:
    kubeconfig: node.kubeconfig
    namespace: v6-runs
    helper_image: registry.example.org/v6-helper:1
    booked_cpus: 100m
    helper_cpus: 0.5
    ephemeral_storage: 20GiB
    node_selector: {zone: a}
    gpu: nvidia.com/gpu
    user_namespaces: true
    requests_per_second: 20
    canary: 6h
    labels: {kueue.x-k8s.io/queue-name: research}
    annotations: {sidecar.istio.io/inject: "false"}
    tolerations:
      - {key: dedicated, value: research, effect: NoSchedule}
      - {key: slow, operator: Exists, effect: NoExecute, tolerationSeconds: 30}
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a, "1"]}]}]
    image_pull_secrets: [login]
    start_timeout: 30m
    steps: {central_compute: {priority_class: soon}}
    images: {"localhost/large:1": {node_selector: {memory: much}}}
"#;
    let runtime = read(text, &flat_environment()).unwrap().runtime;
    assert_eq!(runtime.kind, RuntimeKind::Kubernetes);
    assert_eq!(runtime.run.pids, None);
    let cluster = runtime.kubernetes;
    assert_eq!(cluster.kubeconfig, Some("/etc/v6/node.kubeconfig".into()));
    assert_eq!(cluster.namespace.as_deref(), Some("v6-runs"));
    let helper = cluster.helper_image.unwrap();
    let placement = cluster.placement;
    assert_eq!(helper.to_string(), "registry.example.org/v6-helper:1");
    assert_eq!(cluster.booked_cpu_milli.unwrap().get(), 100);
    assert_eq!(cluster.helper_cpu_milli, NonZero::new(500));
    assert_eq!(cluster.ephemeral_storage_bytes, NonZero::new(20 << 30));
    assert_eq!(placement.node_selector["zone"], "a");
    assert_eq!(placement.labels["kueue.x-k8s.io/queue-name"], "research");
    assert_eq!(placement.annotations["sidecar.istio.io/inject"], "false");
    let tolerations = placement.tolerations.unwrap();
    assert_eq!(tolerations[1]["tolerationSeconds"], 30);
    let affinity = placement.affinity.unwrap().to_string();
    assert!(affinity.contains(r#""values":["a","1"]"#), "{affinity}");
    let (step, own) = cluster.steps.first_key_value().unwrap();
    assert_eq!(*step, crate::hq::Action::CentralCompute);
    assert_eq!(own.priority_class.as_deref(), Some("soon"));
    assert_eq!(cluster.steps.len(), 1);
    let (image, own) = cluster.images.first_key_value().unwrap();
    assert_eq!(image.to_string(), "localhost/large:1");
    assert_eq!(own.node_selector["memory"], "much");
    assert_eq!(cluster.image_pull_secrets, ["login"]);
    assert_eq!(cluster.start_timeout, Some(Duration::from_secs(1800)));
    assert!(cluster.gate && cluster.user_namespaces);
    assert_eq!(cluster.requests_per_second, NonZero::new(20));
    assert_eq!(cluster.gpu.as_deref(), Some("nvidia.com/gpu"));
    assert_eq!(cluster.canary, Some(Some(Duration::from_secs(6 * 3600))));
    let never = text.replace("canary: 6h", "canary: none");
    let runtime = read(&never, &flat_environment()).unwrap().runtime;
    assert_eq!(runtime.kubernetes.canary, Some(None));
    assert!(!cluster.claims);
    let open = format!("{text}    gate: off\n    outputs: claim\n    storage_class: fast\n");
    let cluster = read(&open, &flat_environment()).unwrap().runtime.kubernetes;
    assert!(!cluster.gate);
    assert!(cluster.claims);
    assert_eq!(cluster.storage_class.as_deref(), Some("fast"));
    let classless = open.replace("outputs: claim", "outputs: pod");
    let shown = problems(&classless, &flat_environment());
    assert!(shown.contains("storage_class"), "{shown}");

    let text = text
        .replace("/v6-helper:1", "/V6 Helper")
        .replace("100m", "few")
        .replace("namespace:", "namspace:")
        .replace("zone: a", "zone: [a]")
        .replace("value: research", "valeu: research")
        .replace("key: zone, operator", "key: 7, operator");
    let text = format!("{text}    gate: open\n    outputs: disk\n");
    let shown = problems(&text, &flat_environment());
    let wrong = [
        "V6 Helper",
        "few",
        "namspace",
        "node_selector.zone",
        "open",
        "disk",
    ];
    // What is the API's, only what has its types can judge.
    let judged: &[&str] = if cfg!(feature = "kubernetes") {
        &["[0].valeu", "kubernetes.affinity"]
    } else {
        &[]
    };
    for wrong in wrong.iter().chain(judged) {
        assert!(shown.contains(wrong), "{wrong}: {shown}");
    }
}

#[test]
fn some_runs_get_other_limits() {
    let text = &with_runtime(
        r#"
  run:
    memory: 4GiB
    steps: {central_compute: {memory: 512MiB, deadline: none}}
    gpus: 1
    images: {"localhost/large:1": {memory: 32GiB, cpus: none, max_output: 8GiB, gpus: all}}
"#,
    );
    let central = Some(crate::hq::Action::CentralCompute);
    let compute = Some(crate::hq::Action::FederatedCompute);
    let runtime = read(text, &flat_environment()).unwrap().runtime;
    let memory = |step, image| {
        let limits = runtime.limits(step, image);
        limits.memory_bytes.map(|bytes| bytes.get() >> 20)
    };
    assert_eq!(memory(compute, "localhost/other:1"), Some(4096));
    assert_eq!(memory(central, "localhost/other:1"), Some(512));
    assert_eq!(memory(None, "Not A Name"), Some(4096));
    assert_eq!(memory(central, "localhost/large:1"), Some(32 << 10));
    let both = runtime.limits(central, "localhost/large:1");
    assert_eq!((both.deadline, both.cpu_milli), (None, None));
    assert_eq!(both.output_bytes.get(), 8 << 30);
    assert_eq!(both.pids, runtime.run.pids);
    let one = v6_runtime::Gpu::Count(std::num::NonZeroU32::MIN);
    assert_eq!(
        (runtime.run.gpus, both.gpus),
        (Some(one), Some(v6_runtime::Gpu::All))
    );

    let text = text
        .replace("512MiB", "lots")
        .replace("max_output", "log_limit")
        .replace("gpus: 1", "gpus: 0");
    let text = format!("{text}  total: {{memory: 8GiB, cpus: 500m}}\n");
    complains(
        &text,
        &[
            "steps.central_compute.memory: \"lots\"",
            "log_limit: no such key",
            "at least 32GiB, or lower runtime.run.images.localhost/large:1.memory",
            "run.gpus",
            "images.localhost/large:1.cpus: none",
            "at least 1000m, or lower runtime.run.cpus",
        ],
    );
}

#[test]
fn apptainers_images_and_absent_limits_are_read() {
    let text = &with_runtime(
        r#"
  kind: singularity
  run: {cpus: none, memory: none}
  singularity:
    image_format: sif
    gpu: rocm
    cgroup: own
    images: {"localhost/average:1": images/average.sif}
"#,
    );
    let runtime = read(text, &flat_environment()).unwrap().runtime;
    assert_eq!(runtime.kind, RuntimeKind::Singularity);
    assert_eq!(
        (runtime.run.cpu_milli, runtime.run.memory_bytes),
        (None, None)
    );
    assert!(runtime.singularity.sif);
    assert_eq!(runtime.singularity.gpu, Some(GpuKind::Rocm));
    assert_eq!(runtime.singularity.cgroup, Some(ControlGroup::Own));
    let images: Vec<_> = runtime.singularity.images.into_iter().collect();
    let name = v6_runtime::ImageRef::parse("localhost/average:1").unwrap();
    assert_eq!(images, [(name, "/etc/v6/images/average.sif".into())]);

    let text = text
        .replace("localhost/average:1", "Not A Name")
        .replace("sif\n", "zip\n")
        .replace("cgroup: own", "cgroup: none");
    let text = format!("{text}  total: {{memory: 8GiB}}\n");
    complains(
        &text,
        &[
            "Not A Name",
            "image_format",
            "singularity.cgroup",
            "runtime.run.memory: none",
        ],
    );
}

#[test]
fn broken_yaml_names_the_line() {
    insta::assert_snapshot!(problems("node:\n  name: [a\n  hq: x\n", &environment([])));
    let missing = load(Path::new("/nowhere/node.yaml"), &environment([]))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("/nowhere/node.yaml: it can't be read"),
        "{missing}"
    );
}

#[test]
fn yaml_of_the_old_kind_reads_as_in_python() {
    let config = read(
        "hq_url: http://hq\nport: '80'\napi_path: ''\nshare_config: no\n",
        &flat_environment(),
    );
    let shown = config.unwrap_err().to_string();
    assert!(shown.contains("api_path: it is empty"), "{shown}");
    let config = read(
        "hq_url: http://hq\nport: 80\napi_path: /\nshare_config: No\n",
        &flat_environment(),
    )
    .unwrap();
    assert!(!config.share_config);
    assert_eq!(config.hq.api().as_str(), "http://hq/");
}

#[test]
fn the_environment_wins() {
    let environment = environment([
        ("V6_API_KEY", "other-key"),
        ("V6_NODE_NAME", "other"),
        ("KEYCLOAK_URL", "http://other"),
        ("PRIVATE_KEY", "/keys/k.pem"),
        ("V6_PROXY_HOST", "http://proxy"),
        ("DATABASE_LABELS", "a, a-b"),
        ("DATABASE_A_URI", "/data/a.csv"),
        ("DATABASE_A_TYPE", "csv"),
        ("DATABASE_A_B_URI", "postgresql://u:hunter2@db/x"),
        ("DATABASE_A_B_TYPE", "sql"),
        ("DATABASE_A_B_PASSWORD", "ABCDEFGH"),
        ("DATABASE_OTHER_URI", "/x"),
    ]);
    let text = CHART
        .replace("    omop:\n", "    a-b:\n")
        .replace("    lung:\n", "    a:\n");
    let config = read(&text, &environment).unwrap();
    assert_eq!(config.api_key.expose(), "other-key");
    assert_eq!(config.name, "other");
    assert_eq!(config.keycloak.url.as_str(), "http://other/");
    assert_eq!(config.encryption.private_key, Some("/keys/k.pem".into()));
    let [a, b] = config.databases.as_slice() else {
        panic!("{:?}", config.databases)
    };
    // The Python node hands label "a" the address and password of "a-b".
    assert!(a.parameters.is_empty(), "{a:?}");
    assert_eq!(
        b.source,
        Source::Service("postgresql://u:hunter2@db/x".to_owned().into())
    );
    assert_eq!(b.parameters["PASSWORD"].expose(), "ABCDEFGH");
    let notices: Vec<String> = config.notices.iter().map(ToString::to_string).collect();
    let notices = notices.join("\n");
    assert!(
        !notices.contains("hunter2") && !notices.contains("ABCDEFGH"),
        "{notices}"
    );
    insta::assert_snapshot!(notices);
}

#[test]
fn settings_of_vantage6s_own_template_are_known() {
    let text = "
nameOverride: vantage6-node
node:
  name: a
  apiKey: k
  production: true
  keycloak: {url: 'http://k'}
  hq: {url: 'http://hq'}
  image: x
  imagePullPolicy: Always
  taskNamespace: t
  k8sNodeName: docker-desktop
  logging:
    level: INFO
    file: node.log
    storageSize: 1Gi
    storageClass: local-storage
    volumeHostPath: /var/log
    max_size: 1024
    use_console: true
    datefmt: '%Y'
    format: '%(message)s'
    backup_count: 5
    loggers: [{level: warning, name: urllib3}]
  encryption: {enabled: false, private_key: ''}
  proxyPort: 7654
  persistence: {tasks: {hostPath: /t}, database: {size: 5Gi}}
  databases: []
  share_config: true
  share_algorithm_logs: true
  policies: {require_algorithm_pull: true, allowed_algorithms: []}
  prometheus: {enabled: true, report_interval_seconds: 45}
  algorithm_env: [{name: A, value: 1}]
  whitelist: {data_extraction: {egress: []}}
  createSecrets: true
  debug: {socketio: false}
  dev: {task_dir_extension: x}
";
    let config = read(text, &environment([])).unwrap();
    assert_eq!(config.hq.api().as_str(), "http://hq:7601/hq/");
    assert_eq!(config.keycloak.realm, "vantage6");
    assert_eq!(config.algorithm_env["A"], "1");
    let notices: Vec<String> = config.notices.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(notices.join("\n"));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "([a-z]{1,4}: ?|- |[\\[\\]{},#&*!|>'\"%@`~\n ]|node:|runtime:|.){0,60}") {
        let _ = read(&text, &environment([]));
    }
}

/// The names of all keys below `node` that are not the operator's own words.
fn keys(node: &yaml::Node, found: &mut Vec<String>) {
    match &node.value {
        yaml::Value::Scalar { .. } => {}
        yaml::Value::Sequence(items) => items.iter().for_each(|item| keys(item, found)),
        yaml::Value::Mapping(entries) => {
            for (key, node) in entries {
                let own_words = ["lung", "omop", "USER", "PASSWORD"];
                if !own_words.contains(&key.name.as_str()) {
                    found.push(key.name.clone());
                }
                keys(node, found);
            }
        }
    }
}

#[test]
fn each_key_of_the_sample_is_documented() {
    let page = include_str!("../../../docs/configuration.md");
    let words: Vec<&str> = page
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let mut found = Vec::new();
    keys(&yaml::parse(CHART).unwrap(), &mut found);
    assert!(found.len() > 50, "{found:?}");
    for key in found {
        assert!(
            words.contains(&key.as_str()),
            "{key} is not in docs/configuration.md"
        );
    }
}
