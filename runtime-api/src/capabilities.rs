//! What a backend can do, as data, and the one place where a spec is held against it.

use serde::Serialize;

use crate::{Error, LogOptions, MountSource, OutputKind, Result, RunSpec};

/// What one connected runtime can do. Settled while connecting, then constant.
///
/// What is not declared here is refused by [`admit`](Self::admit) before any I/O, naming the
/// field. Starting from [`Capabilities::none`], a backend switches on what it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// Kinds of mounts beyond inline files, which every backend has.
    pub mounts: MountKinds,
    /// Kinds of outputs.
    pub outputs: OutputKinds,
    /// Limits that are enforced.
    pub resources: ResourceKinds,
    /// What can be said about logs.
    pub logs: LogFeatures,
    /// Which outcomes are told apart.
    pub outcomes: OutcomeKinds,
    /// Which parts of the isolation floor the engine enforces.
    pub floor: Floor,
    /// Egress grants, and `connections()`.
    pub egress: bool,
    /// Deadlines, also while the caller is away.
    pub deadline: bool,
    /// Time between the request to end and the kill.
    pub grace: bool,
    /// Somebody above the program: a request to end also ends one that does nothing about it. As the first
    /// process of its container it would go on until the kill.
    pub init: bool,
    /// Images that run as their own user or with a writable root file system.
    pub trust: bool,
    /// Group ids beside the run's own.
    pub supplementary_groups: bool,
    /// Images from registries. Without it, only images that the engine already has.
    pub pull: bool,
    /// Which images the engine has is known: [`PullPolicy::Never`](crate::PullPolicy::Never) finds
    /// them, and [`prefetch`](crate::Runtime::prefetch) puts them there. Without it, images are
    /// fetched for each run by a machine that nobody knows before, and a run that is ended meanwhile
    /// ends when the fetch is over.
    pub image_store: bool,
    /// CPU time and peak memory in [`RunStatus`](crate::RunStatus).
    pub usage: bool,
}

impl Capabilities {
    /// Nothing beyond the core.
    #[must_use]
    pub fn none() -> Self {
        Self {
            mounts: MountKinds::default(),
            outputs: OutputKinds::default(),
            resources: ResourceKinds::default(),
            logs: LogFeatures::default(),
            outcomes: OutcomeKinds::default(),
            floor: Floor::default(),
            egress: false,
            deadline: false,
            grace: false,
            init: false,
            trust: false,
            supplementary_groups: false,
            pull: false,
            image_store: false,
            usage: false,
        }
    }

    /// Whether this runtime can carry out this spec. Every backend calls it first in `run`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec) for what is wrong anywhere,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for what this runtime does not
    /// declare; both name the field.
    pub fn admit(&self, spec: &RunSpec) -> Result<()> {
        // Without `..`: a field added to the spec does not compile until it is decided here
        // which capability guards it.
        let RunSpec {
            image: _,
            command: _,
            args: _,
            env: _,
            workdir: _,
            mounts,
            outputs,
            resources,
            egress,
            deadline,
            grace,
            trust,
            supplementary_groups,
            annotations: _,
        } = spec;
        spec.validate()?;
        let need = |has: bool, field: &str, what: &str| {
            if has {
                Ok(())
            } else {
                Err(Error::unsupported(field, what))
            }
        };
        for mount in mounts {
            let (has, what) = match mount.source {
                MountSource::Inline(_) | MountSource::Secret(_) => (true, "inline files"),
                MountSource::Stream(_) => (self.mounts.stream, "streamed files"),
                MountSource::HostPath(_) => (self.mounts.host_path, "paths of the host"),
                MountSource::Volume(_) => (self.mounts.volume, "named volumes"),
                MountSource::VolumePart(..) => (self.mounts.volume_part, "parts of named volumes"),
                MountSource::Scratch(None) => (self.mounts.scratch, "scratch folders"),
                MountSource::Scratch(Some(_)) => {
                    (self.mounts.scratch_limit, "scratch folders with a limit")
                }
            };
            need(has, "mounts", what)?;
        }
        for output in outputs.values() {
            match output.kind {
                OutputKind::File => need(self.outputs.file, "outputs", "files")?,
                OutputKind::Folder => need(self.outputs.folder, "outputs", "folders")?,
            }
        }
        let crate::Resources {
            cpu_milli,
            memory_bytes,
            pids,
            scratch_bytes,
            gpu,
        } = resources;
        let kinds = &self.resources;
        need(
            cpu_milli.is_none() || kinds.cpu,
            "resources.cpu_milli",
            "a CPU limit",
        )?;
        need(
            memory_bytes.is_none() || kinds.memory,
            "resources.memory_bytes",
            "a memory limit",
        )?;
        need(
            pids.is_none() || kinds.pids,
            "resources.pids",
            "a process limit",
        )?;
        need(
            scratch_bytes.is_none() || kinds.scratch,
            "resources.scratch_bytes",
            "a scratch limit",
        )?;
        need(gpu.is_none() || kinds.gpu, "resources.gpu", "accelerators")?;
        need(
            egress.is_empty() || self.egress,
            "egress",
            "granted connections",
        )?;
        need(
            deadline.is_none() || self.deadline,
            "deadline",
            "a deadline",
        )?;
        need(
            *grace == crate::DEFAULT_GRACE || grace.is_zero() || self.grace,
            "grace",
            "a grace period of one's own",
        )?;
        need(
            *trust == crate::Trust::default() || self.trust,
            "trust",
            "exceptions from the floor",
        )?;
        need(
            supplementary_groups.is_empty() || self.supplementary_groups,
            "supplementary_groups",
            "further groups",
        )
    }

    /// Whether this runtime can read logs so. Every backend that does not declare all of it calls
    /// it first in `logs`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), naming the field.
    pub fn admit_logs(&self, options: &LogOptions) -> Result<()> {
        let LogOptions {
            follow,
            since,
            limit_bytes: _,
        } = options;
        if *follow && !self.logs.follow {
            return Err(Error::unsupported("follow", "following a log"));
        }
        if since.is_some() && !self.logs.since {
            let what = "reading a log from a position";
            return Err(Error::unsupported("since", what));
        }
        Ok(())
    }
}

macro_rules! switches {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct $name { $($(#[$field_doc])* pub $field: bool,)* }

        impl $name {
            /// All of them.
            #[must_use]
            pub fn all() -> Self {
                Self { $($field: true,)* }
            }

            /// Every switch with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, bool)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

switches! {
    /// Kinds of [`MountSource`] beyond inline files.
    MountKinds {
        /// [`MountSource::Stream`].
        stream,
        /// [`MountSource::HostPath`].
        host_path,
        /// [`MountSource::Volume`].
        volume,
        /// [`MountSource::VolumePart`].
        volume_part,
        /// [`MountSource::Scratch`] without a limit.
        scratch,
        /// [`MountSource::Scratch`] with a limit that is enforced.
        scratch_limit,
    }
}
switches! {
    /// Kinds of [`Output`](crate::Output).
    OutputKinds {
        /// [`OutputKind::File`].
        file,
        /// [`OutputKind::Folder`].
        folder,
    }
}
switches! {
    /// Fields of [`Resources`](crate::Resources) that are enforced.
    ResourceKinds {
        /// Processor time.
        cpu,
        /// Memory.
        memory,
        /// Processes.
        pids,
        /// The temporary folder's size.
        scratch,
        /// Accelerators.
        gpu,
    }
}
switches! {
    /// What holds for logs.
    LogFeatures {
        /// `follow` works.
        follow,
        /// `since` works.
        since,
        /// Standard output and standard error are told apart.
        split,
        /// Bytes that are no UTF-8 come as they were printed. Some engines keep logs as text, in
        /// which each becomes U+FFFD.
        binary,
    }
}
switches! {
    /// Outcomes that are told apart from a bare exit code.
    OutcomeKinds {
        /// [`Outcome::Signaled`](crate::Outcome::Signaled).
        signaled,
        /// [`Outcome::OutOfMemory`](crate::Outcome::OutOfMemory).
        out_of_memory,
        /// [`Outcome::Cancelled`](crate::Outcome::Cancelled), also after a restart of the caller.
        cancelled,
        /// [`Outcome::Evicted`](crate::Outcome::Evicted).
        evicted,
        /// A missing command is told from a program that exits with 127.
        command_not_found,
    }
}
switches! {
    /// Parts of the isolation floor that the engine enforces on every run at the default
    /// [`Trust`](crate::Trust).
    Floor {
        /// An ordinary user inside.
        non_root,
        /// No capabilities.
        no_capabilities,
        /// `no_new_privs`.
        no_new_privileges,
        /// A system call filter.
        seccomp,
        /// A read-only root file system.
        read_only_root,
        /// No network but granted egress: nothing else can be reached, and no name is resolved.
        no_network,
        /// No network interface but loopback, and no route: not even such as lead nowhere.
        only_loopback,
        /// Other runs' files and processes are out of reach.
        private,
    }
}
