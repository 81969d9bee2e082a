//! Connecting: what the engine is, and so what can be declared.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum};
use sha2::{Digest, Sha256};
use v6_runtime::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};

use crate::config::{DockerConfig, ORDINARY_ID};
use crate::container::Traits;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::quirks::{Kind, Quirks};
use crate::state::Shared;
use crate::{host, lease};

/// Connects and settles what this runtime can do.
pub(crate) async fn connect(mut config: DockerConfig) -> Result<Arc<Shared>> {
    config.validate()?;
    let (mut engine, version) = Engine::connect(&config.host, config.call_timeout).await?;
    let info = engine.info().await?;
    let kind = Kind::of(&version);
    let podman = match kind {
        Kind::Docker => None,
        Kind::Podman => Some(engine.podman_info().await?),
    };
    let quirks = Quirks::of(&info, podman.as_ref());
    engine.other_states = quirks.other_states;
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return Err(Error::Config(
            "the engine does not run Linux containers".into(),
        ));
    }
    if let Some(other) = other_architecture(&info) {
        return Err(Error::Config(format!(
            "the engine's machine is {other}, and this program is built for {}",
            v6_helper::ARCHITECTURE
        )));
    }
    let mut notices = Vec::new();
    settle_user(&mut config, &quirks, &mut notices)?;
    let folder = config.runtime_dir.clone();
    private_folder(&folder)?;
    let engine_folder = match engine_folder(&engine, &folder).await? {
        Ok(path) => Some(path),
        Err(why) => {
            notices.push(format!("granted connections are not possible: {why}"));
            None
        }
    };
    let mut capabilities = capabilities(&info, &quirks, engine_folder.is_some(), &mut notices);
    if quirks.makes_missing_paths && engine_folder.as_deref() != folder.to_str() {
        // Nobody could tell that data is missing: the engine would make an empty folder.
        capabilities.mounts.host_path = false;
        let why = "paths of the host cannot be mounted: this process does not see the engine's";
        notices.push(why.to_owned());
    }
    let lease = lease::path(&folder, &engine_id(&info, &quirks), &config.owner);
    let traits = traits(&engine, &info, quirks, capabilities.resources);
    let egress = Egress::new(folder, engine_folder);
    Ok(Arc::new(Shared::new(
        engine,
        kind,
        config,
        capabilities,
        traits,
        notices,
        lease,
        egress,
    )))
}

/// The machine's architecture, if it is not the one that our helper runs on.
fn other_architecture(info: &SystemInfo) -> Option<&str> {
    let machine = info.architecture.as_deref()?;
    let oci = match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (oci != v6_helper::ARCHITECTURE).then_some(machine)
}

/// What tells this engine from others of this machine.
fn engine_id(info: &SystemInfo, quirks: &Quirks) -> String {
    let id = info.id.as_deref().filter(|_| !quirks.id_changes);
    match id.filter(|id| !id.is_empty()) {
        Some(id) => id.to_owned(),
        // Where it keeps its things is its own.
        None => {
            let folder = info.docker_root_dir.as_deref().unwrap_or_default();
            let digest = Sha256::digest(folder.as_bytes());
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        }
    }
}

fn private_folder(folder: &Path) -> Result<()> {
    let failed = |error| Error::host(format!("runtime_dir {}", folder.display()), error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700)).map_err(failed)
}

/// The engine's path of the folder, once it is shown to be the same folder.
async fn engine_folder(engine: &Engine, folder: &Path) -> Result<Result<String, String>> {
    let path = match host::engine_path(engine, folder).await? {
        Ok(path) => path,
        Err(why) => return Ok(Err(why)),
    };
    // A name that nobody could have made by chance, on whatever machine the engine is.
    let nonce = format!("probe-{:032x}", rand::random::<u128>());
    let probe = folder.join(&nonce);
    let failed = |error| Error::host(format!("runtime_dir {}", folder.display()), error);
    std::fs::create_dir(&probe).map_err(failed)?;
    std::fs::write(probe.join(host::INSIDE), b"").map_err(failed)?;
    let seen = host::is_seen(engine, &format!("v6-{nonce}"), &format!("{path}/{nonce}")).await;
    std::fs::remove_dir_all(&probe).map_err(failed)?;
    Ok(if seen? {
        Ok(path)
    } else {
        Err(format!(
            "the engine does not see {path}: is it on another machine?"
        ))
    })
}

/// An ordinary user's engine has a range of ids only: runs get one that it has.
fn settle_user(
    config: &mut DockerConfig,
    quirks: &Quirks,
    notices: &mut Vec<String>,
) -> Result<()> {
    if quirks.outside(config.uid, config.gid).is_none() {
        (config.uid, config.gid) = (ORDINARY_ID, ORDINARY_ID);
    }
    let Some((uid, gid)) = quirks.outside(config.uid, config.gid) else {
        return Err(Error::Config(format!(
            "the engine has no user id {} for runs: give its user at least 65536 ids in \
             /etc/subuid and /etc/subgid",
            config.uid
        )));
    };
    if quirks.rootless {
        let who = if (uid, gid) == (config.uid.into(), config.gid.into()) {
            "other ids than those inside".to_owned()
        } else {
            format!("user id {uid} and group id {gid}")
        };
        notices.push(format!(
            "the engine is an ordinary user's: to this machine's files, runs have {who}, and they \
             read only what everybody may read"
        ));
    }
    Ok(())
}

fn capabilities(
    info: &SystemInfo,
    quirks: &Quirks,
    egress: bool,
    notices: &mut Vec<String>,
) -> Capabilities {
    let security = info.security_options.as_deref().unwrap_or_default();
    let seccomp = security
        .iter()
        .any(|option| option.contains("name=seccomp") && !option.contains("unconfined"));
    if !seccomp {
        notices.push("the engine filters no system calls (seccomp)".into());
    }
    let mut limit = |has: Option<bool>, what: &str| {
        let has = has != Some(false);
        if !has {
            notices.push(format!("the engine cannot limit {what}"));
        }
        has
    };
    let mut resources = ResourceKinds::default();
    let told = quirks.limits;
    let (cpu, memory, pids) = match told {
        Some(told) => (Some(told.cpu), Some(told.memory), Some(told.pids)),
        None => (info.cpu_cfs_quota, info.memory_limit, info.pids_limit),
    };
    resources.cpu = limit(cpu, "processor time");
    resources.memory = limit(memory, "memory");
    resources.pids = limit(pids, "the number of processes");
    resources.scratch = true;
    let has_nvidia = |(name, _): (&String, &_)| name == "nvidia";
    resources.gpu =
        !quirks.device_requests_ignored && info.runtimes.iter().flatten().any(has_nvidia);
    let mut floor = Floor::all();
    floor.seccomp = seccomp;
    let mut outcomes = OutcomeKinds::all();
    outcomes.out_of_memory = resources.memory;
    let mut all = Capabilities::none();
    all.mounts = MountKinds::all();
    all.outputs = OutputKinds::all();
    all.resources = resources;
    all.logs = LogFeatures::all();
    // The log driver json-file, the default, keeps text: what is no UTF-8 becomes U+FFFD.
    all.logs.binary = false;
    all.outcomes = outcomes;
    all.floor = floor;
    all.egress = egress;
    all.deadline = true;
    all.grace = true;
    all.trust = true;
    // They are for data files of a group of this machine, which such an engine cannot give.
    all.supplementary_groups = !quirks.rootless;
    all.pull = true;
    all
}

fn traits(engine: &Engine, info: &SystemInfo, quirks: Quirks, limits: ResourceKinds) -> Traits {
    let version = engine.docker.client_version();
    let api = (version.major_version, version.minor_version);
    let cpu_milli = info
        .ncpu
        .and_then(|n| u32::try_from(n.checked_mul(1000)?).ok());
    Traits {
        recursive_read_only: api >= (1, 44),
        private_cgroup: api >= (1, 41)
            && info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2),
        cpu_milli: cpu_milli.filter(|n| *n > 0),
        limits,
        quirks,
    }
}
