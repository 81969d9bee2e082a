//! Finding out what this machine can do, by doing it once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use v6_helper::{MonitorOptions, RunFolder, Sight, Verdict};
use v6_runtime::{Capabilities, ErrorKind};

use crate::cgroup::Groups;
use crate::config::SingularityConfig;
use crate::engine::Engine;
use crate::error::{Error, Result, blocking};
use crate::image::Images;
use crate::record::{Runs, make_private, write_new};
use crate::remove::remove_tree;
use crate::slurm::Slurm;
use crate::state::{Settled, Shared};

const SECCOMP: &str = include_str!("seccomp.json");
/// Kernels from here on count the processes of a user name space by itself.
const COUNTED_APART: (u32, u32) = (5, 14);
/// The trial takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Settles everything, and makes the folders.
pub(crate) async fn connect(config: SingularityConfig) -> Result<Arc<Shared>> {
    config.validate()?;
    if rustix::process::geteuid().is_root() {
        let why = "Apptainer's containers would be root's: start this as an ordinary user";
        return Err(Error::Config(why.into()));
    }
    let runs = Runs::new(&config.owner, &config.folder);
    let helper = {
        let (runs, folder) = (runs.clone(), config.folder.clone());
        blocking(move || {
            runs.make()?;
            place_program(&folder)
        })
        .await?
    };
    let seccomp = config.folder.join("seccomp.json");
    {
        let (path, folder) = (seccomp.clone(), config.folder.clone());
        blocking(move || replace(&folder, &path, SECCOMP.as_bytes(), 0o600)).await?;
    }
    let program = config.program.as_deref();
    let engine = Engine::find(program, &config.folder, config.call_timeout).await?;
    let images = Images::new(&config, engine.clone())?;
    let mut notices = Vec::new();
    let mut capabilities = capabilities();
    let slurm = match &config.slurm {
        Some(slurm) => Some(Slurm::find(slurm.clone(), &config.owner).await?),
        None => None,
    };
    let mut groups = None;
    match &slurm {
        Some(slurm) => {
            let gpus = config.gpu.is_some();
            with_slurm(slurm, gpus, &mut capabilities, &mut notices).await?;
        }
        None => {
            try_namespaces(&helper, &config.folder).await?;
            if let Some(kind) = config.gpu {
                kind.find()?;
                capabilities.resources.gpu = true;
            }
            if let Some(which) = config.cgroup.clone() {
                groups = Some(blocking(move || Groups::find(&which)).await?);
            }
            let kept = groups.as_ref();
            capabilities.resources.cpu = kept.is_some_and(|groups| groups.cpu);
            capabilities.resources.memory = kept.is_some_and(|groups| groups.memory);
            capabilities.outcomes.out_of_memory = capabilities.resources.memory;
            let kinds = [
                ("memory", capabilities.resources.memory),
                ("processors", capabilities.resources.cpu),
            ];
            let missing = kinds.iter().filter(|(_, kept)| !kept);
            let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
            if !missing.is_empty() {
                notices.push(format!(
                    "not limited: {} of runs, for which there is no control group of our own",
                    missing.join(" and ")
                ));
            }
        }
    }
    let release = kernel_release();
    if kernel(&release).is_none_or(|found| found < COUNTED_APART) {
        capabilities.resources.pids = false;
        notices.push(format!(
            "the kernel {release} counts processes by user and not by run: no limit on them"
        ));
    }
    Ok(Arc::new(Shared::new(Settled {
        config,
        engine,
        images,
        runs,
        groups,
        slurm,
        helper,
        seccomp,
        capabilities,
        notices,
    })))
}

/// What changes where runs are jobs.
async fn with_slurm(
    slurm: &Slurm,
    gpus: bool,
    all: &mut Capabilities,
    notices: &mut Vec<String>,
) -> Result<()> {
    let confined = slurm.confinement().await?;
    all.resources.memory = confined.memory;
    all.resources.gpu = gpus && confined.devices;
    if gpus && !confined.devices {
        notices.push(
            "runs get no accelerators: this site's Slurm does not confine jobs to those that they ask \
             for (ConstrainDevices)"
                .into(),
        );
    }
    all.outcomes.out_of_memory = all.resources.memory;
    if !all.resources.memory {
        notices.push(
            "memory of runs is not limited: this site's Slurm does not confine jobs to what they ask \
             for (ConstrainRAMSpace)"
                .into(),
        );
    }
    all.egress = slurm.config.listen.is_some();
    if !all.egress {
        notices.push(
            "runs reach nobody: no address is set where compute nodes find this process".into(),
        );
    }
    Ok(())
}

fn capabilities() -> Capabilities {
    let mut all = Capabilities::none();
    all.mounts.stream = true;
    all.mounts.host_path = true;
    all.mounts.scratch = true;
    all.mounts.scratch_limit = true;
    all.outputs.file = true;
    all.outputs.folder = true;
    all.resources.pids = true;
    all.resources.scratch = true;
    all.logs.follow = true;
    all.logs.since = true;
    all.logs.split = true;
    all.logs.binary = true;
    all.outcomes.signaled = true;
    all.outcomes.cancelled = true;
    all.outcomes.evicted = true;
    all.outcomes.command_not_found = true;
    all.floor.non_root = true;
    all.floor.no_capabilities = true;
    all.floor.no_new_privileges = true;
    all.floor.seccomp = true;
    all.floor.read_only_root = true;
    all.floor.no_network = true;
    all.floor.only_loopback = true;
    all.floor.private = true;
    all.egress = true;
    all.deadline = true;
    all.grace = true;
    all.init = true;
    all.pull = true;
    all.image_store = true;
    all
}

/// Which kernel this is; nothing if it does not tell.
pub(crate) fn kernel_release() -> String {
    let read = fs::read_to_string("/proc/sys/kernel/osrelease");
    read.unwrap_or_default().trim().to_owned()
}

/// The first two numbers of a kernel's release.
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Our own program as a file, under a name that says which it is: runs of an earlier version go on
/// with theirs.
fn place_program(folder: &Path) -> Result<PathBuf> {
    let programs = folder.join("program");
    let path = programs.join(v6_helper::SHA256);
    let failed = || Error::host(format!("{} cannot be made", path.display()));
    make_private(&programs).map_err(failed())?;
    let whole = fs::metadata(&path).is_ok_and(|about| {
        about.len() == v6_helper::PROGRAM.len() as u64
            && about.permissions().mode() & 0o500 == 0o500
    });
    if !whole {
        replace(&programs, &path, v6_helper::PROGRAM, 0o500)?;
    }
    Ok(path)
}

/// Writes a file under another name, and renames it.
fn replace(folder: &Path, path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let temporary = folder.join(format!(".new-{:016x}", rand::random::<u64>()));
    let made = write_new(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made.map_err(Error::host(format!("{} cannot be made", path.display())))
}

/// Whether this user may make the name spaces that every run gets: an error that says what to do
/// if not.
async fn try_namespaces(helper: &Path, folder: &Path) -> Result<()> {
    let helper = helper.to_owned();
    let place = folder.join(format!(".trial-{:016x}", rand::random::<u64>()));
    blocking(move || {
        let tried = trial(&helper, &place);
        let removed = remove_tree(&place);
        removed.map_err(Error::host(format!(
            "{} cannot be removed",
            place.display()
        )))?;
        match tried? {
            Verdict::Exited(0) => Ok(()),
            Verdict::Failed(why) => Err(v6_runtime::Error::new(
                ErrorKind::Denied,
                format!(
                    "runs cannot be isolated here: {why}; allow this user to make user name spaces \
                     (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                     kernel.apparmor_restrict_unprivileged_userns)"
                ),
            )
            .into()),
            other => Err(v6_runtime::Error::new(
                ErrorKind::Unexpected,
                format!("a trial of the isolation ended with {other:?}"),
            )
            .into()),
        }
    })
    .await
}

fn trial(helper: &Path, place: &Path) -> Result<Verdict> {
    let failed = || Error::host(format!("a trial in {} cannot be made", place.display()));
    make_private(place).map_err(failed())?;
    let run = RunFolder::new(place);
    run.prepare().map_err(failed())?;
    let lock = run.lock().map_err(failed())?;
    let lock = lock.ok_or_else(|| Error::Config("a folder of a random name is taken".into()))?;
    let options = MonitorOptions::default().with_deadline(SystemTime::now() + PATIENCE);
    let command = [helper.as_os_str().to_owned(), "--version".into()];
    run.launch(helper, &options, &command, &[], &lock)?;
    drop(lock);
    let until = SystemTime::now() + PATIENCE;
    loop {
        match run.look().map_err(failed())? {
            Sight::Ended(ended) => return Ok(ended.verdict),
            _ if SystemTime::now() > until => {
                return Err(Error::Timeout {
                    step: "a trial of the isolation",
                    after: PATIENCE,
                });
            }
            // Nobody tells us yet when it is over.
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(kernel("6.18.44-fc"), Some((6, 18)));
        assert!(kernel("5.4.0-150-generic") < Some(COUNTED_APART));
        assert_eq!(kernel("x"), None);
    }

    #[test]
    fn the_profile_is_readable() {
        let profile: serde_json::Value = serde_json::from_str(SECCOMP).expect("JSON");
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ALLOW");
    }
}
