//! From a spec to what is mounted where, in the program and in the helper. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource, ProjectedVolumeSource,
    SecretProjection, SecretVolumeSource, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use v6_runtime::{Access, ContainerPath, MountSource, OutputKind, RunSpec, VolumePath};

use crate::claim;
use crate::contents::{KEY, given_key};
use crate::pod::{Parts, TMP};
use crate::record;

/// The volume that the outputs are on.
pub(crate) const OUT: &str = "out";
/// Where the helper has the claims in which it looks for something.
const VOLUMES_DIR: &str = "/v6/volumes";

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

pub(crate) fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
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

/// Which claim a mount is of.
pub(crate) fn claim_of(source: &MountSource) -> Option<&str> {
    match source {
        MountSource::Volume(claim) | MountSource::VolumePart(claim, _) => Some(claim),
        _ => None,
    }
}

/// What the helper looks for in a claim before the program starts: where it has the claim and which
/// part of it. A machine would make what is not there.
pub(crate) fn looked_for(spec: &RunSpec) -> impl Iterator<Item = (VolumeMount, &VolumePath)> {
    let mounts = spec.mounts.iter().enumerate();
    mounts.filter_map(|(index, given)| {
        let MountSource::VolumePart(claim, path) = &given.source else {
            return None;
        };
        let folder = format!("{VOLUMES_DIR}/{index}/{claim}");
        Some((mount(&volume_name(spec, claim), &folder, true), path))
    })
}

/// The claims that a run mounts, each once, and whether it only reads them. A pod that names one claim
/// in two volumes never starts: its machine waits for the second (seen with 1.34).
fn claims(spec: &RunSpec) -> Vec<(&str, bool)> {
    let mut all: Vec<(&str, bool)> = Vec::new();
    for mount in &spec.mounts {
        let Some(claim) = claim_of(&mount.source) else {
            continue;
        };
        let read_only = mount.access == Access::ReadOnly;
        match all.iter_mut().find(|(known, _)| *known == claim) {
            Some((_, only)) => *only &= read_only,
            None => all.push((claim, read_only)),
        }
    }
    all
}

/// The pod's name of one of them.
fn volume_name(spec: &RunSpec, claim: &str) -> String {
    let at = claims(spec).iter().position(|(known, _)| *known == claim);
    format!("volume-{}", at.unwrap_or_default())
}

pub(crate) fn program_mounts(spec: &RunSpec) -> Vec<VolumeMount> {
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
        mounts.push(part(OUT, index, output.path.as_str(), false));
    }
    for (index, given) in spec.mounts.iter().enumerate() {
        let target = given.target.as_str();
        let read_only = given.access == Access::ReadOnly;
        match &given.source {
            MountSource::Scratch(_) => {
                mounts.push(mount(&format!("scratch-{index}"), target, false));
            }
            MountSource::Volume(claim) => {
                mounts.push(mount(&volume_name(spec, claim), target, read_only));
            }
            MountSource::VolumePart(claim, path) => {
                mounts.push(part(&volume_name(spec, claim), path, target, read_only));
            }
            // It is in its output already.
            _ if !read_only => {}
            MountSource::Stream(_) => mounts.push(part("in", index, target, true)),
            _ => mounts.push(part("given", index, target, true)),
        }
    }
    mounts
}

pub(crate) fn volumes(parts: &Parts<'_>) -> Vec<Volume> {
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
    let key_at = contents.place(KEY).unwrap_or_default();
    let mut all = vec![key(secret(key_at)), given(parts), empty("in"), out(parts)];
    let tmp = spec.resources.scratch_bytes.unwrap_or(config.scratch_bytes);
    all.push(memory("tmp", tmp.get()));
    for (index, mount) in spec.mounts.iter().enumerate() {
        if let MountSource::Scratch(limit) = &mount.source {
            let limit = limit.unwrap_or(config.scratch_bytes);
            all.push(memory(&format!("scratch-{index}"), limit.get()));
        }
    }
    for (claim, read_only) in claims(spec) {
        all.push(Volume {
            name: volume_name(spec, claim),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: Some(read_only),
            }),
            ..Volume::default()
        });
    }
    all
}

/// The key of a run's tunnel, from its Secret.
pub(crate) fn key(secret: String) -> Volume {
    Volume {
        name: "key".into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            items: Some(vec![item(KEY, KEY)]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn out(parts: &Parts<'_>) -> Volume {
    let Parts {
        owner,
        record,
        spec,
        config,
        ..
    } = parts;
    if claim::is_wanted(spec, config) {
        return Volume {
            name: OUT.into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: record::claim_name(owner, &record.id, &record.attempt),
                read_only: None,
            }),
            ..Volume::default()
        };
    }
    Volume {
        name: OUT.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: None,
            size_limit: Some(Quantity(most_output(spec).to_string())),
        }),
        ..Volume::default()
    }
}

/// What all outputs may have: on a machine's disk before it ends the pod, or on their claim, where its
/// storage keeps to that. Each is measured when it is collected, which tells more: so there is room beyond
/// their limits.
pub(crate) fn most_output(spec: &RunSpec) -> u64 {
    const ROOM: u64 = 64 << 20;
    let limits = spec.outputs.values().map(|output| output.limit.get());
    let sum = limits.fold(0_u64, u64::saturating_add);
    // The cluster's quantities have 63 bits.
    sum.saturating_mul(2)
        .saturating_add(ROOM)
        .min(u64::try_from(i64::MAX).unwrap_or(u64::MAX))
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
        if let Some(at) = contents.place(&key) {
            let items = items.entry(at).or_default();
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
