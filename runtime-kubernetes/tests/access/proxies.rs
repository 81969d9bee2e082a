//! An HTTP proxy on the way to the cluster.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use v6_runtime::{EgressGrant, ErrorKind, GrantName, Outcome, RunPhase, Runtime, RuntimeExt};
use v6_runtime_kubernetes::KubernetesRuntime;

use crate::common::{self, Bench, file, id, in_time, output};
use crate::given::Given;
use crate::tls::Authority;

const LIMIT: u64 = 120;
/// Nobody has this address, which is for documentation: only the proxy knows the way to it.
pub const ELSEWHERE: &str = "192.0.2.1:6443";
/// A name of the API server's certificate.
const NAME: &str = "kubernetes";

/// A proxy that knows one way only, and keeps what it was asked.
pub struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _work: AbortOnDropHandle<()>,
}

impl Proxy {
    /// To the API server, or another server; or, without it, a proxy that wants another login.
    pub async fn start(api: Option<String>) -> Self {
        Self::with(None, api).await
    }

    async fn with(tls: Option<TlsAcceptor>, api: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let work = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, api, heard) = (tls.clone(), api.clone(), heard.clone());
                open.spawn(async move {
                    let Some(tls) = tls else {
                        return serve(stream, api, heard).await;
                    };
                    // Who does not believe the certificate leaves.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, api, heard).await;
                    }
                });
            }
        });
        Self {
            port,
            asked,
            _work: AbortOnDropHandle::new(work),
        }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    api: Option<String>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    asked.lock().unwrap().push(String::from_utf8(head).unwrap());
    let Some(api) = api else {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
        stream.write_all(refusal).await.unwrap();
        stream.shutdown().await.unwrap();
        return;
    };
    let mut to = TcpStream::connect(api).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    // Either end may break it off.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
}

/// The node's account at an address that only a proxy can reach.
fn elsewhere() -> (Given, String) {
    let mut given = Given::node();
    let api = given.address();
    given.cluster()["server"] = json!(format!("https://{ELSEWHERE}"));
    given.cluster()["tls-server-name"] = json!(NAME);
    (given, api)
}

#[tokio::test]
async fn everything_goes_by_the_proxy() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let (mut given, api) = elsewhere();
    let proxy = Proxy::start(Some(api)).await;
    let url = format!("http://me:hunter2@127.0.0.1:{}", proxy.port);
    given.cluster()["proxy-url"] = json!(url);
    everything(&bench, &given, &proxy).await;
}

#[tokio::test]
async fn everything_goes_by_a_proxy_with_tls() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let (mut given, api) = elsewhere();
    let authority = Authority::new();
    let tls = authority.acceptor(&["127.0.0.1"]);
    let proxy = Proxy::with(Some(tls), Some(api)).await;
    let url = format!("https://me:hunter2@127.0.0.1:{}", proxy.port);
    given.cluster()["proxy-url"] = json!(url);
    believe(&mut given, &authority);
    everything(&bench, &given, &proxy).await;
}

/// Adds an authority to those of the API server.
fn believe(given: &mut Given, authority: &Authority) {
    let known = given.cluster()["certificate-authority"].as_str().unwrap();
    let both = std::fs::read_to_string(known).unwrap() + &authority.pem();
    given.put("authorities.crt", both);
    given.cluster()["certificate-authority"] = json!("authorities.crt");
}

async fn everything(bench: &Bench, given: &Given, proxy: &Proxy) {
    let cluster = given.connect(bench).await.unwrap();
    let grant = EgressGrant::new(GrantName::new("db").unwrap(), "db.example", 443).unwrap();
    let spec = bench
        .probe(
            &cluster,
            "text /data/out left then connect db.example 443 hello",
        )
        .await
        .with_output(output("result"), file("/data/out", 1000))
        .with_egress(grant);
    let id = id("proxied");
    let mut connections = cluster.connections();
    cluster.run(&id, &spec).await.unwrap();
    let connection = in_time(LIMIT, connections.next()).await.unwrap().unwrap();
    common::answer(connection.io).await;
    let status = in_time(LIMIT, cluster.wait(&id)).await.unwrap();
    assert_eq!(status.phase, RunPhase::Finished(Outcome::Exited(0)));
    let logs = cluster.logs_bytes(&id, 1000).await.unwrap();
    assert!(logs.windows(6).any(|some| some == b"answer"), "{logs:?}");
    let result = cluster.collect_bytes(&id, &output("result"), 1000).await;
    assert_eq!(result.unwrap(), "left");
    common::remove(&cluster, &id).await;
    // At least calls, the watch and a way into the pod, each with its connection.
    let asked = proxy.asked();
    assert!(asked.len() >= 3, "{asked:?}");
    for head in asked {
        assert!(
            head.starts_with(&format!("CONNECT {ELSEWHERE} HTTP/1.1\r\n")),
            "{head}"
        );
        // me:hunter2
        assert!(
            head.contains("Proxy-Authorization: Basic bWU6aHVudGVyMg==\r\n"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_proxy_that_does_not_let_us_through_is_named() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let unwilling = Proxy::start(None).await;
    for (port, said) in [
        (1, "Connection refused"),
        (unwilling.port, "proxy authorization required"),
    ] {
        let mut given = Given::node();
        given.cluster()["proxy-url"] = json!(format!("http://me:hunter2@127.0.0.1:{port}"));
        let error = given.error(&bench).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        for wanted in [said, &format!("the proxy http://127.0.0.1:{port}/")] {
            assert!(error.message().contains(wanted), "{wanted}: {error}");
        }
        let all = format!("{error} {error:?}");
        assert!(!all.contains("hunter2"), "{all}");
    }
    let mut given = Given::node();
    given.cluster()["proxy-url"] = json!("socks5://me:hunter2@127.0.0.1:1");
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    assert!(error.message().contains("only proxies for http"), "{error}");
    assert!(!error.message().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_proxy_whose_certificate_is_not_believed_is_told() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let authority = Authority::new();
    for (name, known, said) in [
        (
            "127.0.0.1",
            false,
            "the authority of the proxy's certificate has to be in",
        ),
        (
            "proxy.example",
            true,
            "a name that is in the proxy's certificate",
        ),
    ] {
        let (mut given, api) = elsewhere();
        let proxy = Proxy::with(Some(authority.acceptor(&[name])), Some(api)).await;
        let url = format!("https://me:hunter2@127.0.0.1:{}", proxy.port);
        given.cluster()["proxy-url"] = json!(url);
        if known {
            believe(&mut given, &authority);
        }
        let error = given.error(&bench).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        for wanted in [
            said,
            &format!("the proxy https://127.0.0.1:{}/", proxy.port),
        ] {
            assert!(error.message().contains(wanted), "{wanted}: {error}");
        }
        let all = format!("{error} {error:?}");
        assert!(!all.contains("hunter2"), "{all}");
        assert!(proxy.asked().is_empty());
    }
    // That of the API server, by a proxy that is believed.
    let (mut given, api) = elsewhere();
    let proxy = Proxy::with(Some(authority.acceptor(&["127.0.0.1"])), Some(api)).await;
    given.cluster()["proxy-url"] = json!(format!("https://127.0.0.1:{}", proxy.port));
    given.put("authorities.crt", authority.pem());
    given.cluster()["certificate-authority"] = json!("authorities.crt");
    let error = given.error(&bench).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let wanted = "its certificate is of another authority";
    assert!(error.message().contains(wanted), "{error}");
}

/// What the process below is to use.
const CHILD: &str = "V6_TESTS_KUBECONFIG";

/// A process has one environment, so that a test of that has a process of its own. This is what it has
/// been given there.
pub fn in_child() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Runs a test where the environment names a proxy.
pub async fn child(test: &str, given: &Given, proxy: &Proxy) {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test])
        .env(CHILD, given.write())
        .env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port))
        .env("NO_PROXY", "127.0.0.1,localhost")
        .kill_on_drop(true);
    let done = in_time(60, command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn the_environment_names_a_proxy() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    if let Some(path) = in_child() {
        let config = bench.config().with_kubeconfig(Some(path));
        let cluster = KubernetesRuntime::connect(config).await.unwrap();
        cluster.ping().await.unwrap();
        return;
    }
    let (given, api) = elsewhere();
    let proxy = Proxy::start(Some(api)).await;
    child("proxies::the_environment_names_a_proxy", &given, &proxy).await;
    assert!(!proxy.asked().is_empty());
}
