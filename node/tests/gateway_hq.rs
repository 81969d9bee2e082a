//! The gateway against a real HQ 5.0: a subtask from an algorithm's request to its result.
//!
//! `V6_TEST_HQ` and `V6_TEST_HQ_ENCRYPTED` name the files of its contents, see [`real_hq`]: a
//! collaboration of the kind each. Without it a line `SKIP name: reason` is printed and the test
//! is listed as ignored.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "skips are told on stdout")]

mod folder;
mod real_hq;

use std::sync::Arc;
use std::time::SystemTime;

use folder::Folder;
use libtest_mimic::Arguments;
use real_hq::{Needs, User, node, text, trial};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use v6_node::crypto::{Codec, PrivateKey, decode_lenient, encode};
use v6_node::gateway::{Gateway, Limits, proxy_grant};
use v6_node::hq::{PatchOutcome, RunPatch, RunStatus};
use v6_node::runs::{Destination, RunContext, Target};
use v6_node::secret::Secret;
use v6_runtime::{Connection, RunId};

fn main() {
    let arguments = Arguments::from_args();
    let trials = [
        ("a_subtask_without_encryption", "V6_TEST_HQ", false),
        ("a_subtask_with_encryption", "V6_TEST_HQ_ENCRYPTED", true),
    ]
    .map(|(name, variable, encrypted)| {
        let needs = Needs {
            variable,
            user: true,
        };
        trial("gateway_hq", name, &needs, arguments.list, move |seed| {
            Box::pin(async move { a_subtask(&seed, encrypted).await })
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit();
}

/// The gateway, serving what is sent to it.
fn serve(gateway: &Gateway, stop: &CancellationToken) -> (Sender<Connection>, JoinHandle<()>) {
    let (send, receive) = channel(16);
    let (gateway, stop, mut receive) = (gateway.clone(), stop.clone(), Some(receive));
    let serving = tokio::spawn(async move {
        let open = || {
            let receive: Receiver<Connection> = receive.take().expect("opened once");
            Box::pin(futures_util::stream::unfold(receive, |mut receive| async {
                Some((Ok(receive.recv().await?), receive))
            })) as _
        };
        gateway.serve_from(open, stop).await;
    });
    (send, serving)
}

/// An algorithm's request, on a connection of its own.
async fn ask(
    connections: &Sender<Connection>,
    run: &RunId,
    token: &Secret,
    head: &str,
    body: &str,
) -> (u16, Value) {
    let (mut ours, theirs) = tokio::io::duplex(64 << 10);
    let connection = Connection::new(run.clone(), proxy_grant(), theirs);
    assert!(connections.try_send(connection).is_ok());
    let request = format!(
        "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        token.expose(),
        body.len()
    );
    ours.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    ours.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

async fn a_subtask(seed: &Value, encrypted: bool) {
    assert_eq!(seed["collaboration"]["encrypted"], encrypted);
    let (north, us) = node(seed, 0).await;
    let (east, them) = node(seed, 1).await;
    let file: Value = serde_json::from_str(include_str!("data/encryption-vectors.json")).unwrap();
    let key = PrivateKey::from_pem(text(&file, "private_key_pem").as_bytes()).unwrap();
    let public = key.public_for_hq();
    let codec = if encrypted {
        // One key for both, so that one test can read what is meant for either.
        north
            .set_public_key(us.organization, &public)
            .await
            .unwrap();
        east.set_public_key(them.organization, &public)
            .await
            .unwrap();
        Codec::Encrypted(Arc::new(key))
    } else {
        Codec::Plain
    };

    let user = User::new(seed).await;
    let collaboration = &seed["collaboration"]["id"];
    let session = user.session(seed).await;
    let central = json!({
        "name": "central", "image": "localhost/none:1", "description": "", "method": "m",
        "organizations": [{"id": us.organization, "arguments": codec.encode(b"{}", &public).unwrap()}],
        "databases": [], "session_id": session, "collaboration_id": collaboration,
        "action": "central_compute",
    });
    let central = user.create("task", central).await;

    let run = north
        .open_runs(us.node, Some(central))
        .await
        .unwrap()
        .remove(0);
    let claim = RunPatch::claim(SystemTime::now());
    assert_eq!(
        north.patch_run(run.id, &claim).await.unwrap(),
        PatchOutcome::Accepted
    );
    let mut context = RunContext::of(&run, false, 1 << 20).unwrap();
    context.destinations.push(Destination {
        grant: proxy_grant().name,
        to: Target::Proxy,
    });
    let folder = Folder::new();
    let gateway = Gateway::new(
        north.clone(),
        us.clone(),
        codec.clone(),
        folder.path(),
        Limits::default(),
    )
    .unwrap();
    let token = gateway.issue_token(&context).await.unwrap();
    let id = context.run_id();
    gateway.admit(context.clone());
    let stop = CancellationToken::new();
    let (connections, serving) = serve(&gateway, &stop);

    // HQ itself takes nothing from the token that the container has.
    let direct = user
        .client
        .get(format!("{}/task/{central}", user.base))
        .bearer_auth(token.expose())
        .send();
    assert!(!direct.await.unwrap().status().is_success());

    let subtask = json!({
        "name": "subtask", "image": "localhost/none:1", "description": "", "method": "partial",
        "organizations": [
            {"id": us.organization, "arguments": encode(b"{\"a\": 1}")},
            {"id": them.organization, "arguments": encode(b"{\"a\": 2}")},
        ],
        "databases": [], "session_id": session, "collaboration_id": collaboration,
        "action": "federated_compute",
    })
    .to_string();
    let (status, task) = ask(&connections, &id, &token, "POST /task", &subtask).await;
    assert_eq!(status, 201, "{task}");
    assert_eq!(task["parent"]["id"], central);
    let task = task["id"].as_i64().unwrap();

    // A node that dies before its algorithm has the answer: the journal is open, HQ has the
    // task. The same request then gets that task.
    let journal = folder.path().join("gateway").join(format!("{id}.json"));
    let (_, second) = ask(&connections, &id, &token, "POST /task", &subtask).await;
    let second = second["id"].as_i64().unwrap();
    assert_ne!(second, task);
    stop.cancel();
    serving.await.unwrap();
    let mut content: Value = serde_json::from_slice(&std::fs::read(&journal).unwrap()).unwrap();
    assert_eq!(content["entries"], json!([]));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, subtask.as_bytes());
    let digest: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    content["seen"] = json!(task);
    content["entries"] = json!([{
        "body": digest, "name": "subtask", "method": "partial", "organizations": 2, "task": null,
    }]);
    std::fs::write(&journal, content.to_string()).unwrap();
    let restarted = Gateway::new(
        north.clone(),
        us.clone(),
        codec.clone(),
        folder.path(),
        Limits::default(),
    )
    .unwrap();
    restarted.admit(context);
    let (connections, _) = serve(&restarted, &CancellationToken::new());
    let (status, again) = ask(&connections, &id, &token, "POST /task", &subtask).await;
    assert_eq!((status, &again["id"]), (201, &json!(second)), "{again}");

    for (hq, who, wanted) in [(&north, &us, b"{\"a\": 1}"), (&east, &them, b"{\"a\": 2}")] {
        let open = hq.open_runs(who.node, Some(task)).await.unwrap().remove(0);
        let arguments = open.arguments.unwrap();
        assert_eq!(arguments.contains('$'), encrypted);
        assert_eq!(codec.decode(&arguments).unwrap(), wanted);
        assert_eq!(open.task.init_org, Some(us.organization));
        let now = SystemTime::now();
        hq.patch_run(open.id, &RunPatch::claim(now)).await.unwrap();
        let result = codec.encode(b"{\"n\": 3}", &public).unwrap();
        let report = RunPatch::finished(RunStatus::Completed, now, String::new(), result);
        assert_eq!(
            hq.patch_run(open.id, &report).await.unwrap(),
            PatchOutcome::Accepted
        );
    }
    let (_, said) = ask(
        &connections,
        &id,
        &token,
        &format!("GET /task/{task}/status"),
        "",
    )
    .await;
    assert_eq!(said["status"], "completed", "{said}");
    let (status, page) = ask(
        &connections,
        &id,
        &token,
        &format!("GET /result?task_id={task}&page=1"),
        "",
    )
    .await;
    assert_eq!(status, 200, "{page}");
    let results = page["data"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for item in results {
        let one = format!("GET /result/{}", item["id"]);
        let (_, one) = ask(&connections, &id, &token, &one, "").await;
        for item in [item, &one] {
            let plain = decode_lenient(text(item, "result").as_bytes()).unwrap();
            assert_eq!(plain, b"{\"n\": 3}");
        }
    }
    let (status, said) = ask(
        &connections,
        &id,
        &token,
        "GET /study?collaboration_id=1",
        "",
    )
    .await;
    assert_eq!(status, 422, "{said}");
    let (status, _) = ask(&connections, &id, &token, "GET /organization/999999", "").await;
    assert_eq!(status, 404);
}
