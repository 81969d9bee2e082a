//! The run's control group, of version 2: others have made it and set its limits.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

/// The way into a control group, for this process or one that it starts.
pub fn door(group: &OsStr) -> io::Result<File> {
    let procs = Path::new(group).join("cgroup.procs");
    OpenOptions::new().write(true).open(procs)
}

/// Moves this process, and with it all that it starts.
pub fn enter(mut door: File) -> io::Result<()> {
    door.write_all(b"0")
}

/// Whether the kernel has killed a process in it for want of memory.
pub fn ran_out_of_memory(group: &OsStr) -> bool {
    let events = fs::read_to_string(Path::new(group).join("memory.events"));
    events.is_ok_and(|events| has_killed(&events))
}

fn has_killed(events: &str) -> bool {
    let mut pairs = events.lines().filter_map(|line| line.split_once(' '));
    pairs.any(|(name, count)| name == "oom_kill" && count.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_for_want_of_memory_are_seen() {
        // As Linux 6.18 writes it.
        let events = "low 0\nhigh 0\nmax 34\noom 1\noom_kill 0\noom_group_kill 0\n";
        assert!(!has_killed(events));
        assert!(has_killed(&events.replace("oom_kill 0", "oom_kill 1")));
        assert!(!has_killed(""));
    }
}
