//! What the tests of the program share: a folder of its own for each, and the program in it.

#![allow(dead_code, reason = "each test target uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use v6_helper::{Claim, InitOptions, PROGRAM};

/// Longer than anything here takes. A program that runs longer has failed, and is killed.
const LIMIT: Duration = Duration::from_secs(30);

/// The program as a file, in a folder that any user can enter; gone with its last user.
pub struct Program {
    folder: TempDir,
}

impl Program {
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("v6-helper")
    }
}

/// One file for all who use it at the same time. It is only written while nobody does: a process
/// that is just starting could otherwise hold it open for writing, and it could not be executed.
pub fn program() -> Arc<Program> {
    static SHARED: Mutex<Weak<Program>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = shared.upgrade() {
        return program;
    }
    let program = Arc::new(Program {
        folder: TempDir::new().unwrap(),
    });
    fs::write(program.path(), PROGRAM).unwrap();
    for path in [program.folder.path(), &program.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    *shared = Arc::downgrade(&program);
    program
}

/// A folder with a file for the claim.
pub struct Stage {
    program: Arc<Program>,
    pub folder: TempDir,
    pub options: InitOptions,
}

/// How the program ended, and all that it and its command wrote.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub claim: Claim,
    pub after: Duration,
}

impl Stage {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let claim = folder.path().join("claim");
        fs::write(
            &claim,
            "something longer that was there before, and must not stay in part".repeat(9),
        )
        .unwrap();
        Self {
            program: program(),
            options: InitOptions::new().with_claim(claim.to_str().unwrap()),
            folder,
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn with(mut self, change: impl FnOnce(InitOptions) -> InitOptions) -> Self {
        self.options = change(self.options);
        self
    }

    pub fn command(&self, command: &[&str]) -> Command {
        let words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let line = self
            .options
            .command_line(self.program.path().to_str().unwrap(), &words)
            .unwrap();
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn start(&self, command: &[&str]) -> Running<'_> {
        let started = Instant::now();
        let mut child = self.command(command).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running {
            stage: self,
            child,
            stdout,
            started,
        }
    }

    pub fn run(&self, command: &[&str]) -> Ended {
        self.start(command).end()
    }

    pub fn sh(&self, script: &str) -> Ended {
        self.run(&["sh", "-c", script])
    }

    pub fn claim(&self) -> Claim {
        let bytes = fs::read(self.path("claim")).unwrap();
        Claim::parse(&bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)))
    }
}

/// The program while it runs.
pub struct Running<'a> {
    stage: &'a Stage,
    pub child: Child,
    stdout: BufReader<ChildStdout>,
    started: Instant,
}

impl Running<'_> {
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub fn signal(&self, signal: i32) {
        signal_process(self.pid(), signal);
    }

    /// The next line of the command's output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    /// Waits for the end of the program itself, whoever still holds its output open.
    pub fn end(mut self) -> Ended {
        let code = until("the program ends", || self.child.try_wait().unwrap()).code();
        let after = self.started.elapsed();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        std::io::Read::read_to_string(&mut self.stdout, &mut stdout).unwrap();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut stderr).unwrap();
        Ended {
            code,
            stdout,
            stderr,
            claim: self.stage.claim(),
            after,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Nobody is left behind by a failed test. It has ended already after a good one.
        if let Ok(None) = self.child.try_wait() {
            self.signal(libc::SIGKILL);
            _ = self.child.wait();
        }
    }
}

/// Asks until there is an answer, and fails when there is none for too long.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < LIMIT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[expect(unsafe_code, reason = "the standard library can only kill")]
pub fn signal_process(pid: i32, signal: i32) {
    assert!(pid > 1, "{pid} is not one process");
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Whether a process is there and is not merely waiting to be reaped.
pub fn is_alive(pid: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}
