//! Mode `init`: how commands start, what they get, and how their end is told.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use support::{Stage, is_alive, program, until};
use v6_helper::{End, NotStarted};

#[test]
fn exit_codes_are_exact() {
    for code in [0u8, 1, 2, 125, 126, 127, 137, 255] {
        let ended = Stage::new().sh(&format!("exit {code}"));
        assert_eq!(ended.code, Some(code.into()));
        assert_eq!(ended.claim.end, End::Exited(code));
        assert!(!ended.claim.deadline && !ended.claim.terminated);
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    for signal in [1u8, 6, 9, 11, 15, 34, 64] {
        let ended = Stage::new().run(&["bash", "-c", &format!("ulimit -c 0; kill -{signal} $$")]);
        assert_eq!(ended.code, Some(128 + i32::from(signal)));
        assert_eq!(ended.claim.end, End::Signaled(signal));
        assert_eq!(ended.claim.exit_code(), 128 + i32::from(signal));
    }
}

#[track_caller]
fn assert_not_started(stage: &Stage, command: &[&str], expected: NotStarted, code: i32) -> String {
    let ended = stage.run(command);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.claim.exit_code(), code);
    let End::NotStarted { cause, error } = ended.claim.end else {
        panic!("{:?}", ended.claim)
    };
    assert_eq!(cause, expected);
    assert_eq!(ended.stderr.trim_end(), format!("v6-helper: {error}"));
    error
}

#[test]
fn commands_that_cannot_start_are_told_apart() {
    let stage = Stage::new();
    let file = |name: &str, mode, content: &str| {
        fs::write(stage.path(name), content).unwrap();
        fs::set_permissions(stage.path(name), fs::Permissions::from_mode(mode)).unwrap();
        stage.path(name)
    };
    let plain = file("plain", 0o644, "#!/bin/sh\n");
    let broken = file("broken", 0o755, "\x7fELF and no more");
    let no_interpreter = file("no-interpreter", 0o755, "#!/no/such/interpreter\n");

    let not_found =
        |command: &str| assert_not_started(&stage, &[command], NotStarted::NotFound, 127);
    assert!(not_found("no-such-command").contains("\"no-such-command\""));
    not_found("/no/such/command");
    not_found("");
    not_found(&no_interpreter);

    let not_executable =
        |command: &str| assert_not_started(&stage, &[command], NotStarted::NotExecutable, 126);
    not_executable(&plain);
    not_executable(stage.folder.path().to_str().unwrap());
    not_executable(&broken);

    let too_much = format!("KEY={}\0", "x".repeat(200_000));
    fs::write(stage.path("env"), too_much).unwrap();
    let stage = stage.with(|options| options.clone().with_env_file(path_beside(&options, "env")));
    assert_not_started(&stage, &["true"], NotStarted::Other, 125);
    let long_name = "\n\"".repeat(20_000);
    assert!(assert_not_started(&stage, &[&long_name], NotStarted::Other, 125).len() < 2_000);
}

#[test]
fn arguments_are_passed_literally() {
    let long = "x".repeat(100_000);
    let words = [
        "",
        "-",
        "--",
        "--claim",
        "-x",
        "a b",
        "'\"`$HOME\\",
        "two\nlines\n",
        "é€🦀",
        "*",
        &long,
    ];
    let mut command = vec!["sh", "-c", "printf '%s\\0' \"$@\"", "sh"];
    command.extend(words);
    let output = Stage::new().command(&command).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let got: Vec<&str> = stdout.strip_suffix('\0').unwrap().split('\0').collect();
    assert_eq!(got, words);
}

#[test]
fn the_environment_file_reaches_the_command_and_nobody_else() {
    let stage = Stage::new();
    fs::write(stage.path("env"), "SECRET=a=b\nc \0EMPTY=\0OVER=new\0").unwrap();
    let stage = stage.with(|options| options.clone().with_env_file(path_beside(&options, "env")));
    let script = "printf '%s|%s|%s|%s' \"$SECRET\" \"${EMPTY-unset}\" \"$OVER\" \"$KEPT\"";
    let output = stage
        .command(&["sh", "-c", script])
        .env("OVER", "old")
        .env("KEPT", "kept")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "a=b\nc ||new|kept"
    );
    assert_eq!(output.stderr, b"");
}

#[test]
fn limits_hold_for_good() {
    // bash tells both in blocks of 1,024 bytes.
    let script = "ulimit -H -c; ulimit -H -f; ulimit -f 2048 && exit 3; \
                  head -c 2000000 /dev/zero >large; stat -c %s large";
    let stage = Stage::new().with(|options| options.with_core_bytes(0).with_file_bytes(1 << 20));
    let mut command = stage.command(&["bash", "-c", script]);
    let output = command.current_dir(stage.folder.path()).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "0\n1024\n1048576\n"
    );
    // What is lower already is not raised.
    let stage = stage.with(|options| options.with_file_bytes(u64::MAX));
    let ended = stage.run(&["bash", "-c", "ulimit -H -f"]);
    assert!(
        ended.code == Some(0) && !ended.claim.out_of_memory,
        "{ended:?}"
    );
}

fn path_beside(options: &v6_helper::InitOptions, name: &str) -> String {
    let claim = std::path::Path::new(options.claim.as_deref().unwrap());
    claim.with_file_name(name).to_str().unwrap().to_owned()
}

#[test]
fn a_bad_environment_file_is_refused_without_showing_it() {
    for content in [
        "KEY=hunter2",
        "hunter2\0",
        "=hunter2\0",
        "A=1\0\0B=hunter2\0",
    ] {
        let stage = Stage::new();
        fs::write(stage.path("env"), content).unwrap();
        let stage =
            stage.with(|options| options.clone().with_env_file(path_beside(&options, "env")));
        let error = assert_not_started(&stage, &["true"], NotStarted::Other, 125);
        assert!(!error.contains("hunter2"), "{error}");
    }
    let stage = Stage::new().with(|options| options.with_env_file("/no/such/file"));
    assert_not_started(&stage, &["true"], NotStarted::Other, 125);
}

#[test]
fn the_command_is_looked_up_in_its_own_path_and_directory() {
    let stage = Stage::new();
    fs::write(
        stage.path("env"),
        format!("PATH={}\0", stage.folder.path().display()),
    )
    .unwrap();
    fs::write(stage.path("only-here"), "#!/bin/sh\necho \"$0\"; pwd\n").unwrap();
    fs::set_permissions(stage.path("only-here"), fs::Permissions::from_mode(0o755)).unwrap();
    let stage = stage.with(|options| options.clone().with_env_file(path_beside(&options, "env")));
    let output = stage
        .command(&["only-here"])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{}\n/\n", stage.path("only-here"))
    );
    let output = stage
        .command(&["./only-here"])
        .current_dir(stage.folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_command_gets_default_signals_and_a_session_and_no_descriptors() {
    let stage = Stage::new();
    let mut command = stage.command(&["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]);
    ignore_before_exec(&mut command);
    let status = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert_eq!(status.lines().count(), 2);
    // Signals 32 and 33 belong to the C library, which lets nobody change them: as inherited.
    let library = 0b11 << 31;
    for line in status.lines() {
        let mask = u64::from_str_radix(line.split_once('\t').unwrap().1, 16).unwrap();
        assert_eq!(mask & !library, 0, "{status}");
    }
    // Of the three numbers, process, group and session, each is the command's own.
    let ended = stage.sh("cut -d' ' -f1,5,6 /proc/$$/stat");
    let numbers: Vec<&str> = ended.stdout.split_ascii_whitespace().collect();
    assert!(
        numbers.len() == 3 && numbers.iter().all(|number| *number == numbers[0]),
        "{numbers:?}"
    );
    let stage = stage.with(|options| {
        let listener = v6_helper::Listener::new("127.90.0.1:0".parse().unwrap(), "/no/such/socket");
        options.with_listener(listener)
    });
    // What it inherits is what it would without the program.
    let list = ["ls", "/proc/self/fd"];
    let direct = Command::new(list[0])
        .arg(list[1])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    assert_eq!(
        stage.run(&list).stdout,
        String::from_utf8(direct.unwrap().stdout).unwrap()
    );
}

#[expect(unsafe_code, reason = "nothing else sets what a process inherits")]
fn ignore_before_exec(command: &mut Command) {
    let ignore = || {
        // SAFETY: async-signal-safe, and takes no pointers.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: the closure allocates nothing.
    unsafe { command.pre_exec(ignore) };
}

#[test]
fn orphans_are_reaped_while_the_command_runs() {
    // A process that nobody reaped would keep its place in /proc.
    let script = "for i in 1 2 3 4 5; do
            pid=$( (sh -c 'echo $$' &) )
            while [ -e /proc/$pid ]; do :; done
        done
        echo gone; exit 4";
    let ended = Stage::new().sh(script);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(4), "gone\n"));
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    let stage = Stage::new();
    let mut running = stage.start(&[
        "sh",
        "-c",
        "sleep 300 & echo $!; setsid sleep 300 & echo $!; read line",
    ]);
    let left = [running.line(), running.line()];
    // Standard input is empty, so that the command ends by now.
    let ended = running.end();
    assert_eq!(ended.claim.end, End::Exited(1));
    for pid in left {
        until("a left process ends", || (!is_alive(&pid)).then_some(()));
    }
}

const HOLD: &str = "while :; do sleep 300 & wait $!; done";

#[test]
fn signals_are_passed_on() {
    let signals = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("CONT", libc::SIGCONT),
        ("WINCH", libc::SIGWINCH),
        ("ALRM", libc::SIGALRM),
    ];
    let traps: String = signals
        .iter()
        .map(|(name, _)| format!("trap 'echo {name}' {name}; "))
        .collect();
    let stage = Stage::new();
    let script = format!("{traps} trap 'echo end; exit 9' TERM; echo ready; {HOLD}");
    let mut running = stage.start(&["sh", "-c", &script]);
    assert_eq!(running.line(), "ready");
    for (name, number) in signals {
        running.signal(number);
        assert_eq!(running.line(), name);
    }
    running.signal(libc::SIGTERM);
    assert_eq!(running.line(), "end");
    let ended = running.end();
    assert_eq!(ended.claim.end, End::Exited(9));
    assert!(ended.claim.terminated && !ended.claim.deadline);
}

#[test]
fn a_terminated_command_is_claimed_as_signaled() {
    let stage = Stage::new();
    let mut running = stage.start(&["sh", "-c", &format!("echo ready; {HOLD}")]);
    assert_eq!(running.line(), "ready");
    running.signal(libc::SIGTERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(143));
    assert_eq!(ended.claim.end, End::Signaled(15));
    assert!(ended.claim.terminated);
}

fn deadline_in(time: Duration, grace: Duration) -> Stage {
    Stage::new().with(|options| {
        options
            .with_deadline(SystemTime::now() + time)
            .with_grace(grace)
    })
}

#[test]
fn at_the_deadline_all_processes_are_terminated() {
    let stage = deadline_in(Duration::from_millis(400), Duration::from_secs(20));
    let other = "sh -c 'trap \"echo other; exit\" TERM; echo ready; while :; do sleep 300 & wait $!; done' &";
    let mut running = stage.start(&[
        "sh",
        "-c",
        &format!("trap 'wait; exit 5' TERM; {other} {HOLD}"),
    ]);
    assert_eq!(running.line(), "ready");
    assert_eq!(running.line(), "other");
    let ended = running.end();
    assert_eq!(ended.code, Some(5));
    assert!(ended.claim.deadline && !ended.claim.terminated);
    let range = Duration::from_millis(390)..Duration::from_secs(10);
    assert!(range.contains(&ended.after), "{:?}", ended.after);
}

#[test]
fn a_command_that_ignores_the_deadline_is_killed_after_the_grace() {
    let stage = deadline_in(Duration::from_millis(400), Duration::from_millis(300));
    let mut running = stage.start(&[
        "sh",
        "-c",
        "trap '' TERM; (sleep 300) & echo $!; while :; do sleep 300; done",
    ]);
    let other = running.line();
    let ended = running.end();
    assert_eq!(ended.code, Some(137));
    assert_eq!(ended.claim.end, End::Signaled(9));
    assert!(ended.claim.deadline);
    let range = Duration::from_millis(690)..Duration::from_secs(10);
    assert!(range.contains(&ended.after), "{:?}", ended.after);
    until("the other process ends", || {
        (!is_alive(&other)).then_some(())
    });
}

#[test]
fn after_the_deadline_nothing_is_started() {
    let past = SystemTime::now() - Duration::from_secs(1);
    let stage = Stage::new().with(|options| options.with_deadline(past));
    let ended = stage.sh("echo started");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(125), ""));
    assert!(ended.claim.deadline);
    assert!(matches!(
        ended.claim.end,
        End::NotStarted {
            cause: NotStarted::Other,
            ..
        }
    ));
}

#[test]
fn the_command_cannot_look_into_the_program() {
    let stage = Stage::new();
    let mut command = stage.command(&["sh", "-c", "cat /proc/$PPID/environ || exit 3"]);
    for path in [
        stage.folder.path().to_path_buf(),
        stage.path("claim").into(),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    if fs::metadata(stage.folder.path()).unwrap().uid() == 0 {
        command.uid(65532).gid(65532);
    }
    let output = command.env("SECRET", "hunter2").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn the_claim_goes_into_an_existing_regular_file_only() {
    let stage = Stage::new();
    fs::write(stage.path("other"), "untouched").unwrap();
    symlink(stage.path("other"), stage.path("link")).unwrap();
    for name in ["link", "missing", "."] {
        let path = stage.path(name);
        let stage = Stage::new().with(|options| options.with_claim(path));
        let output = stage
            .command(&["sh", "-c", "echo started"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125), "{name}");
        assert_eq!(output.stdout, b"");
        assert!(String::from_utf8(output.stderr).unwrap().contains("claim"));
    }
    assert_eq!(
        fs::read_to_string(stage.path("other")).unwrap(),
        "untouched"
    );
    assert!(!fs::exists(stage.path("missing")).unwrap());
}

#[test]
fn a_wrong_command_line_is_explained() {
    let program = program();
    for (arguments, word) in [
        (&[][..], "mode"),
        (&["start"], "start"),
        (&["init"], "command"),
        (&["init", "--"], "command"),
        (&["init", "true"], "true"),
        (&["init", "--colour", "red", "--", "true"], "--colour"),
        (&["init", "--claim"], "--claim"),
        (&["init", "--grace", "-1", "--", "true"], "--grace"),
        (&["init", "--deadline", "1e9", "--", "true"], "--deadline"),
        (
            &["init", "--connections", "0", "--", "true"],
            "--connections",
        ),
        (
            &["init", "--listen", "0.0.0.0:80=/s", "--", "true"],
            "loopback",
        ),
        (
            &["init", "--listen", "localhost:80=/s", "--", "true"],
            "ADDRESS:PORT",
        ),
    ] {
        let output = Command::new(program.path())
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        assert!(
            error.contains(word) && error.lines().count() == 1,
            "{arguments:?}: {error}"
        );
    }
    let output = Command::new(program.path())
        .arg("--version")
        .output()
        .unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"v6-helper "));
    let output = Command::new(program.path()).arg("--help").output().unwrap();
    assert!(output.status.success() && output.stdout.windows(8).any(|word| word == b"--listen"));
}
