//! Mode `monitor` with a control group of version 2, a real one.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "skips are told on stdout")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{program, until};
use tempfile::TempDir;
use v6_helper::{Ended, MonitorOptions, RunFolder, Sight, Verdict};

/// A control group of the test's own, gone with it.
struct Group(PathBuf);

impl Group {
    /// `None`, told as skipped, where this user may not make one.
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        });
        let Some(root) = root else {
            println!("SKIP this machine has no control groups of version 2");
            return None;
        };
        let group = root.join(format!("v6-test-{}", std::process::id()));
        match fs::create_dir(&group) {
            Ok(()) => Some(Self(group)),
            Err(error) => {
                println!("SKIP {} cannot be made: {error}", group.display());
                None
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// What a script prints and how it ends, in a group. `None`, told as skipped, without name spaces.
fn run(group: &Path, script: &str) -> Option<(Ended, String)> {
    let folder = TempDir::new().unwrap();
    let run = RunFolder::new(folder.path());
    run.prepare().unwrap();
    let lock = run.lock().unwrap().expect("nobody is at work");
    let script = format!("exec >{}/stdout; {script}", run.inside().display());
    let command = ["/bin/sh".into(), "-c".into(), script.into()];
    let environment = [("PATH".into(), "/bin:/usr/bin".into())];
    let options = MonitorOptions::default().with_cgroup(group);
    run.launch(&program().path(), &options, &command, &environment, &lock)
        .unwrap();
    drop(lock);
    let ended = until("the run ends", || match run.look().unwrap() {
        Sight::Ended(ended) => Some(ended),
        _ => None,
    });
    if let Verdict::Failed(why) = &ended.verdict
        && why.contains("name space")
    {
        let required = std::env::var_os("V6_REQUIRE_NAMESPACES").is_some();
        assert!(!required, "name spaces are required: {why}");
        println!("SKIP a run of its own name spaces cannot be made here: {why}");
        return None;
    }
    let printed = fs::read(run.log()).unwrap_or_default();
    Some((ended, String::from_utf8_lossy(&printed).into_owned()))
}

#[test]
fn a_run_is_in_its_group_alone_and_takes_it_along() {
    let Some(group) = Group::new() else { return };
    // Its own shell, and what that starts.
    let script = "cat /proc/self/cgroup; exit 3";
    let Some((ended, printed)) = run(&group.0, script) else {
        return;
    };
    assert_eq!(ended.verdict, Verdict::Exited(3));
    assert!(!ended.out_of_memory);
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert!(printed.contains(&format!("0::/{name}\n")), "{printed}");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(!own.contains(name), "{own}");
    assert!(!group.0.exists(), "the monitor removes it");
}

#[test]
fn without_its_group_nothing_runs() {
    let group = Path::new("/sys/fs/cgroup/v6-test-that-is-not-there");
    let Some((ended, printed)) = run(group, "echo begun") else {
        return;
    };
    let Verdict::Failed(why) = &ended.verdict else {
        panic!("{ended:?}");
    };
    assert!(why.contains("control group"), "{why}");
    assert_eq!(printed, "");
}
