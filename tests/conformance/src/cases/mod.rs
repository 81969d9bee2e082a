//! The cases, by subject.

mod egress;
mod files;
mod isolation;
mod logs;
mod outcomes;
mod records;
mod refusals;
mod stopping;
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
        logs::all(),
        watching::all(),
        stopping::all(),
        isolation::all(),
        egress::all(),
        refusals::all(),
    ]
    .concat()
}
