//! The gateway on in-memory streams, with a small HQ that fails as it is told.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod fake_hq;
#[path = "../folder/mod.rs"]
mod folder;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fake_hq::{FakeHq, Fate, ORG, TASK, container_token};
use folder::Folder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;
use v6_node::crypto::{Codec, PrivateKey, decode_lenient, encode};
use v6_node::gateway::{Gateway, Limits, PROXY_HOST, PROXY_PORT, proxy_grant};
use v6_node::hq::{
    Credentials, Hq, HqAddress, Http, HttpSettings, Identity, OpenRun, Task, Tokens,
};
use v6_node::runs::{Destination, RunContext, Target};
use v6_node::secret::Secret;
use v6_runtime::{Connection, EgressGrant, Error, ErrorKind, GrantName, RunId};

fn context(run: i64, action: &str) -> RunContext {
    let open = OpenRun {
        id: run,
        status: "pending".to_owned(),
        arguments: None,
        arguments_in_blob: false,
        started_at: None,
        log: None,
        task: Task {
            id: TASK,
            name: "t".to_owned(),
            image: "i".to_owned(),
            method: "m".to_owned(),
            action_word: action.to_owned(),
            parent: None,
            init_org: Some(ORG),
            init_user: None,
            job: None,
            session: None,
            algorithm_store: None,
            dataframe: None,
            databases: Vec::new(),
        },
    };
    let mut context = RunContext::of(&open, false, 1).unwrap();
    context.destinations.push(Destination {
        grant: proxy_grant().name,
        to: Target::Proxy,
    });
    context
}

fn limits() -> Limits {
    Limits {
        settle: Duration::from_millis(300),
        hq_wait: Duration::from_secs(20),
        unknown: Duration::from_millis(200),
        connections_per_run: 3,
        ..Limits::default()
    }
}

async fn gateway(hq: &FakeHq, codec: Codec, folder: &Path) -> Gateway {
    let http = Http::new(HttpSettings::default()).unwrap();
    let credentials = Credentials {
        keycloak: Url::parse(&hq.base).unwrap(),
        realm: "r".to_owned(),
        node_name: "n".to_owned(),
        api_key: Secret::new("k"),
    };
    let tokens = Tokens::sign_in(&http, credentials).await.unwrap();
    let address = HqAddress::new(Url::parse(&format!("{}/hq", hq.base)).unwrap()).unwrap();
    let identity = Identity {
        node: 2,
        node_name: "n".to_owned(),
        organization: ORG,
        collaboration: 1,
    };
    Gateway::new(
        Hq::new(http, address, tokens),
        identity,
        codec,
        folder,
        limits(),
    )
    .unwrap()
}

/// A gateway that serves what is sent to it.
struct Bench {
    hq: Arc<FakeHq>,
    gateway: Gateway,
    send: mpsc::Sender<Connection>,
    stop: CancellationToken,
    token: Secret,
    folder: Folder,
}

fn serve(gateway: &Gateway) -> (mpsc::Sender<Connection>, CancellationToken) {
    let (send, receive) = mpsc::channel(16);
    let stop = CancellationToken::new();
    let mut streams = VecDeque::from([receive]);
    let (serving, stopping) = (gateway.clone(), stop.clone());
    let mut opened = 0;
    tokio::spawn(async move {
        let open = || {
            opened += 1;
            if opened == 1 {
                // The first try fails, as with an engine that is restarting.
                let error = Error::new(ErrorKind::Unexpected, "not yet");
                return Box::pin(futures_util::stream::iter([Err(error)])) as _;
            }
            let receive = streams
                .pop_front()
                .expect("the stream is opened once more only");
            Box::pin(futures_util::stream::unfold(receive, |mut receive| async {
                Some((Ok(receive.recv().await?), receive))
            })) as _
        };
        serving.serve_from(open, stopping).await;
    });
    (send, stop)
}

impl Bench {
    async fn new(codec: Codec) -> Self {
        let hq = FakeHq::start().await;
        let folder = Folder::new();
        let gateway = gateway(&hq, codec, folder.path()).await;
        let context = context(1, "central_compute");
        let token = gateway.issue_token(&context).await.unwrap();
        gateway.admit(context);
        let (send, stop) = serve(&gateway);
        Self {
            hq,
            gateway,
            send,
            stop,
            token,
            folder,
        }
    }

    fn open(&self, run: &str, grant: EgressGrant) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let run = RunId::new(run).unwrap();
        assert!(
            self.send
                .try_send(Connection::new(run, grant, theirs))
                .is_ok()
        );
        ours
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.ask_with(method, path, self.token.expose(), body).await
    }

    async fn ask_with(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, Value) {
        let mut stream = self.open("run-1", proxy_grant());
        stream
            .write_all(request(method, path, token, body).as_bytes())
            .await
            .unwrap();
        answer(&mut stream).await
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    async fn audited(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                if let Some(line) = self.audit().into_iter().find(|line| wanted(line)) {
                    return line;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), found)
            .await
            .expect("a line in the audit log")
    }
}

fn request(method: &str, path: &str, token: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nX-Other: 1\r\n\
         Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn answer(stream: &mut DuplexStream) -> (u16, Value) {
    let mut text = String::new();
    let read = stream.read_to_string(&mut text);
    tokio::time::timeout(Duration::from_secs(30), read)
        .await
        .expect("an answer")
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn subtask(arguments: &str) -> String {
    json!({
        "name": "subtask", "method": "partial", "image": "i",
        "organizations": [
            {"id": 3, "arguments": encode(arguments.as_bytes())},
            {"id": 4, "arguments": encode(arguments.as_bytes())},
        ],
    })
    .to_string()
}

fn sealed() -> (Codec, Arc<PrivateKey>) {
    let file: Value =
        serde_json::from_str(include_str!("../data/encryption-vectors.json")).unwrap();
    let pem = file["private_key_pem"].as_str().unwrap();
    let key = Arc::new(PrivateKey::from_pem(pem.as_bytes()).unwrap());
    (Codec::Encrypted(key.clone()), key)
}

#[tokio::test]
async fn the_container_has_claims_and_no_power() {
    let bench = Bench::new(Codec::Plain).await;
    let real = container_token(TASK, 0);
    assert_ne!(bench.token.expose(), real);
    assert_eq!(
        bench.token.expose().rsplit_once('.').unwrap().0,
        real.rsplit_once('.').unwrap().0
    );
    let (status, echo) = bench.ask("GET", "/run/3?include=task&x=%2e", "").await;
    assert_eq!((status, &echo["path"]), (200, &json!("run/3")));
    assert_eq!(echo["query"], "include=task&x=%2e");
    let seen = bench.hq.state.lock().unwrap().seen.clone();
    let header = |name: &str| {
        seen.iter()
            .find(|(key, _)| key == name)
            .map(|(_, v)| v.as_str())
    };
    assert_eq!(header("authorization"), Some(&*format!("Bearer {real}")));
    assert_eq!(header("x-other"), None);
    assert_ne!(header("host"), Some("evil.example"));

    // Of another task, no token at all, HQ's own of another node: refused before HQ is asked.
    let other = container_token(TASK + 1, 0);
    for token in ["", "x", other.as_str()] {
        let (status, said) = bench.ask_with("GET", "/task/1", token, "").await;
        assert_eq!(status, 401, "{said}");
    }
    // Issued before a restart: the claims count.
    let old = container_token(TASK, 99);
    assert_eq!(bench.ask_with("GET", "/task/1", &old, "").await.0, 200);

    for path in ["/../x", "/%2e%2e/x", "//x", "/a%2fb"] {
        assert_eq!(bench.ask("GET", path, "").await.0, 400, "{path}");
    }
    assert_eq!(bench.ask("OPTIONS", "/task/1", "").await.0, 405);
    let mut big = bench.open("run-1", proxy_grant());
    let head = request("GET", "/task/1/status", bench.token.expose(), "");
    let head = head.replace("Content-Length: 0", "Content-Length: 2000000");
    big.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut big).await.0, 413);
    let (status, said) = bench.ask("GET", "/nothing", "").await;
    assert_eq!(status, 404);
    assert!(
        said["msg"].as_str().unwrap().contains("Not Found"),
        "{said}"
    );
    let (_, echo) = bench.ask("PATCH", "/x", "{\"a\": 1}").await;
    assert_eq!(
        (&echo["method"], &echo["body"]),
        (&json!("PATCH"), &json!("{\"a\": 1}"))
    );

    let line = bench.audited(|line| line["path"] == "/run/3").await;
    assert_eq!(
        (&line["status"], &line["task"]),
        (&json!(200), &json!(TASK))
    );
    let line = bench.audited(|line| line["event"] == "connection").await;
    assert!(line["from_run"].as_u64().unwrap() > 100, "{line}");
    let text = std::fs::read_to_string(bench.folder.path().join("audit.jsonl")).unwrap();
    for secret in [&real, bench.token.expose(), "Bearer", "include=task"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn only_central_runs_with_the_grant_reach_hq() {
    let bench = Bench::new(Codec::Plain).await;
    bench.gateway.admit(context(2, "federated_compute"));
    let mut none = context(3, "central_compute");
    none.destinations.clear();
    bench.gateway.admit(none);
    for run in ["run-2", "run-3", "run-4"] {
        let mut stream = bench.open(run, proxy_grant());
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "");
        let line = bench.audited(|line| line["run"] == run).await;
        assert!(
            line["outcome"].as_str().unwrap().starts_with("refused"),
            "{line}"
        );
    }
    // A run that becomes known in time is served.
    let mut early = bench.open("run-5", proxy_grant());
    bench.gateway.admit(context(5, "central_compute"));
    let text = request("GET", "/task/1", bench.token.expose(), "");
    early.write_all(text.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut early).await.0, 200);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_subtask() {
    for fate in [
        Fate::CreateAndBreak,
        Fate::CreateAndGateTimeout,
        Fate::Break,
    ] {
        let bench = Bench::new(Codec::Plain).await;
        // One before, so that there is an older child of the same name.
        assert_eq!(bench.ask("POST", "/task", &subtask("1")).await.1["id"], 100);
        bench.hq.set(|state| state.fates.push_back(fate));
        let (status, task) = bench.ask("POST", "/task", &subtask("2")).await;
        assert_eq!((status, &task["id"]), (201, &json!(101)), "{fate:?}");
        assert_eq!(bench.hq.count(), 2, "{fate:?}");
        // It has been delivered: the same again is another one.
        let (_, task) = bench.ask("POST", "/task", &subtask("2")).await;
        assert_eq!(
            (&task["id"], bench.hq.count()),
            (&json!(102), 3),
            "{fate:?}"
        );
    }
}

#[tokio::test]
async fn an_algorithm_that_hangs_up_gets_the_same_subtask() {
    let bench = Bench::new(Codec::Plain).await;
    bench
        .hq
        .set(|state| state.fates.push_back(Fate::CreateAndHold));
    let mut stream = bench.open("run-1", proxy_grant());
    let body = subtask("1");
    let text = request("POST", "/task", bench.token.expose(), &body);
    stream.write_all(text.as_bytes()).await.unwrap();
    bench.hq.created.notified().await;
    drop(stream);
    let line = bench.audited(|line| line["path"] == "/task").await;
    assert_eq!(line["outcome"], "the run hung up");
    bench.hq.go_on.notify_one();
    // Another one in between, then the one that was lost.
    let (_, task) = bench.ask("POST", "/task", &subtask("other")).await;
    assert_eq!(task["id"], 101);
    let (status, task) = bench.ask("POST", "/task", &body).await;
    assert_eq!((status, &task["id"]), (201, &json!(100)));
    assert_eq!(bench.hq.count(), 2);
}

#[test]
fn a_killed_node_makes_no_second_subtask() {
    let start = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (world, first) = (start(), start());
    let hq = world.block_on(FakeHq::start());
    hq.set(|state| state.fates.push_back(Fate::CreateAndHold));
    let folder = Folder::new();
    let body = subtask("1");
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let mut ours = ours;
    first.block_on(async {
        let gateway = gateway(&hq, Codec::Plain, folder.path()).await;
        gateway.admit(context(1, "central_compute"));
        let (send, _stop) = serve(&gateway);
        let run = RunId::new("run-1").unwrap();
        assert!(
            send.try_send(Connection::new(run, proxy_grant(), theirs))
                .is_ok()
        );
        let token = container_token(TASK, 0);
        let text = request("POST", "/task", &token, &body);
        ours.write_all(text.as_bytes()).await.unwrap();
        hq.created.notified().await;
    });
    first.shutdown_background();
    let second = start();
    second.block_on(async {
        let gateway = gateway(&hq, Codec::Plain, folder.path()).await;
        gateway.admit(context(1, "central_compute"));
        let (send, _stop) = serve(&gateway);
        let (mut ours, theirs) = tokio::io::duplex(64 << 10);
        let run = RunId::new("run-1").unwrap();
        assert!(
            send.try_send(Connection::new(run.clone(), proxy_grant(), theirs))
                .is_ok()
        );
        let text = request("POST", "/task", &container_token(TASK, 0), &body);
        ours.write_all(text.as_bytes()).await.unwrap();
        let (status, task) = answer(&mut ours).await;
        assert_eq!((status, &task["id"]), (201, &json!(100)));
        assert_eq!(hq.count(), 1);
        let journal = folder.path().join("gateway/run-1.json");
        assert!(journal.exists());
        gateway.forget(&run);
        assert!(!journal.exists());
    });
}

#[tokio::test]
async fn refusals_of_subtasks_are_hqs_own() {
    let bench = Bench::new(Codec::Plain).await;
    bench.hq.set(|state| state.fates.push_back(Fate::Refuse));
    let (status, said) = bench.ask("POST", "/task", &subtask("1")).await;
    assert_eq!(
        (status, &said["msg"]),
        (400, &json!("no such organization"))
    );
    for body in ["", "{}", "{\"organizations\": []}", "not JSON"] {
        assert_eq!(bench.ask("POST", "/task", body).await.0, 400, "{body}");
    }
    assert_eq!(bench.hq.count(), 0);
    assert_eq!(bench.ask("POST", "/task", &subtask("1")).await.1["id"], 100);
}

#[tokio::test]
async fn a_restarted_hq_gets_a_new_token() {
    let bench = Bench::new(Codec::Plain).await;
    bench.hq.set(|state| state.secret = 1);
    assert_eq!(bench.ask("POST", "/task", &subtask("1")).await.0, 201);
    assert_eq!(bench.hq.count(), 1);
    bench.hq.set(|state| {
        state.secret = 2;
        state.unavailable = 3;
    });
    assert_eq!(bench.ask("GET", "/task/1", "").await.0, 200);
    assert_eq!(bench.hq.state.lock().unwrap().tokens_made, 3);
}

#[tokio::test]
async fn values_are_encrypted_on_the_way() {
    let (codec, key) = sealed();
    let bench = Bench::new(codec.clone()).await;
    bench.hq.set(|state| state.public_key = key.public_for_hq());
    let (status, _) = bench.ask("POST", "/task", &subtask("{\"a\": 1}")).await;
    assert_eq!(status, 201);
    let posted = bench.hq.state.lock().unwrap().posted[0].clone();
    for item in posted["organizations"].as_array().unwrap() {
        let arguments = item["arguments"].as_str().unwrap();
        assert_eq!(codec.decode(arguments).unwrap(), b"{\"a\": 1}");
    }
    assert_eq!(posted["method"], "partial");

    let lacking = subtask("1").replace("\"id\":4", "\"id\":99");
    let (status, said) = bench.ask("POST", "/task", &lacking).await;
    assert_eq!(status, 400);
    let said = said["msg"].as_str().unwrap();
    assert!(said.contains("99") && said.contains("org 99"), "{said}");

    let value = codec.encode(b"{\"n\": 3}", &key.public_for_hq()).unwrap();
    bench
        .hq
        .set(|state| state.result = json!({"id": 5, "result": value}));
    let (_, page) = bench.ask("GET", "/result?task_id=100&page=1", "").await;
    let plain = |item: &Value| decode_lenient(item["result"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(plain(&page["data"][0]), b"{\"n\": 3}");
    let (_, one) = bench.ask("GET", "/result/5", "").await;
    assert_eq!(plain(&one), b"{\"n\": 3}");
    bench
        .hq
        .set(|state| state.result = json!({"id": 5, "result": "a$b"}));
    assert_eq!(bench.ask("GET", "/result/5", "").await.1["result"], "a$b");
    assert_eq!(bench.ask("GET", "/result", "").await.0, 400);
    assert_eq!(bench.ask("GET", "/blobstream/status", "").await.0, 200);
}

#[tokio::test]
async fn an_address_is_dialled_as_configured() {
    let bench = Bench::new(Codec::Plain).await;
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    let grant = EgressGrant::new(GrantName::new("db").unwrap(), "db.example", 5432).unwrap();
    let mut allowed = context(6, "data_extraction");
    allowed.destinations = vec![Destination {
        grant: grant.name.clone(),
        to: Target::Address {
            host: "127.0.0.1".to_owned(),
            port,
        },
    }];
    bench.gateway.admit(allowed);
    // Answers only after the run has ended its side.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let mut text = Vec::new();
                stream.read_to_end(&mut text).await?;
                stream.write_all(&text).await
            });
        }
    });
    let mut stream = bench.open("run-6", grant.clone());
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let line = bench.audited(|line| line["run"] == "run-6").await;
    assert_eq!((&line["from_run"], &line["to_run"]), (&json!(5), &json!(5)));
    assert_eq!(line["destination"], format!("127.0.0.1:{port}"));
    assert_eq!(
        (&line["outcome"], &line["grant"]),
        (&json!("ok"), &json!("db"))
    );

    // The fourth at once is one too many.
    let mut open: Vec<_> = (0..3).map(|_| bench.open("run-6", grant.clone())).collect();
    for stream in &mut open {
        stream.write_all(b"x").await.unwrap();
    }
    let mut one_more = bench.open("run-6", grant);
    assert_eq!(one_more.read_to_string(&mut text).await.unwrap(), 0);
    bench
        .audited(|line| line["outcome"] == "refused: too many connections of this run")
        .await;
    bench.stop.cancel();
    let mut rest = Vec::new();
    open[0].read_to_end(&mut rest).await.unwrap();
}

#[test]
fn the_proxys_name_is_as_documented() {
    assert_eq!(
        (PROXY_HOST, PROXY_PORT),
        (proxy_grant().host.as_str(), proxy_grant().port)
    );
}
