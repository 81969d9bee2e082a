//! An HTTP proxy on the way to the cluster.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use v6_runtime::{EgressGrant, ErrorKind, GrantName, Outcome, RunPhase, Runtime, RuntimeExt};
use v6_runtime_kubernetes::KubernetesRuntime;

use crate::common::{self, Bench, file, id, in_time, output};
use crate::given::Given;

const LIMIT: u64 = 120;
/// Nobody has this address, which is for documentation: only the proxy knows the way to it.
const ELSEWHERE: &str = "192.0.2.1:6443";
/// A name of the API server's certificate.
const NAME: &str = "kubernetes";

/// A proxy that knows one way only, and keeps what it was asked.
struct Proxy {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _work: AbortOnDropHandle<()>,
}

impl Proxy {
    /// To the API server; or, without it, a proxy that wants another login.
    async fn start(api: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let work = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, api.clone(), heard.clone()));
            }
        });
        Self {
            port,
            asked,
            _work: AbortOnDropHandle::new(work),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, api: Option<String>, asked: Arc<Mutex<Vec<String>>>) {
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
        return;
    };
    let mut to = TcpStream::connect(api).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
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
    let cluster = given.connect(&bench).await.unwrap();
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

/// What the process below is to use.
const CHILD: &str = "V6_TESTS_KUBECONFIG";

/// A process has one environment, so that this test has a process of its own.
#[tokio::test]
async fn the_environment_names_a_proxy() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    if let Ok(path) = std::env::var(CHILD) {
        let config = bench.config().with_kubeconfig(Some(path.into()));
        let cluster = KubernetesRuntime::connect(config).await.unwrap();
        cluster.ping().await.unwrap();
        return;
    }
    let (given, api) = elsewhere();
    let proxy = Proxy::start(Some(api)).await;
    let test = "proxies::the_environment_names_a_proxy";
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
    assert!(!proxy.asked().is_empty());
}
