//! The cases, by subject.

mod egress;
mod files;
mod isolation;
mod logs;
mod outcomes;
mod records;
mod refusals;
mod stopping;
mod surroundings;
mod watching;
mod words;

use crate::case::Case;

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [
        records::all(),
        outcomes::all(),
        words::all(),
        files::all(),
        surroundings::all(),
        logs::all(),
        watching::all(),
        stopping::all(),
        isolation::all(),
        egress::all(),
        refusals::all(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The page names each case beside the clause that it tries, and no other.
    #[test]
    fn the_contract_page_names_every_case() {
        let page = include_str!("../../../../docs/contract.md");
        let rows = page.lines().filter(|line| line.starts_with("| "));
        let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
        let named: BTreeSet<&str> = cells
            .flat_map(|cell| cell.split(", "))
            .filter_map(|word| word.strip_prefix('`')?.strip_suffix('`'))
            .collect();
        let cases: BTreeSet<&str> = super::all().iter().map(|case| case.id).collect();
        assert_eq!(named, cases);
    }
}
