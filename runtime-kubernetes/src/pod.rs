//! From a spec to the cluster's objects: the pod, and the Secrets with its key and small inputs. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, HostAlias, KeyToPath,
    LocalObjectReference, PersistentVolumeClaimVolumeSource, Pod, PodDNSConfig, PodSchedulingGate,
    PodSecurityContext, PodSpec, Probe, ProjectedVolumeSource, ResourceRequirements,
    SeccompProfile, Secret, SecretKeySelector, SecretProjection, SecretVolumeSource,
    SecurityContext, Sysctl, TCPSocketAction, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rand::RngCore;
use v6_helper::{PodOptions, StreamedInput};
use v6_runtime::{
    Access, ContainerPath, EnvValue, ImageIdentity, MountSource, OutputKind, Owner,
    RegistryCredentials, RunSpec,
};

use crate::config::{Gate, KubernetesConfig};
use crate::error::{Error, Result};
use crate::record::{self, Record};

/// The names of a pod's containers.
pub(crate) const RECEIVE: &str = "receive";
pub(crate) const SIDECAR: &str = "sidecar";
pub(crate) const PROGRAM: &str = "program";

const HELPER: &str = "/v6-helper";
const TMP: &str = "/tmp";
/// Where our own things are in the helper's containers.
const KEY_DIR: &str = "/v6/key";
const GIVEN_DIR: &str = "/v6/given";
const IN_DIR: &str = "/v6/in";
const OUT_DIR: &str = "/v6/out";
/// A Secret's content may have so many bytes.
const SECRET_MAX: usize = 1 << 20;
/// What the helper needs.
const HELPER_MEMORY: &str = "128Mi";

/// One piece of a run's content that goes into a Secret.
struct Piece {
    key: String,
    bytes: Vec<u8>,
}

/// What a run's Secrets hold, before they have an owner.
pub(crate) struct Contents {
    /// The key of the tunnel.
    pub(crate) key: Vec<u8>,
    secrets: Vec<BTreeMap<String, ByteString>>,
    /// In which Secret each key is.
    places: BTreeMap<String, usize>,
    pull: Option<ByteString>,
}

impl Contents {
    /// Takes the content of a spec that is neither streamed nor elsewhere.
    pub(crate) fn new(spec: &RunSpec, credentials: &[RegistryCredentials]) -> Result<Self> {
        let mut key = vec![0; 32];
        rand::rng().fill_bytes(&mut key);
        // In text, since it is compared as it is.
        let key: Vec<u8> = key
            .iter()
            .flat_map(|b| format!("{b:02x}").into_bytes())
            .collect();
        let mut pieces = vec![Piece {
            key: "key".into(),
            bytes: key.clone(),
        }];
        for (index, value) in spec.env.values().enumerate() {
            if let EnvValue::Secret(secret) = value {
                pieces.push(Piece {
                    key: env_key(index),
                    bytes: secret.expose().as_bytes().to_vec(),
                });
            }
        }
        for (index, mount) in spec.mounts.iter().enumerate() {
            let bytes = match &mount.source {
                MountSource::Inline(bytes) => bytes.to_vec(),
                MountSource::Secret(secret) => secret.expose().as_bytes().to_vec(),
                _ => continue,
            };
            pieces.push(Piece {
                key: given_key(index),
                bytes,
            });
        }
        let (mut secrets, mut places) = (vec![(0, BTreeMap::new())], BTreeMap::new());
        for Piece { key, bytes } in pieces {
            if bytes.len() > SECRET_MAX {
                let why = format!("{} bytes are too many for a Secret", bytes.len());
                return Err(v6_runtime::Error::invalid("env", why).into());
            }
            let room = |(used, _): &(usize, _)| used + bytes.len() <= SECRET_MAX;
            let at = secrets.iter().position(room).unwrap_or_else(|| {
                secrets.push((0, BTreeMap::new()));
                secrets.len() - 1
            });
            secrets[at].0 += bytes.len();
            places.insert(key.clone(), at);
            secrets[at].1.insert(key, ByteString(bytes));
        }
        Ok(Self {
            key,
            secrets: secrets.into_iter().map(|(_, data)| data).collect(),
            places,
            pull: pull_secret(spec, credentials)?,
        })
    }

    /// How many Secrets there will be.
    pub(crate) fn len(&self) -> usize {
        self.secrets.len() + usize::from(self.pull.is_some())
    }

    /// The Secrets, owned by the pod: without it, the cluster removes them.
    pub(crate) fn secrets(self, owner: &Owner, record: &Record, pod: &Pod) -> Vec<Secret> {
        let owned = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: record::name(owner, &record.id),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let kinds = self.secrets.into_iter().map(|data| ("Opaque", data));
        let pull = self.pull.map(|config| {
            let data = BTreeMap::from([(".dockerconfigjson".to_owned(), config)]);
            ("kubernetes.io/dockerconfigjson", data)
        });
        let secret =
            |(index, (kind, data)): (usize, (&str, BTreeMap<String, ByteString>))| Secret {
                metadata: ObjectMeta {
                    name: Some(record.secret_name(owner, index)),
                    labels: Some(record.secret_labels(owner)),
                    owner_references: Some(vec![owned.clone()]),
                    ..ObjectMeta::default()
                },
                immutable: Some(true),
                type_: Some(kind.to_owned()),
                data: Some(data),
                ..Secret::default()
            };
        kinds.chain(pull).enumerate().map(secret).collect()
    }
}

fn env_key(index: usize) -> String {
    format!("env-{index}")
}

fn given_key(index: usize) -> String {
    format!("given-{index}")
}

/// What the cluster needs to fetch the image with, if it is in one of these registries.
fn pull_secret(spec: &RunSpec, credentials: &[RegistryCredentials]) -> Result<Option<ByteString>> {
    let registry = spec.image.reference.registry();
    let Some(login) = credentials.iter().find(|login| login.registry == registry) else {
        return Ok(None);
    };
    let host = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    let config = serde_json::json!({
        "auths": { host: { "username": login.username, "password": login.password.expose() } }
    });
    let config = serde_json::to_vec(&config).map_err(|error| Error::Config(error.to_string()))?;
    Ok(Some(ByteString(config)))
}

/// What a run's pod is made of.
pub(crate) struct Parts<'a> {
    pub(crate) owner: &'a Owner,
    pub(crate) record: &'a Record,
    pub(crate) spec: &'a RunSpec,
    pub(crate) config: &'a KubernetesConfig,
    pub(crate) contents: &'a Contents,
}

/// The pod, which no machine gets before its gate is taken away.
pub(crate) fn pod(parts: &Parts<'_>) -> Result<Pod> {
    let Parts {
        owner,
        record,
        config,
        ..
    } = parts;
    let mut labels = config.labels.clone();
    labels.extend(record.labels(owner));
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(record::name(owner, &record.id)),
            labels: Some(labels),
            annotations: Some(record.annotations()?),
            finalizers: Some(vec![record::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec(parts)),
        ..Pod::default()
    })
}

fn pod_spec(parts: &Parts<'_>) -> PodSpec {
    let Parts {
        owner,
        record,
        spec,
        config,
        contents,
    } = parts;
    let hosts = addresses(spec)
        .into_iter()
        .map(|(host, address)| HostAlias {
            ip: address.to_string(),
            hostnames: Some(vec![host.to_owned()]),
        });
    let mut pull: Vec<LocalObjectReference> = config
        .image_pull_secrets
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() })
        .collect();
    if contents.pull.is_some() {
        pull.push(LocalObjectReference {
            name: record.secret_name(owner, contents.secrets.len()),
        });
    }
    let groups = spec
        .supplementary_groups
        .iter()
        .map(|group| i64::from(*group));
    PodSpec {
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(whole_seconds(spec.grace)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        hostname: Some("run".into()),
        dns_policy: Some("None".into()),
        dns_config: Some(PodDNSConfig {
            // One is asked for; nobody listens there.
            nameservers: Some(vec!["127.0.0.1".into()]),
            ..PodDNSConfig::default()
        }),
        host_aliases: Some(hosts.collect()),
        scheduling_gates: Some(vec![PodSchedulingGate {
            name: record::INPUT_GATE.into(),
        }]),
        image_pull_secrets: Some(pull),
        node_selector: Some(config.node_selector.clone()),
        runtime_class_name: config.runtime_class.clone(),
        priority_class_name: config.priority_class.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(i64::from(config.uid)),
            run_as_group: Some(i64::from(config.gid)),
            supplemental_groups: Some(groups.collect()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            sysctls: Some(vec![Sysctl {
                name: "net.ipv4.ip_unprivileged_port_start".into(),
                value: "0".into(),
            }]),
            ..PodSecurityContext::default()
        }),
        volumes: Some(volumes(parts)),
        init_containers: Some(vec![receive(parts)]),
        containers: vec![sidecar(parts), program(parts)],
        ..PodSpec::default()
    }
}

/// Shorter than a second is not possible.
pub(crate) fn whole_seconds(grace: std::time::Duration) -> i64 {
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX).max(1)
}

fn floor() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: None,
        }),
        ..SecurityContext::default()
    }
}

fn helper(parts: &Parts<'_>, name: &str, args: Vec<String>, mounts: Vec<VolumeMount>) -> Container {
    let quantity = |text: &str| Quantity(text.to_owned());
    Container {
        name: name.into(),
        image: Some(parts.config.helper_image.to_string()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec![HELPER.into()]),
        args: Some(args),
        volume_mounts: Some(mounts),
        security_context: Some(floor()),
        // A small limit of processor time was seen to delay a container's start by seconds.
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".into(), quantity("10m")),
                ("memory".into(), quantity("16Mi")),
            ])),
            limits: Some(BTreeMap::from([("memory".into(), quantity(HELPER_MEMORY))])),
            ..ResourceRequirements::default()
        }),
        ..Container::default()
    }
}

fn receive(parts: &Parts<'_>) -> Container {
    let Parts { spec, config, .. } = parts;
    let mut options = PodOptions::new(format!("{KEY_DIR}/key"), OUT_DIR).with_input(IN_DIR);
    if let Some(deadline) = spec.deadline {
        options = options.with_deadline(deadline);
    }
    options = match &config.gate {
        Gate::Denial {
            control,
            settle,
            limit,
        } => {
            let control = control.map(|address| address.to_string());
            options.with_denial(control, *settle, *limit)
        }
        Gate::Off => {
            options.with_denial(Some("none".into()), Default::default(), Default::default())
        }
    };
    for (index, output) in spec.outputs.values().enumerate() {
        options = match output.kind {
            OutputKind::Folder => options.with_folder(index),
            _ => options.with_file(index),
        };
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let place = place(spec, index);
        match (&mount.source, &place) {
            (MountSource::Stream(stream), place) => {
                options = options.with_stream(StreamedInput::new(place.clone(), stream.len()));
            }
            (MountSource::Inline(_) | MountSource::Secret(_), place)
                if place.starts_with("out/") =>
            {
                options = options.with_copy(format!("{GIVEN_DIR}/{index}"), place.clone());
            }
            _ => {}
        }
    }
    let mounts = vec![
        mount("key", KEY_DIR, true),
        mount("given", GIVEN_DIR, true),
        mount("in", IN_DIR, false),
        mount("out", OUT_DIR, false),
    ];
    helper(parts, RECEIVE, options.receive(), mounts)
}

fn sidecar(parts: &Parts<'_>) -> Container {
    let Parts { spec, .. } = parts;
    let mut options = PodOptions::new(format!("{KEY_DIR}/key"), OUT_DIR);
    if let Some(deadline) = spec.deadline {
        options = options.with_deadline(deadline);
    }
    let addresses = addresses(spec);
    for grant in &spec.egress {
        if let Some(address) = addresses.get(grant.host.as_str()) {
            options = options.with_listener(SocketAddrV4::new(*address, grant.port));
        }
    }
    let mounts = vec![mount("key", KEY_DIR, true), mount("out", OUT_DIR, true)];
    helper(parts, SIDECAR, options.sidecar(), mounts)
}

fn program(parts: &Parts<'_>) -> Container {
    let Parts { spec, config, .. } = parts;
    let resources = &spec.resources;
    let cpu = resources.cpu_milli.unwrap_or(config.cpu_milli);
    let memory = resources.memory_bytes.unwrap_or(config.memory_bytes);
    let limits = BTreeMap::from([
        ("cpu".to_owned(), Quantity(format!("{cpu}m"))),
        ("memory".to_owned(), Quantity(memory.to_string())),
    ]);
    let words = |words: &[String]| words.iter().map(|word| literal(word)).collect::<Vec<_>>();
    Container {
        name: PROGRAM.into(),
        image: Some(image(spec)),
        image_pull_policy: Some("IfNotPresent".into()),
        command: spec.command.as_deref().map(words),
        args: (!spec.args.is_empty()).then(|| words(&spec.args)),
        working_dir: spec.workdir.as_ref().map(|path| path.as_str().to_owned()),
        env: Some(environment(parts)),
        volume_mounts: Some(program_mounts(spec)),
        security_context: Some(floor()),
        resources: Some(ResourceRequirements {
            requests: Some(limits.clone()),
            limits: Some(limits),
            ..ResourceRequirements::default()
        }),
        // The sidecar listens for as long as the program may run. Not a wish to know whether the
        // program lives: it is the one way to have a container ended, from inside the pod and while
        // nobody else is there, without losing the pod with its outputs and its log.
        liveness_probe: Some(Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::Int(i32::from(v6_helper::ALIVE_PORT)),
                host: None,
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(20),
            failure_threshold: Some(3),
            termination_grace_period_seconds: Some(whole_seconds(spec.grace)),
            ..Probe::default()
        }),
        ..Container::default()
    }
}

/// The image by its content.
fn image(spec: &RunSpec) -> String {
    let image = &spec.image;
    match &image.identity {
        ImageIdentity::Manifest(digest) => image.reference.pinned(digest.clone()).to_string(),
        ImageIdentity::ImageId(_) => image.reference.to_string(),
    }
}

/// A word that reaches the program as it is: the cluster would expand `$(NAME)`.
fn literal(word: &str) -> String {
    word.replace('$', "$$")
}

/// One loopback address for each host, so that two hosts may have one port.
pub(crate) fn addresses(spec: &RunSpec) -> BTreeMap<&str, Ipv4Addr> {
    let mut addresses = BTreeMap::new();
    for grant in &spec.egress {
        // The spec has at most 200 grants.
        let next = u8::try_from(addresses.len() + 1).unwrap_or(u8::MAX);
        addresses
            .entry(grant.host.as_str())
            .or_insert(Ipv4Addr::new(127, 0, 1, next));
    }
    addresses
}

fn environment(parts: &Parts<'_>) -> Vec<EnvVar> {
    let Parts {
        owner,
        record,
        spec,
        contents,
        ..
    } = parts;
    let plain = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(literal(value)),
        value_from: None,
    };
    let mut all = BTreeMap::from([
        ("HOME", plain("HOME", TMP)),
        ("TMPDIR", plain("TMPDIR", TMP)),
    ]);
    for (index, (name, value)) in spec.env.iter().enumerate() {
        let variable = match value {
            EnvValue::Plain(text) => plain(name, text),
            _ => {
                let key = env_key(index);
                let at = contents.places.get(&key).copied().unwrap_or_default();
                EnvVar {
                    name: name.clone(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        secret_key_ref: Some(SecretKeySelector {
                            name: record.secret_name(owner, at),
                            key,
                            optional: None,
                        }),
                        ..EnvVarSource::default()
                    }),
                }
            }
        };
        all.insert(name, variable);
    }
    all.into_values().collect()
}

/// Where the content of a mount is, in the helper's words: `given/N` by a Secret, `in/N` streamed,
/// or `out/N/PATH` as the beginning of a folder output.
pub(crate) fn place(spec: &RunSpec, index: usize) -> String {
    let mount = &spec.mounts[index];
    let below = (mount.access == Access::ReadWrite)
        .then(|| enclosing_output(spec, &mount.target))
        .flatten();
    match (below, &mount.source) {
        (Some((output, relative)), _) => format!("out/{output}/{relative}"),
        (None, MountSource::Stream(_)) => format!("in/{index}"),
        (None, _) => format!("given/{index}"),
    }
}

/// The folder output that a path lies in, and where in it. Of nested ones the innermost: that is
/// the one that is mounted over the others.
fn enclosing_output<'a>(spec: &RunSpec, path: &'a ContainerPath) -> Option<(usize, &'a str)> {
    let outputs = spec.outputs.values().enumerate();
    outputs
        .filter(|(_, output)| output.kind == OutputKind::Folder)
        .filter_map(|(index, output)| Some((index, path.relative_to(&output.path)?)))
        .min_by_key(|(_, relative)| relative.len())
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

fn part(volume: &str, part: impl ToString, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        sub_path: Some(part.to_string()),
        ..mount(volume, path, read_only)
    }
}

fn program_mounts(spec: &RunSpec) -> Vec<VolumeMount> {
    let mut mounts = Vec::new();
    let taken = |path: &str| {
        let targets = spec.mounts.iter().map(|mount| &mount.target);
        let outputs = spec.outputs.values().map(|output| &output.path);
        targets.chain(outputs).any(|target| target.as_str() == path)
    };
    if !taken(TMP) {
        mounts.push(mount("tmp", TMP, false));
    }
    for (index, output) in spec.outputs.values().enumerate() {
        mounts.push(part("out", index, output.path.as_str(), false));
    }
    for (index, given) in spec.mounts.iter().enumerate() {
        let target = given.target.as_str();
        let read_only = given.access == Access::ReadOnly;
        match &given.source {
            MountSource::Scratch(_) => {
                mounts.push(mount(&format!("scratch-{index}"), target, false));
            }
            MountSource::Volume(_) => {
                mounts.push(mount(&format!("volume-{index}"), target, read_only));
            }
            // It is in its output already.
            _ if !read_only => {}
            MountSource::Stream(_) => mounts.push(part("in", index, target, true)),
            _ => mounts.push(part("given", index, target, true)),
        }
    }
    mounts
}

fn volumes(parts: &Parts<'_>) -> Vec<Volume> {
    let Parts {
        owner,
        record,
        spec,
        config,
        contents,
    } = parts;
    let secret = |at: usize| record.secret_name(owner, at);
    let empty = |name: &str| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    let memory = |name: &str, bytes: u64| Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity(bytes.to_string())),
        }),
        ..Volume::default()
    };
    let key_at = contents.places.get("key").copied().unwrap_or_default();
    let mut all = vec![
        Volume {
            name: "key".into(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret(key_at)),
                items: Some(vec![item("key", "key")]),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        given(parts),
        empty("in"),
        empty("out"),
    ];
    let tmp = spec.resources.scratch_bytes.unwrap_or(config.scratch_bytes);
    all.push(memory("tmp", tmp.get()));
    for (index, mount) in spec.mounts.iter().enumerate() {
        match &mount.source {
            MountSource::Scratch(limit) => {
                let limit = limit.unwrap_or(config.scratch_bytes);
                all.push(memory(&format!("scratch-{index}"), limit.get()));
            }
            MountSource::Volume(claim) => all.push(Volume {
                name: format!("volume-{index}"),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.clone(),
                    read_only: Some(mount.access == Access::ReadOnly),
                }),
                ..Volume::default()
            }),
            _ => {}
        }
    }
    all
}

fn item(key: &str, path: &str) -> KeyToPath {
    KeyToPath {
        key: key.into(),
        path: path.into(),
        mode: None,
    }
}

/// All content that Secrets hold, as one folder. Nobody but this pod's containers sees it, and they
/// have one user.
fn given(parts: &Parts<'_>) -> Volume {
    let Parts {
        owner,
        record,
        spec,
        contents,
        ..
    } = parts;
    let mut items: BTreeMap<usize, Vec<KeyToPath>> = BTreeMap::new();
    for index in 0..spec.mounts.len() {
        let key = given_key(index);
        if let Some(at) = contents.places.get(&key) {
            let items = items.entry(*at).or_default();
            items.push(item(&key, &index.to_string()));
        }
    }
    if items.is_empty() {
        return Volume {
            name: "given".into(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        };
    }
    let sources = items.into_iter().map(|(at, items)| VolumeProjection {
        secret: Some(SecretProjection {
            name: record.secret_name(owner, at),
            items: Some(items),
            optional: None,
        }),
        ..VolumeProjection::default()
    });
    Volume {
        name: "given".into(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o444),
            sources: Some(sources.collect()),
        }),
        ..Volume::default()
    }
}
