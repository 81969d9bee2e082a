//! Calls that are made again, at an engine that gives the answers of a list.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bollard::{API_DEFAULT_VERSION, Docker};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::archive::{self, Content, Entry};
use crate::engine::{ASKED, Engine};

/// As Podman 4.3.1 says it.
const HALF_MOUNTED: &str = r#"{"message": "mounting storage for container 1de5: lstat /s/overlay/2081/merged: no such file or directory"}"#;
const LAYER_GONE: &str = r#"{"message": "RWLayer of container 6bd6 is unexpectedly nil"}"#;
const SPEC_UNREAD: &str = r#"{"message": "failed to retrieve spec: unexpected EOF: unknown"}"#;
const OVERTAKEN: &str = r#"{"message": "read /proc/32470/cgroup: no such process"}"#;

struct Scripted {
    _folder: tempfile::TempDir,
    engine: Engine,
    /// The calls that came, without their queries.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// Calls other than these are answered with 204.
    fn new(path: &'static str, answers: &[(u16, &'static str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut answers = VecDeque::from_iter(answers.iter().copied());
        let calls = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(call) = read(stream).await else {
                    continue;
                };
                let (line, stream) = call;
                let (status, body) = match line.ends_with(path) {
                    true => answers.pop_front().unwrap(),
                    false => (204, ""),
                };
                calls.lock().unwrap().push(line);
                answer(stream, status, body).await;
            }
        });
        let socket = socket.to_str().unwrap();
        let docker = Docker::connect_with_unix(socket, 5, API_DEFAULT_VERSION).unwrap();
        Self {
            _folder: folder,
            engine: Engine::of(docker),
            seen,
        }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// A whole request: its method and path, without version of the API and query.
async fn read(stream: UnixStream) -> Option<(String, UnixStream)> {
    let mut stream = BufReader::new(stream);
    let (mut first, mut length, mut chunked) = (String::new(), 0, false);
    stream.read_line(&mut first).await.ok()?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        chunked |= line == "transfer-encoding: chunked";
        if line.is_empty() {
            break;
        }
    }
    if chunked {
        let mut body = Vec::new();
        while !body.ends_with(b"\r\n0\r\n\r\n") {
            body.push(stream.read_u8().await.ok()?);
        }
    } else {
        stream.read_exact(&mut vec![0; length]).await.ok()?;
    }
    let mut words = first.split([' ', '?']);
    let (method, path) = (words.next()?, words.next()?);
    let path = path.find("/containers").map_or(path, |at| &path[at..]);
    Some((format!("{method} {path}"), stream.into_inner()))
}

async fn answer(mut stream: UnixStream, status: u16, body: &str) {
    let length = match status {
        204 | 304 => String::new(),
        _ => format!("Content-Length: {}\r\n", body.len()),
    };
    let head = format!(
        "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nConnection: close\r\n{length}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_half_mounted_container_is_unmounted_and_started() {
    let scripted = Scripted::new(
        "/start",
        &[(500, HALF_MOUNTED), (500, HALF_MOUNTED), (204, "")],
    );
    scripted.engine.start("c").await.unwrap();
    let (start, unmount) = ("POST /containers/c/start", "POST /containers/c/unmount");
    assert_eq!(scripted.seen(), [start, unmount, start, unmount, start]);
}

#[tokio::test]
async fn a_container_that_stays_half_mounted_is_told() {
    let scripted = Scripted::new("/start", &[(500, HALF_MOUNTED); ASKED as usize]);
    let error = scripted.engine.start("c").await.unwrap_err();
    assert!(error.to_string().contains("mounting storage"), "{error}");
    let scripted = Scripted::new("/start", &[(500, r#"{"message": "no space left"}"#)]);
    scripted.engine.start("c").await.unwrap_err();
    assert_eq!(scripted.seen().len(), 1);
}

#[tokio::test]
async fn a_start_that_met_a_bad_moment_is_made_again() {
    let scripted = Scripted::new("/start", &[(500, SPEC_UNREAD), (204, "")]);
    scripted.engine.start("c").await.unwrap();
    assert_eq!(scripted.seen().len(), 2);
    let scripted = Scripted::new("/start", &[(500, SPEC_UNREAD); ASKED as usize]);
    let error = scripted.engine.start("c").await.unwrap_err();
    assert!(error.to_string().contains("retrieve spec"), "{error}");
}

#[tokio::test]
async fn files_are_put_into_a_half_mounted_container() {
    let scripted = Scripted::new("/archive", &[(500, HALF_MOUNTED), (200, "")]);
    let entry = Entry {
        path: "a".to_owned(),
        mode: 0o600,
        uid: 0,
        gid: 0,
        content: Content::Bytes(Bytes::from_static(b"content")),
    };
    let put = archive::put(&scripted.engine, "c", "/in", vec![entry]);
    put.await.unwrap();
    let (put, unmount) = ("PUT /containers/c/archive", "POST /containers/c/unmount");
    assert_eq!(scripted.seen(), [put, unmount, put]);
}

#[tokio::test]
async fn files_are_read_from_a_half_mounted_container() {
    let scripted = Scripted::new("/archive", &[(500, HALF_MOUNTED), (404, "{}")]);
    let file = archive::get_file(scripted.engine.clone(), "c".into(), "/a".into(), 1);
    let read: v6_runtime::Result<Vec<Bytes>> = file.try_collect().await;
    assert_eq!(read.unwrap_err().kind(), v6_runtime::ErrorKind::NotFound);
    let (get, unmount) = ("GET /containers/c/archive", "POST /containers/c/unmount");
    assert_eq!(scripted.seen(), [get, unmount, get]);
}

#[tokio::test]
async fn files_of_a_container_that_is_being_removed_are_not_there() {
    let scripted = Scripted::new("/archive", &[(500, LAYER_GONE)]);
    let file = archive::get_file(scripted.engine.clone(), "c".into(), "/a".into(), 1);
    let read: v6_runtime::Result<Vec<Bytes>> = file.try_collect().await;
    assert_eq!(read.unwrap_err().kind(), v6_runtime::ErrorKind::NotFound);
    assert_eq!(scripted.seen(), ["GET /containers/c/archive"]);
}

#[tokio::test]
async fn a_listing_that_a_process_end_has_overtaken_is_asked_for_again() {
    let scripted = Scripted::new("/containers/json", &[(500, OVERTAKEN), (200, "[]")]);
    let mut engine = scripted.engine.clone();
    engine.other_states = true;
    assert!(engine.containers(Vec::new()).await.unwrap().is_empty());
    assert_eq!(scripted.seen().len(), 2);
}
