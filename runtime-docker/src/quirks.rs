//! Which engine answers, and where it does otherwise than Docker: each difference has a name here,
//! with what was seen, and is nowhere else recognised.
//!
//! What the engines said is recorded in `tests/data/engines`, by `V6_RECORD=1` with `tests/engines.rs`,
//! `tests/states.rs` and `tests/restart.rs`. "4.3.1" is Podman of Debian 12.

use bollard::models::{ContainerInspectResponse, ContainerSummary, Mount};
use serde::Deserialize;
use serde_json::Value;

use crate::about::{About, IdMappings, IdRange, Kind};
use crate::error::Error;

/// What an engine does otherwise than Docker run by root.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quirks {
    /// The engine is run by an ordinary user: ids inside a container are not those of the machine.
    ///
    /// Docker says `name=rootless` among its security options. Podman 4.3.1 says it in
    /// `/libpod/info` (and in a field `Rootless` of `/info` that Docker does not have).
    pub(crate) rootless: bool,

    /// Which ids of the machine those inside a container are, where the engine tells.
    ids: IdMappings,

    /// A volume that is made together with a container gets no labels.
    ///
    /// Docker gives it those of the mount's `VolumeOptions.Labels`. Podman 4.3.1 takes them without
    /// a word, and the volume has `"Labels": {}`. So there the record is made by a call of its own,
    /// before the container for files, and a further mark tells that both were made.
    pub(crate) record_made_alone: bool,

    /// The limits on files and core dumps are lowered by `init`, and none are asked of the engine.
    ///
    /// Docker applies `HostConfig.Ulimits` and leaves what is not in it alone. Podman 4.3.1 run by
    /// a user drops it (inspect: `"Ulimits": []`; from inside: unlimited). Run by root it adds
    /// 1,048,576 open files and processes, and then cannot start the container where it is not
    /// allowed that many (`error setting rlimit type 7: operation not permitted`).
    pub(crate) limits_by_init: bool,

    /// The engine does not tell that the kernel ended a program for want of memory; `init` does.
    ///
    /// Docker answers `"OOMKilled": true`. Podman 4.3.1 with conmon 2.1.6 answers `false`, with
    /// exit code 137, and has no such event.
    pub(crate) out_of_memory_by_init: bool,

    /// Folders that a read-only root leaves writable, without a limit, in memory.
    ///
    /// Docker: none. Podman 4.3.1 mounts a tmpfs on each of these that has no mount of its own,
    /// whatever the API's call says (`--read-only-tmpfs`).
    pub(crate) writable_in_read_only_root: &'static [&'static str],

    /// `HostConfig.DeviceRequests` is taken and not looked at.
    ///
    /// Docker gives the devices or refuses the container. Podman 4.3.1 makes it without them.
    pub(crate) device_requests_ignored: bool,

    /// The log of a container that has ended, when it is followed, may lack lines, mostly the last ones.
    ///
    /// Docker gives all. Podman 4.3.1 lets go of the log as soon as it sees the end: of 1,778,864 bytes
    /// 1,397,130, 1,521,334 and 1,625,124 came. On a busy machine what was missing was once not at the
    /// end, so that no later reading could add it. Without following, all come.
    pub(crate) follow_loses_end: bool,

    /// The paths of a mount are words of a list with commas, and may be taken for more than they are.
    ///
    /// Docker takes a path for a path. Podman 4.3.1 makes `type=bind,source=…,dst=…` of a mount and
    /// reads that as CSV: a target `/data,ro` is `/data` and an option, and one with a quotation
    /// mark is refused.
    pub(crate) mounts_are_words: bool,

    /// `/etc/hosts` has names of the machine, unless a file of ours is mounted there.
    ///
    /// Docker writes loopback, what it is asked for, and the container's own address, if it has one.
    /// Podman 4.3.1 copies the machine's own file, and adds `host.containers.internal` with an address
    /// of the machine, also where the container has no network.
    pub(crate) hosts_has_more: bool,

    /// A registry is asked what it has by adding its image to a list of images.
    ///
    /// Docker has a call that asks (`/distribution/…`). Podman 4.3.1 answers it with 404; its `/libpod/manifests/…/json` of a registry's image leaves the digest out,
    /// and takes no login. A list of its own, which it calls a manifest, takes both: for an addition
    /// it gets the image's manifest and configuration and no layer, and it tells the digest.
    pub(crate) asks_by_list: bool,

    /// A container may be in states that Docker does not have, and its client does not understand.
    ///
    /// Docker knows seven. Podman 4.3.1 has `stopped` between a program's end and the end of its
    /// own tidying up, some 0.3 s later, by inspection and in listings; and `initialized`, which shows
    /// as `created` in Docker's API.
    pub(crate) other_states: bool,

    /// The names by which the events are asked for that tell of a change to a run.
    ///
    /// Docker filters by what it sends. Podman 4.3.1 sends `die`, and gives it only for the filter
    /// `died`; it sends `remove` for Docker's `destroy`. `cleanup` comes when it is done with
    /// a container that has ended.
    pub(crate) events: &'static [&'static str],

    /// A tmpfs at or above the working directory has the mode of that folder in the image, whatever
    /// its options say; its owner is as they say.
    ///
    /// Docker 20.10 makes the working directory in the image's layers first, with mode 0755, and
    /// runc gives a tmpfs the mode of what it covers. Podman 4.3.1 makes it after the mounts.
    pub(crate) working_folder_keeps_mode: bool,

    /// A host's path that is not there is made, as a folder, when it is to be mounted.
    ///
    /// Docker refuses the container (400, `bind source path does not exist`) if the mount is in
    /// `HostConfig.Mounts`. Podman 4.3.1 does for these what Docker does for `Binds`.
    pub(crate) makes_missing_paths: bool,
}

impl Quirks {
    /// Of an engine that says this about itself.
    pub(crate) fn of(about: &About) -> Self {
        let rootless = about.rootless;
        let ids = about.ids.clone();
        if about.kind == Kind::Docker {
            return Self {
                rootless,
                ids,
                events: &["start", "die", "oom", "kill", "destroy"],
                working_folder_keeps_mode: true,
                ..Self::default()
            };
        }
        Self {
            rootless,
            ids,
            record_made_alone: true,
            limits_by_init: true,
            out_of_memory_by_init: true,
            writable_in_read_only_root: &["/run", "/tmp", "/var/tmp"],
            device_requests_ignored: true,
            follow_loses_end: true,
            mounts_are_words: true,
            hosts_has_more: true,
            asks_by_list: true,
            other_states: true,
            events: &["start", "died", "kill", "cleanup", "remove"],
            working_folder_keeps_mode: false,
            makes_missing_paths: true,
        }
    }

    /// The machine's user and group id of these ids inside a container; `None` if there is no such
    /// id inside.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> Option<(u64, u64)> {
        let map = |id: u32, ranges: &Option<Vec<IdRange>>| match ranges {
            // Docker does not tell the ids of an ordinary user's engine: it has as many as are given
            // by default.
            None => (!self.rootless || id < 65_536).then(|| u64::from(id)),
            Some(ranges) => ranges.iter().find_map(|range| {
                let offset = u64::from(id).checked_sub(range.container_id)?;
                (offset < range.size).then(|| range.host_id.saturating_add(offset))
            }),
        };
        Some((map(uid, &self.ids.uidmap)?, map(gid, &self.ids.gidmap)?))
    }
}

/// A mount whose paths are taken as they are by an engine that makes words of them
/// ([`Quirks::mounts_are_words`]). Of words that are repeated the last counts, and those of the target
/// come last; the source has to be a path that is there, since a missing one is made.
pub(crate) fn as_words(mut mount: Mount) -> Mount {
    let is_plain = |path: &Option<String>| {
        let text = path.as_deref().unwrap_or_default();
        !text.contains([',', '"', '\n', '\r'])
    };
    if is_plain(&mount.source) && is_plain(&mount.target) {
        return mount;
    }
    let word = |key: &str, value: Option<String>| {
        let value = value.unwrap_or_default().replace('"', "\"\"");
        format!(",\"{key}={value}\"")
    };
    let target = word("dst", mount.target.take());
    let source = match is_plain(&mount.source) {
        true => String::new(),
        false => word("src", mount.source.replace("/".to_owned())),
    };
    mount.target = Some(format!("/v6{source}{target}"));
    mount
}

/// A container as it was inspected, with a state that Docker has.
pub(crate) fn container(answer: &[u8]) -> serde_json::Result<ContainerInspectResponse> {
    let mut container: Value = serde_json::from_slice(answer)?;
    if let Some(status) = container.pointer_mut("/State/Status") {
        make_known(status);
    }
    serde_json::from_value(container)
}

/// Containers as they were listed, with states that Docker has.
pub(crate) fn containers(answer: &[u8]) -> serde_json::Result<Vec<ContainerSummary>> {
    let mut containers: Vec<Value> = serde_json::from_slice(answer)?;
    for state in containers.iter_mut().filter_map(|it| it.get_mut("State")) {
        make_known(state);
    }
    containers.into_iter().map(serde_json::from_value).collect()
}

fn make_known(state: &mut Value) {
    let known = match state.as_str().unwrap_or_default() {
        same @ ("created" | "running" | "paused" | "restarting" | "removing" | "exited"
        | "dead" | "stopping") => same,
        "configured" | "initialized" => "created",
        "stopped" => "exited",
        // Whether it runs is told beside it.
        _ => "",
    };
    *state = known.into();
}

/// Whether an engine says of an object that it was removed during the call: Podman 4.3.1 answers
/// 500 with `container … does not exist in database: no such container`; Docker answers 404, but
/// 20.10, asked for the files of a container that has lost them already and is still listed, 500 with
/// `RWLayer of container … is unexpectedly nil`.
pub(crate) fn is_just_gone(error: &Error) -> bool {
    let words = ["no such container", "no such volume", "is unexpectedly nil"];
    error.status() == Some(500) && words.iter().any(|words| error.to_string().ends_with(words))
}

/// Whether an engine says that a volume was made by somebody else during the call: Podman 4.3.1 answers
/// 500 with `… name … is in use: volume already exists`; Docker returns the other's.
pub(crate) fn is_made_already(error: &Error) -> bool {
    error.status() == Some(500) && error.to_string().ends_with("volume already exists")
}

/// Whether an engine says that a container does not run, so that no signal can be sent to it: Podman
/// 4.3.1 answers 500 with `can only kill running containers. … is in state stopped: container state
/// improper` or `container state improper: stopped`, old Docker 500 with `… is not running`; Docker answers 409.
pub(crate) fn is_not_running(error: &Error) -> bool {
    let words = ["is not running", "container state improper"];
    let said = error.to_string();
    match error.status() {
        Some(409) => true,
        Some(500) => words.iter().any(|words| said.contains(words)),
        _ => false,
    }
}

/// Whether an engine says that of an image not everything is there yet: Podman 4.3.1 answers 500 with
/// `… locating item named "manifest" for image with ID "…" (consider removing the image to resolve the
/// issue): file does not exist` while another call puts that image into its store; Docker answers 404.
pub(crate) fn is_half_stored(error: &bollard::errors::Error) -> bool {
    use bollard::errors::Error::DockerResponseServerError as Refused;
    matches!(error, Refused { status_code: 500, message } if message.contains("locating item named "))
}

/// Whether an engine takes a container's files for mounted that are not: Podman 4.3.1 answers 500 with
/// `mounting storage for container …: lstat …/merged: no such file or directory` if it counts a mount
/// whose folder is gone, and goes on with it until it is told to unmount. Its count is wrong once in some
/// thousand mounts, when several are made at a time.
pub(crate) fn is_half_mounted(error: &bollard::errors::Error) -> bool {
    use bollard::errors::Error::DockerResponseServerError as Refused;
    let wrong = |message: &str| message.contains("mounting storage for container ");
    matches!(error, Refused { status_code: 500, message } if wrong(message))
}

/// Whether the words of a refused start tell of nothing but a bad moment before the program was begun:
/// Docker 20.10 with containerd 1.6.20, which had just stored what to run, once could not read that back
/// (`failed to retrieve spec: unexpected EOF: unknown`). The next start stores it again.
pub(crate) fn is_spec_unread(message: &str) -> bool {
    message.contains("failed to retrieve spec: ")
}

/// Whether an engine says no more than that a process ended while it looked: Podman 4.3.1 answers a
/// listing or an inspection with 500 and `read /proc/32470/cgroup: no such process`.
pub(crate) fn is_overtaken(error: &Error) -> bool {
    let said = error.to_string();
    error.status() == Some(500) && said.contains("/proc/") && said.ends_with("no such process")
}

/// What an engine says against an image that was to be added to a list, in the words of the registry
/// alone: Podman 4.3.1 answers 400 with `{"Id":"","errors":["…"]}`, where all other refusals are a
/// `message`.
pub(crate) fn list_refusal(error: bollard::errors::Error) -> bollard::errors::Error {
    use bollard::errors::Error::DockerResponseServerError;

    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<String>,
    }

    let DockerResponseServerError {
        status_code,
        message,
    } = error
    else {
        return error;
    };
    let message = match serde_json::from_str::<Refusal>(&message) {
        Ok(refusal) => refusal.errors.join("; "),
        Err(_) => message,
    };
    DockerResponseServerError {
        status_code,
        message,
    }
}
