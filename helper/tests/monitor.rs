//! Mode `monitor`: runs that outlive their starter, real ones with name spaces of their own.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "skips are told on stdout")]

mod support;

use std::fs;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use support::{program, signal_process, until};
use tempfile::TempDir;
use v6_helper::{Ended, LogFrame, MonitorOptions, RunFolder, Sight, StopCause, Verdict};

/// A run's folder, and what its monitor is asked for.
struct Stage {
    folder: TempDir,
    run: RunFolder,
    options: MonitorOptions,
}

impl Stage {
    /// `None`, told as skipped, where this user may not make name spaces.
    fn new() -> Option<Self> {
        let stage = Self::unchecked();
        stage.launch("exit 0");
        if let Verdict::Failed(why) = &stage.end().verdict {
            let required = std::env::var_os("V6_REQUIRE_NAMESPACES").is_some();
            assert!(!required, "name spaces are required: {why}");
            println!("SKIP a run of its own name spaces cannot be made here: {why}");
            return None;
        }
        Some(Self::unchecked())
    }

    fn unchecked() -> Self {
        let folder = TempDir::new().unwrap();
        let run = RunFolder::new(folder.path());
        run.prepare().unwrap();
        Self {
            folder,
            run,
            options: MonitorOptions::default(),
        }
    }

    /// Starts a script whose output is the run's.
    fn launch(&self, script: &str) {
        let inside = self.run.inside();
        let inside = inside.display();
        self.launch_raw(&format!(
            "exec >{inside}/stdout 2>{inside}/stderr; {script}"
        ));
    }

    fn launch_raw(&self, script: &str) {
        let lock = self.run.lock().unwrap().expect("nobody is at work");
        let command = ["/bin/sh".into(), "-c".into(), script.into()];
        let environment = [("PATH".into(), "/bin:/usr/bin".into())];
        let program = program();
        let launched = self.run.launch(
            &program.path(),
            &self.options,
            &command,
            &environment,
            &lock,
        );
        launched.unwrap();
    }

    fn look(&self) -> Sight {
        self.run.look().unwrap()
    }

    fn end(&self) -> Ended {
        until("the run ends", || match self.look() {
            Sight::Ended(ended) => Some(ended),
            Sight::Lost { why, .. } => panic!("lost: {why}"),
            _ => None,
        })
    }

    /// What was printed so far: each stream, and the order of both; and whether the last frame is
    /// whole, which is not so while it is being written.
    fn log_so_far(&self) -> (Vec<(bool, Vec<u8>)>, bool) {
        let bytes = fs::read(self.run.log()).unwrap();
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while let Some((header, tail)) = rest.split_first_chunk() {
            let frame = LogFrame::parse(*header).expect("a frame");
            let Some((content, tail)) = tail.split_at_checked(frame.len as usize) else {
                break;
            };
            frames.push((frame.is_stderr, content.to_vec()));
            rest = tail;
        }
        (frames, rest.is_empty())
    }

    /// The same of a run that has ended.
    fn log(&self) -> Vec<(bool, Vec<u8>)> {
        let (frames, is_whole) = self.log_so_far();
        assert!(is_whole, "half a frame");
        frames
    }

    fn printed(&self, stderr: bool) -> Vec<u8> {
        let frames = self.log().into_iter();
        let ours = frames.filter(|(is_stderr, _)| *is_stderr == stderr);
        ours.flat_map(|(_, content)| content).collect()
    }

    fn field(&self, name: &str) -> Option<i64> {
        let state = fs::read(self.folder.path().join("state")).ok()?;
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        state.get(name)?.as_i64()
    }

    /// The process that holds the run's name spaces.
    fn guard(&self) -> i32 {
        let pid = until("the run runs", || self.field("pid"));
        pid.try_into().unwrap()
    }

    fn monitor(&self) -> i32 {
        parent(self.guard()).unwrap()
    }

    fn wait_for_output(&self) {
        until("it prints", || {
            (!self.log_so_far().0.is_empty()).then_some(())
        });
    }
}

/// Whose child a process is. One that has just ended has 0, which for `kill` is everybody who is about
/// here.
fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().filter(|parent| *parent > 1)
}

fn is_there(pid: i32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// How many programs run on this machine by just this command line.
fn processes(words: &str) -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            String::from_utf8_lossy(line)
                .trim_end_matches('\0')
                .replace('\0', " ")
                == words
        })
        .count()
}

#[test]
fn an_end_is_written_down_with_its_log() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("printf 'a\\000b'; printf 'wrong' >&2; sleep 0.01; printf 'c'; exit 7");
    let ended = stage.end();
    assert_eq!(ended.verdict, Verdict::Exited(7));
    assert_eq!(ended.cause, StopCause::End);
    assert_eq!(ended.dropped, 0);
    assert!(ended.started.unwrap() <= ended.finished);
    assert_eq!(stage.printed(false), b"a\0bc");
    assert_eq!(stage.printed(true), b"wrong");
    // Also to somebody who comes later: the lock is free.
    until("the monitor goes", || stage.run.lock().unwrap());
    assert_eq!(stage.look(), Sight::Ended(ended));
}

#[test]
fn what_the_command_says_is_kept_apart() {
    let Some(stage) = Stage::new() else { return };
    stage.launch_raw("echo FATAL: no such image >&2; exit 255");
    assert_eq!(stage.end().verdict, Verdict::Exited(255));
    assert_eq!(stage.run.words().unwrap(), "FATAL: no such image");
    assert!(stage.log().is_empty());
}

#[test]
fn a_command_that_is_not_there_is_told() {
    let Some(stage) = Stage::new() else { return };
    let lock = stage.run.lock().unwrap().unwrap();
    let command = ["/nowhere/at all".into()];
    let launched = stage
        .run
        .launch(&program().path(), &stage.options, &command, &[], &lock);
    launched.unwrap();
    let Verdict::Failed(why) = stage.end().verdict else {
        panic!("it was started");
    };
    assert!(why.contains("/nowhere/at all"), "{why}");
}

#[test]
fn a_monitor_that_cannot_work_says_why() {
    let stage = Stage::unchecked();
    let lock = stage.run.lock().unwrap().unwrap();
    fs::write(stage.folder.path().join("stop"), "nonsense").unwrap();
    let command = ["/bin/true".into()];
    let launched = stage
        .run
        .launch(&program().path(), &stage.options, &command, &[], &lock);
    let error = launched.unwrap_err().to_string();
    assert!(error.contains("`stop` is not readable"), "{error}");
}

#[test]
fn who_works_on_a_run_holds_its_lock() {
    let Some(stage) = Stage::new() else { return };
    assert!(matches!(stage.look(), Sight::NotBegun { held: false, .. }));
    let lock = stage.run.lock().unwrap().unwrap();
    assert!(matches!(stage.look(), Sight::NotBegun { held: true, .. }));
    assert!(stage.run.lock().unwrap().is_none());
    drop(lock);
    stage.launch("echo begun; sleep 60");
    assert!(matches!(stage.look(), Sight::Running { stop: None, .. }));
    assert!(stage.run.lock().unwrap().is_none());
    stage
        .run
        .stop(StopCause::Cancel, SystemTime::now())
        .unwrap();
    assert_eq!(stage.end().verdict, Verdict::Signaled(libc::SIGKILL));
}

#[test]
fn it_has_no_network_and_its_own_processes() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("tail -n +3 /proc/net/dev | cut -d: -f1; ls -d /proc/[0-9]* | wc -l; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep -c 'NoNewPrivs:.1' /proc/self/status");
    assert_eq!(stage.end().verdict, Verdict::Exited(0));
    let printed = String::from_utf8(stage.printed(false)).unwrap();
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words[0], "lo");
    assert!(words[1].parse::<u32>().unwrap() <= 4, "{printed}");
    assert_eq!(words[2..], ["0", "1"]);
}

#[test]
fn a_folder_in_memory_is_limited() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    let scratch = stage.folder.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    stage.options = MonitorOptions::default().with_tmpfs(&scratch, 1 << 20);
    let path = scratch.display();
    stage.launch(&format!(
        "head -c 500000 /dev/zero >{path}/a && ! head -c 5000000 /dev/zero >{path}/b && ls {path}"
    ));
    assert_eq!(stage.end().verdict, Verdict::Exited(0));
    assert_eq!(stage.printed(false), b"a\nb\n");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
}

#[test]
fn who_is_told_to_end_can_do_so_in_peace() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.01; done");
    stage.wait_for_output();
    let decided = stage.run.stop(
        StopCause::Cancel,
        SystemTime::now() + Duration::from_secs(60),
    );
    assert_eq!(decided.unwrap().cause, StopCause::Cancel);
    let ended = stage.end();
    assert_eq!(
        (ended.verdict, ended.cause),
        (Verdict::Exited(3), StopCause::Cancel)
    );
    assert_eq!(stage.printed(false), b"begun\nbye\n");
    // It had ended before: what was decided stays.
    let decided = stage.run.stop(StopCause::Cancel, SystemTime::now());
    assert_eq!(decided.unwrap().cause, StopCause::Cancel);
}

#[test]
fn who_ends_by_itself_was_not_cancelled() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("exit 0");
    stage.end();
    let decided = stage
        .run
        .stop(StopCause::Cancel, SystemTime::now())
        .unwrap();
    assert_eq!(decided.cause, StopCause::End);
    assert_eq!(stage.end().cause, StopCause::End);
}

#[test]
fn the_stubborn_are_killed_and_sooner_if_asked() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("trap '' TERM; echo begun; while :; do sleep 0.01; done");
    stage.wait_for_output();
    let hour = SystemTime::now() + Duration::from_secs(3600);
    stage.run.stop(StopCause::Cancel, hour).unwrap();
    until("it is stopping", || {
        let state = fs::read_to_string(stage.folder.path().join("state")).ok()?;
        state.contains("stopping").then_some(())
    });
    assert!(matches!(stage.look(), Sight::Running { stop: Some(_), .. }));
    let soon = SystemTime::now() + Duration::from_millis(50);
    assert_eq!(
        stage.run.stop(StopCause::Cancel, soon).unwrap().kill_at,
        soon
    );
    // A longer time than there is changes nothing.
    assert_eq!(
        stage.run.stop(StopCause::Cancel, hour).unwrap().kill_at,
        soon
    );
    let ended = stage.end();
    assert_eq!(ended.verdict, Verdict::Signaled(libc::SIGKILL));
    assert!(ended.finished >= soon);
}

#[test]
fn a_deadline_is_kept_by_the_monitor() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.options = MonitorOptions::default()
        .with_deadline(SystemTime::now() + Duration::from_millis(300))
        .with_grace(Duration::from_millis(100));
    stage.launch("trap '' TERM; while :; do sleep 0.01; done");
    let ended = stage.end();
    assert_eq!(ended.verdict, Verdict::Signaled(libc::SIGKILL));
    assert_eq!(ended.cause, StopCause::Deadline);
}

#[test]
fn what_is_over_before_the_start_does_not_begin() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.options = MonitorOptions::default().with_deadline(SystemTime::UNIX_EPOCH);
    stage.launch("echo begun");
    let ended = stage.end();
    assert_eq!(
        (ended.verdict, ended.cause),
        (Verdict::NotBegun, StopCause::Deadline)
    );

    let stage = Stage::unchecked();
    stage
        .run
        .stop(StopCause::Cancel, SystemTime::now())
        .unwrap();
    assert!(matches!(
        stage.look(),
        Sight::NotBegun {
            held: false,
            stop: Some(_)
        }
    ));
    stage.launch("echo begun");
    let ended = stage.end();
    assert_eq!(
        (ended.verdict, ended.cause),
        (Verdict::NotBegun, StopCause::Cancel)
    );
    assert!(!fs::exists(stage.run.log()).unwrap());
}

#[test]
fn a_flood_is_read_and_not_kept() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    stage.options = MonitorOptions::default().with_log_bytes(100_000);
    stage.launch("head -c 3000000 /dev/zero; printf end >&2");
    let ended = stage.end();
    assert_eq!(ended.verdict, Verdict::Exited(0));
    let kept: usize = stage.log().iter().map(|(_, content)| content.len()).sum();
    assert_eq!(kept, 100_000);
    assert_eq!(ended.dropped, 3_000_003 - 100_000);
}

#[test]
fn nothing_outlives_the_run() {
    let Some(stage) = Stage::new() else { return };
    let mark = format!("70.0{}", std::process::id());
    stage.launch(&format!("(setsid sleep {mark} &) ; sleep 0.1; exit 4"));
    assert_eq!(stage.end().verdict, Verdict::Exited(4));
    assert_eq!(processes(&format!("sleep {mark}")), 0);
}

#[test]
fn a_killed_monitor_takes_its_run_along() {
    let Some(stage) = Stage::new() else { return };
    let mark = format!("71.0{}", std::process::id());
    stage.launch(&format!("echo begun; setsid sleep {mark} & sleep {mark}"));
    until("both sleep", || {
        (processes(&format!("sleep {mark}")) >= 2).then_some(())
    });
    let guard = stage.guard();
    signal_process(stage.monitor(), libc::SIGKILL);
    let lost = until("it is lost", || match stage.look() {
        Sight::Lost { started, .. } => Some(started),
        _ => None,
    });
    assert!(lost.is_some());
    until("all are gone", || {
        (!is_there(guard) && processes(&format!("sleep {mark}")) == 0).then_some(())
    });
    assert!(stage.run.lock().unwrap().is_some());
}

#[test]
fn a_monitor_that_is_told_to_end_ends_its_run_first() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("echo begun; sleep 60");
    stage.wait_for_output();
    signal_process(stage.monitor(), libc::SIGTERM);
    let ended = stage.end();
    assert_eq!(ended.cause, StopCause::Signal);
}

#[test]
fn another_boot_is_noticed() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("echo begun; sleep 60");
    let state = stage.folder.path().join("state");
    let text = fs::read_to_string(&state).unwrap();
    let at = text.find("\"boot\":\"").unwrap() + 8;
    let mut other = text.clone();
    other.replace_range(at..at + 8, "00000000");
    fs::File::create(&state)
        .unwrap()
        .write_all(other.as_bytes())
        .unwrap();
    assert!(matches!(stage.look(), Sight::Lost { why, .. } if why.contains("restarted")));
    fs::write(&state, text).unwrap();
    stage
        .run
        .stop(StopCause::Cancel, SystemTime::now())
        .unwrap();
    stage.end();
}

/// Killed at any moment, also while it replaces its state: what is there can be read.
#[test]
fn no_kill_leaves_half_a_state() {
    let Some(_) = Stage::new() else { return };
    let (mut ended, mut lost) = (0, 0);
    for n in 0..30 {
        let stage = Stage::unchecked();
        stage.launch("exit 5");
        let monitor = parent(stage.guard());
        std::thread::sleep(Duration::from_micros(n * 150));
        if let Some(monitor) = monitor {
            signal_process(monitor, libc::SIGKILL);
        }
        until("it is settled", || match stage.look() {
            Sight::Ended(end) => {
                assert!(matches!(end.verdict, Verdict::Exited(5)));
                ended += 1;
                Some(())
            }
            Sight::Lost { .. } => {
                lost += 1;
                Some(())
            }
            _ => None,
        });
    }
    assert_eq!(ended + lost, 30);
    println!("{ended} ended, {lost} lost");
}

/// What a machine with many runs has of each.
#[test]
fn it_is_small() {
    let Some(stage) = Stage::new() else { return };
    stage.launch("head -c 1000000 /dev/zero; sleep 60");
    stage.wait_for_output();
    let resident = |pid: i32, field: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    };
    let (monitor, guard) = (stage.monitor(), stage.guard());
    for (name, pid) in [("monitor", monitor), ("guard", guard)] {
        let (all, own) = (resident(pid, "VmRSS:"), resident(pid, "RssAnon:"));
        println!("{name}: {all} KiB resident, {own} KiB of them its own");
    }
    let both = resident(monitor, "VmRSS:") + resident(guard, "RssAnon:");
    assert!(both < 3 * 1024, "{both} KiB");
    stage
        .run
        .stop(StopCause::Cancel, SystemTime::now())
        .unwrap();
    stage.end();
}
