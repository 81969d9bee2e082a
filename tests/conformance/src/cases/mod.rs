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
