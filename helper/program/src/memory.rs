//! What the kernel tells of memory in this container.

use std::fs;

/// Where it counts the processes that it killed for want of memory, in the control group that the
/// container has as its root: versions 2 and 1.
const COUNTERS: [&str; 2] = [
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/memory.oom_control",
];

/// How many processes the kernel has killed so far; `None` if it does not tell.
pub fn kills() -> Option<u64> {
    let texts = COUNTERS
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    texts.into_iter().find_map(|text| count(&text))
}

fn count(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.trim().parse().ok())
}
