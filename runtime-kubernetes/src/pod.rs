//! From a spec to its pod. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, HostAlias, LocalObjectReference, Pod,
    PodDNSConfig, PodSchedulingGate, PodSecurityContext, PodSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretKeySelector, SecurityContext, Sysctl, TCPSocketAction, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use v6_helper::{PodOptions, StreamedInput};
use v6_runtime::{EnvValue, Gpu, ImageIdentity, MountSource, OutputKind, Owner, RunSpec};

use crate::claim;
use crate::config::{Gate, KubernetesConfig, Outputs};
use crate::contents::{Contents, env_key};
use crate::error::Result;
use crate::placement::Placement;
use crate::record::{self, Record};
use crate::volumes::{looked_for, mount, place, program_mounts, volumes};

/// The names of a pod's containers.
pub(crate) const RECEIVE: &str = "receive";
pub(crate) const SIDECAR: &str = "sidecar";
pub(crate) const PROGRAM: &str = "program";

pub(crate) const HELPER: &str = "/v6-helper";
pub(crate) const TMP: &str = "/tmp";
/// Where our own things are in the helper's containers.
pub(crate) const KEY_DIR: &str = "/v6/key";
const GIVEN_DIR: &str = "/v6/given";
const IN_DIR: &str = "/v6/in";
pub(crate) const OUT_DIR: &str = "/v6/out";
/// What the helper needs. It has no limit of processor time by itself: a small one was seen to delay a
/// container's start by seconds.
const HELPER_CPU: u32 = 10;
const HELPER_MEMORY: &str = "128Mi";

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
        spec,
        config,
        ..
    } = parts;
    let placement = config.placement_of(&spec.image.reference, &spec.annotations);
    let mut labels = placement.labels.clone();
    labels.extend(record.labels(owner));
    let mut annotations = placement.annotations.clone();
    annotations.extend(record.annotations()?);
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(record::name(owner, &record.id)),
            labels: Some(labels),
            annotations: Some(annotations),
            finalizers: Some(vec![record::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec(parts, placement)),
        ..Pod::default()
    })
}

fn pod_spec(parts: &Parts<'_>, placement: Placement) -> PodSpec {
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
    pull.extend(contents.login().map(|at| LocalObjectReference {
        name: record.secret_name(owner, at),
    }));
    let groups = spec
        .supplementary_groups
        .iter()
        .map(|group| i64::from(*group));
    let (dns_policy, dns_config) = dns();
    let claimed = claim::is_wanted(spec, config);
    let (mut before, mut beside) = (vec![receive(parts)], Vec::new());
    if claimed || (config.outputs != Outputs::Pod && spec.outputs.is_empty()) {
        // Nothing has to be asked of the pod when the program has ended: its machine ends such a
        // sidecar then, and gives back what was booked, though no node is there.
        before.push(Container {
            restart_policy: Some("Always".into()),
            ..sidecar(parts)
        });
    } else {
        beside.push(sidecar(parts));
    }
    beside.push(program(parts));
    PodSpec {
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(whole_seconds(spec.grace)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        hostname: Some("run".into()),
        host_users: config.user_namespaces.then_some(false),
        dns_policy,
        dns_config,
        host_aliases: Some(hosts.collect()),
        scheduling_gates: Some(vec![PodSchedulingGate {
            name: record::INPUT_GATE.into(),
        }]),
        image_pull_secrets: Some(pull),
        node_selector: Some(placement.node_selector),
        tolerations: Some(placement.tolerations),
        affinity: placement.affinity,
        runtime_class_name: placement.runtime_class,
        priority_class_name: placement.priority_class,
        security_context: Some(PodSecurityContext {
            supplemental_groups: Some(groups.collect()),
            sysctls: Some(vec![Sysctl {
                name: "net.ipv4.ip_unprivileged_port_start".into(),
                value: "0".into(),
            }]),
            // A new volume is root's.
            fs_group: claimed.then_some(i64::from(config.gid)),
            fs_group_change_policy: claimed.then(|| "OnRootMismatch".into()),
            ..pod_floor(config)
        }),
        volumes: Some(volumes(parts)),
        init_containers: Some(before),
        containers: beside,
        ..PodSpec::default()
    }
}

/// No names are found: one server has to be named, and nobody listens there.
pub(crate) fn dns() -> (Option<String>, Option<PodDNSConfig>) {
    let config = PodDNSConfig {
        nameservers: Some(vec!["127.0.0.1".into()]),
        ..PodDNSConfig::default()
    };
    (Some("None".into()), Some(config))
}

/// Shorter than a second is not possible.
pub(crate) fn whole_seconds(grace: std::time::Duration) -> i64 {
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX).max(1)
}

/// What holds for every pod of ours.
pub(crate) fn pod_floor(config: &KubernetesConfig) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(i64::from(config.uid)),
        run_as_group: Some(i64::from(config.gid)),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".into(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// What holds for every container of ours.
pub(crate) fn floor() -> SecurityContext {
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

/// A container with the helper's program.
pub(crate) fn helper(
    config: &KubernetesConfig,
    name: &str,
    args: Vec<String>,
    mounts: Vec<VolumeMount>,
) -> Container {
    let quantity = |text: &str| Quantity(text.to_owned());
    let milli = |milli: u32| Quantity(format!("{milli}m"));
    let most = config.helper_cpu_milli.map(NonZeroU32::get);
    let booked = most.map_or(HELPER_CPU, |most| most.min(HELPER_CPU));
    let limits = [("memory".to_owned(), quantity(HELPER_MEMORY))];
    let limits = limits.into_iter();
    let limits = limits.chain(most.map(|most| ("cpu".to_owned(), milli(most))));
    Container {
        name: name.into(),
        image: Some(config.helper_image.to_string()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec![HELPER.into()]),
        args: Some(args),
        volume_mounts: Some(mounts),
        security_context: Some(floor()),
        resources: Some(ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".into(), milli(booked)),
                ("memory".into(), quantity("16Mi")),
            ])),
            limits: Some(limits.collect()),
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
    let mut mounts = vec![
        mount("key", KEY_DIR, true),
        mount("given", GIVEN_DIR, true),
        mount("in", IN_DIR, false),
        mount("out", OUT_DIR, false),
    ];
    for (claim, path) in looked_for(spec) {
        options = options.with_part(claim.mount_path.as_str(), path.as_str());
        mounts.push(claim);
    }
    helper(config, RECEIVE, options.receive(), mounts)
}

fn sidecar(parts: &Parts<'_>) -> Container {
    let Parts { spec, config, .. } = parts;
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
    helper(config, SIDECAR, options.sidecar(), mounts)
}

fn program(parts: &Parts<'_>) -> Container {
    let Parts { spec, config, .. } = parts;
    let resources = &spec.resources;
    let cpu = resources.cpu_milli.unwrap_or(config.cpu_milli);
    let memory = resources.memory_bytes.unwrap_or(config.memory_bytes);
    let mut limits = BTreeMap::from([
        ("cpu".to_owned(), Quantity(format!("{cpu}m"))),
        ("memory".to_owned(), Quantity(memory.to_string())),
    ]);
    // The sum over a pod's containers is the limit of its volumes, too, so one of them has it all.
    if let Some(disk) = config.ephemeral_storage_bytes {
        limits.insert("ephemeral-storage".to_owned(), Quantity(disk.to_string()));
    }
    if let (Some(Gpu::Count(count)), Some(name)) = (resources.gpu, &config.gpu_resource) {
        limits.insert(name.clone(), Quantity(count.to_string()));
    }
    let booked = config
        .cpu_request_milli
        .map_or(cpu, |booked| booked.min(cpu));
    let mut requests = limits.clone();
    requests.insert("cpu".to_owned(), Quantity(format!("{booked}m")));
    let words = |words: &[String]| words.iter().map(|word| literal(word)).collect::<Vec<_>>();
    let image = &spec.image.reference;
    let pull = match &spec.image.identity {
        ImageIdentity::Manifest(_) => "IfNotPresent",
        // An engine's own name for it, by which no registry gives it.
        ImageIdentity::ImageId(_) => "Never",
    };
    Container {
        name: PROGRAM.into(),
        image: Some(
            image
                .pinned(spec.image.identity.digest().clone())
                .to_string(),
        ),
        image_pull_policy: Some(pull.into()),
        command: spec.command.as_deref().map(words),
        args: (!spec.args.is_empty()).then(|| words(&spec.args)),
        working_dir: spec.workdir.as_ref().map(|path| path.as_str().to_owned()),
        env: Some(environment(parts)),
        volume_mounts: Some(program_mounts(spec)),
        security_context: Some(floor()),
        resources: Some(ResourceRequirements {
            requests: Some(requests),
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
            // Two, a second apart: the sidecar has that time to begin to listen.
            failure_threshold: Some(2),
            termination_grace_period_seconds: Some(whole_seconds(spec.grace)),
            ..Probe::default()
        }),
        ..Container::default()
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
                let at = contents.place(&key).unwrap_or_default();
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
