//! Connecting: what the engine is, and so what can be declared.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum};
use v6_runtime::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};

use crate::config::DockerConfig;
use crate::container::Traits;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::state::Shared;
use crate::{host, lease};

/// Connects and settles what this runtime can do.
pub(crate) async fn connect(config: DockerConfig) -> Result<Arc<Shared>> {
    config.validate()?;
    let engine = Engine::connect(&config.host, config.call_timeout).await?;
    let info = engine.info().await?;
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
    let folder = config.runtime_dir.clone();
    private_folder(&folder)?;
    let engine_folder = match engine_folder(&engine, &folder).await? {
        Ok(path) => Some(path),
        Err(why) => {
            notices.push(format!("granted connections are not possible: {why}"));
            None
        }
    };
    let capabilities = capabilities(&info, engine_folder.is_some(), &mut notices);
    let traits = traits(&engine, &info);
    let id = info.id.as_deref().filter(|id| !id.is_empty());
    let lease = lease::path(&folder, id.unwrap_or("engine"), &config.owner);
    let egress = Egress::new(folder, engine_folder);
    Ok(Arc::new(Shared::new(
        engine,
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
    let seen = host::is_seen(engine, &format!("v6-{nonce}"), &format!("{path}/{nonce}")).await;
    std::fs::remove_dir(&probe).map_err(failed)?;
    Ok(if seen? {
        Ok(path)
    } else {
        Err(format!(
            "the engine does not see {path}: is it on another machine?"
        ))
    })
}

fn capabilities(info: &SystemInfo, egress: bool, notices: &mut Vec<String>) -> Capabilities {
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
    resources.cpu = limit(info.cpu_cfs_quota, "processor time");
    resources.memory = limit(info.memory_limit, "memory");
    resources.pids = limit(info.pids_limit, "the number of processes");
    resources.scratch = true;
    resources.gpu = info
        .runtimes
        .iter()
        .flatten()
        .any(|(name, _)| name == "nvidia");
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
    all.supplementary_groups = true;
    all.pull = true;
    all
}

fn traits(engine: &Engine, info: &SystemInfo) -> Traits {
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
    }
}
