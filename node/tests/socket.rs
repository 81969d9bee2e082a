//! Sign-in and the socket against a scripted Keycloak and HQ that misbehave.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use url::Url;
use v6_node::hq::{
    Credentials, Emit, Event, Hq, HqAddress, Http, HttpSettings, Identity, RunStatus, SignInError,
    Socket, SocketEvents, SocketSettings, Tokens,
};
use v6_node::secret::Secret;

/// What HQ does with the next connection to its socket.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    /// Knows the node, and sends back every status change.
    Sync,
    /// Takes the namespace and says nothing more.
    Silence,
    /// Says that the token has expired.
    Expired,
    /// Breaks off in the middle.
    Break,
    /// Says `sync`, then sends no heartbeat; its intervals are 100 ms.
    Dead,
}

/// Keycloak and HQ on one port. Tokens are `token-1`, `token-2`, …
#[derive(Default)]
struct Script {
    tokens: usize,
    /// Answers of Keycloak before it gives a token.
    keycloak: VecDeque<u16>,
    socket: VecDeque<Does>,
    /// Answers to `GET version`; 0 closes the connection without one.
    rest: VecDeque<u16>,
    /// How long a token lives, in seconds.
    life: u32,
    /// The tokens that came with connections to the socket and with `GET version`.
    seen: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

async fn serve(keycloak: &[u16], socket: &[Does]) -> (Url, Shared) {
    let script = Script {
        keycloak: keycloak.iter().copied().collect(),
        socket: socket.iter().copied().collect(),
        life: 300,
        ..Script::default()
    };
    let shared = Arc::new(Mutex::new(script));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let script = shared.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, script.clone()));
        }
    });
    (url, shared)
}

/// The head of the request, left in the socket's buffer.
async fn head(stream: &TcpStream) -> String {
    let mut buffer = vec![0; 8192];
    loop {
        let count = stream.peek(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if text.contains("\r\n\r\n") || count == 0 {
            return text;
        }
        stream.readable().await.unwrap();
        tokio::task::yield_now().await;
    }
}

fn bearer(head: &str) -> String {
    let (_, rest) = head.split_once("Bearer ").unwrap();
    rest.lines().next().unwrap().to_owned()
}

async fn connection(mut stream: TcpStream, script: Shared) {
    let head = head(&stream).await;
    if head.starts_with("POST /realms/v/protocol/openid-connect/token ") {
        let (status, body) = {
            let mut script = script.lock().unwrap();
            match script.keycloak.pop_front() {
                Some(status) => (
                    status,
                    r#"{"error":"e","error_description":"d"}"#.to_owned(),
                ),
                None => {
                    script.tokens += 1;
                    (
                        200,
                        format!(
                            r#"{{"access_token":"token-{}","expires_in":{}}}"#,
                            script.tokens, script.life
                        ),
                    )
                }
            }
        };
        let mut sink = vec![0; 8192];
        let _ = stream.read(&mut sink).await.unwrap();
        let length = body.len();
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    } else if head.starts_with("GET /hq/version ") {
        let status = {
            let mut script = script.lock().unwrap();
            script.seen.push(bearer(&head));
            script.rest.pop_front().unwrap_or(200)
        };
        let mut sink = vec![0; 8192];
        let _ = stream.read(&mut sink).await.unwrap();
        if status > 0 {
            let body = r#"{"version":"5.0.3","msg":"m"}"#;
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    } else if head.starts_with("GET /socket.io/?transport=websocket&EIO=4 ") {
        let does = {
            let mut script = script.lock().unwrap();
            script.seen.push(bearer(&head));
            script.socket.pop_front().unwrap_or(Does::Sync)
        };
        let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        // The client may leave at any time.
        let _ = play(socket, does).await;
    }
}

async fn play(mut socket: WebSocketStream<TcpStream>, does: Does) -> Option<()> {
    let interval = if does == Does::Dead { 50 } else { 25_000 };
    let open = format!(
        r#"0{{"sid":"s","upgrades":[],"pingTimeout":{interval},"pingInterval":{interval},"maxPayload":1000000}}"#
    );
    socket.send(Message::text(open)).await.ok()?;
    assert_eq!(socket.next().await?.ok()?, Message::text("40/tasks,{}"));
    if does == Does::Break {
        return None;
    }
    socket
        .send(Message::text(r#"40/tasks,{"sid":"x"}"#))
        .await
        .ok()?;
    match does {
        Does::Expired => socket
            .send(Message::text(r#"42/tasks,["expired_token"]"#))
            .await
            .ok()?,
        Does::Silence => {}
        _ => {
            // A heartbeat first, so that what follows proves that it was answered.
            socket.send(Message::text("2")).await.ok()?;
            assert_eq!(socket.next().await?.ok()?, Message::text("3"));
            socket
                .send(Message::text(r#"42/tasks,["sync"]"#))
                .await
                .ok()?;
        }
    }
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) if text.contains("algorithm_status_change") => {
                socket.send(Message::text(text)).await.ok()?;
            }
            _ => {}
        }
    }
}

fn credentials(url: &Url) -> Credentials {
    Credentials {
        keycloak: url.clone(),
        realm: "v".to_owned(),
        node_name: "n".to_owned(),
        api_key: Secret::new("k"),
    }
}

fn http() -> Http {
    Http::new(HttpSettings::default()).unwrap()
}

async fn start(url: &Url, settings: SocketSettings) -> (Socket, SocketEvents) {
    let tokens = Tokens::sign_in(&http(), credentials(url)).await.unwrap();
    let hq = Hq::new(
        http(),
        HqAddress::new(url.join("hq").unwrap()).unwrap(),
        tokens,
    );
    let us = Identity {
        node: 2,
        node_name: "n".to_owned(),
        organization: 4,
        collaboration: 1,
    };
    Socket::start(&hq, us, settings)
}

fn fast() -> SocketSettings {
    SocketSettings {
        sync_within: Duration::from_millis(300),
        first_pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(20),
        ..SocketSettings::default()
    }
}

/// All events up to and with the first `sync`.
async fn until_sync(events: &mut SocketEvents) -> Vec<Event> {
    let mut heard = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), events.next())
            .await
            .unwrap();
        heard.push(next.unwrap());
        if heard.last() == Some(&Event::Sync) {
            return heard;
        }
    }
}

/// How often the connection was lost before the `sync`, and the tokens that HQ saw.
async fn recovery(first: Does) -> (usize, Vec<String>) {
    let (url, script) = serve(&[], &[first]).await;
    let (socket, mut events) = start(&url, fast()).await;
    let heard = until_sync(&mut events).await;
    assert!(socket.is_online());
    let seen = script.lock().unwrap().seen.clone();
    (heard.len() - 1, seen)
}

#[tokio::test]
async fn a_token_that_hq_refuses_is_replaced() {
    for refusal in [Does::Expired, Does::Silence] {
        let (lost, seen) = recovery(refusal).await;
        assert_eq!(
            (lost, seen),
            (1, vec!["token-1".to_owned(), "token-2".to_owned()]),
            "{refusal:?}"
        );
    }
}

#[tokio::test]
async fn a_broken_connection_keeps_the_token() {
    let (lost, seen) = recovery(Does::Break).await;
    assert_eq!(
        (lost, seen),
        (1, vec!["token-1".to_owned(), "token-1".to_owned()])
    );
}

#[tokio::test]
async fn a_dead_connection_is_noticed() {
    let (url, script) = serve(&[], &[Does::Dead]).await;
    let (_socket, mut events) = start(&url, fast()).await;
    until_sync(&mut events).await;
    let heard = until_sync(&mut events).await;
    assert!(
        matches!(heard.as_slice(), [Event::Disconnected { .. }, Event::Sync]),
        "{heard:?}"
    );
    assert_eq!(script.lock().unwrap().seen.len(), 2);
}

#[tokio::test]
async fn what_is_emitted_while_offline_arrives_later() {
    let (url, _script) = serve(&[], &[Does::Break, Does::Break]).await;
    let (socket, mut events) = start(&url, fast()).await;
    let change = |run| Emit::StatusChange {
        run,
        task: 1,
        parent: None,
        status: RunStatus::Completed,
    };
    for run in 0..50 {
        socket.emit(change(run)).await.unwrap();
    }
    until_sync(&mut events).await;
    for run in 0..50 {
        let want = Event::RunStatus {
            run,
            task: 1,
            status: "completed".to_owned(),
        };
        assert_eq!(events.next().await, Some(want));
    }
    socket.close().await;
    assert_eq!(events.next().await, None);
}

/// A reader that falls behind is told to catch up, instead of holding the heartbeat.
#[tokio::test]
async fn a_slow_reader_gets_a_sync_in_place_of_what_it_missed() {
    let (url, _script) = serve(&[], &[]).await;
    let (socket, mut events) = start(
        &url,
        SocketSettings {
            capacity: 4,
            ..fast()
        },
    )
    .await;
    until_sync(&mut events).await;
    for run in 0..40 {
        let change = Emit::StatusChange {
            run,
            task: 1,
            parent: None,
            status: RunStatus::Active,
        };
        socket.emit(change).await.unwrap();
    }
    let heard = until_sync(&mut events).await;
    assert!(heard.len() <= 6, "{heard:?}");
    assert!(socket.is_online());
}

#[tokio::test]
async fn keycloak_may_be_late_but_its_no_is_final() {
    let (url, script) = serve(&[503, 500], &[]).await;
    let tokens = Tokens::sign_in_patiently(&http(), credentials(&url))
        .await
        .unwrap();
    assert_eq!(tokens.current().await.secret(), &Secret::new("token-1"));
    assert!(!format!("{tokens:?}").contains("token-1"));
    drop(script);

    let (url, _script) = serve(&[401], &[]).await;
    let error = Tokens::sign_in_patiently(&http(), credentials(&url))
        .await
        .unwrap_err();
    assert!(matches!(error, SignInError::WrongKey { .. }), "{error}");
    let (url, _script) = serve(&[404], &[]).await;
    let error = Tokens::sign_in_patiently(&http(), credentials(&url))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SignInError::Refused { status: 404, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn one_renewal_serves_all_who_ask() {
    let (url, script) = serve(&[], &[]).await;
    let tokens = Tokens::sign_in(&http(), credentials(&url)).await.unwrap();
    // Even Keycloak's no is not final any more.
    script.lock().unwrap().keycloak.extend([401]);
    let stale = tokens.current().await;
    let renewals = (0..10).map(|_| tokens.renewed(&stale));
    for token in futures_util::future::join_all(renewals).await {
        assert_eq!(token.secret(), &Secret::new("token-2"));
    }
    assert_eq!(script.lock().unwrap().tokens, 2);
}

async fn rest(url: &Url) -> Hq {
    let tokens = Tokens::sign_in(&http(), credentials(url)).await.unwrap();
    Hq::new(
        http(),
        HqAddress::new(url.join("hq").unwrap()).unwrap(),
        tokens,
    )
}

#[tokio::test]
async fn passing_faults_are_waited_out_and_refusals_are_not() {
    let (url, script) = serve(&[], &[]).await;
    let hq = rest(&url).await;
    script.lock().unwrap().rest.extend([0, 503, 500]);
    assert_eq!(hq.version().await.unwrap(), "5.0.3");
    assert_eq!(script.lock().unwrap().seen.len(), 4);
    for refusal in [401, 404, 501] {
        script.lock().unwrap().rest.extend([refusal]);
        let error = hq.version().await.unwrap_err();
        assert_eq!(error.status(), Some(refusal));
        assert!(error.to_string().ends_with(": m"), "{error}");
    }
    assert_eq!(script.lock().unwrap().tokens, 1);
}

#[tokio::test]
async fn a_refused_token_past_half_its_life_is_replaced_once() {
    let (url, script) = serve(&[], &[]).await;
    script.lock().unwrap().life = 4;
    let hq = rest(&url).await;
    // Renewal ahead fails, so that the token grows old.
    script.lock().unwrap().keycloak.extend([500]);
    script.lock().unwrap().rest.extend([401]);
    // The token's age is what is tested: half of its life, and before its end.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(hq.version().await.unwrap(), "5.0.3");
    let seen = script.lock().unwrap().seen.clone();
    assert_eq!(seen, ["token-1", "token-2"]);
}
