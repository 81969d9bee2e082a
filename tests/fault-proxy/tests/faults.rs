//! Each fault, as a client and an engine see it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::mpsc;
use v6_fault_proxy::{Answer, Fault, Requests, Rule};

use common::{Bench, KINDS, Kind, all, data, next, piped, reply, request, text, whole};

/// An engine that sends back what it gets, and the count of its requests.
async fn echo(kind: Kind) -> (Bench, Arc<AtomicU32>) {
    let done = Arc::<AtomicU32>::default();
    let count = done.clone();
    let bench = Bench::new(kind, move |request| {
        let done = done.clone();
        async move {
            let body = request.into_body().collect().await.expect("a body");
            done.fetch_add(1, Ordering::SeqCst);
            reply(whole(body.to_bytes()))
        }
    })
    .await;
    (bench, count)
}

/// An engine that sends what a test says, in chunks.
async fn said(
    kind: Kind,
) -> (
    Bench,
    mpsc::Receiver<mpsc::Sender<hyper::body::Frame<Bytes>>>,
) {
    let (asked, streams) = mpsc::channel(1);
    let bench = Bench::new(kind, move |_| {
        let asked = asked.clone();
        async move {
            let (sender, body) = piped();
            asked.send(sender).await.expect("the test");
            reply(body)
        }
    })
    .await;
    (bench, streams)
}

#[tokio::test]
async fn without_rules_all_is_as_before() {
    for kind in KINDS {
        let (bench, done) = echo(kind).await;
        let mut client = bench.client().await;
        for body in ["one", "", "three"] {
            let reply = client
                .post("/v1.47/echo?a=%20b", body)
                .await
                .expect("a reply");
            assert_eq!(reply.status(), 200);
            assert_eq!(reply.headers()["content-length"], body.len().to_string());
            assert_eq!(text(reply).await, body);
        }
        assert_eq!(done.load(Ordering::SeqCst), 3);
        assert_eq!(bench.proxy.requests(), 3);
        let log = bench.proxy.log(&Requests::any());
        assert_eq!(log.len(), 3);
        assert_eq!(log[0].to_string(), "POST /v1.47/echo?a=%20b");
    }
}

#[tokio::test]
async fn rules_are_for_their_requests() {
    let (bench, _) = echo(Kind::Unix).await;
    let mut client = bench.client().await;
    let requests = [
        Requests::any(),
        Requests::any().method("POST"),
        Requests::any().path("/v1/containers/create"),
        Requests::any().path("/v1/containers"),
        Requests::any().path_starts_with("/v1/"),
        Requests::any().path_starts_with("/containers"),
        Requests::any().path_contains("containers"),
        Requests::any().path_contains("name"),
        Requests::any().path_ends_with("/create"),
        Requests::any().path_ends_with("x"),
        Requests::any().query_contains("name=x"),
        Requests::any().query_contains("create"),
        Requests::any().method("GET").path_contains("containers"),
    ];
    let guards: Vec<_> = requests
        .iter()
        .map(|requests| bench.proxy.add(Rule::new(requests.clone(), Fault::Nothing)))
        .collect();
    client
        .post("/v1/containers/create?name=x", "")
        .await
        .expect("a reply");
    client.get("/v1/images").await.expect("a reply");
    let fired: Vec<_> = guards.iter().map(|guard| guard.fired()).collect();
    assert_eq!(fired, [2, 1, 1, 0, 2, 0, 1, 0, 1, 0, 1, 0, 0]);
    let logged: Vec<_> = requests
        .iter()
        .map(|r| bench.proxy.log(r).len() as u32)
        .collect();
    assert_eq!(logged, fired);
}

#[tokio::test]
async fn a_rule_skips_and_is_used_up_and_ends_with_its_guard() {
    let (bench, _) = echo(Kind::Unix).await;
    let mut client = bench.client().await;
    let answer = |status| Fault::Answer(Answer::new(status));
    let first = bench
        .proxy
        .add(Rule::new(Requests::any(), answer(500)).skip(1).times(2));
    let second = bench
        .proxy
        .add(Rule::new(Requests::any(), answer(409)).times(1));
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(client.get("/").await.expect("a reply").status().as_u16());
    }
    // The second is not asked while the first answers.
    assert_eq!(statuses, [409, 500, 500, 200, 200]);
    assert_eq!((first.fired(), second.fired()), (2, 1));

    let third = bench.proxy.add(Rule::new(Requests::any(), answer(503)));
    assert_eq!(client.get("/").await.expect("a reply").status(), 503);
    drop(third);
    assert_eq!(client.get("/").await.expect("a reply").status(), 200);
}

#[tokio::test]
async fn delays_add_up_and_only_the_request_waits() {
    let (bench, _) = echo(Kind::Unix).await;
    let slow = Requests::any().path("/slow");
    let delay = Fault::Delay(Duration::from_millis(30));
    let one = bench.proxy.add(Rule::new(slow.clone(), delay.clone()));
    let two = bench.proxy.add(Rule::new(slow, delay));
    let mut client = bench.client().await;
    let began = Instant::now();
    assert_eq!(
        text(client.post("/slow", "late").await.expect("a reply")).await,
        "late"
    );
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!((one.fired(), two.fired()), (1, 1));
}

#[tokio::test]
async fn a_held_request_goes_on_when_its_guard_is_dropped() {
    for kind in KINDS {
        let (bench, done) = echo(kind).await;
        let hold = bench
            .proxy
            .add(Rule::new(Requests::any().path("/held"), Fault::Hold));
        let mut client = bench.client().await;
        let held =
            tokio::spawn(
                async move { text(client.post("/held", "x").await.expect("a reply")).await },
            );
        hold.until_fired(1).await;
        bench.client().await.get("/other").await.expect("a reply");
        assert_eq!(done.load(Ordering::SeqCst), 1, "the other only");
        drop(hold);
        assert_eq!(held.await.expect("no panic"), "x");
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn a_refused_request_does_not_reach_the_engine() {
    for kind in KINDS {
        let (bench, done) = echo(kind).await;
        let refuse = bench
            .proxy
            .add(Rule::new(Requests::any(), Fault::Refuse).times(1));
        let mut client = bench.client().await;
        let error = client.post("/x", "body").await.expect_err("no reply");
        assert!(error.is_incomplete_message(), "{error}");
        client.closed().await;
        assert_eq!(done.load(Ordering::SeqCst), 0);
        assert_eq!(refuse.fired(), 1);
        bench.client().await.get("/x").await.expect("a reply");
    }
}

#[tokio::test]
async fn an_answer_is_not_the_engines() {
    for kind in KINDS {
        let (bench, done) = echo(kind).await;
        let answer = Answer::new(429).header("Retry-After", "1");
        let answer = answer.json(&json!({"message": "later"}));
        let _busy = bench
            .proxy
            .add(Rule::new(Requests::any(), Fault::Answer(answer)).times(2));
        let mut client = bench.client().await;
        // An upload is read, so that the connection can be used again.
        for body in [String::new(), "x".repeat(3_000_000)] {
            let reply = client.post("/x", &body).await.expect("a reply");
            assert_eq!(reply.status(), 429);
            assert_eq!(reply.headers()["retry-after"], "1");
            assert_eq!(reply.headers()["content-type"], "application/json");
            assert_eq!(text(reply).await, r#"{"message":"later"}"#);
        }
        assert_eq!(done.load(Ordering::SeqCst), 0);
        let reply = client.post("/x", "now").await.expect("a reply");
        assert_eq!(text(reply).await, "now");
    }
}

#[tokio::test]
async fn a_lost_reply_is_of_work_that_is_done() {
    for kind in KINDS {
        let (bench, done) = echo(kind).await;
        let lose = bench
            .proxy
            .add(Rule::new(Requests::any().method("POST"), Fault::LoseReply));
        let mut client = bench.client().await;
        // The connection has been used before, as one from a pool.
        client.get("/").await.expect("a reply");
        let error = client.post("/create", "{}").await.expect_err("no reply");
        assert!(error.is_incomplete_message(), "{error}");
        client.closed().await;
        assert_eq!(done.load(Ordering::SeqCst), 2);
        assert_eq!(lose.fired(), 1);
    }
}

#[tokio::test]
async fn a_lost_reply_is_read_to_its_end() {
    let (bench, mut streams) = said(Kind::Unix).await;
    let _lose = bench
        .proxy
        .add(Rule::new(Requests::any(), Fault::LoseReply));
    let mut client = bench.client().await;
    let pull = tokio::spawn(async move { client.post("/images/create", "").await.map(drop) });
    let stream = streams.recv().await.expect("a request");
    for _ in 0..100 {
        stream.send(data("progress")).await.expect("somebody reads");
        assert!(!pull.is_finished());
    }
    drop(stream);
    pull.await.expect("no panic").expect_err("no reply");
}

#[tokio::test]
async fn a_cut_reply_is_exact_and_broken() {
    for kind in KINDS {
        let (bench, _) = echo(kind).await;
        let body = "0123456789".repeat(100_000);
        for bytes in [0, 1, 7, 654_321] {
            let fault = Fault::CutReplyAfter(bytes);
            let _cut = bench.proxy.add(Rule::new(Requests::any(), fault));
            let mut client = bench.client().await;
            let reply = client.post("/x", &body).await.expect("a head");
            let (got, whole) = all(reply.into_body()).await;
            assert_eq!((got.len() as u64, whole), (bytes, false));
            assert!(body.as_bytes().starts_with(&got));
            client.closed().await;
        }
    }
}

#[tokio::test]
async fn a_cut_stream_is_exact_and_broken() {
    for kind in KINDS {
        let (bench, mut streams) = said(kind).await;
        let _cut = bench
            .proxy
            .add(Rule::new(Requests::any(), Fault::CutReplyAfter(5)));
        let mut client = bench.client().await;
        let mut body = client.get("/events").await.expect("a head").into_body();
        let stream = streams.recv().await.expect("a request");
        stream.send(data("abc")).await.expect("somebody reads");
        assert_eq!(
            next(&mut body).await.expect("a piece").expect("no error"),
            "abc"
        );
        stream.send(data("defgh")).await.expect("somebody reads");
        assert_eq!(all(body).await, (b"de".to_vec(), false));
        stream.closed().await;
    }
}

#[tokio::test]
async fn an_ended_reply_looks_complete_and_the_connection_goes_on() {
    for kind in KINDS {
        let (bench, mut streams) = said(kind).await;
        let mut client = bench.client().await;
        for bytes in [0, 5] {
            let fault = Fault::EndReplyAfter(bytes);
            let _end = bench.proxy.add(Rule::new(Requests::any(), fault));
            let reply = client.get("/events").await.expect("a head");
            let stream = streams.recv().await.expect("a request");
            if bytes > 0 {
                stream.send(data("abcdefgh")).await.expect("somebody reads");
            }
            let expected = b"abcde"[..bytes as usize].to_vec();
            assert_eq!(all(reply.into_body()).await, (expected, true));
            // The engine hears that nobody listens.
            stream.closed().await;
        }
    }
}

#[tokio::test]
async fn a_reply_with_a_length_can_end_too() {
    for kind in KINDS {
        let (bench, _) = echo(kind).await;
        let _end = bench
            .proxy
            .add(Rule::new(Requests::any(), Fault::EndReplyAfter(2)));
        let mut client = bench.client().await;
        for _ in 0..3 {
            let reply = client.post("/x", "abcdef").await.expect("a head");
            assert_eq!(text(reply).await, "ab");
        }
        // A shorter one has its own end.
        let reply = client.post("/x", "a").await.expect("a head");
        assert_eq!(text(reply).await, "a");
    }
}

#[tokio::test]
async fn a_watch_expires_when_its_guard_is_dropped() {
    for kind in KINDS {
        let (bench, mut streams) = said(kind).await;
        let expire = bench
            .proxy
            .add(Rule::new(Requests::any(), Fault::EndReplyAtRelease));
        let mut client = bench.client().await;
        let mut body = client.get("/watch").await.expect("a head").into_body();
        let stream = streams.recv().await.expect("a request");
        stream.send(data("abc")).await.expect("somebody reads");
        assert_eq!(
            next(&mut body).await.expect("a piece").expect("no error"),
            "abc"
        );
        drop(expire);
        assert_eq!(all(body).await, (Vec::new(), true));
        stream.closed().await;
        client
            .get("/watch")
            .await
            .expect("the connection is as good as before");
    }
}

#[tokio::test]
async fn pieces_arrive_one_by_one() {
    for kind in KINDS {
        let (bench, _) = echo(kind).await;
        let _split = bench
            .proxy
            .add(Rule::new(Requests::any(), Fault::Split(vec![1, 3, 7])));
        let mut client = bench.client().await;
        let sent = r#"{"name":"Zoë","smile":"😀"}"#;
        let mut body = client.post("/x", sent).await.expect("a reply").into_body();
        let mut pieces = Vec::new();
        while let Some(piece) = next(&mut body).await {
            pieces.push(piece.expect("no error").to_vec());
        }
        let sizes: Vec<_> = pieces.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 3, 7, 1, 3, 7, 1, 3, 4]);
        assert!(
            pieces
                .iter()
                .any(|piece| std::str::from_utf8(piece).is_err())
        );
        assert_eq!(pieces.concat(), sent.as_bytes());
    }
}

#[tokio::test]
async fn a_rewritten_request_is_another_one() {
    for kind in KINDS {
        let (bench, done) = echo(kind).await;
        let requests = Requests::any().method("POST");
        let drop_caps = Fault::rewrite(|body| body["HostConfig"]["CapDrop"] = json!([]));
        let name = Fault::rewrite(|body| body["Name"] = json!("a longer name than before"));
        let _one = bench.proxy.add(Rule::new(requests.clone(), drop_caps));
        let _two = bench.proxy.add(Rule::new(requests, name));
        let mut client = bench.client().await;
        let sent = json!({"HostConfig": {"CapDrop": ["ALL"], "Init": true}}).to_string();
        let expected = json!({
            "HostConfig": {"CapDrop": [], "Init": true}, "Name": "a longer name than before"
        });
        let got = text(client.post("/x", &sent).await.expect("a reply")).await;
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&got).expect("JSON"),
            expected
        );
        // In chunks.
        let (sender, body) = piped();
        sender.send(data(sent)).await.expect("room");
        drop(sender);
        let got = text(
            client
                .send(request("POST", "/x", body))
                .await
                .expect("a reply"),
        )
        .await;
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&got).expect("JSON"),
            expected
        );
        assert_eq!(done.load(Ordering::SeqCst), 2);

        for body in ["", "no JSON", &"[".repeat(17 * 1024 * 1024)] {
            let mut client = bench.client().await;
            let reply = client.post("/x", body).await.expect("a reply");
            assert_eq!(reply.status(), 502);
            assert!(
                text(reply)
                    .await
                    .starts_with("v6-fault-proxy: the body of POST /x")
            );
        }
        assert_eq!(
            done.load(Ordering::SeqCst),
            2,
            "none of these was passed on"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_split_keeps_any_body(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
        pattern in prop::collection::vec(0usize..20, 0..6),
        tcp: bool,
    ) {
        let kind = if tcp { Kind::Tcp } else { Kind::Unix };
        let expected = chunks.concat();
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (got, whole) = tokio.block_on(async {
            let (bench, mut streams) = said(kind).await;
            let _split = bench.proxy.add(Rule::new(Requests::any(), Fault::Split(pattern)));
            let mut client = bench.client().await;
            let body = client.get("/").await.expect("a head").into_body();
            let stream = streams.recv().await.expect("a request");
            let said = async move {
                for chunk in chunks {
                    stream.send(data(chunk)).await.expect("somebody reads");
                }
            };
            tokio::join!(all(body), said).0
        });
        prop_assert!(whole);
        prop_assert_eq!(got, expected);
    }
}
