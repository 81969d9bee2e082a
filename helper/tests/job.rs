//! Mode `monitor --job`: what a batch system executes, once or more often, real runs with name spaces.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "skips are told on stdout")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hmac_sha256::HMAC;
use support::{Program, program, signal_process, until};
use tempfile::TempDir;
use v6_helper::{Ended, MonitorOptions, RunFolder, Sight, StopCause, TunnelOptions, Verdict};

struct Stage {
    /// The program has to be there for as long as the job may start.
    program: Arc<Program>,
    folder: TempDir,
    run: RunFolder,
    options: MonitorOptions,
    line: Vec<OsString>,
}

impl Stage {
    /// A job that runs a script; `None`, told as skipped, where this user may not make name spaces.
    fn new(script: &str) -> Option<Self> {
        let mut trial = Self::unchecked();
        trial.make("1", "exit 0");
        trial.start().wait().unwrap();
        if let Sight::Ended(Ended {
            verdict: Verdict::Failed(why),
            ..
        }) = trial.look(false)
        {
            let required = std::env::var_os("V6_REQUIRE_NAMESPACES").is_some();
            assert!(!required, "name spaces are required: {why}");
            println!("SKIP a run of its own name spaces cannot be made here: {why}");
            return None;
        }
        let mut stage = Self::unchecked();
        stage.make("1", script);
        Some(stage)
    }

    fn unchecked() -> Self {
        let folder = TempDir::new().unwrap();
        let run = RunFolder::new(folder.path());
        run.prepare().unwrap();
        fs::create_dir(run.inside().join("egress")).unwrap();
        Self {
            program: program(),
            folder,
            run,
            options: MonitorOptions::default(),
            line: Vec::new(),
        }
    }

    fn make(&mut self, attempt: &str, script: &str) {
        let words = ["/bin/sh", "-c", script].map(OsString::from);
        let environment = [
            ("PATH".into(), "/bin:/usr/bin".into()),
            ("A".into(), "b c".into()),
        ];
        let line = self.run.make_job(
            attempt,
            &self.program.path(),
            &self.options,
            &words,
            &environment,
        );
        self.line = line.unwrap();
    }

    /// What a batch system does.
    fn start(&self) -> Child {
        let mut job = Command::new(&self.line[0]);
        job.args(&self.line[1..]).stdin(Stdio::null());
        job.stdout(Stdio::piped()).stderr(Stdio::piped());
        job.spawn().unwrap()
    }

    fn look(&self, alive: bool) -> Sight {
        self.run.look_at_job(alive).unwrap()
    }

    fn ended(&self) -> Ended {
        match self.look(false) {
            Sight::Ended(ended) => ended,
            other => panic!("not ended: {other:?}"),
        }
    }

    fn runs(&self) {
        until("the run runs", || {
            matches!(self.look(true), Sight::Running { .. }).then_some(())
        });
    }
}

fn said(child: Child) -> (Option<i32>, String) {
    let said = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stderr).into_owned();
    (said.status.code(), words)
}

#[test]
fn it_ends_with_the_programs_code_and_environment() {
    let Some(stage) = Stage::new("[ \"$A\" = 'b c' ] && [ -z \"$HOME\" ] && exit 7") else {
        return;
    };
    assert!(matches!(
        stage.look(true),
        Sight::NotBegun { held: true, .. }
    ));
    assert_eq!(said(stage.start()).0, Some(7));
    assert_eq!(stage.ended().verdict, Verdict::Exited(7));
}

#[test]
fn a_run_is_begun_once() {
    let Some(stage) = Stage::new("echo x >>ran") else {
        return;
    };
    let jobs: Vec<Child> = (0..4).map(|_| stage.start()).collect();
    let mut codes: Vec<_> = jobs.into_iter().map(said).collect();
    codes.sort();
    assert_eq!(codes[0].0, Some(0), "{codes:?}");
    for (code, words) in &codes[1..] {
        assert_eq!(*code, Some(125), "{codes:?}");
        assert!(words.contains("another job has begun this run"), "{words}");
    }
    assert_eq!(fs::read(stage.folder.path().join("ran")).unwrap(), b"x\n");
    assert_eq!(stage.ended().verdict, Verdict::Exited(0));
}

#[test]
fn a_job_of_an_earlier_attempt_does_nothing() {
    let Some(mut stage) = Stage::new("exit 0") else {
        return;
    };
    let early = stage.line.clone();
    stage.make("2", "exit 3");
    let late = std::mem::replace(&mut stage.line, early);
    let (code, words) = said(stage.start());
    assert_eq!(code, Some(125));
    assert!(words.contains("another attempt"), "{words}");
    stage.line = late;
    assert_eq!(said(stage.start()).0, Some(3));
}

#[test]
fn what_was_forestalled_never_begins() {
    let Some(stage) = Stage::new("exit 0") else {
        return;
    };
    assert!(!stage.run.is_forestalled().unwrap());
    assert!(stage.run.forestall().unwrap());
    assert!(stage.run.forestall().unwrap());
    assert_eq!(said(stage.start()).0, Some(125));
    assert!(matches!(
        stage.look(false),
        Sight::NotBegun { held: false, .. }
    ));
}

#[test]
fn what_has_begun_is_not_forestalled() {
    let Some(stage) = Stage::new("exit 0") else {
        return;
    };
    assert_eq!(said(stage.start()).0, Some(0));
    assert!(!stage.run.forestall().unwrap());
    assert!(!stage.run.is_forestalled().unwrap());
}

#[test]
fn it_looks_whether_it_is_to_end() {
    for signalled in [false, true] {
        let Some(stage) = Stage::new("exec sleep 60") else {
            return;
        };
        let job = stage.start();
        stage.runs();
        // As from another host: the pipe by which it could be told is not used.
        let bell = stage.folder.path().join("bell");
        fs::rename(&bell, bell.with_extension("away")).unwrap();
        let now = SystemTime::now();
        stage.run.stop(StopCause::Cancel, now).unwrap();
        if signalled {
            signal_process(job.id().try_into().unwrap(), libc::SIGUSR1);
        }
        said(job);
        let ended = stage.ended();
        assert_eq!(ended.cause, StopCause::Cancel);
        assert_eq!(ended.verdict, Verdict::Signaled(9));
    }
}

#[test]
fn a_job_that_is_gone_without_a_word_is_lost() {
    let Some(stage) = Stage::new("exec sleep 60") else {
        return;
    };
    let mut job = stage.start();
    stage.runs();
    job.kill().unwrap();
    job.wait().unwrap();
    assert!(matches!(stage.look(true), Sight::Running { .. }));
    assert!(matches!(
        stage.look(false),
        Sight::Lost {
            started: Some(_),
            ..
        }
    ));
}

/// The other end of a tunnel: what `program/src/tunnel.rs` says.
fn answer(mut stream: &TcpStream, key: &[u8]) -> std::io::Result<(String, u16)> {
    let mut said = vec![0; b"v6-tunnel-1\n".len() + 1];
    stream.read_exact(&mut said)?;
    assert!(said.starts_with(b"v6-tunnel-1\n"));
    let length = usize::from(*said.last().unwrap());
    let mut rest = vec![0; length + 2 + 32];
    stream.read_exact(&mut rest)?;
    said.extend(&rest);
    said.extend([7; 32]);
    let code = HMAC::mac([b"node", &said[..]].concat(), key);
    stream.write_all(&[[7; 32], code].concat())?;
    let mut theirs = [0; 32];
    stream.read_exact(&mut theirs)?;
    assert!(HMAC::verify([b"job", &said[..]].concat(), key, &theirs));
    stream.write_all(&[0])?;
    let run = String::from_utf8(rest[..length].to_vec()).unwrap();
    Ok((run, u16::from_be_bytes([rest[length], rest[length + 1]])))
}

#[test]
fn connections_go_through_a_tunnel_that_both_ends_prove() {
    let Some(trial) = Stage::new("exit 0") else {
        return;
    };
    drop(trial);
    let mut stage = Stage::unchecked();
    let key = [5; 32];
    fs::write(stage.folder.path().join("key"), key).unwrap();
    let address = stage.folder.path().join("address");
    stage.options = MonitorOptions::default().with_tunnel(TunnelOptions::new(&address, "run-1", 2));
    // What a program in the run does, by what this machine has.
    let script = "exec 3<>/dev/null; echo ready >ready; while [ ! -e done ]; do sleep 0.05; done";
    stage.make("1", script);
    let job = stage.start();
    stage.runs();
    let socket = stage.run.inside().join("egress/1.sock");
    let mut client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    client.write_all(b"hello").unwrap();
    // Nobody has said yet where to. Then somebody is there who does not know the key.
    let wrong = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(&address, wrong.local_addr().unwrap().to_string()).unwrap();
    let (stream, _) = wrong.accept().unwrap();
    let refused = answer(&stream, &[6; 32]);
    assert!(refused.is_err(), "it proves itself to a stranger");
    drop((stream, wrong));
    let right = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(&address, right.local_addr().unwrap().to_string()).unwrap();
    let (mut stream, _) = right.accept().unwrap();
    assert_eq!(answer(&stream, &key).unwrap(), ("run-1".to_owned(), 1));
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    // More than any buffer holds, both ways at once, and the end of each way by itself.
    let large = vec![3; 8 << 20];
    let (mut back, sent) = (stream.try_clone().unwrap(), large.clone());
    let sending = std::thread::spawn(move || {
        back.write_all(&sent).unwrap();
        back.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut theirs = Vec::new();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    client.read_to_end(&mut theirs).unwrap();
    assert!(theirs == large);
    sending.join().unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut got).unwrap(), 0);
    fs::write(stage.folder.path().join("done"), "").unwrap();
    assert_eq!(said(job).0, Some(0));
}
