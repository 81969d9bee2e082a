//! What an operator sets.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use v6_runtime::{Owner, RegistryCredentials};

use crate::error::{Error, Result};

/// The user id inside containers when the node itself is root.
pub(crate) const ORDINARY_ID: u32 = 65_532;

/// How to reach an engine, and the limits of runs that name none themselves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DockerConfig {
    /// Where the engine listens: `unix:///path`, or `tcp://` a loopback address. From
    /// `DOCKER_HOST` if set, otherwise `unix:///var/run/docker.sock`.
    pub host: String,
    /// Whose runs these are.
    pub owner: Owner,
    /// A folder of this machine, private to this user, for the lease and for the sockets of
    /// granted connections.
    pub runtime_dir: PathBuf,
    /// The user id that runs have: this process's, or 65532 if that is root, or if an ordinary
    /// user's engine has no such id for its containers.
    pub uid: u32,
    /// Their group id.
    pub gid: u32,
    /// Memory in bytes, swap included; 4 GiB.
    pub memory_bytes: NonZeroU64,
    /// Processor time in thousandths of a core; `None` (the default) is all of the machine.
    pub cpu_milli: Option<NonZeroU32>,
    /// The most processes and threads; 1024.
    pub pids: NonZeroU32,
    /// The temporary folder's size in bytes; 1 GiB. It is in memory, and counts there.
    pub scratch_bytes: NonZeroU64,
    /// The size of `/dev/shm` in bytes; 64 MiB.
    pub shm_bytes: NonZeroU64,
    /// What the engine keeps of one run's output on disk, in bytes; older output is dropped; 64 MiB.
    pub log_bytes: NonZeroU64,
    /// Private registries.
    pub credentials: Vec<RegistryCredentials>,
    /// The longest wait for an answer to one call; 60 s. Pulls and transfers of files may
    /// take longer.
    pub call_timeout: Duration,
    /// The longest time from a container's being made to its being started, while the engine
    /// answers nothing; 5 minutes.
    pub start_timeout: Duration,
    /// How many containers are made and started at once; 8. Pulls do not count.
    pub concurrent_starts: NonZeroU32,
    /// Whether a file that a run has written is read from the engine's own disk where this process
    /// can; true. Otherwise always through the engine's API, as from an engine on another machine.
    pub local_files: bool,
}

impl DockerConfig {
    /// The defaults for this owner.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        let host = std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty());
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let runtime_dir = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(folder) if !folder.is_empty() => PathBuf::from(folder).join("v6-runtime"),
            _ if uid == 0 => PathBuf::from("/run/v6-runtime"),
            _ => std::env::temp_dir().join(format!("v6-runtime-{uid}")),
        };
        let ordinary = |id: u32| if uid == 0 { ORDINARY_ID } else { id };
        Self {
            host: host.unwrap_or_else(|| "unix:///var/run/docker.sock".into()),
            owner,
            runtime_dir,
            uid: ordinary(uid),
            gid: ordinary(gid),
            memory_bytes: bytes(4 << 30),
            cpu_milli: None,
            pids: count(1024),
            scratch_bytes: bytes(1 << 30),
            shm_bytes: bytes(64 << 20),
            log_bytes: bytes(64 << 20),
            credentials: Vec::new(),
            call_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(300),
            concurrent_starts: count(8),
            local_files: true,
        }
    }

    /// Whether this can be used at all.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |why: String| Err(Error::Config(why));
        if self.uid == 0 || self.gid == 0 {
            return bad("uid and gid: runs are not root by default; trust an image instead".into());
        }
        if let Some(path) = self.host.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return bad(format!("host: {path:?} is not an absolute path"));
            }
            return self.validate_folder();
        }
        let Some(address) = self.host.strip_prefix("tcp://") else {
            return bad(format!(
                "host: {:?} is neither unix:// nor tcp://",
                self.host
            ));
        };
        if !is_loopback(address) {
            return bad(format!(
                "host: {address} is not on this machine, and would be spoken to without \
                 encryption: forward its socket through ssh instead"
            ));
        }
        self.validate_folder()
    }

    fn validate_folder(&self) -> Result<()> {
        if self.runtime_dir.is_absolute() {
            Ok(())
        } else {
            Err(Error::Config("runtime_dir is not an absolute path".into()))
        }
    }
}

fn is_loopback(address: &str) -> bool {
    let host = match address.trim_end_matches('/').rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => address,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

const fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).expect("the constants here are not zero")
}

const fn count(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("the constants here are not zero")
}

macro_rules! setters {
    ($($set:ident $field:ident: $type:ty,)*) => {
        impl DockerConfig {
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
    with_runtime_dir runtime_dir: PathBuf,
    with_memory_bytes memory_bytes: NonZeroU64,
    with_cpu_milli cpu_milli: Option<NonZeroU32>,
    with_pids pids: NonZeroU32,
    with_scratch_bytes scratch_bytes: NonZeroU64,
    with_shm_bytes shm_bytes: NonZeroU64,
    with_log_bytes log_bytes: NonZeroU64,
    with_credentials credentials: Vec<RegistryCredentials>,
    with_call_timeout call_timeout: Duration,
    with_start_timeout start_timeout: Duration,
    with_concurrent_starts concurrent_starts: NonZeroU32,
    with_local_files local_files: bool,
}

impl DockerConfig {
    /// Sets [`host`](Self::host).
    #[must_use]
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// Sets [`uid`](Self::uid) and [`gid`](Self::gid); root is refused when connecting.
    #[must_use]
    pub fn with_user(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(host: &str) -> Result<()> {
        let owner = Owner::new("o").expect("an owner");
        DockerConfig::new(owner).with_host(host).validate()
    }

    #[test]
    fn only_what_is_on_this_machine() {
        for good in [
            "unix:///a/b",
            "tcp://127.0.0.1:2375",
            "tcp://[::1]:2375",
            "tcp://localhost:1",
        ] {
            assert!(config(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "unix://a",
            "tcp://10.0.0.1:2375",
            "tcp://127.0.0.1.example.org:2375",
            "https://127.0.0.1",
            "ssh://host",
        ] {
            assert!(config(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials =
            RegistryCredentials::new("r.example.org", "u", "hunter2".to_owned().into());
        let config = DockerConfig::new(Owner::new("o").expect("an owner"))
            .with_credentials(vec![credentials]);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
