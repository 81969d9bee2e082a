//! The tunnel against the helper's own program, without a cluster in between.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::*;

const KEY: &str = "0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(60);

/// The helper in one of its modes, and a folder for it.
struct Helper {
    folder: tempfile::TempDir,
    port: u16,
    child: Child,
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

impl Helper {
    async fn start(mode: &str, more: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("helper"), v6_helper::PROGRAM).unwrap();
        std::fs::set_permissions(at("helper"), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(at("key"), KEY).unwrap();
        for name in ["out", "in"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let (port, alive) = (free_port().await, free_port().await);
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut command = Command::new(at("helper"));
        command
            .args([mode, "--key", &text(at("key")), "--out", &text(at("out"))])
            .args(["--in", &text(at("in")), "--tunnel-port", &port.to_string()])
            .args(["--alive-port", &alive.to_string()])
            .args(more)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().unwrap();
        Self {
            folder,
            port,
            child,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn connect(&self) -> TcpStream {
        tokio::time::timeout(LIMIT, async {
            loop {
                match TcpStream::connect(("127.0.0.1", self.port)).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
        .unwrap()
    }

    async fn tunnel(&self, mode: Mode, incoming: Incoming) -> io::Result<Tunnel> {
        Tunnel::over(self.connect().await, KEY.as_bytes(), mode, incoming).await
    }
}

fn nothing() -> Incoming {
    Arc::new(drop)
}

#[tokio::test]
async fn only_who_has_the_key_is_served() {
    let helper = Helper::start("sidecar", &[]).await;
    let wrong = "x".repeat(32);
    let stream = helper.connect().await;
    let refused = Tunnel::over(stream, wrong.as_bytes(), Mode::Sidecar, nothing()).await;
    assert_eq!(
        refused.err().unwrap().kind(),
        io::ErrorKind::PermissionDenied
    );
    let other = helper.tunnel(Mode::Receive, nothing()).await;
    assert_eq!(other.err().unwrap().kind(), io::ErrorKind::WouldBlock);
    let tunnel = helper.tunnel(Mode::Sidecar, nothing()).await.unwrap();
    assert_eq!(tunnel.ask("PING").await.unwrap(), "OK");
}

/// What listens in the pod need not be the helper.
#[tokio::test]
async fn an_impostor_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let impostor = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_line(&mut stream).await.unwrap();
        let answer = format!("{VERSION} sidecar {} {}\n", "0".repeat(64), "0".repeat(64));
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let opening = Tunnel::over(stream, KEY.as_bytes(), Mode::Sidecar, nothing());
    let (_kept, opened) = tokio::join!(impostor, opening);
    assert_eq!(
        opened.err().unwrap().kind(),
        io::ErrorKind::PermissionDenied
    );
}

async fn pieces(tunnel: &Tunnel, line: &str) -> Result<Vec<u8>, String> {
    let mut stream = tunnel.request(line).await.unwrap();
    let mut all = Vec::new();
    loop {
        match stream.read_u32().await.unwrap() {
            0 => return Ok(all),
            u32::MAX => return Err(read_line(&mut stream).await.unwrap()),
            len => {
                let mut piece = vec![0; usize::try_from(len).unwrap()];
                stream.read_exact(&mut piece).await.unwrap();
                all.extend(piece);
            }
        }
    }
}

#[tokio::test]
async fn outputs_come_out_whole_or_with_a_reason() {
    let helper = Helper::start("sidecar", &[]).await;
    let content: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    std::fs::write(helper.path("out/0"), &content).unwrap();
    std::fs::create_dir_all(helper.path("out/1/sub")).unwrap();
    std::fs::write(helper.path("out/1/sub/a"), "made").unwrap();
    std::fs::write(helper.path("out/1/skipped"), "not").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", helper.path("out/1/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", helper.path("out/2")).unwrap();
    let tunnel = helper.tunnel(Mode::Sidecar, nothing()).await.unwrap();
    assert_eq!(pieces(&tunnel, "FILE 0 0 300000").await.unwrap(), content);
    let rest = pieces(&tunnel, "FILE 0 299990 300000").await.unwrap();
    assert_eq!(rest, content[299_990..]);
    for (line, reason) in [
        ("FILE 0 0 299999", "quota"),
        ("FILE 9 0 1", "absent"),
        ("FILE 1 0 1", "kind"),
        ("FILE 2 0 99999", "kind"),
        ("FOLDER 0 1", "kind"),
        ("FOLDER 1 3", "quota"),
    ] {
        let why = pieces(&tunnel, line).await.unwrap_err();
        assert!(why.starts_with(reason), "{line}: {why}");
    }
    let skip: String = "skipped"
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = pieces(&tunnel, &format!("FOLDER 1 4 {skip}"))
        .await
        .unwrap();
    let mut archive = tar::Archive::new(&folder[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["sub", "sub/a"]);
}

#[tokio::test]
async fn connections_wait_for_a_tunnel_and_go_both_ways() {
    let port = free_port().await;
    let listen = ["--listen".to_owned(), format!("127.0.1.7:{port}")];
    let helper = Helper::start("sidecar", &listen).await;
    // The helper listens there before it answers anything.
    drop(helper.tunnel(Mode::Sidecar, nothing()).await.unwrap());
    let mut early = TcpStream::connect(("127.0.1.7", port)).await.unwrap();
    early.write_all(b"question").await.unwrap();
    early.shutdown().await.unwrap();
    let (send, mut streams) = mpsc::channel(1);
    let incoming: Incoming = Arc::new(move |stream| {
        let send = send.clone();
        tokio::spawn(async move { send.send(stream).await.unwrap() });
    });
    let _tunnel = helper.tunnel(Mode::Sidecar, incoming).await.unwrap();
    let stream = tokio::time::timeout(LIMIT, streams.recv()).await.unwrap();
    let mut stream = stream.unwrap();
    assert_eq!(read_line(&mut stream).await.unwrap(), "CONN 0");
    stream.write_all(b"OK\n").await.unwrap();
    stream.flush().await.unwrap();
    let mut asked = String::new();
    stream.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "question");
    stream.write_all(b"answer").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn input_is_taken_in_from_where_it_was_cut() {
    let more = ["--control", "none", "--file", "0", "--stream", "10=in/3"].map(str::to_owned);
    let mut helper = Helper::start("receive", &more).await;
    let tunnel = helper.tunnel(Mode::Receive, nothing()).await.unwrap();
    let put = async |line: &str, bytes: &[u8]| {
        let mut stream = tunnel.request(line).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        read_line(&mut stream).await.unwrap()
    };
    assert_eq!(put("PUT 0 0", b"0123x").await, "OK 5");
    assert!(tunnel.ask("GO").await.unwrap().starts_with("NO"));
    assert_eq!(tunnel.ask("HAVE 0").await.unwrap(), "OK 5");
    assert!(put("PUT 0 4", b"456789 and more").await.starts_with("NO"));
    assert_eq!(put("PUT 0 4", b"456789").await, "OK 10");
    assert_eq!(tunnel.ask("GO").await.unwrap(), "OK 0");
    let ended = tokio::time::timeout(LIMIT, helper.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(0));
    assert_eq!(std::fs::read(helper.path("in/3")).unwrap(), b"0123456789");
    assert_eq!(std::fs::read(helper.path("out/0")).unwrap(), b"");
}

#[tokio::test]
async fn a_network_that_stays_open_starts_nothing() {
    let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = open.local_addr().unwrap().to_string();
    let more = ["--control", &control, "--settle", "0.1", "--wait", "1"].map(str::to_owned);
    let mut helper = Helper::start("receive", &more).await;
    let ended = tokio::time::timeout(LIMIT, helper.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(v6_helper::EXIT_NOT_ISOLATED));
    // One that closes is denied.
    let mut helper = Helper::start("receive", &more).await;
    drop(open);
    let ended = tokio::time::timeout(LIMIT, helper.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn a_sidecar_of_which_nothing_is_asked_ends_if_it_is_told_so() {
    let idle = ["--idle", "0.5"].map(str::to_owned);
    let mut helper = Helper::start("sidecar", &idle).await;
    let began = std::time::Instant::now();
    let tunnel = helper.tunnel(Mode::Sidecar, nothing()).await.unwrap();
    // Each request counts, and the tunnel alone does not.
    while began.elapsed() < Duration::from_millis(1500) {
        assert_eq!(tunnel.ask("PING").await.unwrap(), "OK");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ended = tokio::time::timeout(LIMIT, helper.child.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
}
