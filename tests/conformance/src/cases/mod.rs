//! The cases, by subject.

mod cancelling;
mod connection;
mod crashes;
mod deadlines;
mod drops;
mod egress;
mod files;
mod folders;
mod inputs;
mod isolation;
mod leftovers;
mod logs;
mod needs;
mod outcomes;
mod owners;
mod pulling;
mod records;
mod refusals;
mod starting;
mod surroundings;
mod undeclared;
mod watching;
mod words;

pub(crate) use files::with_result;
pub(crate) use inputs::patterned;

use crate::case::Case;

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [
        starting::all(),
        records::all(),
        leftovers::all(),
        owners::all(),
        outcomes::all(),
        words::all(),
        inputs::all(),
        files::all(),
        folders::all(),
        surroundings::all(),
        logs::all(),
        watching::all(),
        cancelling::all(),
        deadlines::all(),
        drops::all(),
        crashes::all(),
        connection::all(),
        isolation::all(),
        egress::all(),
        refusals::all(),
        undeclared::all(),
        pulling::all(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use v6_runtime::{
        Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
    };

    /// Takes one thing away of all that can be declared.
    type Without = fn(&mut Capabilities);

    const EACH: &[(&str, Without)] = &[
        ("mounts.stream", |c| c.mounts.stream = false),
        ("mounts.host_path", |c| c.mounts.host_path = false),
        ("mounts.volume", |c| c.mounts.volume = false),
        ("mounts.volume_part", |c| c.mounts.volume_part = false),
        ("mounts.scratch", |c| c.mounts.scratch = false),
        ("mounts.scratch_limit", |c| c.mounts.scratch_limit = false),
        ("outputs.file", |c| c.outputs.file = false),
        ("outputs.folder", |c| c.outputs.folder = false),
        ("resources.cpu", |c| c.resources.cpu = false),
        ("resources.memory", |c| c.resources.memory = false),
        ("resources.pids", |c| c.resources.pids = false),
        ("resources.scratch", |c| c.resources.scratch = false),
        ("resources.gpu", |c| c.resources.gpu = false),
        ("logs.follow", |c| c.logs.follow = false),
        ("logs.since", |c| c.logs.since = false),
        ("logs.split", |c| c.logs.split = false),
        ("logs.binary", |c| c.logs.binary = false),
        ("outcomes.signaled", |c| c.outcomes.signaled = false),
        ("outcomes.out_of_memory", |c| {
            c.outcomes.out_of_memory = false;
        }),
        ("outcomes.cancelled", |c| c.outcomes.cancelled = false),
        ("outcomes.evicted", |c| c.outcomes.evicted = false),
        ("outcomes.command_not_found", |c| {
            c.outcomes.command_not_found = false;
        }),
        ("floor.non_root", |c| c.floor.non_root = false),
        ("floor.no_capabilities", |c| c.floor.no_capabilities = false),
        ("floor.no_new_privileges", |c| {
            c.floor.no_new_privileges = false;
        }),
        ("floor.seccomp", |c| c.floor.seccomp = false),
        ("floor.read_only_root", |c| c.floor.read_only_root = false),
        ("floor.no_network", |c| c.floor.no_network = false),
        ("floor.only_loopback", |c| c.floor.only_loopback = false),
        ("floor.private", |c| c.floor.private = false),
        ("egress", |c| c.egress = false),
        ("deadline", |c| c.deadline = false),
        ("grace", |c| c.grace = false),
        ("init", |c| c.init = false),
        ("trust", |c| c.trust = false),
        ("supplementary_groups", |c| c.supplementary_groups = false),
        ("pull", |c| c.pull = false),
        ("image_store", |c| c.image_store = false),
        ("usage", |c| c.usage = false),
    ];

    /// Declared and not tried: no engine that the suite has been run on can do it.
    const UNTRIED: &[&str] = &["outcomes.evicted"];

    fn everything() -> Capabilities {
        let mut all = Capabilities::none();
        all.mounts = MountKinds::all();
        all.outputs = OutputKinds::all();
        all.resources = ResourceKinds::all();
        all.logs = LogFeatures::all();
        all.outcomes = OutcomeKinds::all();
        all.floor = Floor::all();
        for each in [
            &mut all.egress,
            &mut all.deadline,
            &mut all.grace,
            &mut all.init,
            &mut all.trust,
            &mut all.supplementary_groups,
            &mut all.pull,
            &mut all.image_store,
            &mut all.usage,
        ] {
            *each = true;
        }
        all
    }

    /// Nothing can be declared that no case tries.
    #[test]
    fn whatever_is_declared_is_tried() {
        let known: BTreeSet<&str> = EACH.iter().map(|(name, _)| *name).collect();
        let all = crate::report::by_name(&everything());
        let names: BTreeSet<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(known, names, "the list above is not complete");
        let cases = super::all();
        let untried = EACH.iter().filter(|(_, without)| {
            let mut less = everything();
            without(&mut less);
            cases.iter().all(|case| (case.needs)(&less).is_ok())
        });
        let untried: Vec<&str> = untried.map(|(name, _)| *name).collect();
        assert_eq!(untried, UNTRIED);
    }

    /// The page names each case beside the clauses that it tries, and no other.
    #[test]
    fn the_contract_page_names_every_case() {
        let page = include_str!("../../../../docs/contract.md");
        let mut named: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for row in page.lines().filter_map(|line| line.strip_prefix("| ")) {
            let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
            let [clause, .., cases] = cells[..] else {
                continue;
            };
            for case in cases.split(", ") {
                if let Some(id) = case.strip_prefix('`').and_then(|id| id.strip_suffix('`')) {
                    named.entry(id).or_default().insert(clause);
                }
            }
        }
        let cases: BTreeMap<&str, BTreeSet<&str>> = super::all()
            .iter()
            .map(|case| (case.id, case.clauses.iter().copied().collect()))
            .collect();
        assert_eq!(named, cases);
    }
}
