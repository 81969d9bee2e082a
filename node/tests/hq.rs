//! The client against a real HQ 5.0.
//!
//! `V6_TEST_HQ` names the file of its contents, see [`real_hq`]. Without it, or for tests that
//! need the service account and find none, a line `SKIP name: reason` is printed and the test is
//! listed as ignored.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "skips are told on stdout")]

mod real_hq;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use libtest_mimic::Arguments;
use real_hq::{Needs, Running, User, credentials, http, node, text, trial};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use v6_node::crypto::{Codec, PrivateKey};
use v6_node::hq::{
    BytesSource, Column, Emit, Event, FileSource, Hq, HqAddress, Identity, Kill, NodeInfo,
    PatchOutcome, Retry, RunPatch, RunStatus, SignInError, Socket, SocketEvents, SocketSettings,
    Tokens,
};
use v6_node::secret::Secret;

type Test = fn(Arc<Value>) -> Running;

macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        [$((stringify!($name), (|seed| Box::pin($name(seed))) as Test)),+]
    };
}

fn main() {
    let mut arguments = Arguments::from_args();
    let alone = tests![
        a_wrong_key_is_final,
        keycloak_out_of_reach_is_not,
        the_node_knows_itself,
        unknown_runs_are_gone,
        the_public_key_is_stored,
        the_socket_syncs,
    ];
    let with_user = tests![
        long_polling_where_websockets_fail,
        a_run_from_task_to_result,
        a_large_result_in_constant_memory,
        finished_runs_are_not_open,
        a_kill_is_heard,
        a_session_and_its_end,
    ];
    let trials = alone
        .map(|test| (test, false))
        .into_iter()
        .chain(with_user.map(|test| (test, true)))
        .map(|((name, test), user)| {
            let needs = Needs {
                variable: "V6_TEST_HQ",
                user,
            };
            trial("hq", name, &needs, arguments.list, test)
        })
        .collect();
    // The tests share two nodes at HQ, and a node has one socket.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

impl User {
    /// A task for the organizations; the action is federated unless `central`.
    async fn task(&self, seed: &Value, organizations: &[i64], central: bool) -> i64 {
        let targets: Vec<Value> = organizations
            .iter()
            .map(|id| json!({ "id": id, "arguments": "eyJhIjogMX0=" }))
            .collect();
        let action = if central {
            "central_compute"
        } else {
            "federated_compute"
        };
        let body = json!({
            "name": "t", "image": "localhost/none:1", "description": "", "method": "m",
            "organizations": targets, "databases": [], "session_id": self.session(seed).await,
            "collaboration_id": seed["collaboration"]["id"], "action": action,
        });
        self.create("task", body).await
    }

    async fn result(&self, task: i64) -> String {
        let page = self
            .call(
                reqwest::Method::GET,
                &format!("result?task_id={task}"),
                None,
            )
            .await;
        page["data"][0]["result"].as_str().unwrap().to_owned()
    }
}

async fn until<T>(events: &mut SocketEvents, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(events.next().await.expect("the socket is open")) {
            return found;
        }
    }
}

async fn online(hq: &Hq, identity: &Identity) -> (Socket, SocketEvents) {
    let (socket, mut events) = Socket::start(hq, identity.clone(), SocketSettings::default());
    until(&mut events, |event| (event == Event::Sync).then_some(())).await;
    assert!(socket.is_online());
    (socket, events)
}

async fn a_wrong_key_is_final(seed: Arc<Value>) {
    let mut credentials = credentials(&seed, 0);
    credentials.api_key = Secret::new("wrong");
    let error = Tokens::sign_in_patiently(&http(), credentials)
        .await
        .unwrap_err();
    assert!(matches!(error, SignInError::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains("V6_API_KEY"), "{error}");
}

async fn keycloak_out_of_reach_is_not(seed: Arc<Value>) {
    let mut credentials = credentials(&seed, 0);
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    credentials.keycloak = Url::parse(&format!("http://127.0.0.1:{port}")).unwrap();
    let error = Tokens::sign_in(&http(), credentials).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

async fn the_node_knows_itself(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let expected = &seed["nodes"][0];
    assert_eq!(identity.node, expected["id"]);
    assert_eq!(identity.organization, expected["organization_id"]);
    assert_eq!(identity.collaboration, seed["collaboration"]["id"]);
    assert!(hq.version().await.unwrap().starts_with("5.0."));
    let organization = hq.organization(identity.organization).await.unwrap();
    assert_eq!(
        hq.organizations_named(&organization.name).await.unwrap(),
        [identity.organization]
    );
    assert!(hq.organizations_named("%").await.unwrap().is_empty());
    let collaboration = hq.collaboration(identity.collaboration).await.unwrap();
    assert_eq!(collaboration.encrypted, seed["collaboration"]["encrypted"]);
    assert!(!hq.blob_store_enabled().await.unwrap());
    assert_eq!(
        hq.organization(999_999).await.unwrap_err().status(),
        Some(404)
    );
}

async fn unknown_runs_are_gone(seed: Arc<Value>) {
    let (hq, _) = node(&seed, 0).await;
    assert_eq!(hq.run(999_999).await.unwrap(), None);
    let claim = RunPatch::claim(SystemTime::now());
    assert_eq!(
        hq.patch_run(999_999, &claim).await.unwrap(),
        PatchOutcome::Gone
    );
    assert_eq!(hq.session_dataframes(999_999).await.unwrap(), None);
}

async fn the_public_key_is_stored(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let file: Value = serde_json::from_str(include_str!("data/encryption-vectors.json")).unwrap();
    let key = PrivateKey::from_pem(text(&file, "private_key_pem").as_bytes()).unwrap();
    let before = hq
        .organization(identity.organization)
        .await
        .unwrap()
        .public_key;
    hq.set_public_key(identity.organization, &key.public_for_hq())
        .await
        .unwrap();
    let stored = hq
        .organization(identity.organization)
        .await
        .unwrap()
        .public_key;
    assert!(key.matches(&stored));
    hq.set_public_key(identity.organization, &before)
        .await
        .unwrap();
}

async fn the_socket_syncs(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let (socket, _events) = online(&hq, &identity).await;
    let info = NodeInfo {
        databases: [("default".to_owned(), "csv".to_owned())].into(),
        ..NodeInfo::default()
    };
    socket.emit(Emit::NodeInfo(info)).await.unwrap();
    socket.close().await;
}

/// Passes connections on to HQ, but not those that ask for a WebSocket.
async fn without_websockets(target: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let count = near.read(&mut head).await.unwrap_or(0);
                if String::from_utf8_lossy(&head[..count]).contains("transport=websocket") {
                    return;
                }
                let mut far = TcpStream::connect(target).await.unwrap();
                far.write_all(&head[..count]).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    port
}

async fn long_polling_where_websockets_fail(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let mut url = hq.address().api().clone();
    let target = format!(
        "{}:{}",
        url.host_str().unwrap(),
        url.port_or_known_default().unwrap()
    );
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(without_websockets(target).await))
        .unwrap();
    let hq = Hq::new(http(), HqAddress::new(url).unwrap(), hq.tokens().clone());
    let (socket, mut events) = online(&hq, &identity).await;
    let task = User::new(&seed)
        .await
        .task(&seed, &[identity.organization], false)
        .await;
    until(&mut events, |event| {
        (event == Event::NewTask { task }).then_some(())
    })
    .await;
    let run = hq
        .open_runs(identity.node, Some(task))
        .await
        .unwrap()
        .remove(0)
        .id;
    // HQ sends the node's own report back to it.
    let report = Emit::StatusChange {
        run,
        task,
        parent: None,
        status: RunStatus::Active,
    };
    socket.emit(report).await.unwrap();
    until(&mut events, |event| match event {
        Event::RunStatus {
            run: id, status, ..
        } if id == run && status == "active" => Some(()),
        _ => None,
    })
    .await;
    socket.close().await;
}

async fn a_run_from_task_to_result(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let (socket, mut events) = online(&hq, &identity).await;
    let user = User::new(&seed).await;
    let task = user.task(&seed, &[identity.organization], true).await;
    let heard = until(&mut events, |event| match event {
        Event::NewTask { task } => Some(task),
        _ => None,
    });
    assert_eq!(heard.await, task);

    let runs = hq.open_runs(identity.node, Some(task)).await.unwrap();
    let [run] = runs.as_slice() else {
        panic!("{runs:?}")
    };
    assert_eq!((run.task.id, run.task.method.as_str()), (task, "m"));
    assert_eq!(
        Codec::Plain
            .decode(run.arguments.as_deref().unwrap())
            .unwrap(),
        b"{\"a\": 1}"
    );
    assert!(
        hq.open_runs(identity.node, None)
            .await
            .unwrap()
            .contains(run)
    );

    let claim = RunPatch::claim(SystemTime::now());
    assert_eq!(
        hq.patch_run(run.id, &claim).await.unwrap(),
        PatchOutcome::Accepted
    );
    let token = hq.container_token(task, &run.task.image).await.unwrap();
    let seen = hq
        .forward(&token, reqwest::Method::GET, &format!("/task/{task}"), None)
        .await
        .unwrap();
    assert_eq!(seen.status, 200);
    let refused = hq
        .forward(&token, reqwest::Method::GET, "/node/me", None)
        .await
        .unwrap();
    assert!(refused.status >= 400, "{}", refused.status);

    socket
        .emit(Emit::Log {
            run: run.id,
            task,
            text: "one line".to_owned(),
        })
        .await
        .unwrap();
    let active = RunPatch::active(Some("one line\n".to_owned()));
    assert_eq!(
        hq.patch_run(run.id, &active).await.unwrap(),
        PatchOutcome::Accepted
    );
    let done = RunPatch::finished(
        RunStatus::Completed,
        SystemTime::now(),
        "log".to_owned(),
        Codec::Plain.encode(b"[1]", "").unwrap(),
    );
    assert_eq!(
        hq.patch_run(run.id, &done).await.unwrap(),
        PatchOutcome::Accepted
    );
    assert_eq!(
        hq.patch_run(run.id, &done).await.unwrap(),
        PatchOutcome::AlreadyFinished
    );
    let report = Emit::StatusChange {
        run: run.id,
        task,
        parent: None,
        status: RunStatus::Completed,
    };
    socket.emit(report).await.unwrap();
    until(&mut events, |event| match event {
        Event::RunStatus {
            run: id, status, ..
        } if id == run.id && status == "completed" => Some(()),
        _ => None,
    })
    .await;
    assert_eq!(user.result(task).await, "WzFd");
    assert_eq!(hq.open_runs(identity.node, Some(task)).await.unwrap(), []);
    assert!(hq.run(run.id).await.unwrap().unwrap().finished_at.is_some());
    let late = hq.container_token(task, &run.task.image).await.unwrap_err();
    assert_eq!(late.status(), Some(400));
    socket.close().await;
}

/// Peak of this process's anonymous memory, in kB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn a_large_result_in_constant_memory(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let user = User::new(&seed).await;
    let task = user.task(&seed, &[identity.organization], false).await;
    let run = hq
        .open_runs(identity.node, Some(task))
        .await
        .unwrap()
        .remove(0);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let megabyte: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    for _ in 0..100 {
        file.write_all(&megabyte).unwrap();
    }
    let source = FileSource::new(file.path()).await.unwrap();
    let patch = RunPatch::finished(
        RunStatus::Completed,
        SystemTime::now(),
        "log".to_owned(),
        String::new(),
    );
    let before = memory();
    let outcome = hq
        .patch_run_streaming(run.id, &patch, &source, &Codec::Plain, "")
        .await
        .unwrap();
    let grown = memory() - before;
    assert_eq!(outcome, PatchOutcome::Accepted);
    assert!(grown < 16 << 10, "memory grew by {grown} kB for 100 MiB");
    let repeated = hq
        .patch_run_streaming(run.id, &patch, &source, &Codec::Plain, "")
        .await
        .unwrap();
    assert_eq!(repeated, PatchOutcome::AlreadyFinished);
    let result = Codec::Plain.decode(&user.result(task).await).unwrap();
    assert_eq!(result.len(), 100 << 20);
    assert!(result.chunks(1 << 20).all(|piece| piece == megabyte));
}

async fn finished_runs_are_not_open(seed: Arc<Value>) {
    let ((first, us), (_, them)) = (node(&seed, 0).await, node(&seed, 1).await);
    let user = User::new(&seed).await;
    let task = user
        .task(&seed, &[us.organization, them.organization], false)
        .await;
    let run = first
        .open_runs(us.node, Some(task))
        .await
        .unwrap()
        .remove(0);
    let file: Value = serde_json::from_str(include_str!("data/encryption-vectors.json")).unwrap();
    let key = Arc::new(PrivateKey::from_pem(text(&file, "private_key_pem").as_bytes()).unwrap());
    let (receiver, codec) = (key.public_for_hq(), Codec::Encrypted(key));
    let patch = RunPatch::finished(
        RunStatus::Completed,
        SystemTime::now(),
        String::new(),
        String::new(),
    );
    let source = BytesSource(bytes::Bytes::from_static(b"{\"x\": 1}"));
    let wrong = first
        .patch_run_streaming(run.id, &patch, &source, &codec, "no key")
        .await;
    assert!(!wrong.unwrap_err().is_retryable());
    let outcome = first
        .patch_run_streaming(run.id, &patch, &source, &codec, &receiver)
        .await
        .unwrap();
    assert_eq!(outcome, PatchOutcome::Accepted);
    assert_eq!(first.open_runs(us.node, Some(task)).await.unwrap(), []);
    let page = user
        .call(
            reqwest::Method::GET,
            &format!("result?task_id={task}&organization_id={}", us.organization),
            None,
        )
        .await;
    let stored = page["data"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|item| item["result"].as_str())
        .unwrap();
    assert_eq!(codec.decode(stored).unwrap(), b"{\"x\": 1}");
}

async fn a_kill_is_heard(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let (socket, mut events) = online(&hq, &identity).await;
    let user = User::new(&seed).await;
    let task = user.task(&seed, &[identity.organization], false).await;
    let run = hq
        .open_runs(identity.node, Some(task))
        .await
        .unwrap()
        .remove(0);
    user.call(
        reqwest::Method::POST,
        "kill/task",
        Some(json!({ "id": task })),
    )
    .await;
    let killed = until(&mut events, |event| match event {
        Event::Kill(kill) => Some(kill),
        _ => None,
    });
    assert_eq!(killed.await, Kill::Runs(vec![run.id]));
    // HQ closes the runs just after the event.
    let mut outcome = PatchOutcome::Accepted;
    while outcome == PatchOutcome::Accepted {
        outcome = hq.patch_run(run.id, &RunPatch::active(None)).await.unwrap();
    }
    assert_eq!(outcome, PatchOutcome::AlreadyFinished);
    let log = RunPatch::log_only("killed".to_owned());
    assert_eq!(
        hq.patch_run(run.id, &log).await.unwrap(),
        PatchOutcome::Accepted
    );
    socket.close().await;
}

async fn a_session_and_its_end(seed: Arc<Value>) {
    let (hq, identity) = node(&seed, 0).await;
    let hq = hq.with_retry(Retry {
        within: Duration::from_secs(5),
        ..Retry::default()
    });
    let user = User::new(&seed).await;
    let session = user.session(&seed).await;
    assert_eq!(
        hq.session_dataframes(session).await.unwrap(),
        Some(Vec::new())
    );
    let body = json!({ "label": "default", "task": { "method": "read", "image": "localhost/none:1",
        "organizations": [{ "id": identity.organization, "arguments": "e30=" }] } });
    let path = format!("session/{session}/dataframe");
    let made = user.call(reqwest::Method::POST, &path, Some(body)).await;
    let (id, name) = (made["id"].as_i64().unwrap(), text(&made, "name").to_owned());
    assert_eq!(
        hq.session_dataframes(session).await.unwrap(),
        Some(vec![name.clone()])
    );
    let runs = hq.open_runs(identity.node, None).await.unwrap();
    let run = runs
        .iter()
        .find(|run| run.task.session == Some(session))
        .unwrap();
    assert_eq!(run.task.source_label(), Some("default"));
    assert_eq!(
        run.task
            .dataframe
            .as_ref()
            .map(|frame| (frame.id, &frame.name)),
        Some((id, &name))
    );
    let columns = [Column {
        name: "age".to_owned(),
        dtype: "int64".to_owned(),
    }];
    hq.set_columns(id, &columns).await.unwrap();
    let done = RunPatch::finished(
        RunStatus::Completed,
        SystemTime::now(),
        String::new(),
        String::new(),
    );
    hq.patch_run(run.id, &done).await.unwrap();
    user.call(
        reqwest::Method::DELETE,
        &format!("session/{session}?delete_dependents=true"),
        None,
    )
    .await;
    assert_eq!(hq.session_dataframes(session).await.unwrap(), None);
}
