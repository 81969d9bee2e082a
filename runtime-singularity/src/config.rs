//! What an operator sets.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use v6_runtime::{ImageRef, Owner, RegistryCredentials};

use crate::cgroup::ControlGroup;
use crate::error::{Error, Result};
use crate::gpu::GpuKind;
use crate::slurm::SlurmConfig;

/// In which form the cache keeps images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageFormat {
    /// Unpacked, a folder. Starts faster, and needs nothing to mount it.
    #[default]
    Folder,
    /// One file, which is mounted by `squashfuse`. For file systems that are slow with many files.
    Sif,
}

/// Where everything is, and the limits of runs that name none themselves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SingularityConfig {
    /// The command: a path, or a name that is looked up in `PATH`. If not given, `apptainer`, or else
    /// `singularity`.
    pub program: Option<PathBuf>,
    /// Whose runs these are.
    pub owner: Owner,
    /// A folder of this user's alone, with the records of all runs and, unless
    /// [`cache`](Self::cache) says otherwise, the images. It must outlive the machine's restarts.
    pub folder: PathBuf,
    /// The folder with the images. Several machines may share it.
    pub cache: Option<PathBuf>,
    /// In which form.
    pub image_format: ImageFormat,
    /// Images of this machine by name: a SIF file, an unpacked folder, or an archive as OCI or
    /// `docker save` have it. These names are never asked for at a registry.
    pub images: BTreeMap<ImageRef, PathBuf>,
    /// Which accelerators the machine, or all compute nodes, have. Without it no run gets any.
    pub gpu: Option<GpuKind>,
    /// The control groups that limit memory and processors of runs on this machine. Without them neither is
    /// limited. Not for jobs, whose limits Slurm keeps.
    pub cgroup: Option<ControlGroup>,
    /// The most processes and threads; 1024.
    pub pids: NonZeroU32,
    /// The temporary folder's size in bytes; 1 GiB. It is in memory.
    pub scratch_bytes: NonZeroU64,
    /// The size of `/dev/shm` in bytes; 64 MiB.
    pub shm_bytes: NonZeroU64,
    /// What is kept of one run's output, in bytes; later output is dropped; 64 MiB.
    pub log_bytes: NonZeroU64,
    /// Private registries.
    pub credentials: Vec<RegistryCredentials>,
    /// The longest wait for an answer of a registry; 60 s. Fetching an image may take longer.
    pub call_timeout: Duration,
    /// The longest that fetching and unpacking one image may take; an hour.
    pub build_timeout: Duration,
    /// If runs are jobs of Slurm's: how. Everything then is in folders that all compute nodes have under
    /// the same path, the command and the images included.
    pub slurm: Option<SlurmConfig>,
    /// How many containers are started at once; 8. Fetching images does not count.
    pub concurrent_starts: NonZeroU32,
}

impl SingularityConfig {
    /// The defaults for this owner, with everything in this folder.
    #[must_use]
    pub fn new(owner: Owner, folder: impl Into<PathBuf>) -> Self {
        Self {
            program: None,
            owner,
            folder: folder.into(),
            cache: None,
            image_format: ImageFormat::default(),
            images: BTreeMap::new(),
            gpu: None,
            cgroup: None,
            pids: count(1024),
            scratch_bytes: bytes(1 << 30),
            shm_bytes: bytes(64 << 20),
            log_bytes: bytes(64 << 20),
            credentials: Vec::new(),
            call_timeout: Duration::from_secs(60),
            build_timeout: Duration::from_secs(3600),
            slurm: None,
            concurrent_starts: count(8),
        }
    }

    /// Whether this can be used at all.
    pub(crate) fn validate(&self) -> Result<()> {
        let group = match &self.cgroup {
            Some(ControlGroup::At(path)) => Some(path),
            Some(ControlGroup::Own) | None => None,
        };
        let folders = [Some(&self.folder), self.cache.as_ref(), group];
        for path in folders.into_iter().flatten().chain(self.images.values()) {
            if !path.is_absolute() {
                let why = format!("{} is not an absolute path", path.display());
                return Err(Error::Config(why));
            }
        }
        Ok(())
    }

    /// The folder with the images.
    pub(crate) fn cache_folder(&self) -> PathBuf {
        let ours = || self.folder.join("images");
        self.cache.clone().unwrap_or_else(ours)
    }
}

const fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).expect("the constants here are not zero")
}

const fn count(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("the constants here are not zero")
}

macro_rules! setters {
    ($($set:ident $field:ident: $type:ty,)*) => {
        impl SingularityConfig {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $set(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

setters! {
    with_program program: Option<PathBuf>,
    with_cache cache: Option<PathBuf>,
    with_image_format image_format: ImageFormat,
    with_images images: BTreeMap<ImageRef, PathBuf>,
    with_gpu gpu: Option<GpuKind>,
    with_cgroup cgroup: Option<ControlGroup>,
    with_pids pids: NonZeroU32,
    with_scratch_bytes scratch_bytes: NonZeroU64,
    with_shm_bytes shm_bytes: NonZeroU64,
    with_log_bytes log_bytes: NonZeroU64,
    with_credentials credentials: Vec<RegistryCredentials>,
    with_call_timeout call_timeout: Duration,
    with_build_timeout build_timeout: Duration,
    with_slurm slurm: Option<SlurmConfig>,
    with_concurrent_starts concurrent_starts: NonZeroU32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute() {
        let owner = Owner::new("o").expect("an owner");
        assert!(
            SingularityConfig::new(owner.clone(), "/a")
                .validate()
                .is_ok()
        );
        let config = SingularityConfig::new(owner, "/a").with_cache(Some("b".into()));
        assert!(config.validate().is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials =
            RegistryCredentials::new("r.example.org", "u", "hunter2".to_owned().into());
        let config = SingularityConfig::new(Owner::new("o").expect("an owner"), "/a")
            .with_credentials(vec![credentials]);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
