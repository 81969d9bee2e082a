//! Faults of isolation: the request that makes a run's container is changed on its way.

use serde_json::{Value, json};

use super::{Seed, container};

fn host(body: &mut Value) -> &mut Value {
    &mut body["HostConfig"]
}

/// All of them.
pub(super) const ALL: &[Seed] = &[
    container(
        "root-inside",
        "The program is root.",
        |body| {
            body["User"] = json!("0:0");
            // Without it, this root could not read its own files, and no case would get far.
            host(body)["CapAdd"] = json!(["DAC_OVERRIDE"]);
        },
        &[
            "it_is_not_root",
            "it_has_no_capabilities",
            "powers_are_refused",
            "further_groups_are_given",
        ],
    ),
    container(
        "group-of-root",
        "The program is in root's group.",
        |body| host(body)["GroupAdd"] = json!(["0"]),
        &["it_is_not_root", "further_groups_are_given"],
    ),
    container(
        "capabilities-kept",
        "The engine's own set of capabilities can be gained.",
        |body| host(body)["CapDrop"] = json!([]),
        &["it_has_no_capabilities"],
    ),
    container(
        "privileges-gained",
        "Programs with the set-user-id bit raise privileges.",
        |body| host(body)["SecurityOpt"] = json!([]),
        &["it_gains_no_privileges"],
    ),
    container(
        "system-calls-unfiltered",
        "Every system call is allowed.",
        |body| {
            host(body)["SecurityOpt"] = json!(["no-new-privileges", "seccomp=unconfined"]);
        },
        &["its_system_calls_are_filtered"],
    ),
    container(
        "root-writable",
        "The root file system can be written.",
        |body| host(body)["ReadonlyRootfs"] = json!(false),
        &["its_root_is_read_only", "trust_is_what_opens_the_root"],
    ),
    Seed {
        alone: true,
        ..container(
            "network-of-the-host",
            "The program is in the network of the machine.",
            |body| {
                host(body)["NetworkMode"] = json!("host");
                // An engine does not set these in its own network, so low ports are root's.
                host(body)["Sysctls"] = json!({});
            },
            &[
                "it_has_no_network",
                "it_sees_only_loopback",
                "hosts_may_share_a_port",
            ],
        )
    },
    container(
        "processes-of-the-host",
        "The program is among the processes of the machine.",
        |body| host(body)["PidMode"] = json!("host"),
        &["it_sees_only_its_processes"],
    ),
    container(
        "processes-unlimited",
        "The limit of processes is not set.",
        |body| host(body)["PidsLimit"] = json!(0),
        &["processes_are_limited"],
    ),
    container(
        "memory-unlimited",
        "The limit of memory is not set.",
        |body| {
            host(body)["Memory"] = json!(0);
            host(body)["MemorySwap"] = json!(0);
        },
        &["out_of_memory_is_told"],
    ),
    container(
        "processors-unlimited",
        "The limit of processor time is not set.",
        |body| {
            for limit in ["NanoCpus", "CpuQuota", "CpuPeriod"] {
                host(body)[limit] = json!(0);
            }
        },
        &["a_processor_limit_binds"],
    ),
    container(
        "mounts-writable",
        "What is mounted for reading can be written.",
        |body| {
            for mount in host(body)["Mounts"].as_array_mut().into_iter().flatten() {
                mount["ReadOnly"] = json!(false);
            }
        },
        &["host_paths_are_mounted", "volumes_are_mounted"],
    ),
    container(
        "a-folder-of-the-host",
        "A folder of the machine is mounted that nobody asked for.",
        |body| {
            if let Some(mounts) = host(body)["Mounts"].as_array_mut() {
                mounts.push(json!({"Type": "bind", "Source": "/etc", "Target": "/host"}));
            }
        },
        &["it_has_only_the_mounts_asked_for"],
    ),
    container(
        "temporary-folders-unlimited",
        "Folders in memory have no limit.",
        |body| {
            let folders = host(body)["Tmpfs"].as_object_mut();
            for (_, options) in folders.into_iter().flatten() {
                let text = options.as_str().unwrap_or_default();
                let kept = text
                    .split(',')
                    .filter(|option| !option.starts_with("size="));
                *options = json!(kept.collect::<Vec<_>>().join(","));
            }
        },
        &["the_temporary_folder_is_limited", "a_scratch_limit_binds"],
    ),
];
