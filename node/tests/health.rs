//! What a running node says of itself, and what `v6-node health` makes of it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use v6_node::health::{Health, Listener, Stage, ask};

const WITHIN: Duration = Duration::from_secs(20);

fn v6_node(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_v6-node"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent");
    command
}

fn health(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } = v6_node(&[&["health"], arguments].concat())
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

/// A node whose engine is not there, so that it waits.
struct Waiting(Child);

impl Waiting {
    fn start(folder: &Path, socket: &str) -> Self {
        let config = folder.join("node.yaml");
        let nothing = folder.join("nothing.sock");
        std::fs::write(
            &config,
            format!(
                "hq_url: http://127.0.0.1\nport: 1\napi_path: /hq\nruntime:\n  kind: docker\n  data_dir: {0}\n  runtime_dir: {0}\n  docker: {{host: \"unix://{1}\"}}\n",
                folder.display(),
                nothing.display(),
            ),
        )
        .unwrap();
        let mut command = v6_node(&["start", "--health", socket, "--config"]);
        command.arg(config).envs([
            ("V6_NODE_NAME", "hospital"),
            ("V6_API_KEY", "key"),
            ("KEYCLOAK_URL", "http://127.0.0.1:1"),
            ("KEYCLOAK_REALM", "vantage6"),
        ]);
        let node = Self(command.stderr(Stdio::null()).spawn().unwrap());
        let end = Instant::now() + WITHIN;
        while !Path::new(socket).exists() {
            assert!(Instant::now() < end, "the node does not listen");
            std::thread::yield_now();
        }
        node
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_node_that_waits_for_its_engine_is_alive_and_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("health.sock");
    let socket = socket.to_str().unwrap();
    assert_eq!(health(&[socket]), (Some(1), String::new()));
    // The second one finds the socket of one that was killed.
    for _ in 0..2 {
        let _node = Waiting::start(folder.path(), socket);
        let said = "waits for the container engine\n".to_owned();
        let end = Instant::now() + WITHIN;
        while health(&[socket]).0 != Some(0) {
            assert!(Instant::now() < end, "the node does not answer");
        }
        assert_eq!(health(&[socket]), (Some(0), said.clone()));
        assert_eq!(health(&["--ready", socket]), (Some(75), said));
    }
    assert_eq!(health(&[socket]), (Some(1), String::new()));
}

#[tokio::test]
async fn each_stage_has_its_words_and_one_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("health.sock");
    let health = Health::default();
    let listener = Listener::bind(&path).unwrap();
    let (set_online, online) = watch::channel(false);
    let asked = async {
        let mut said = vec![ask(&path, WITHIN).await.unwrap()];
        for stage in [Stage::Alone, Stage::Hq, Stage::Serving(online)] {
            health.reached(stage);
            said.push(ask(&path, WITHIN).await.unwrap());
        }
        set_online.send_replace(true);
        said.push(ask(&path, WITHIN).await.unwrap());
        assert_eq!(
            health_of_program(&path).await,
            (Some(0), "ready\n".to_owned())
        );
        said
    };
    let said = tokio::select! {
        said = asked => said,
        never = listener.answer(&health) => match never {},
    };
    let mut different = said.clone();
    different.dedup();
    assert_eq!(said, different);
    assert_eq!(said.last().map(String::as_str), Some("ready"));
    drop(listener);
    assert!(!path.exists());
}

async fn health_of_program(path: &Path) -> (Option<i32>, String) {
    let path = path.to_str().unwrap().to_owned();
    tokio::task::spawn_blocking(move || health(&["--ready", &path]))
        .await
        .unwrap()
}

#[tokio::test]
async fn one_that_is_stuck_does_not_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("health.sock");
    let _nobody_accepts = UnixListener::bind(&path).unwrap();
    let error = ask(&path, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn the_socket_of_one_that_lives_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("health.sock");
    let _first = Listener::bind(&path).unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
}
