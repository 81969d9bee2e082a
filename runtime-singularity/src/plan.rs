//! From a spec to a container: its files, its mounts, the command line of `init`. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use v6_helper::{InitOptions, Listener, MonitorOptions};
use v6_runtime::{
    Access, ContainerPath, EnvValue, InputStream, Mount, MountSource, OutputKind, RunSpec,
    StartFailure, StartFailureCause,
};

use crate::config::SingularityConfig;
use crate::engine::{Bind, Container};
use crate::gpu;
use crate::image::Ready;
use crate::record::Place;

/// Where our own things are inside a container; the folder is the monitor's `box`.
pub(crate) const HELPER: &str = "/.v6/helper";
const TMP: &str = "/tmp";
const SHM: &str = "/dev/shm";
/// What every container has, and no image may put anything in its place; a spec is checked for it by
/// the contract.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/.v6"];
/// What an image gets that says nothing itself, as everywhere.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file or folder to be made before the start.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    pub(crate) content: Content,
}

/// What is in it.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Folder,
    Bytes(Bytes),
    Stream(InputStream),
}

/// The files of a run, in an order in which they can be made; the image need not be known.
pub(crate) fn files(spec: &RunSpec, place: &Place) -> Vec<Entry> {
    let folder = |path: PathBuf, mode| Entry {
        path,
        mode,
        content: Content::Folder,
    };
    let mut entries: Vec<Entry> = ["in", "out", "scratch"]
        .map(|name| folder(place.file(name), 0o700))
        .into();
    entries.push(folder(place.inside("egress"), 0o755));
    let empty = |path: PathBuf, mode| Entry {
        path,
        mode,
        content: Content::Bytes(Bytes::new()),
    };
    entries.push(empty(place.claim(), 0o600));
    entries.push(empty(place.inside("claim"), 0o600));
    entries.push(empty(place.file("empty"), 0o444));
    let hosts = Content::Bytes(hosts(spec).into());
    entries.push(Entry {
        path: place.file("hosts"),
        mode: 0o444,
        content: hosts,
    });
    for (index, output) in spec.outputs.values().enumerate() {
        entries.push(match output.kind {
            OutputKind::Folder => folder(place.output(index), 0o755),
            _ => empty(place.output(index), 0o644),
        });
    }
    for index in 0..scratch_folders(spec) {
        entries.push(folder(place.scratch(index), 0o777));
    }
    // What is mounted on a folder of ours needs a place in it.
    for (target, is_folder) in targets(spec) {
        let Some((outer, relative)) = enclosing(spec, place, target) else {
            continue;
        };
        for (end, _) in relative.match_indices('/') {
            entries.push(folder(outer.join(&relative[..end]), 0o755));
        }
        entries.push(match is_folder {
            true => folder(outer.join(relative), 0o755),
            false => empty(outer.join(relative), 0o644),
        });
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let content = match &mount.source {
            MountSource::Inline(bytes) => Content::Bytes(bytes.clone()),
            MountSource::Secret(secret) => {
                Content::Bytes(Bytes::copy_from_slice(secret.expose().as_bytes()))
            }
            MountSource::Stream(stream) => Content::Stream(stream.clone()),
            _ => continue,
        };
        let begun = begins_output(spec, place, mount);
        let mode = match begun {
            Some(_) => 0o644,
            None => 0o444,
        };
        entries.push(Entry {
            path: begun.unwrap_or_else(|| place.input(index)),
            mode,
            content,
        });
    }
    entries
}

/// Given content that the run may change is the beginning of a folder output: where it is there.
fn begins_output(spec: &RunSpec, place: &Place, mount: &Mount) -> Option<PathBuf> {
    if mount.access != Access::ReadWrite || !mount.is_given() {
        return None;
    }
    let (folder, relative) = enclosing(spec, place, &mount.target)?;
    Some(folder.join(relative))
}

/// All places that something is mounted on, and whether it is a folder as far as the spec tells.
fn targets(spec: &RunSpec) -> impl Iterator<Item = (&ContainerPath, bool)> {
    let mounts = spec.mounts.iter().map(|mount| {
        let is_folder = match &mount.source {
            MountSource::Scratch(_) => true,
            MountSource::HostPath(path) => path.is_dir(),
            _ => false,
        };
        (&mount.target, is_folder)
    });
    let outputs = spec.outputs.values();
    mounts.chain(outputs.map(|output| (&output.path, output.kind == OutputKind::Folder)))
}

/// The folder of ours that is mounted nearest above a place, and the rest of the way.
fn enclosing<'a>(
    spec: &'a RunSpec,
    place: &Place,
    target: &'a ContainerPath,
) -> Option<(PathBuf, &'a str)> {
    let outputs = spec.outputs.values().enumerate();
    let outputs = outputs.filter(|(_, output)| output.kind == OutputKind::Folder);
    let outputs = outputs.map(|(index, output)| (place.output(index), output.path.as_str()));
    let scratch = scratch(spec).enumerate();
    let scratch = scratch.map(|(index, (path, _))| (place.scratch(index), path));
    let below = |(folder, path): (PathBuf, &'a str)| {
        let rest = target.as_str().strip_prefix(path)?.strip_prefix('/')?;
        Some((folder, rest))
    };
    let around = outputs.chain(scratch).filter_map(below);
    around.min_by_key(|(_, rest)| rest.len())
}

/// The folders in memory that the spec and the floor ask for; the image may ask for more. The first
/// is the temporary folder, unless the spec has something else there.
fn scratch(spec: &RunSpec) -> impl Iterator<Item = (&str, Option<NonZeroU64>)> {
    let has_tmp = targets(spec).any(|(target, _)| target.as_str() == TMP);
    let tmp = (!has_tmp).then_some((TMP, spec.resources.scratch_bytes));
    let asked = spec.mounts.iter().filter_map(|mount| match mount.source {
        MountSource::Scratch(limit) => Some((mount.target.as_str(), limit)),
        _ => None,
    });
    tmp.into_iter().chain(asked)
}

fn scratch_folders(spec: &RunSpec) -> usize {
    scratch(spec).count()
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

fn hosts(spec: &RunSpec) -> String {
    let own = "127.0.0.1\tlocalhost\n127.0.0.1\trun\n".to_owned();
    let granted = addresses(spec).into_iter();
    own + &granted
        .map(|(host, address)| format!("{address}\t{host}\n"))
        .collect::<String>()
}

/// What a run's container is made of.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) container: Container,
    /// The command line inside.
    pub(crate) init: Vec<String>,
    pub(crate) monitor: MonitorOptions,
    /// Files that depend on the image.
    pub(crate) files: Vec<Entry>,
}

/// Everything but the image's path.
pub(crate) fn plan(
    spec: &RunSpec,
    place: &Place,
    image: &Ready,
    config: &SingularityConfig,
    seccomp: &Path,
) -> Result<Plan, StartFailure> {
    let engine = |error: &dyn std::fmt::Display| {
        StartFailure::new(StartFailureCause::Engine, error.to_string())
    };
    let command = command(spec, image)?;
    let mut files = vec![strings(place.inside("command"), &command)];
    files.push(strings(place.inside("env"), &environment(spec, image)));
    let mut init = InitOptions::new()
        .with_claim("/.v6/claim")
        .with_output("/.v6/stdout", "/.v6/stderr")
        .with_env_file("/.v6/env")
        .with_clear_env(!image.native)
        .with_stop_file("/.v6/stop")
        .with_core_bytes(0)
        .with_processes(u64::from(spec.resources.pids.unwrap_or(config.pids).get()));
    if let Some(bytes) = largest_file(spec, config) {
        init = init.with_file_bytes(bytes.get());
    }
    let workdir = spec.workdir.as_ref().map(|path| path.as_str());
    let workdir = workdir.or(image.description.workdir.as_deref());
    init = init.with_workdir(workdir.unwrap_or("/"));
    let addresses = addresses(spec);
    for (index, grant) in spec.egress.iter().enumerate() {
        let address = SocketAddrV4::new(addresses[grant.host.as_str()], grant.port);
        let socket = format!("/.v6/egress/{index}.sock");
        init = init.with_listener(Listener::new(address, socket));
    }
    let init = init
        .command_line_of_file(HELPER, "/.v6/command")
        .map_err(|error| engine(&error))?;
    let mut monitor = MonitorOptions::default()
        .with_grace(spec.grace)
        .with_log_bytes(config.log_bytes.get());
    if let Some(deadline) = spec.deadline {
        monitor = monitor.with_deadline(deadline);
    }
    let mut binds = Vec::new();
    let mut memory = |index: usize, target: &str, limit: Option<NonZeroU64>| {
        let folder = place.scratch(index);
        let bytes = limit.unwrap_or(config.scratch_bytes).get();
        monitor.tmpfs.push((folder.clone(), bytes));
        Ok::<_, StartFailure>(Bind {
            source: text(&folder)?,
            target: target.to_owned(),
            read_only: false,
        })
    };
    let mut next = 0;
    for (target, limit) in scratch(spec) {
        binds.push(memory(next, target, limit)?);
        next += 1;
    }
    // What the image declares as volumes would not be writable at all.
    for target in &image.description.volumes {
        let target = target.trim_end_matches('/');
        let taken = targets(spec).any(|(other, _)| other.as_str() == target) || target == TMP;
        if is_free(target) && !taken {
            files.push(folder_entry(place.scratch(next)));
            binds.push(memory(next, target, None)?);
            next += 1;
        }
    }
    files.push(folder_entry(place.scratch(next)));
    binds.push(memory(next, SHM, Some(config.shm_bytes))?);
    let bind = |source: &Path, target: &str, read_only| {
        Ok::<_, StartFailure>(Bind {
            source: text(source)?,
            target: target.to_owned(),
            read_only,
        })
    };
    for (index, output) in spec.outputs.values().enumerate() {
        binds.push(bind(&place.output(index), output.path.as_str(), false)?);
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let target = mount.target.as_str();
        match &mount.source {
            MountSource::HostPath(path) => {
                binds.push(bind(path, target, mount.access == Access::ReadOnly)?);
            }
            MountSource::Inline(_) | MountSource::Secret(_) | MountSource::Stream(_)
                if begins_output(spec, place, mount).is_none() =>
            {
                binds.push(bind(&place.input(index), target, true)?);
            }
            _ => {}
        }
    }
    // What is inside comes after what it is in.
    binds.sort_by_key(|bind| bind.target.matches('/').count());
    let inside = place.0.inside();
    binds.extend([
        bind(&inside, "/.v6", true)?,
        bind(&place.claim(), "/.v6/claim", false)?,
        bind(&place.file("hosts"), "/etc/hosts", true)?,
        bind(&place.file("empty"), "/etc/resolv.conf", true)?,
    ]);
    Ok(Plan {
        container: Container {
            binds,
            seccomp: seccomp.to_owned(),
            gpu: config.gpu.filter(|_| spec.resources.gpu.is_some()),
        },
        init,
        monitor,
        files,
    })
}

/// Whether a path, of an image, is one on which anything may be mounted.
fn is_free(target: &str) -> bool {
    let reserved = |folder: &str| {
        let rest = target.strip_prefix(folder);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ContainerPath::new(target).is_ok() && !RESERVED.iter().any(|folder| reserved(folder))
}

fn folder_entry(path: PathBuf) -> Entry {
    Entry {
        path,
        mode: 0o777,
        content: Content::Folder,
    }
}

fn text(path: &Path) -> Result<String, StartFailure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("{} is not UTF-8", path.display());
        StartFailure::new(StartFailureCause::MountUnusable, message)
    })
}

/// Strings, each ended by a NUL, for this user alone.
fn strings(path: PathBuf, all: &[String]) -> Entry {
    let mut bytes = Vec::new();
    for one in all {
        bytes.extend_from_slice(one.as_bytes());
        bytes.push(0);
    }
    Entry {
        path,
        mode: 0o400,
        content: Content::Bytes(bytes.into()),
    }
}

fn command(spec: &RunSpec, image: &Ready) -> Result<Vec<String>, StartFailure> {
    let described = &image.description;
    let mut command = match &spec.command {
        Some(command) => command.clone(),
        None => described.entrypoint.clone(),
    };
    if spec.command.is_none() && spec.args.is_empty() {
        command.extend_from_slice(&described.cmd);
    } else {
        command.extend_from_slice(&spec.args);
    }
    if command.is_empty() {
        let message = "neither the image nor the run names a command";
        let cause = StartFailureCause::CommandNotFound;
        return Err(StartFailure::new(cause, message));
    }
    Ok(command)
}

fn environment(spec: &RunSpec, image: &Ready) -> Vec<String> {
    let mut all = BTreeMap::new();
    if !image.native {
        all.insert("PATH", DEFAULT_PATH);
    }
    let own = image.description.env.iter();
    all.extend(own.filter_map(|pair| pair.split_once('=')));
    all.extend([("HOME", TMP), ("TMPDIR", TMP)]);
    for (name, value) in &spec.env {
        let value = match value {
            EnvValue::Secret(secret) => secret.expose(),
            EnvValue::Plain(text) => text,
            _ => continue,
        };
        all.insert(name, value);
    }
    // `init` starts without what the engine puts there for the driver.
    let libraries = match all.get("LD_LIBRARY_PATH") {
        Some(own) => format!("{own}:{}", gpu::LIBRARIES),
        None => gpu::LIBRARIES.to_owned(),
    };
    if spec.resources.gpu.is_some() && !image.native {
        all.insert("LD_LIBRARY_PATH", &libraries);
    }
    // An image can write what no program can have.
    let usable = all
        .into_iter()
        .filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'));
    usable
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// The most bytes of one file, wherever it is: the largest that any place of this run may hold;
/// `None` if there is a place without a limit.
fn largest_file(spec: &RunSpec, config: &SingularityConfig) -> Option<NonZeroU64> {
    let elsewhere = spec.mounts.iter().any(|mount| {
        mount.access == Access::ReadWrite && matches!(mount.source, MountSource::HostPath(_))
    });
    let scratch = scratch(spec).map(|(_, limit)| limit.unwrap_or(config.scratch_bytes));
    let outputs = spec.outputs.values().map(|output| output.limit);
    let ours = [config.scratch_bytes, config.shm_bytes];
    scratch
        .chain(outputs)
        .chain(ours)
        .max()
        .filter(|_| !elsewhere)
}

/// Why a path of the machine cannot be mounted, if so.
pub(crate) fn unusable(mount: &Mount, mountinfo: &str) -> Option<String> {
    let MountSource::HostPath(path) = &mount.source else {
        return None;
    };
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) => return Some(format!("{shown}: {error}")),
        Ok(_) if !path.is_absolute() => return Some(format!("{shown} is not an absolute path")),
        Ok(_) => {}
    }
    // A read-only mount would leave what is mounted below it writable.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let below = |point: &str| {
        let point = Path::new(point);
        point != real && point.starts_with(&real)
    };
    let mut points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let inner = points.find(|point| below(&unescape(point)))?;
    (mount.access == Access::ReadOnly)
        .then(|| format!("{shown} has {inner} mounted below it, which could not be made read-only"))
}

/// `mountinfo` writes spaces, tabs, line ends and backslashes as octal numbers.
fn unescape(text: &str) -> String {
    let pairs = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let plain = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
    pairs.iter().fold(text.to_owned(), plain)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
