//! What to run.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{
    Annotations, ContainerPath, EgressGrant, Error, InputStream, OutputName, ResolvedImage, Result,
    Secret, VolumePath,
};

/// The most bytes that a [`MountSource::Inline`] or [`MountSource::Secret`] may have; larger input
/// is a [`MountSource::Stream`].
pub const INLINE_MAX: usize = 1 << 20;

/// The time between the request to end and the kill, unless the spec says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Everything that a backend has to know to carry out one run.
///
/// Made with [`RunSpec::new`] and the `with_*` methods. The defaults are the safe ones: no
/// network, no capability, an ordinary user, a read-only root file system, nothing mounted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunSpec {
    /// The image, settled by [`Runtime::resolve`](crate::Runtime::resolve). Exactly this one runs.
    pub image: ResolvedImage,
    /// Replaces the image's entry point. `None` keeps it.
    pub command: Option<Vec<String>>,
    /// Arguments of the command. If `command` is `None` and this is empty, the image's own
    /// arguments are used.
    pub args: Vec<String>,
    /// Environment variables, added to the image's.
    pub env: BTreeMap<String, EnvValue>,
    /// The working directory; `None` is the image's.
    pub workdir: Option<ContainerPath>,
    /// Files and folders that the run can see.
    pub mounts: Vec<Mount>,
    /// What can be collected afterwards.
    pub outputs: BTreeMap<OutputName, Output>,
    /// Limits.
    pub resources: Resources,
    /// The only connections that the run can open. Empty: none at all.
    pub egress: Vec<EgressGrant>,
    /// The wall-clock time at which the run is ended, also while the caller is away.
    pub deadline: Option<SystemTime>,
    /// The time between the request to end (cancel, deadline) and the kill; zero kills at once.
    pub grace: Duration,
    /// How far the operator trusts this image beyond the floor.
    pub trust: Trust,
    /// Group ids that the run has besides its own, so that it can read data files of a group.
    pub supplementary_groups: Vec<u32>,
    /// The caller's own notes, returned whole by `list` and `status`.
    pub annotations: Annotations,
}

impl RunSpec {
    /// A run of this image with its own command, nothing else.
    #[must_use]
    pub fn new(image: ResolvedImage) -> Self {
        Self {
            image,
            command: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            workdir: None,
            mounts: Vec::new(),
            outputs: BTreeMap::new(),
            resources: Resources::default(),
            egress: Vec::new(),
            deadline: None,
            grace: DEFAULT_GRACE,
            trust: Trust::default(),
            supplementary_groups: Vec::new(),
            annotations: Annotations::default(),
        }
    }

    /// Sets [`command`](Self::command).
    #[must_use]
    pub fn with_command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Sets [`args`](Self::args).
    #[must_use]
    pub fn with_args<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.args = words.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<EnvValue>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets [`workdir`](Self::workdir).
    #[must_use]
    pub fn with_workdir(mut self, path: ContainerPath) -> Self {
        self.workdir = Some(path);
        self
    }

    /// Adds a mount.
    #[must_use]
    pub fn with_mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// Declares an output.
    #[must_use]
    pub fn with_output(mut self, name: OutputName, output: Output) -> Self {
        self.outputs.insert(name, output);
        self
    }

    /// Sets [`resources`](Self::resources).
    #[must_use]
    pub fn with_resources(mut self, resources: Resources) -> Self {
        self.resources = resources;
        self
    }

    /// Adds a grant.
    #[must_use]
    pub fn with_egress(mut self, grant: EgressGrant) -> Self {
        self.egress.push(grant);
        self
    }

    /// Sets [`deadline`](Self::deadline).
    #[must_use]
    pub fn with_deadline(mut self, deadline: SystemTime) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets [`grace`](Self::grace).
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets [`trust`](Self::trust).
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Sets [`supplementary_groups`](Self::supplementary_groups).
    #[must_use]
    pub fn with_supplementary_groups(mut self, groups: impl IntoIterator<Item = u32>) -> Self {
        self.supplementary_groups = groups.into_iter().collect();
        self
    }

    /// Sets [`annotations`](Self::annotations).
    #[must_use]
    pub fn with_annotations(mut self, annotations: Annotations) -> Self {
        self.annotations = annotations;
        self
    }

    /// Checks what is wrong on any backend. [`Capabilities::admit`](crate::Capabilities::admit)
    /// calls it; backends need not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec), naming the field.
    pub fn validate(&self) -> Result<()> {
        if self
            .command
            .as_ref()
            .is_some_and(|words| words.first().is_none_or(String::is_empty))
        {
            return Err(Error::invalid("command", "is empty"));
        }
        let words = self.command.iter().flatten().chain(&self.args);
        for word in words {
            if word.contains('\0') {
                return Err(Error::invalid("args", "an argument contains NUL"));
            }
        }
        for (name, value) in &self.env {
            let ok = !name.is_empty() && !name.contains(['=', '\0']);
            let value_ok = match value {
                EnvValue::Plain(text) => !text.contains('\0'),
                EnvValue::Secret(secret) => !secret.expose().contains('\0'),
            };
            if !ok || !value_ok {
                return Err(Error::invalid(
                    "env",
                    format!("{name:?}: a name needs no '=' and neither part a NUL"),
                ));
            }
        }
        self.validate_targets()?;
        EgressGrant::validate_all(&self.egress)?;
        if self.annotations.size() > Annotations::MAX_BYTES {
            return Err(Error::invalid(
                "annotations",
                format!(
                    "{} bytes, at most {}",
                    self.annotations.size(),
                    Annotations::MAX_BYTES
                ),
            ));
        }
        Ok(())
    }

    fn validate_targets(&self) -> Result<()> {
        let mut targets: BTreeMap<&ContainerPath, bool> = BTreeMap::new();
        let mounts = self.mounts.iter().map(|m| (&m.target, m.is_folder()));
        let outputs = self
            .outputs
            .values()
            .map(|o| (&o.path, matches!(o.kind, OutputKind::Folder)));
        for (target, folder) in mounts.chain(outputs) {
            if targets.insert(target, folder).is_some() {
                return Err(Error::invalid("mounts", format!("{target} is given twice")));
            }
            for reserved in ["/proc", "/sys", "/dev", "/.v6"] {
                if target.as_str() == reserved
                    || target
                        .as_str()
                        .strip_prefix(reserved)
                        .is_some_and(|r| r.starts_with('/'))
                {
                    return Err(Error::invalid("mounts", format!("{target} is reserved")));
                }
            }
        }
        for target in targets.keys() {
            for (outer, folder) in &targets {
                if target.is_below(outer) && !folder {
                    return Err(Error::invalid(
                        "mounts",
                        format!("{target} is below the file {outer}"),
                    ));
                }
            }
        }
        for mount in &self.mounts {
            let len = match &mount.source {
                MountSource::Inline(bytes) => bytes.len(),
                MountSource::Secret(secret) => secret.expose().len(),
                _ => 0,
            };
            if len > INLINE_MAX {
                return Err(Error::invalid(
                    "mounts",
                    format!(
                        "{}: {len} bytes inline, at most {INLINE_MAX}: use a stream",
                        mount.target
                    ),
                ));
            }
            let copied = |output: &Output| {
                output.kind == OutputKind::Folder && mount.target.is_below(&output.path)
            };
            if mount.access == Access::ReadWrite
                && mount.is_given()
                && !self.outputs.values().any(copied)
            {
                return Err(Error::invalid(
                    "mounts",
                    format!(
                        "{}: given content is writable only below a folder output",
                        mount.target
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvValue {
    /// Shown wherever the engine shows it.
    Plain(String),
    /// Kept out of listings, logs and digests.
    Secret(Secret),
}

impl From<String> for EnvValue {
    fn from(value: String) -> Self {
        Self::Plain(value)
    }
}

impl From<&str> for EnvValue {
    fn from(value: &str) -> Self {
        Self::Plain(value.into())
    }
}

impl From<Secret> for EnvValue {
    fn from(value: Secret) -> Self {
        Self::Secret(value)
    }
}

/// One file or folder that the run can see.
///
/// Given content (inline, secret, stream) is read-only, with one exception: below a folder
/// [`Output`] it may be [`ReadWrite`](Access::ReadWrite), which makes it the beginning of that
/// output: the run may change and remove it, and it is collected with the folder.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Mount {
    /// Where its content comes from.
    pub source: MountSource,
    /// Where it is inside the container.
    pub target: ContainerPath,
    /// Whether the run may change it.
    pub access: Access,
}

impl Mount {
    /// A read-only mount; a [`MountSource::Scratch`] is writable.
    #[must_use]
    pub fn new(source: MountSource, target: ContainerPath) -> Self {
        let access = match source {
            MountSource::Scratch(_) => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        Self {
            source,
            target,
            access,
        }
    }

    /// Sets the access.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    fn is_folder(&self) -> bool {
        matches!(
            self.source,
            MountSource::Scratch(_) | MountSource::Volume(_)
        )
    }

    /// Whether the caller gives the content, a file.
    #[must_use]
    pub fn is_given(&self) -> bool {
        matches!(
            self.source,
            MountSource::Inline(_) | MountSource::Secret(_) | MountSource::Stream(_)
        )
    }
}

/// Where a mount's content comes from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum MountSource {
    /// A file with this content, at most [`INLINE_MAX`] bytes.
    Inline(Bytes),
    /// A file with this secret content, at most [`INLINE_MAX`] bytes.
    Secret(Secret),
    /// A file with the content of a stream.
    Stream(InputStream),
    /// An existing file or folder of the machine that runs the container.
    HostPath(PathBuf),
    /// An existing named volume (or claim) of the engine.
    Volume(String),
    /// What an existing named volume has at this path, a file or a folder, and nothing beside it.
    VolumePart(String, VolumePath),
    /// An empty writable folder, gone with the run, with this size limit in bytes if any.
    Scratch(Option<NonZeroU64>),
}

/// Whether the run may change what is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It can be read.
    ReadOnly,
    /// It can be read and changed.
    ReadWrite,
}

/// One thing that can be collected after the run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// Where the run finds it.
    pub path: ContainerPath,
    /// A file or a folder.
    pub kind: OutputKind,
    /// The most bytes that are accepted; for a folder, of all its files together.
    pub limit: NonZeroU64,
}

/// The shape of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutputKind {
    /// A regular file, made empty beforehand, in a folder that the run cannot write: the run
    /// writes into it and can neither replace nor remove it.
    File,
    /// A folder, writable and private to the run, empty but for what is mounted below it.
    /// Collected as a tar archive of its regular files and folders, without what was mounted
    /// read-only.
    Folder,
}

impl Output {
    /// A file of at most `limit` bytes.
    #[must_use]
    pub fn file(path: ContainerPath, limit: NonZeroU64) -> Self {
        Self {
            path,
            kind: OutputKind::File,
            limit,
        }
    }

    /// A folder of at most `limit` bytes in all.
    #[must_use]
    pub fn folder(path: ContainerPath, limit: NonZeroU64) -> Self {
        Self {
            path,
            kind: OutputKind::Folder,
            limit,
        }
    }
}

/// Limits of one run. `None` leaves it to the backend's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resources {
    /// Processor time, in thousandths of one core.
    pub cpu_milli: Option<NonZeroU32>,
    /// Memory in bytes, swap included.
    pub memory_bytes: Option<NonZeroU64>,
    /// The most processes and threads at once.
    pub pids: Option<NonZeroU32>,
    /// The size of the temporary folder (`TMPDIR`) in bytes.
    pub scratch_bytes: Option<NonZeroU64>,
    /// Accelerators.
    pub gpu: Option<Gpu>,
}

impl Resources {
    /// Sets [`cpu_milli`](Self::cpu_milli).
    #[must_use]
    pub fn with_cpu_milli(mut self, milli: NonZeroU32) -> Self {
        self.cpu_milli = Some(milli);
        self
    }

    /// Sets [`memory_bytes`](Self::memory_bytes).
    #[must_use]
    pub fn with_memory_bytes(mut self, bytes: NonZeroU64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// Sets [`pids`](Self::pids).
    #[must_use]
    pub fn with_pids(mut self, pids: NonZeroU32) -> Self {
        self.pids = Some(pids);
        self
    }

    /// Sets [`scratch_bytes`](Self::scratch_bytes).
    #[must_use]
    pub fn with_scratch_bytes(mut self, bytes: NonZeroU64) -> Self {
        self.scratch_bytes = Some(bytes);
        self
    }

    /// Sets [`gpu`](Self::gpu).
    #[must_use]
    pub fn with_gpu(mut self, gpu: Gpu) -> Self {
        self.gpu = Some(gpu);
        self
    }
}

/// How many accelerators a run gets.
///
/// A runtime that declares accelerators takes at least one of the two, and refuses the other as
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): a batch system hands out numbers, an engine without
/// a scheduler whatever its machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gpu {
    /// All that the machine has.
    All,
    /// This many.
    Count(NonZeroU32),
}

/// What an operator allows one image beyond the floor. The default is the floor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Trust {
    /// Run as the user that the image names (root, if it names none) instead of an ordinary one.
    pub image_user: bool,
    /// Leave the root file system writable; its changes are gone with the run.
    pub writable_root: bool,
}

impl Trust {
    /// Sets [`image_user`](Self::image_user).
    #[must_use]
    pub fn with_image_user(mut self, allow: bool) -> Self {
        self.image_user = allow;
        self
    }

    /// Sets [`writable_root`](Self::writable_root).
    #[must_use]
    pub fn with_writable_root(mut self, allow: bool) -> Self {
        self.writable_root = allow;
        self
    }
}
