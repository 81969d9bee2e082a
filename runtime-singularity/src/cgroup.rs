//! Control groups of version 2 as limits of runs, where a part of their tree is this user's.
//!
//! Nobody but the owner of a part may divide it (systemd: `Delegate=yes`), and a group with groups below
//! it that have limits may have no processes itself. So this process is in one group of that part, which
//! is given to it or made here, and each run in another beside it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use v6_runtime::{Owner, Resources, RunId};

use crate::error::{Error, Result};

/// The group of this process, if it has to be made.
const OURS: &str = "node";
/// Of processor time, in microseconds.
const PERIOD: u64 = 100_000;
/// Processes that were killed are gone by then.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Which part of the tree of control groups is for runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlGroup {
    /// That of the service in which this process runs: the group above its own, or its own if nobody
    /// else is in there.
    Own,
    /// This folder below where version 2 is mounted. This process has to be in a group below it.
    At(PathBuf),
}

/// A part of the tree that is ready to be divided.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    root: PathBuf,
    pub(crate) cpu: bool,
    pub(crate) memory: bool,
}

impl Groups {
    /// Makes it ready. Blocks.
    pub(crate) fn find(which: &ControlGroup) -> Result<Self> {
        let root = match which {
            ControlGroup::At(path) => path.clone(),
            ControlGroup::Own => {
                let own = own_group()?;
                match own
                    .parent()
                    .filter(|parent| is_ours(parent) && is_empty(parent))
                {
                    Some(parent) => parent.to_owned(),
                    None => own,
                }
            }
        };
        if !is_ours(&root) {
            let why = format!(
                "the control group {} is not this user's to divide: run the node as a service of systemd \
                 with Delegate=yes and DelegateSubgroup={OURS}",
                root.display()
            );
            return Err(Error::Config(why));
        }
        leave(&root)?;
        let controllers = read(&root, "cgroup.controllers")?;
        let has = |name| controllers.split_whitespace().any(|it| it == name);
        let groups = Self {
            cpu: has("cpu"),
            memory: has("memory"),
            root,
        };
        let wanted = [("cpu", groups.cpu), ("memory", groups.memory)];
        for (name, _) in wanted.iter().filter(|(_, has)| *has) {
            write(&groups.root, "cgroup.subtree_control", &format!("+{name}"))?;
        }
        Ok(groups)
    }

    /// Whether any of these limits is kept by a group.
    pub(crate) const fn keep(&self, limits: &Resources) -> bool {
        self.cpu && limits.cpu_milli.is_some() || self.memory && limits.memory_bytes.is_some()
    }

    /// Where a run's group is.
    pub(crate) fn place(&self, owner: &Owner, run: &RunId) -> PathBuf {
        // Neither has a dot.
        self.root.join(format!("v6.{owner}.{run}"))
    }

    /// Makes a run's group, with its limits. What an earlier attempt has left there is removed. Blocks.
    pub(crate) fn make(&self, group: &Path, limits: &Resources) -> Result<()> {
        remove(group)?;
        fs::create_dir(group).map_err(Error::host(format!(
            "the control group {} cannot be made",
            group.display()
        )))?;
        if let Some(milli) = limits.cpu_milli.filter(|_| self.cpu) {
            let quota = u64::from(milli.get()) * PERIOD / 1000;
            // The kernel takes no less than a millisecond.
            let quota = quota.max(1000);
            write(group, "cpu.max", &format!("{quota} {PERIOD}"))?;
        }
        if let Some(bytes) = limits.memory_bytes.filter(|_| self.memory) {
            write(group, "memory.max", &bytes.to_string())?;
            // The limit is of both.
            if group.join("memory.swap.max").exists() {
                write(group, "memory.swap.max", "0")?;
            }
        }
        Ok(())
    }
}

/// Removes a run's group, and kills what is left in it. Blocks.
pub(crate) fn remove(group: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                write(group, "cgroup.kill", "1")?;
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(error) => {
                let what = format!("the control group {} cannot be removed", group.display());
                return Err(Error::host(what)(error));
            }
        }
    }
}

/// Where this process is.
fn own_group() -> Result<PathBuf> {
    let text = |path: &str| {
        fs::read_to_string(path).map_err(Error::host(format!("{path} cannot be read")))
    };
    let (mounts, groups) = (text("/proc/self/mountinfo")?, text("/proc/self/cgroup")?);
    place(&mounts, &groups).ok_or_else(|| {
        Error::Config("this machine has no control groups of version 2 (cgroup2)".into())
    })
}

/// The folder of the group that is named in `/proc/self/cgroup`.
fn place(mountinfo: &str, groups: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

/// Moves this process out of a group that is to be divided, if nobody else is in there.
fn leave(root: &Path) -> Result<()> {
    let there = read(root, "cgroup.procs")?;
    if there.trim().is_empty() {
        return Ok(());
    }
    if there.trim() != std::process::id().to_string() {
        let why = format!(
            "there are other processes in the control group {}, so that it cannot be divided: run the node \
             as a service of systemd with Delegate=yes and DelegateSubgroup={OURS}",
            root.display()
        );
        return Err(Error::Config(why));
    }
    let ours = root.join(OURS);
    match fs::create_dir(&ours) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            let what = format!("the control group {} cannot be made", ours.display());
            Err(Error::host(what)(error))
        }
        _ => write(&ours, "cgroup.procs", "0"),
    }
}

fn is_ours(group: &Path) -> bool {
    let may_write =
        |name: &str| rustix::fs::access(group.join(name), rustix::fs::Access::WRITE_OK).is_ok();
    may_write("") && may_write("cgroup.procs") && may_write("cgroup.subtree_control")
}

fn is_empty(group: &Path) -> bool {
    read(group, "cgroup.procs").is_ok_and(|there| there.trim().is_empty())
}

fn read(group: &Path, name: &str) -> Result<String> {
    let path = group.join(name);
    fs::read_to_string(&path).map_err(Error::host(format!("{} cannot be read", path.display())))
}

fn write(group: &Path, name: &str, text: &str) -> Result<()> {
    let path = group.join(name);
    fs::write(&path, text).map_err(Error::host(format!(
        "{text:?} cannot be written to {}",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found() {
        // As with systemd 257 and Linux 6.12, and beside version 1.
        let mounts = "25 22 0:22 / /proc rw - proc proc rw\n\
                      30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let place = |groups| place(mounts, groups);
        assert_eq!(
            place("0::/system.slice/v6-node.service/node\n"),
            Some("/sys/fs/cgroup/system.slice/v6-node.service/node".into())
        );
        assert_eq!(place("4:memory:/a\n0::/\n"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(place("4:memory:/a\n"), None);
        assert_eq!(super::place("", "0::/a\n"), None);
        // A container that sees a part of the tree.
        let part = "30 24 0:26 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            super::place(part, "0::/box/a\n"),
            Some("/sys/fs/cgroup/a".into())
        );
        assert_eq!(super::place(part, "0::/other\n"), None);
    }
}
