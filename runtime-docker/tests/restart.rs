//! The engine's daemon goes away in the middle of runs, in each way that it can.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bollard::Docker;
use common::{Bench, id, shell};
use futures_util::{StreamExt, TryStreamExt};
use v6_runtime::{Accepted, Outcome, RunId, RunPhase, Runtime, RuntimeExt, WatchEvent};
use v6_runtime_docker::DockerRuntime;

/// An engine of this test's own, which can be taken away.
struct Daemon {
    folder: tempfile::TempDir,
    options: &'static [&'static str],
}

impl Daemon {
    async fn up(options: &'static [&'static str]) -> Option<Self> {
        // The path of a unix socket has room for 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("v6d")
            .tempdir_in("/tmp")
            .unwrap();
        let daemon = Self { folder, options };
        if let Err(error) = daemon.call("up").await {
            let required = std::env::var_os("V6_REQUIRE_DOCKER").is_some_and(|v| v == "1");
            assert!(!required, "no engine of our own: {error}");
            println!("SKIP no engine of our own: {error}");
            return None;
        }
        Some(daemon)
    }

    async fn call(&self, verb: &str) -> Result<(), String> {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/services/docker.sh");
        let mut command = tokio::process::Command::new(script);
        command.arg(verb).arg(self.folder.path());
        if verb == "up" {
            command.arg("--own").args(self.options);
        }
        // What it starts lives on, and must not hold a pipe of ours.
        let log = self.folder.path().join("script.log");
        let errors = std::fs::File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        let status = command.status().await.map_err(|error| error.to_string())?;
        if status.success() {
            return Ok(());
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        Err(said.lines().last().unwrap_or("it says nothing").to_owned())
    }

    fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.path().display())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/services/docker.sh");
        let mut down = std::process::Command::new(script);
        let down = down
            .arg("down")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .status();
        if !down.is_ok_and(|status| status.success()) {
            println!("{} is left behind", self.folder.path().display());
        }
    }
}

/// A bench on an engine of its own, which gets the image of the machine's engine.
async fn own(options: &'static [&'static str]) -> Option<(Bench, Daemon)> {
    let mut bench = Bench::new().await?;
    let daemon = Daemon::up(options).await?;
    let from = bench.docker.clone();
    let to = Docker::connect_with_host(&daemon.host())
        .unwrap()
        .negotiate_version()
        .await
        .unwrap();
    let image = from.export_image("localhost/v6-busybox:test");
    let load = bollard::query_parameters::ImportImageOptionsBuilder::new().build();
    to.import_image_stream(load, image, None)
        .try_for_each(|_| async { Ok(()) })
        .await
        .unwrap();
    bench.config = bench.config.with_host(daemon.host());
    bench.docker = to;
    Some((bench, daemon))
}

async fn running(runtime: &DockerRuntime, run: &RunId) {
    let mut events = runtime.watch();
    loop {
        let seen = match events.next().await.unwrap() {
            Ok(WatchEvent::Snapshot(runs)) => runs.into_iter().find(|seen| seen.id == *run),
            Ok(WatchEvent::Changed(seen)) if seen.id == *run => Some(*seen),
            _ => None,
        };
        if seen.is_some_and(|seen| seen.phase == RunPhase::Running) {
            return;
        }
    }
}

/// Takes the daemon away and back under a runtime that watches: the outcome of a run that ran, and
/// of one that was accepted only after the daemon was back.
async fn outcome_after(verb: &str, options: &'static [&'static str]) -> Option<Outcome> {
    let (bench, daemon) = own(options).await?;
    let runtime = bench.connect().await;
    let spec = shell(&runtime, "sleep 15; exit 4").await;
    let run = id("interrupted");
    runtime.run(&run, &spec).await.unwrap();
    running(&runtime, &run).await;
    let mut events = runtime.watch();
    assert!(matches!(
        events.next().await.unwrap().unwrap(),
        WatchEvent::Snapshot(_)
    ));

    daemon.call(verb).await.unwrap();
    let away = runtime.status(&run).await.unwrap_err();
    assert!(away.is_retryable(), "{away:?}");
    let interrupted = loop {
        match events.next().await.unwrap() {
            Err(error) => break error,
            Ok(event) => assert!(!matches!(event, WatchEvent::Snapshot(_))),
        }
    };
    assert!(interrupted.is_retryable(), "{interrupted:?}");
    daemon.call("up").await.unwrap();
    let resynced =
        async { while !matches!(events.next().await.unwrap(), Ok(WatchEvent::Snapshot(_))) {} };
    tokio::time::timeout(Duration::from_secs(60), resynced)
        .await
        .unwrap();

    assert_eq!(runtime.run(&run, &spec).await.unwrap(), Accepted::Adopted);
    let status = runtime.wait(&run).await.unwrap();
    let named = match options {
        [] => format!("daemon-{verb}"),
        _ => format!("daemon-{verb}-live-restore"),
    };
    common::record(&bench, &run, &named).await;
    let later = id("later");
    let short = shell(&runtime, "exit 6").await;
    assert_eq!(
        runtime.run(&later, &short).await.unwrap(),
        Accepted::Created
    );
    let ended = runtime.wait(&later).await.unwrap();
    assert_eq!(ended.outcome(), Some(&Outcome::Exited(6)));
    bench.finish(&runtime).await;
    status.outcome().cloned()
}

#[tokio::test]
async fn a_daemon_that_is_stopped_evicts() {
    if let Some(outcome) = outcome_after("stop", &[]).await {
        assert!(matches!(outcome, Outcome::Evicted(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_daemon_that_is_killed_evicts_when_it_is_back() {
    if let Some(outcome) = outcome_after("crash", &[]).await {
        assert!(matches!(outcome, Outcome::Evicted(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn with_live_restore_runs_go_on_without_the_daemon() {
    if let Some(outcome) = outcome_after("crash", &["--live-restore"]).await {
        assert_eq!(outcome, Outcome::Exited(4));
    }
}
