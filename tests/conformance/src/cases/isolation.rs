//! The floor, read from inside.

use serde_json::{Value, json};
use v6_runtime::{Capabilities, Mount, MountSource, Outcome, Runtime};

use super::needs;
use crate::bench::{Bench, path, run_id};
use crate::case::{self, Stop, equal, holds};

case::cases! {
    #[needs(|c: &Capabilities| c.floor.non_root.then_some(()).ok_or("floor.non_root"))]
    it_is_not_root ["FLOOR-1"]: "no user or group id of the program is root's";
    #[needs(|c: &Capabilities| c.floor.no_capabilities.then_some(()).ok_or("floor.no_capabilities"))]
    it_has_no_capabilities ["FLOOR-2"]: "every capability set of the program is empty";
    #[needs(|c: &Capabilities| c.floor.no_new_privileges.then_some(()).ok_or("floor.no_new_privileges"))]
    it_gains_no_privileges ["FLOOR-3"]: "no_new_privs is set";
    #[needs(|c: &Capabilities| c.floor.seccomp.then_some(()).ok_or("floor.seccomp"))]
    its_system_calls_are_filtered ["FLOOR-4"]: "a system call filter is on";
    #[needs(|c: &Capabilities| c.floor.read_only_root.then_some(()).ok_or("floor.read_only_root"))]
    its_root_is_read_only ["FLOOR-5"]: "nothing of the root file system can be written; HOME and TMPDIR can";
    #[needs(needs::no_network)]
    it_has_no_network ["NET-1"]: "no name or address beyond loopback can be reached";
    #[needs(needs::only_loopback)]
    it_sees_only_loopback ["NET-1"]: "the only interface is loopback, there is no route, and no address beyond it";
    #[needs(needs::private)]
    it_sees_only_its_processes ["FLOOR-6"]: "the program sees no process of the host or of another run";
    #[needs(needs::private)]
    it_has_only_the_mounts_asked_for ["FLOOR-6"]: "what is mounted is what was asked for, scratch, and what every container has";
    #[needs(|c: &Capabilities| c.floor.no_capabilities.then_some(()).ok_or("floor.no_capabilities"))]
    powers_are_refused ["FLOOR-1", "FLOOR-2"]: "mounting, making devices, changing user, root or host name, raw sockets: all refused";
    #[needs(|c: &Capabilities| c.resources.pids.then_some(()).ok_or("resources.pids"))]
    processes_are_limited ["FLOOR-7"]: "a run cannot start more processes than its limit";
    an_examination_holds ["EXAM-1"]: "examine finds nothing that a run can do and must not, or says that it cannot examine";
}

/// What the probe says of itself.
async fn identity(bench: &Bench) -> Result<Value, case::Failure> {
    let id = run_id("identity");
    let status = bench.finish(&id, &bench.spec("identity").await?).await?;
    let log = bench.log(&id).await?;
    let text = String::from_utf8_lossy(&log).into_owned();
    equal(
        &format!("its end ({text})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    serde_json::from_slice(&log).map_err(|error| format!("{error} in {text}").into())
}

async fn it_is_not_root(bench: Bench) -> case::Outcome {
    let identity = identity(&bench).await?;
    for field in ["uid", "gid", "groups"] {
        let ids = identity[field].as_array().ok_or("no ids")?;
        holds(
            &format!("{field} is {ids:?}"),
            !ids.iter().any(|id| *id == 0),
        )?;
    }
    Ok(())
}

async fn it_has_no_capabilities(bench: Bench) -> case::Outcome {
    let identity = identity(&bench).await?;
    let sets = identity["capabilities"]
        .as_object()
        .ok_or("no capabilities")?;
    for (name, set) in sets {
        let set = set.as_str().unwrap_or("?");
        holds(
            &format!("{name} is {set}"),
            !set.is_empty() && set.bytes().all(|digit| digit == b'0'),
        )?;
    }
    Ok(())
}

async fn it_gains_no_privileges(bench: Bench) -> case::Outcome {
    equal(
        "no_new_privs",
        identity(&bench).await?["no_new_privs"].as_bool(),
        Some(true),
    )?;
    Ok(())
}

async fn its_system_calls_are_filtered(bench: Bench) -> case::Outcome {
    equal(
        "seccomp",
        identity(&bench).await?["seccomp"].as_u64(),
        Some(2),
    )?;
    Ok(())
}

/// Runs tolerant steps, and returns what each came to.
async fn tries(
    bench: &Bench,
    id: &str,
    steps: &[&str],
) -> Result<Vec<(String, bool)>, case::Failure> {
    let words: Vec<String> = steps.iter().map(|step| format!("try {step}")).collect();
    let id = run_id(id);
    let status = bench
        .finish(&id, &bench.spec(&words.join(" then ")).await?)
        .await?;
    let text = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    equal(
        &format!("its end ({text})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let results = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let oks: Vec<bool> = results
        .filter(|r| r["step"] == "try")
        .filter_map(|r| r["ok"].as_bool())
        .collect();
    equal("steps that were told", oks.len(), steps.len())?;
    Ok(steps
        .iter()
        .map(|step| (*step).to_owned())
        .zip(oks)
        .collect())
}

async fn its_root_is_read_only(bench: Bench) -> case::Outcome {
    for (step, ok) in tries(
        &bench,
        "root",
        &["write /x 1", "write /etc/x 1", "mkdir /new"],
    )
    .await?
    {
        holds(&format!("{step} was allowed"), !ok)?;
    }
    let identity = identity(&bench).await?;
    // Not being root, it might be refused even if the root is writable. Either the mount is read-only or
    // the file system itself.
    for mount in identity["mounts"].as_array().into_iter().flatten() {
        let read_only = ["options", "super_options"].map(|of| is_listed(&mount[of], "ro"));
        let is_writable = mount["point"] == "/" && read_only == [false, false];
        holds(&format!("its root is {mount}"), !is_writable)?;
    }
    for variable in ["HOME", "TMPDIR"] {
        let folder = identity["env"][variable]
            .as_str()
            .ok_or("HOME or TMPDIR is not set")?;
        let step = format!("write {folder}/x 10");
        for (step, ok) in
            tries(&bench, &format!("in-{}", variable.to_lowercase()), &[&step]).await?
        {
            holds(&format!("{step} was refused"), ok)?;
        }
    }
    Ok(())
}

async fn it_has_no_network(bench: Bench) -> case::Outcome {
    let steps = [
        "connect 192.0.2.1 443",
        "connect 169.254.169.254 80",
        "connect 10.0.0.1 80",
        "connect 127.0.0.1 53",
        "connect 127.0.0.11 53",
        "connect 2001:db8::1 443",
        "connect fe80::1 443",
        "connect ::1 80",
        "resolve example.org",
        "resolve localhost.example",
        "resolve host.docker.internal",
        "resolve host.containers.internal",
    ];
    for (step, ok) in tries(&bench, "network", &steps).await? {
        holds(&format!("{step} was allowed"), !ok)?;
    }
    Ok(())
}

async fn it_sees_only_loopback(bench: Bench) -> case::Outcome {
    let identity = identity(&bench).await?;
    let network = &identity["network"];
    equal("its interfaces", &network["interfaces"], &json!(["lo"]))?;
    equal("its routes", &network["routes"], &json!([]))?;
    let addresses = network["ipv6_addresses"].as_array();
    for address in addresses.ok_or("no addresses are told")? {
        let text = address.as_str().unwrap_or_default();
        let loopback = format!("{:0>32} ", "1");
        holds(
            &format!("it has the address {text}"),
            text.starts_with(&loopback),
        )?;
    }
    Ok(())
}

async fn it_sees_only_its_processes(bench: Bench) -> case::Outcome {
    let other = run_id("other");
    let spec = bench
        .spec("echo ready then children 8 60000 then sleep 60000")
        .await?;
    bench.runtime.run(&other, &spec).await?;
    bench.running(&other).await?;
    bench.printed(&other, "children").await?;
    let id = run_id("looking");
    let log = bench.done(&id, &bench.spec("processes").await?).await?;
    let told: Value = serde_json::from_str(&log).map_err(|error| format!("{error} in {log}"))?;
    let processes = told["processes"]
        .as_array()
        .ok_or("no processes are told")?;
    // The program, and the engine's or the backend's first process before it.
    let few = (1..=3).contains(&processes.len());
    holds(&format!("it sees {processes:?}"), few)?;
    let first = processes.iter().any(|process| process["pid"] == 1);
    holds(&format!("none of them is the first: {processes:?}"), first)?;
    Ok(())
}

/// Where every container has something mounted, and where a backend may.
fn is_usual(point: &str) -> bool {
    let system = ["/proc", "/sys", "/dev", "/.v6"];
    let files = [
        "/",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        // With a line for a user that the image does not know.
        "/etc/passwd",
        "/etc/group",
        "/run/.containerenv",
        "/.dockerenv",
    ];
    let below = |above: &str| {
        let rest = point.strip_prefix(above);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    files.contains(&point) || system.iter().any(|above| below(above))
}

async fn it_has_only_the_mounts_asked_for(bench: Bench) -> case::Outcome {
    let declared = bench.runtime.capabilities().clone();
    let given = Mount::new(MountSource::Inline("text".into()), path("/given/deep/file"));
    let mut asked = vec!["/given/deep/file".to_owned()];
    let mut spec = bench.spec("identity").await?.with_mount(given);
    if declared.outputs.file {
        spec = super::files::with_result(spec, 1000)?;
        asked.push("/out/result".to_owned());
    }
    if declared.mounts.scratch {
        spec = spec.with_mount(Mount::new(MountSource::Scratch(None), path("/work")));
        asked.push("/work".to_owned());
    }
    let log = bench.done(&run_id("mounted"), &spec).await?;
    let identity: Value =
        serde_json::from_str(&log).map_err(|error| format!("{error} in {log}"))?;
    for scratch in ["HOME", "TMPDIR"] {
        let folder = identity["env"][scratch].as_str();
        asked.extend(folder.map(str::to_owned));
    }
    let mounts = identity["mounts"].as_array().ok_or("no mounts are told")?;
    holds("nothing is mounted", !mounts.is_empty())?;
    for mount in mounts {
        let point = mount["point"].as_str().ok_or("a mount without a place")?;
        // What was asked for may be in a folder that is mounted.
        let wanted = asked.iter().any(|place| {
            let rest = place.strip_prefix(point);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        // In memory of its own, and nobody can write to it: it holds nothing of anybody.
        let empty = mount["type"] == "tmpfs" && has_option(mount, "ro");
        holds(
            &format!("it was not asked for: {mount}"),
            is_usual(point) || wanted || empty,
        )?;
    }
    Ok(())
}

/// Whether a mount that the probe tells of has this option.
pub(super) fn has_option(mount: &Value, name: &str) -> bool {
    is_listed(&mount["options"], name)
}

fn is_listed(list: &Value, name: &str) -> bool {
    let all = list.as_array();
    all.is_some_and(|all| all.iter().any(|one| one == name))
}

async fn powers_are_refused(bench: Bench) -> case::Outcome {
    let all = [
        "setuid",
        "setgid",
        "setgroups",
        "mount",
        "mknod",
        "chroot",
        "hostname",
        "raw-socket",
    ];
    let words: Vec<String> = all.iter().map(|what| format!("attempt {what}")).collect();
    let id = run_id("powers");
    bench
        .finish(&id, &bench.spec(&words.join(" then ")).await?)
        .await?;
    let text = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    let results: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    equal(
        &format!("attempts that were told ({text})"),
        results.len(),
        all.len(),
    )?;
    for result in results {
        holds(&format!("allowed: {result}"), result["allowed"] == false)?;
    }
    Ok(())
}

async fn processes_are_limited(bench: Bench) -> case::Outcome {
    let id = run_id("forks");
    let limit = std::num::NonZeroU32::new(20).ok_or("20 is not zero")?;
    let spec = bench.spec("children 60 2000").await?;
    let spec = spec.with_resources(v6_runtime::Resources::default().with_pids(limit));
    let status = bench.finish(&id, &spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    equal(
        &format!("its end ({log})"),
        status.outcome().cloned(),
        Some(Outcome::Exited(0)),
    )?;
    let told: Value = serde_json::from_str(&log).map_err(|error| format!("{error} in {log}"))?;
    let started = told["started"]
        .as_u64()
        .ok_or("the probe does not say how many")?;
    holds(
        &format!("{started} processes were started with a limit of 20"),
        started <= 20,
    )?;
    Ok(())
}

async fn an_examination_holds(bench: Bench) -> case::Outcome {
    match bench.runtime.examine().await {
        Ok(seen) => {
            holds("nothing was examined", !seen.is_empty())?;
            for observation in seen {
                holds(
                    &format!("{}: {}", observation.name, observation.seen),
                    observation.holds,
                )?;
            }
            Ok(())
        }
        Err(error) if error.kind() == v6_runtime::ErrorKind::Unsupported => Err(Stop::Undeclared(
            "this runtime cannot examine itself".into(),
        )),
        Err(error) => Err(error.into()),
    }
}
