//! What an engine says of itself, as far as it matters here.
//!
//! Of Podman its own `/libpod/info` is asked alone: that costs 0.4 s of a processor with Debian's
//! Podman 4.3.1, since it looks for the package of each of its parts, and each of `/info` and
//! `/version` as much again, with nothing new.

use bollard::ClientVersion;
use bollard::models::{SystemInfo, SystemInfoCgroupVersionEnum, SystemVersion};
use serde::Deserialize;
use v6_runtime::EngineInfo;

use crate::ask::join;

/// The engines that speak this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Podman,
}

impl Kind {
    /// Its name as [`v6_runtime::Runtime::kind`] gives it.
    pub(crate) const fn id(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// Its name as people write it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        }
    }
}

/// The API that Podman 4.3.1 says it speaks. It takes calls of any version.
pub(crate) const PODMAN_API: ClientVersion = ClientVersion {
    major_version: 1,
    minor_version: 41,
};

/// One engine on one machine.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) kind: Kind,
    pub(crate) version: Option<String>,
    pub(crate) api: Option<ClientVersion>,
    /// `linux`, in the words of OCI.
    pub(crate) system: Option<String>,
    /// In the words of OCI: `amd64`.
    pub(crate) architecture: Option<String>,
    pub(crate) distribution: Option<String>,
    pub(crate) kernel: Option<String>,
    /// Which control groups the machine has: 1 or 2.
    pub(crate) control_groups: Option<u8>,
    pub(crate) storage: Option<String>,
    /// Where it keeps its things.
    pub(crate) folder: Option<String>,
    /// What tells it from any other. Podman makes up another one for each answer.
    pub(crate) id: Option<String>,
    pub(crate) processors: Option<u32>,
    /// It filters system calls.
    pub(crate) seccomp: bool,
    /// An ordinary user runs it.
    pub(crate) rootless: bool,
    pub(crate) limits: Limits,
    /// It has the runtime that gives NVIDIA's devices.
    pub(crate) nvidia: bool,
    pub(crate) ids: IdMappings,
}

/// What the engine says that it can limit; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) cpu: Option<bool>,
    pub(crate) memory: Option<bool>,
    pub(crate) pids: Option<bool>,
}

/// Which ids of the machine those inside a container are, where the engine tells.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct IdMappings {
    pub(crate) uidmap: Option<Vec<IdRange>>,
    pub(crate) gidmap: Option<Vec<IdRange>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct IdRange {
    pub(crate) container_id: u64,
    pub(crate) host_id: u64,
    pub(crate) size: u64,
}

impl About {
    /// Of an engine that answers like Docker, and is.
    pub(crate) fn docker(version: SystemVersion, info: SystemInfo) -> Self {
        let security = info.security_options.unwrap_or_default();
        let says = |what: &str| security.iter().find(|option| option.contains(what));
        let mut runtimes = info.runtimes.iter().flatten();
        Self {
            kind: Kind::Docker,
            api: version.api_version.as_deref().and_then(client_version),
            version: version.version,
            system: version.os,
            architecture: version.arch,
            distribution: info.operating_system,
            kernel: info.kernel_version,
            control_groups: info.cgroup_version.and_then(|version| match version {
                SystemInfoCgroupVersionEnum::_1 => Some(1),
                SystemInfoCgroupVersionEnum::_2 => Some(2),
                SystemInfoCgroupVersionEnum::EMPTY => None,
            }),
            storage: info.driver,
            folder: info.docker_root_dir,
            id: info.id.filter(|id| !id.is_empty()),
            processors: info.ncpu.and_then(|number| u32::try_from(number).ok()),
            seccomp: says("name=seccomp").is_some_and(|it| !it.contains("unconfined")),
            rootless: says("name=rootless").is_some(),
            limits: Limits {
                cpu: info.cpu_cfs_quota,
                memory: info.memory_limit,
                pids: info.pids_limit,
            },
            nvidia: runtimes.any(|(name, _)| name == "nvidia"),
            ids: IdMappings::default(),
        }
    }

    /// Of Podman.
    pub(crate) fn podman(said: PodmanInfo) -> Self {
        let PodmanInfo {
            host,
            store,
            version,
        } = said;
        let controllers = host.cgroup_controllers;
        let limits = |name: &str| {
            let has = |all: &Vec<String>| all.iter().any(|it| it == name);
            controllers.as_ref().map(has)
        };
        Self {
            kind: Kind::Podman,
            version: version.version,
            api: Some(PODMAN_API),
            limits: Limits {
                cpu: limits("cpu"),
                memory: limits("memory"),
                pids: limits("pids"),
            },
            system: host.os,
            architecture: host.arch,
            distribution: host.distribution.distribution,
            kernel: host.kernel,
            control_groups: match host.cgroup_version.as_deref() {
                Some("v1") => Some(1),
                Some("v2") => Some(2),
                _ => None,
            },
            storage: store.graph_driver_name,
            folder: store.graph_root,
            id: None,
            processors: host.cpus,
            seccomp: host.security.seccomp_enabled,
            rootless: host.security.rootless,
            nvidia: false,
            ids: host.id_mappings,
        }
    }

    /// System and architecture, as an image's platform is written.
    pub(crate) fn platform(&self) -> String {
        join(self.system.as_deref(), self.architecture.as_deref())
    }

    /// The same in the words of the contract.
    pub(crate) fn told(self) -> EngineInfo {
        let mut told = EngineInfo::new(self.kind.name(), self.version.unwrap_or_default());
        let facts = [
            ("api", self.api.map(|api| api.to_string())),
            ("kernel", self.kernel),
            ("system", self.distribution),
            ("architecture", self.architecture),
            ("cgroup", self.control_groups.map(|it| it.to_string())),
            ("storage", self.storage),
            ("folder", self.folder),
        ];
        let known = facts
            .into_iter()
            .filter_map(|(name, fact)| Some((name.to_owned(), fact?)));
        told.facts.extend(known);
        told
    }
}

fn client_version(text: &str) -> Option<ClientVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ClientVersion {
        major_version: major.parse().ok()?,
        minor_version: minor.parse().ok()?,
    })
}

/// Podman's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodmanInfo {
    host: PodmanHost,
    store: PodmanStore,
    version: PodmanVersion,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodmanHost {
    arch: Option<String>,
    cgroup_controllers: Option<Vec<String>>,
    cgroup_version: Option<String>,
    cpus: Option<u32>,
    distribution: Distribution,
    id_mappings: IdMappings,
    kernel: Option<String>,
    os: Option<String>,
    security: Security,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Distribution {
    distribution: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Security {
    rootless: bool,
    seccomp_enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodmanStore {
    graph_driver_name: Option<String>,
    graph_root: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PodmanVersion {
    version: Option<String>,
}
