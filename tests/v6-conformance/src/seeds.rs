//! Faults of isolation, made at a real engine: the request that makes a run's container is changed
//! on its way. Each must turn the cases red that are about it, and no others.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use v6_runtime_conformance::suite::{Selection, cases, run};
use v6_runtime_conformance::{Harness, Report, Verdict};

/// A fault.
pub(crate) struct Seed {
    pub(crate) name: &'static str,
    /// Changes the body of the request.
    pub(crate) rewrite: fn(&mut Value),
    /// The cases that it must turn red.
    red: &'static [&'static str],
    /// Runs disturb each other with it, so there is one at a time.
    alone: bool,
}

const fn seed(name: &'static str, rewrite: fn(&mut Value), red: &'static [&'static str]) -> Seed {
    Seed {
        name,
        rewrite,
        red,
        alone: false,
    }
}

fn host(body: &mut Value) -> &mut Value {
    &mut body["HostConfig"]
}

/// All of them.
pub(crate) const ALL: &[Seed] = &[
    seed(
        "root-inside",
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
    seed(
        "group-of-root",
        |body| host(body)["GroupAdd"] = json!(["0"]),
        &["it_is_not_root", "further_groups_are_given"],
    ),
    seed(
        "capabilities-kept",
        |body| host(body)["CapDrop"] = json!([]),
        &["it_has_no_capabilities"],
    ),
    seed(
        "privileges-gained",
        |body| host(body)["SecurityOpt"] = json!([]),
        &["it_gains_no_privileges"],
    ),
    seed(
        "system-calls-unfiltered",
        |body| {
            host(body)["SecurityOpt"] = json!(["no-new-privileges", "seccomp=unconfined"]);
        },
        &["its_system_calls_are_filtered"],
    ),
    seed(
        "root-writable",
        |body| host(body)["ReadonlyRootfs"] = json!(false),
        &["its_root_is_read_only", "trust_is_what_opens_the_root"],
    ),
    Seed {
        alone: true,
        ..seed(
            "network-of-the-host",
            |body| {
                host(body)["NetworkMode"] = json!("host");
                // An engine does not set these in its own network, so low ports are root's.
                host(body)["Sysctls"] = json!({});
            },
            &["it_has_no_network", "hosts_may_share_a_port"],
        )
    },
    seed(
        "processes-of-the-host",
        |body| host(body)["PidMode"] = json!("host"),
        &[],
    ),
    seed(
        "processes-unlimited",
        |body| host(body)["PidsLimit"] = json!(0),
        &["processes_are_limited"],
    ),
    seed(
        "memory-unlimited",
        |body| {
            host(body)["Memory"] = json!(0);
            host(body)["MemorySwap"] = json!(0);
        },
        &["out_of_memory_is_told"],
    ),
    seed(
        "mounts-writable",
        |body| {
            for mount in host(body)["Mounts"].as_array_mut().into_iter().flatten() {
                mount["ReadOnly"] = json!(false);
            }
        },
        &["host_paths_are_mounted"],
    ),
    seed(
        "a-folder-of-the-host",
        |body| {
            if let Some(mounts) = host(body)["Mounts"].as_array_mut() {
                mounts.push(json!({"Type": "bind", "Source": "/etc", "Target": "/host"}));
            }
        },
        &[],
    ),
    seed(
        "temporary-folders-unlimited",
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

/// Clauses about what surrounds a program and what it may do: these faults can touch their cases.
const TOUCHED: [&str; 5] = ["FLOOR-", "NET-1", "NET-2", "OUT-2", "RUN-6"];

/// Runs the suite with each fault and says whether it turned red what it must, and only that.
/// Without `whole`, of the other clauses no case is tried.
pub(crate) fn prove(
    harness: impl Fn(&'static Seed) -> Result<Arc<dyn Harness>, String>,
    only: &[String],
    whole: bool,
) -> Result<ExitCode, String> {
    let chosen: Vec<&'static Seed> = ALL
        .iter()
        .filter(|seed| only.is_empty() || only.iter().any(|name| name == seed.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|seed| seed.name).collect();
        return Err(format!("no such fault; there are {}", names.join(", ")));
    }
    println("     Running faults");
    let mut failures = Vec::new();
    for seed in &chosen {
        let selection = Selection {
            filters: touched(whole),
            exact: true,
            threads: if seed.alone {
                1
            } else {
                Selection::default().threads
            },
            ..Selection::default()
        };
        let report = run(&harness(seed)?, &selection, |_| {});
        let report = report.map_err(|error| format!("the engine cannot be used: {error}"))?;
        let verdict = judge(seed, &report);
        let ended = if verdict.is_ok() { "ok" } else { "FAILED" };
        println(&format!("test {} ... {ended}", seed.name));
        failures.extend(verdict.err().map(|what| (seed.name, what)));
    }
    for (name, what) in &failures {
        println(&format!("\n---- {name} ----\n{what}"));
    }
    println(&format!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured",
        if failures.is_empty() { "ok" } else { "FAILED" },
        chosen.len() - failures.len(),
        failures.len()
    ));
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn touched(whole: bool) -> Vec<String> {
    let all = cases().into_iter().filter(|case| {
        let about = |clause: &&str| TOUCHED.iter().any(|prefix| clause.starts_with(prefix));
        whole || (!case.alone && case.clauses.iter().any(about))
    });
    all.map(|case| case.id.to_owned()).collect()
}

fn judge(seed: &Seed, report: &Report) -> Result<(), String> {
    let failed = report.cases.iter().filter_map(|case| match &case.verdict {
        Verdict::Failed { evidence } => Some((case.id.as_str(), evidence)),
        _ => None,
    });
    let failed: std::collections::BTreeMap<&str, &String> = failed.collect();
    let wanted: BTreeSet<&str> = seed.red.iter().copied().collect();
    let mut wrong = Vec::new();
    for id in wanted.iter().filter(|id| !failed.contains_key(**id)) {
        wrong.push(format!("{id} did not fail"));
    }
    for (id, evidence) in failed.iter().filter(|(id, _)| !wanted.contains(**id)) {
        wrong.push(format!("{id} failed: {evidence}"));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

fn println(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}
