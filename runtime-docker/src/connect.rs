//! Connecting: what the engine is, and so what can be declared.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use v6_runtime::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};

use crate::about::About;
use crate::config::{DockerConfig, ORDINARY_ID};
use crate::container::Traits;
use crate::egress::Egress;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::quirks::Quirks;
use crate::state::Shared;
use crate::{host, lease};

/// Connects and settles what this runtime can do.
pub(crate) async fn connect(mut config: DockerConfig) -> Result<Arc<Shared>> {
    config.validate()?;
    let (mut engine, about) = Engine::connect(&config.host, config.call_timeout).await?;
    let quirks = Quirks::of(&about);
    engine.other_states = quirks.other_states;
    if about.system.as_deref().is_some_and(|os| os != "linux") {
        return Err(Error::Config(
            "the engine does not run Linux containers".into(),
        ));
    }
    if let Some(other) = other_architecture(&about) {
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
    let mut capabilities = capabilities(&about, &quirks, engine_folder.is_some(), &mut notices);
    if quirks.makes_missing_paths && engine_folder.as_deref() != folder.to_str() {
        // Nobody could tell that data is missing: the engine would make an empty folder.
        capabilities.mounts.host_path = false;
        let why = "paths of the host cannot be mounted: this process does not see the engine's";
        notices.push(why.to_owned());
    }
    let lease = lease::path(&folder, &engine_id(&about), &config.owner);
    let traits = traits(&about, quirks, capabilities.resources);
    let egress = Egress::new(folder, engine_folder);
    Ok(Arc::new(Shared::new(
        engine,
        about,
        config,
        capabilities,
        traits,
        notices,
        lease,
        egress,
    )))
}

/// The machine's architecture, if it is not the one that our helper runs on.
fn other_architecture(about: &About) -> Option<&str> {
    let machine = about.architecture.as_deref()?;
    (machine != v6_helper::ARCHITECTURE).then_some(machine)
}

/// What tells this engine from others of this machine.
fn engine_id(about: &About) -> String {
    match &about.id {
        Some(id) => id.clone(),
        // Where it keeps its things is its own.
        None => {
            let folder = about.folder.as_deref().unwrap_or_default();
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
    about: &About,
    quirks: &Quirks,
    egress: bool,
    notices: &mut Vec<String>,
) -> Capabilities {
    if !about.seccomp {
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
    resources.cpu = limit(about.limits.cpu, "processor time");
    resources.memory = limit(about.limits.memory, "memory");
    resources.pids = limit(about.limits.pids, "the number of processes");
    resources.scratch = true;
    resources.gpu = !quirks.device_requests_ignored && about.nvidia;
    let mut floor = Floor::all();
    floor.seccomp = about.seccomp;
    let mut outcomes = OutcomeKinds::all();
    outcomes.out_of_memory = resources.memory;
    let mut all = Capabilities::none();
    all.mounts = MountKinds::all();
    // Docker has them since 26.0 (API 1.45), Podman since 5.4: neither was tried.
    all.mounts.volume_part = false;
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
    all.init = true;
    all.trust = true;
    // They are for data files of a group of this machine, which such an engine cannot give.
    all.supplementary_groups = !quirks.rootless;
    all.pull = true;
    all.image_store = true;
    all
}

fn traits(about: &About, quirks: Quirks, limits: ResourceKinds) -> Traits {
    let api = about.api.as_ref();
    let api = api.map_or((0, 0), |api| (api.major_version, api.minor_version));
    let cpu_milli = about.processors.and_then(|number| number.checked_mul(1000));
    Traits {
        recursive_read_only: api >= (1, 44),
        private_cgroup: api >= (1, 41) && about.control_groups == Some(2),
        cpu_milli: cpu_milli.filter(|n| *n > 0),
        limits,
        quirks,
    }
}
