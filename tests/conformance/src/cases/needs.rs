//! What cases need beyond the core, by the name that the report gives.

use v6_runtime::Capabilities;

use crate::bench::Bench;

type Needs = Result<(), &'static str>;

fn need(declared: bool, what: &'static str) -> Needs {
    declared.then_some(()).ok_or(what)
}

pub(crate) fn streams(c: &Capabilities) -> Needs {
    need(c.mounts.stream, "mounts.stream")
}

pub(crate) fn scratch(c: &Capabilities) -> Needs {
    need(c.mounts.scratch, "mounts.scratch")
}

pub(crate) fn volumes(c: &Capabilities) -> Needs {
    need(c.mounts.volume, "mounts.volume")
}

pub(super) fn volume_parts(c: &Capabilities) -> Result<(), &'static str> {
    need(c.mounts.volume_part, "mounts.volume_part")
}

pub(crate) fn files(c: &Capabilities) -> Needs {
    need(c.outputs.file, "outputs.file")
}

pub(crate) fn folders(c: &Capabilities) -> Needs {
    need(c.outputs.folder, "outputs.folder")
}

pub(crate) fn deadline(c: &Capabilities) -> Needs {
    need(c.deadline, "deadline")
}

pub(crate) fn grace(c: &Capabilities) -> Needs {
    need(c.grace, "grace")
}

pub(crate) fn init(c: &Capabilities) -> Needs {
    need(c.init, "init")
}

pub(crate) fn cancelled(c: &Capabilities) -> Needs {
    need(c.outcomes.cancelled, "outcomes.cancelled")
}

pub(crate) fn pull(c: &Capabilities) -> Needs {
    need(c.pull, "pull")
}

pub(crate) fn egress(c: &Capabilities) -> Needs {
    need(c.egress, "egress")
}

pub(crate) fn follow(c: &Capabilities) -> Needs {
    need(c.logs.follow, "logs.follow")
}

pub(crate) fn private(c: &Capabilities) -> Needs {
    need(c.floor.private, "floor.private")
}

pub(crate) fn no_network(c: &Capabilities) -> Needs {
    need(c.floor.no_network, "floor.no_network")
}

/// Whether a run that was cancelled may have ended so. Where `cancelled` is not declared it is
/// told as any other program that a signal has ended.
pub(crate) fn is_cancelled(bench: &Bench, outcome: &v6_runtime::Outcome) -> bool {
    use v6_runtime::Outcome;
    match outcome {
        Outcome::Cancelled => true,
        Outcome::Exited(128..) | Outcome::Signaled(_) => {
            !bench.runtime.capabilities().outcomes.cancelled
        }
        _ => false,
    }
}

pub(crate) fn only_loopback(c: &Capabilities) -> Needs {
    need(c.floor.only_loopback, "floor.only_loopback")
}
