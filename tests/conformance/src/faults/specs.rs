//! Faults that are in what is made of a spec.

use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use v6_runtime::{
    Access, Capabilities, ContainerPath, EnvValue, Mount, MountSource, Output, OutputKind,
    OutputName, RunSpec, Secret, Trust,
};

use super::{Seed, streams};

/// Tells the pretended kernel which groups a run has.
pub(super) const GROUPS: &str = "V6_PRETENDED_GROUPS";
/// Tells it that a run has graphics processors.
pub(super) const GPU: &str = "V6_PRETENDED_GPU";
/// Tells it how much of a processor a run may have, in thousandths.
pub(super) const CPU: &str = "V6_PRETENDED_CPU";
/// What a folder is called that stands in for a file's.
const FOLDER: &str = "folder-of-a-fault";

/// What the engine is given instead of this spec.
pub(super) fn altered(seed: Option<Seed>, mut spec: RunSpec) -> RunSpec {
    if seed == Some(Seed::GroupsAreIgnored) {
        spec.supplementary_groups.clear();
    }
    if !spec.supplementary_groups.is_empty() {
        let groups: Vec<String> = spec
            .supplementary_groups
            .iter()
            .map(u32::to_string)
            .collect();
        spec = spec.with_env(GROUPS, groups.join(","));
    }
    if spec.resources.gpu.is_some() && seed != Some(Seed::GraphicsProcessorsAreIgnored) {
        spec = spec.with_env(GPU, "all");
    }
    if let Some(milli) = spec.resources.cpu_milli
        && seed != Some(Seed::ProcessorLimitIsIgnored)
    {
        spec = spec.with_env(CPU, milli.to_string());
    }
    let Some(seed) = seed else { return spec };
    words(seed, &mut spec);
    limits(seed, &mut spec);
    mounts(seed, &mut spec);
    outputs(seed, &mut spec);
    spec
}

/// What is left of a spec where everything that is not declared is ignored.
pub(super) fn without_the_undeclared(declared: &Capabilities, mut spec: RunSpec) -> RunSpec {
    let plain = RunSpec::new(spec.image.clone());
    // One after the other, until nothing is refused any more.
    let without: [fn(&mut RunSpec, &RunSpec); 8] = [
        |spec, _| {
            spec.mounts
                .retain(|mount| matches!(mount.source, MountSource::Inline(_)))
        },
        |spec, plain| spec.outputs = plain.outputs.clone(),
        |spec, plain| spec.resources = plain.resources.clone(),
        |spec, plain| spec.egress = plain.egress.clone(),
        |spec, plain| spec.deadline = plain.deadline,
        |spec, plain| spec.grace = plain.grace,
        |spec, plain| spec.trust = plain.trust,
        |spec, plain| spec.supplementary_groups = plain.supplementary_groups.clone(),
    ];
    for ignore in without {
        if declared.admit(&spec).is_ok() {
            break;
        }
        ignore(&mut spec, &plain);
    }
    spec
}

fn words(seed: Seed, spec: &mut RunSpec) {
    let plain = |spec: &mut RunSpec, change: fn(&str) -> String| {
        for value in spec.env.values_mut() {
            if let EnvValue::Plain(text) = value {
                *text = change(text);
            }
        }
    };
    match seed {
        Seed::ArgumentsAreSplit => {
            let all = spec.args.join(" ");
            spec.args = all.split_whitespace().map(str::to_owned).collect();
        }
        Seed::EmptyArgumentsAreDropped => spec.args.retain(|word| !word.is_empty()),
        Seed::LongArgumentsAreCut => spec.args.iter_mut().for_each(|word| cut(word, 64 << 10)),
        Seed::ArgumentsAreExpanded => {
            for word in &mut spec.args {
                *word = word.replace("$HOME", "/tmp");
            }
        }
        Seed::EnvironmentIsExpanded => plain(spec, |text| text.replace("$HOME", "/tmp")),
        Seed::EnvironmentEndsAtItsFirstLine => {
            plain(spec, |text| text.lines().next().unwrap_or("").to_owned());
        }
        Seed::QuotesAreStripped => plain(spec, |text| text.trim_matches('"').to_owned()),
        Seed::SecretsAreMasked => {
            for value in spec.env.values_mut() {
                if let EnvValue::Secret(secret) = value {
                    *secret = Secret::new("********");
                }
            }
        }
        Seed::WorkdirIsIgnored => spec.workdir = None,
        _ => {}
    }
}

fn cut(text: &mut String, most: usize) {
    let end = (0..=most.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
}

fn limits(seed: Seed, spec: &mut RunSpec) {
    match seed {
        Seed::MemoryLimitIsIgnored => spec.resources.memory_bytes = None,
        Seed::ProcessLimitIsIgnored => spec.resources.pids = None,
        Seed::TemporaryFolderIsUnlimited => spec.resources.scratch_bytes = None,
        Seed::GraceIsIgnored => spec.grace = Duration::ZERO,
        Seed::GraceIsTenfold => spec.grace *= 10,
        Seed::DeadlineIsIgnored | Seed::DeadlineNeedsTheCaller => spec.deadline = None,
        Seed::DeadlineIsAtOnce => spec.deadline = spec.deadline.map(|_| SystemTime::UNIX_EPOCH),
        Seed::PastDeadlineIsForgotten => {
            spec.deadline = spec
                .deadline
                .filter(|deadline| *deadline > SystemTime::now());
        }
        Seed::DeadlineOnlyAsks if spec.deadline.is_some() => {
            spec.grace = Duration::from_secs(1 << 20);
        }
        Seed::GrantsAreNotGiven => spec.egress.clear(),
        Seed::TrustIsIgnored => spec.trust = Trust::default(),
        Seed::EveryImageIsTrusted => spec.trust = spec.trust.with_writable_root(true),
        _ => {}
    }
}

fn mounts(seed: Seed, spec: &mut RunSpec) {
    let folders: Vec<ContainerPath> = folders(spec).into_iter().cloned().collect();
    for mount in &mut spec.mounts {
        let given = mount.is_given();
        let below_output = folders.iter().any(|folder| mount.target.is_below(folder));
        match (seed, &mut mount.source) {
            (Seed::EmptyInputsGetALineEnd, MountSource::Inline(bytes)) if bytes.is_empty() => {
                *bytes = Bytes::from_static(b"\n");
            }
            (Seed::SecretFilesAreTrimmed, MountSource::Secret(secret)) => {
                let cut = secret.expose().len().saturating_sub(1);
                *secret = Secret::new(secret.expose().get(..cut).unwrap_or(""));
            }
            (Seed::StreamsEndAtAMebibyte, MountSource::Stream(stream))
                if stream.len() > 1 << 20 =>
            {
                *stream = streams::shortened(stream, 1 << 20);
            }
            (Seed::ScratchIsReadOnly, MountSource::Scratch(_)) => {
                mount.access = Access::ReadOnly;
            }
            (Seed::ScratchIsUnlimited, MountSource::Scratch(limit)) => *limit = None,
            (Seed::HostPathsAreWritable, MountSource::HostPath(_)) => {
                mount.access = Access::ReadWrite;
            }
            (Seed::VolumesAreWritable, MountSource::Volume(_) | MountSource::VolumePart(..)) => {
                mount.access = Access::ReadWrite;
            }
            (Seed::PartsAreWhole, MountSource::VolumePart(name, _)) => {
                mount.source = MountSource::Volume(name.clone());
            }
            (Seed::HostPathsAreReadOnly, MountSource::HostPath(_)) => {
                mount.access = Access::ReadOnly;
            }
            (Seed::MissingHostPathsAreMade, MountSource::HostPath(path)) if !Path::exists(path) => {
                mount.source = MountSource::Scratch(None);
            }
            (Seed::FoldersTakeWhatIsMounted, _) if given && below_output => {
                mount.access = Access::ReadWrite;
            }
            (Seed::FoldersBeginReadOnly, _) if given => {
                mount.access = Access::ReadOnly;
            }
            _ => {}
        }
    }
    if seed == Seed::InputsAreWritable {
        make_inputs_writable(spec);
    }
}

fn folders(spec: &RunSpec) -> Vec<&ContainerPath> {
    let folders = spec
        .outputs
        .values()
        .filter(|output| output.kind == OutputKind::Folder);
    folders.map(|output| &output.path).collect()
}

fn parent(path: &ContainerPath) -> Option<ContainerPath> {
    let (parent, _) = path.as_str().rsplit_once('/')?;
    ContainerPath::new(parent).ok()
}

fn most() -> NonZeroU64 {
    NonZeroU64::MAX
}

/// Given files become the beginning of a folder that the run may write.
fn make_inputs_writable(spec: &mut RunSpec) {
    let taken: Vec<ContainerPath> = folders(spec).into_iter().cloned().collect();
    for (number, mount) in spec.mounts.iter_mut().enumerate() {
        let inline = matches!(mount.source, MountSource::Inline(_));
        let below_output = taken.iter().any(|folder| mount.target.is_below(folder));
        if let Some(parent) = parent(&mount.target)
            && inline
            && !below_output
        {
            let name = OutputName::new(format!("{FOLDER}-{number}")).expect("a name");
            let known = spec.outputs.values().any(|output| output.path == parent);
            if !known {
                spec.outputs.insert(name, Output::folder(parent, most()));
            }
            mount.access = Access::ReadWrite;
        }
    }
}

/// Output files lie in a folder that the run may write, where a backend expects them at the end.
fn outputs(seed: Seed, spec: &mut RunSpec) {
    if seed == Seed::OutputLimitIsIgnored {
        spec.outputs
            .values_mut()
            .for_each(|output| output.limit = most());
    }
    if seed == Seed::FolderLimitIsIgnored {
        let all = spec.outputs.values_mut();
        let folders = all.filter(|output| output.kind == OutputKind::Folder);
        folders.for_each(|output| output.limit = most());
    }
    if !matches!(seed, Seed::OutputsAreNotMade | Seed::OutputsCanBeReplaced) {
        return;
    }
    let mut made = Vec::new();
    for output in spec
        .outputs
        .values_mut()
        .filter(|o| o.kind == OutputKind::File)
    {
        if let Some(parent) = parent(&output.path) {
            if seed == Seed::OutputsCanBeReplaced {
                let empty = Mount::new(MountSource::Inline(Bytes::new()), output.path.clone());
                made.push(empty.with_access(Access::ReadWrite));
            }
            *output = Output::folder(parent, output.limit);
        }
    }
    spec.mounts.extend(made);
}
