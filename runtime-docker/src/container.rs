//! From a spec to the engine's objects: the files to put, and the container. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount, MountType, MountVolumeOptions, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use bytes::Bytes;
use v6_helper::{InitOptions, Listener};
use v6_runtime::{
    Access, ContainerPath, EnvValue, Gpu, MountSource, OutputKind, Owner, ResourceKinds, RunSpec,
    StartFailure, StartFailureCause,
};

use crate::archive::{Content, Entry};
use crate::config::DockerConfig;
use crate::disk;
use crate::image::LocalImage;
use crate::quirks::Quirks;
use crate::record::{Part, Record, name};

/// Where our own things are inside a container.
pub(crate) const HELPER: &str = "/.v6/helper";
const CLAIM: &str = "/.v6/claim";
/// Its name among what is collected.
pub(crate) const CLAIM_COLLECTED: &str = "claim";
/// What is collected, read-only: the folder, since Podman cannot copy a file that is a mount.
const COLLECTED: &str = "/.v6/out";
const ENV: &str = "/.v6/env";
const EGRESS: &str = "/.v6/egress";
const TMP: &str = "/tmp";

/// Where the volume is in the container through which files are put.
pub(crate) const STORE: &str = "/v6";

/// What the engine is, as far as it matters for a container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traits {
    /// Read-only bind mounts can be made so with all that is mounted below them (API 1.44).
    pub(crate) recursive_read_only: bool,
    /// A control group name space of its own.
    pub(crate) private_cgroup: bool,
    /// How many processors there are, in thousandths.
    pub(crate) cpu_milli: Option<u32>,
    /// What it can limit.
    pub(crate) limits: ResourceKinds,
    pub(crate) quirks: Quirks,
}

/// The path inside the container at which something is collected: an output's number, or the claim.
pub(crate) fn collected_at(name: &str) -> String {
    format!("{COLLECTED}/{name}")
}

/// The files of the volume of this attempt at a run.
pub(crate) fn files(attempt: &str, spec: &RunSpec, config: &DockerConfig) -> Vec<Entry> {
    let owned = |mode: u32| {
        if spec.trust.image_user {
            // Who the image's user is, is known only once it is there. Nobody else sees the volume.
            (mode | (mode & 0o600) >> 3 | (mode & 0o700) >> 6, 0, 0)
        } else {
            (mode, config.uid, config.gid)
        }
    };
    let mut entries = vec![
        entry("helper", (0o555, 0, 0), bytes_of(v6_helper::PROGRAM)),
        entry(
            disk::ATTEMPT,
            (0o444, 0, 0),
            Content::Bytes(Bytes::copy_from_slice(attempt.as_bytes())),
        ),
        entry("in", (0o755, 0, 0), Content::Folder),
        entry("out", (0o755, 0, 0), Content::Folder),
        entry("out/claim", owned(0o600), bytes_of(&[])),
    ];
    if let Some(environment) = secret_environment(spec) {
        entries.push(entry("env", owned(0o400), Content::Bytes(environment)));
    }
    let mut folders = BTreeSet::new();
    for (index, output) in spec.outputs.values().enumerate() {
        let path = format!("out/{index}");
        match output.kind {
            OutputKind::Folder => entries.push(entry(&path, owned(0o755), Content::Folder)),
            _ => entries.push(entry(&path, owned(0o644), bytes_of(&[]))),
        }
    }
    let targets = spec.mounts.iter().map(|mount| &mount.target);
    for target in targets.chain(spec.outputs.values().map(|output| &output.path)) {
        if let Some((output, relative)) = enclosing_output(spec, target) {
            // The engine would make these folders, as root.
            for (end, _) in relative.match_indices('/') {
                folders.insert(format!("out/{output}/{}", &relative[..end]));
            }
        }
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let below = enclosing_output(spec, &mount.target);
        let content = match &mount.source {
            MountSource::Inline(bytes) => Content::Bytes(bytes.clone()),
            MountSource::Secret(secret) => {
                Content::Bytes(Bytes::copy_from_slice(secret.expose().as_bytes()))
            }
            MountSource::Stream(stream) => Content::Stream(stream.clone()),
            _ => continue,
        };
        let secret = matches!(mount.source, MountSource::Secret(_));
        let place = match (mount.access, below) {
            (Access::ReadWrite, Some((output, relative))) => {
                let path = format!("out/{output}/{relative}");
                entry(&path, owned(if secret { 0o600 } else { 0o644 }), content)
            }
            _ if !secret => entry(&format!("in/{index}"), (0o444, 0, 0), content),
            _ if spec.trust.image_user => entry(&format!("in/{index}"), (0o444, 0, 0), content),
            // Readable by the run's group alone, and not the run's own.
            _ => entry(&format!("in/{index}"), (0o440, 0, config.gid), content),
        };
        entries.push(place);
    }
    let folders = folders
        .into_iter()
        .map(|path| entry(&path, owned(0o755), Content::Folder));
    // Folders before what is in them.
    let at = entries
        .iter()
        .position(|entry| entry.path.matches('/').count() > 1)
        .unwrap_or(entries.len());
    entries.splice(at..at, folders);
    entries
}

fn entry(path: &str, (mode, uid, gid): (u32, u32, u32), content: Content) -> Entry {
    Entry {
        path: path.to_owned(),
        mode,
        uid,
        gid,
        content,
    }
}

fn bytes_of(bytes: &'static [u8]) -> Content {
    Content::Bytes(Bytes::from_static(bytes))
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

/// Pairs `NAME=VALUE`, each ended by a NUL, as `init` reads them.
fn secret_environment(spec: &RunSpec) -> Option<Bytes> {
    let mut all = Vec::new();
    for (name, value) in &spec.env {
        if let EnvValue::Secret(secret) = value {
            for part in [name, "=", secret.expose(), "\0"] {
                all.extend_from_slice(part.as_bytes());
            }
        }
    }
    (!all.is_empty()).then(|| all.into())
}

/// The container through which files are put into the volume. Making it makes the volume, too, with
/// the record's labels, in one call: so that a record without it means that the run went on.
pub(crate) fn files_container(
    owner: &Owner,
    record: &Record,
    image: &str,
    volume_labels: HashMap<String, String>,
) -> ContainerCreateBody {
    let volume = Mount {
        typ: Some(MountType::VOLUME),
        source: Some(name(owner, &record.id, Part::Record)),
        target: Some(STORE.to_owned()),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            labels: Some(volume_labels),
            ..Default::default()
        }),
        ..Default::default()
    };
    ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(vec!["-".to_owned()]),
        labels: Some(record.labels_of(owner, Part::Files)),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![volume]),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a run's container is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) owner: &'a Owner,
    pub(crate) record: &'a Record,
    pub(crate) spec: &'a RunSpec,
    pub(crate) image: &'a LocalImage,
    pub(crate) config: &'a DockerConfig,
    pub(crate) traits: &'a Traits,
    /// The engine's path of the volume.
    pub(crate) volume: &'a str,
    /// The engine's path of the folder with the sockets of granted connections.
    pub(crate) sockets: Option<&'a str>,
}

/// The container that runs the program.
pub(crate) fn run_container(parts: &Parts<'_>) -> Result<ContainerCreateBody, StartFailure> {
    let Parts {
        spec,
        image,
        config,
        ..
    } = parts;
    let user = if spec.trust.image_user {
        image.user.clone()
    } else {
        format!("{}:{}", config.uid, config.gid)
    };
    let workdir = spec.workdir.as_ref().map(|path| path.as_str().to_owned());
    Ok(ContainerCreateBody {
        image: Some(image.id.clone()),
        entrypoint: Some(entrypoint(parts)?),
        cmd: Some(Vec::new()),
        env: Some(environment(spec)),
        working_dir: workdir,
        user: Some(user),
        labels: Some(parts.record.labels_of(parts.owner, Part::Run)),
        hostname: Some("run".to_owned()),
        tty: Some(false),
        open_stdin: Some(false),
        stop_signal: Some("SIGTERM".to_owned()),
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        host_config: Some(host_config(parts)),
        ..Default::default()
    })
}

fn entrypoint(parts: &Parts<'_>) -> Result<Vec<String>, StartFailure> {
    let Parts { spec, image, .. } = parts;
    let mut command = match &spec.command {
        Some(command) => command.clone(),
        None => image.entrypoint.clone(),
    };
    if spec.command.is_none() && spec.args.is_empty() {
        command.extend_from_slice(&image.cmd);
    } else {
        command.extend_from_slice(&spec.args);
    }
    if command.is_empty() {
        let message = "neither the image nor the run names a command";
        return Err(StartFailure::new(
            StartFailureCause::CommandNotFound,
            message,
        ));
    }
    let mut init = InitOptions::new().with_claim(CLAIM).with_grace(spec.grace);
    if let Some(deadline) = spec.deadline {
        init = init.with_deadline(deadline);
    }
    if has_secret_environment(spec) {
        init = init.with_env_file(ENV);
    }
    if parts.traits.quirks.limits_by_init {
        init = init.with_core_bytes(0);
        if let Some(bytes) = largest_file(spec, parts.config) {
            init = init.with_file_bytes(bytes.get());
        }
    }
    let addresses = addresses(spec);
    for (index, grant) in spec.egress.iter().enumerate() {
        let address = SocketAddrV4::new(addresses[grant.host.as_str()], grant.port);
        init = init.with_listener(Listener::new(address, format!("{EGRESS}/{index}.sock")));
    }
    init.command_line(HELPER, &command)
        .map_err(|error| StartFailure::new(StartFailureCause::Engine, error.to_string()))
}

fn has_secret_environment(spec: &RunSpec) -> bool {
    let secret = |value: &EnvValue| matches!(value, EnvValue::Secret(_));
    spec.env.values().any(secret)
}

/// One loopback address for each host, so that two hosts may have one port.
fn addresses(spec: &RunSpec) -> BTreeMap<&str, Ipv4Addr> {
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

fn environment(spec: &RunSpec) -> Vec<String> {
    let mut environment = BTreeMap::from([("HOME", TMP), ("TMPDIR", TMP)]);
    for (name, value) in &spec.env {
        match value {
            EnvValue::Plain(text) => environment.insert(name, text),
            // Comes from a file; the image's own value must not be seen before.
            _ => environment.remove(name.as_str()),
        };
    }
    let pairs = environment.into_iter();
    pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn host_config(parts: &Parts<'_>) -> HostConfig {
    let Parts {
        spec,
        config,
        traits,
        ..
    } = parts;
    let resources = &spec.resources;
    let memory = resources.memory_bytes.unwrap_or(config.memory_bytes).get();
    let memory = i64::try_from(memory).unwrap_or(i64::MAX);
    let cpu = resources.cpu_milli.or(config.cpu_milli).map(|milli| {
        // The engine refuses more than there is.
        let milli = traits
            .cpu_milli
            .map_or(milli.get(), |all| milli.get().min(all));
        i64::from(milli) * 1_000_000
    });
    let hosts = addresses(spec)
        .into_iter()
        .map(|(host, address)| format!("{host}:{address}"));
    let can = &traits.limits;
    let port_start = "net.ipv4.ip_unprivileged_port_start";
    let groups = spec.supplementary_groups.iter().map(u32::to_string);
    let per_file = (config.log_bytes.get() / 2).max(4096);
    HostConfig {
        network_mode: Some("none".to_owned()),
        extra_hosts: Some(hosts.collect()),
        sysctls: Some(HashMap::from([(port_start.to_owned(), "0".to_owned())])),
        mounts: Some(mounts(parts)),
        tmpfs: Some(tmpfs(parts)),
        shm_size: i64::try_from(config.shm_bytes.get()).ok(),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(!spec.trust.writable_root),
        group_add: Some(groups.collect()),
        // What it cannot limit, an engine drops or refuses.
        memory: Some(memory).filter(|_| can.memory),
        memory_swap: Some(memory).filter(|_| can.memory),
        nano_cpus: cpu.filter(|_| can.cpu),
        pids_limit: Some(i64::from(resources.pids.unwrap_or(config.pids).get()))
            .filter(|_| can.pids),
        ulimits: (!traits.quirks.limits_by_init).then(|| ulimits(spec, config)),
        oom_score_adj: Some(500),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: traits
            .private_cgroup
            .then_some(HostConfigCgroupnsModeEnum::PRIVATE),
        device_requests: resources.gpu.map(|gpu| {
            vec![DeviceRequest {
                count: Some(match gpu {
                    Gpu::All => -1,
                    Gpu::Count(count) => i64::from(count.get()),
                }),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                ..Default::default()
            }]
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), per_file.to_string()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        privileged: Some(false),
        init: Some(false),
        ..Default::default()
    }
}

fn ulimits(spec: &RunSpec, config: &DockerConfig) -> Vec<ResourcesUlimits> {
    let limit = |name: &str, value: i64| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    };
    // Open files stay at the engine's own limit: it may not be able to raise it.
    let mut limits = vec![limit("core", 0)];
    if let Some(largest) = largest_file(spec, config) {
        limits.push(limit(
            "fsize",
            i64::try_from(largest.get()).unwrap_or(i64::MAX),
        ));
    }
    limits
}

/// The most bytes of one file, wherever it is: the largest that any place of this run may hold;
/// `None` if there is a place without a limit.
fn largest_file(spec: &RunSpec, config: &DockerConfig) -> Option<NonZeroU64> {
    let scratch = spec.mounts.iter().filter_map(|mount| match mount.source {
        MountSource::Scratch(limit) => Some(limit.unwrap_or(config.scratch_bytes)),
        _ => None,
    });
    let tmp = spec.resources.scratch_bytes.unwrap_or(config.scratch_bytes);
    let outputs = spec.outputs.values().map(|output| output.limit);
    let elsewhere = spec.mounts.iter().any(|mount| {
        mount.access == Access::ReadWrite
            && matches!(
                mount.source,
                MountSource::HostPath(_) | MountSource::Volume(_)
            )
    });
    let largest = outputs.chain(scratch).chain([tmp]).max();
    largest.filter(|_| !elsewhere && !spec.trust.writable_root)
}

fn tmpfs(parts: &Parts<'_>) -> HashMap<String, String> {
    let Parts {
        spec,
        config,
        image,
        ..
    } = parts;
    let options = |bytes: NonZeroU64| format!("exec,mode=1777,size={bytes}");
    let scratch = spec.resources.scratch_bytes.unwrap_or(config.scratch_bytes);
    // What the image declares as volumes would be writable without a limit.
    let declared = image.volumes.iter().map(|path| path.trim_end_matches('/'));
    let ours = declared.filter(|path| ContainerPath::new(*path).is_ok());
    let mut folders: HashMap<String, String> = ours
        .chain([TMP])
        .map(|path| (path.to_owned(), options(scratch)))
        .collect();
    if !spec.trust.writable_root {
        for path in parts.traits.quirks.writable_in_read_only_root {
            // A copy of what the image has there, which nobody can write to.
            let read_only = || format!("ro,mode=755,size={scratch}");
            folders.entry((*path).to_owned()).or_insert_with(read_only);
        }
    }
    let targets = spec.mounts.iter().map(|mount| &mount.target);
    for target in targets.chain(spec.outputs.values().map(|output| &output.path)) {
        folders.remove(target.as_str());
    }
    for mount in &spec.mounts {
        if let MountSource::Scratch(limit) = mount.source {
            let bytes = limit.unwrap_or(config.scratch_bytes);
            let mut options = options(bytes);
            let is_worked_in = spec.workdir.as_ref().is_some_and(|workdir| {
                std::path::Path::new(workdir.as_str()).starts_with(mount.target.as_str())
            });
            if is_worked_in
                && parts.traits.quirks.working_folder_keeps_mode
                && !spec.trust.image_user
            {
                options.push_str(&format!(",uid={},gid={}", config.uid, config.gid));
            }
            folders.insert(mount.target.to_string(), options);
        }
    }
    folders
}

fn mounts(parts: &Parts<'_>) -> Vec<Mount> {
    let Parts { spec, volume, .. } = parts;
    let mut mounts = vec![
        bind(&format!("{volume}/helper"), HELPER, true),
        bind(&format!("{volume}/out/claim"), CLAIM, false),
        bind(&format!("{volume}/out"), COLLECTED, true),
    ];
    if has_secret_environment(spec) {
        mounts.push(bind(&format!("{volume}/env"), ENV, true));
    }
    if let Some(sockets) = parts.sockets {
        mounts.push(bind(sockets, EGRESS, true));
    }
    for (index, output) in spec.outputs.values().enumerate() {
        let source = format!("{volume}/out/{index}");
        mounts.push(bind(&source, output.path.as_str(), false));
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let target = mount.target.as_str();
        let read_only = mount.access == Access::ReadOnly;
        match &mount.source {
            MountSource::Scratch(_) => {}
            MountSource::HostPath(path) => {
                let mut bind = bind(&path.to_string_lossy(), target, read_only);
                if let Some(options) = bind.bind_options.as_mut().filter(|_| read_only) {
                    // A read-only mount leaves what is mounted below it writable unless the
                    // engine is told otherwise; where it cannot be, that is left out.
                    if parts.traits.recursive_read_only {
                        options.read_only_force_recursive = Some(true);
                    } else {
                        options.non_recursive = Some(true);
                    }
                }
                mounts.push(bind);
            }
            MountSource::Volume(name) => mounts.push(Mount {
                typ: Some(MountType::VOLUME),
                source: Some(name.clone()),
                target: Some(target.to_owned()),
                read_only: Some(read_only),
                volume_options: Some(MountVolumeOptions {
                    no_copy: Some(true),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            _ if mount.access == Access::ReadWrite => {}
            _ => mounts.push(bind(&format!("{volume}/in/{index}"), target, true)),
        }
    }
    mounts
}

/// A bind mount by the API's newer form, which refuses a source that is not there instead of
/// making a folder.
fn bind(source: &str, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        // The engine chooses the propagation: private, and slave for what lies in its own folder
        // (volumes do), where it refuses anything stricter. Nothing mounted inside gets out.
        ..Default::default()
    }
}
