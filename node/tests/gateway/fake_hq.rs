//! A small HQ that fails as it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// The central task whose run asks.
pub const TASK: i64 = 7;
/// Its organization.
pub const ORG: i64 = 3;

/// What HQ does with the next `POST /task`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    CreateAndBreak,
    Break,
    CreateAndGateTimeout,
    CreateAndHold,
    Refuse,
}

#[derive(Debug, Default)]
pub struct State {
    pub fates: VecDeque<Fate>,
    pub tasks: Vec<Value>,
    pub posted: Vec<Value>,
    /// Changes with each restart of HQ.
    pub secret: u32,
    pub tokens_made: u32,
    pub unavailable: u32,
    pub public_key: String,
    pub result: Value,
    /// Headers of the last request.
    pub seen: Vec<(String, String)>,
}

pub struct FakeHq {
    pub state: Mutex<State>,
    pub created: Notify,
    pub go_on: Notify,
    pub base: String,
}

impl FakeHq {
    pub async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hq = Arc::new(Self {
            state: Mutex::default(),
            created: Notify::new(),
            go_on: Notify::new(),
            base: format!("http://{}", listener.local_addr().unwrap()),
        });
        let serving = hq.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let hq = serving.clone();
                let service = service_fn(move |request| {
                    let hq = hq.clone();
                    async move { hq.answer(request).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        hq
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn count(&self) -> usize {
        self.state.lock().unwrap().tasks.len()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await.unwrap();
        let (answer, held) = self.decide(&head, &body);
        if held {
            self.created.notify_one();
            self.go_on.notified().await;
        }
        answer
    }

    /// The answer, and whether it is to be held back.
    fn decide(&self, head: &Parts, body: &[u8]) -> (Result<Response<Body>, std::io::Error>, bool) {
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let reply = |status: u16, value: Value| {
            let response = Response::builder()
                .status(status)
                .header("content-type", "application/json")
                .body(Body::from(value.to_string()))
                .unwrap();
            (Ok(response), false)
        };
        let html = |status: u16, text: &'static str| {
            let response = Response::builder().status(status).body(Body::from(text));
            (Ok(response.unwrap()), false)
        };
        let broken = || (Err(std::io::Error::other("broken")), false);
        if path.starts_with("/realms/") {
            return reply(200, json!({"access_token": "node", "expires_in": 300}));
        }
        let bearer = head.headers["authorization"].to_str().unwrap().to_owned();
        if path == "/hq/token/container" {
            let mut state = self.state.lock().unwrap();
            state.tokens_made += 1;
            let token = container_token(TASK, state.secret);
            return reply(200, json!({ "container_token": token }));
        }
        let mut state = self.state.lock().unwrap();
        state.seen = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        if state.unavailable > 0 {
            state.unavailable -= 1;
            return html(503, "<html>busy");
        }
        let real = container_token(TASK, state.secret);
        if bearer != "Bearer node" && bearer != format!("Bearer {real}") {
            return reply(500, json!({"msg": "An unexpected error occurred!"}));
        }
        match (&head.method, path.strip_prefix("/hq/").unwrap()) {
            (&Method::POST, "task") => {
                let asked: Value = serde_json::from_slice(body).unwrap();
                state.posted.push(asked.clone());
                let fate = state.fates.pop_front();
                if fate == Some(Fate::Break) {
                    return broken();
                }
                if fate == Some(Fate::Refuse) {
                    return reply(400, json!({"msg": "no such organization"}));
                }
                let task = json!({
                    "id": 100 + state.tasks.len(), "name": asked["name"], "method": asked["method"],
                    "init_org": {"id": ORG}, "parent": {"id": TASK},
                    "runs": asked["organizations"].as_array().unwrap().len(),
                });
                state.tasks.push(task.clone());
                match fate {
                    Some(Fate::CreateAndBreak) => broken(),
                    Some(Fate::CreateAndGateTimeout) => reply(504, json!({"msg": "timeout"})),
                    fate => (reply(201, task).0, fate == Some(Fate::CreateAndHold)),
                }
            }
            (&Method::GET, "task") => {
                assert!(query.contains(&format!("parent_id={TASK}")), "{query}");
                let newest_first: Vec<_> = state.tasks.iter().rev().cloned().collect();
                reply(200, json!({"data": newest_first, "links": {}}))
            }
            (&Method::GET, "result") if query.contains("per_page=1&") => {
                reply(200, json!({"data": [{"id": 1}], "links": {}}))
            }
            (&Method::GET, "result") => reply(
                200,
                json!({"data": [state.result], "links": {"self": "/x"}}),
            ),
            (&Method::GET, "result/5") => reply(200, state.result.clone()),
            (&Method::GET, "blobstream/status") => reply(200, json!({"blob_store_enabled": false})),
            (&Method::GET, "nothing") => html(404, "<h1>Not Found</h1>"),
            (&Method::GET, path) if path.starts_with("organization/") => {
                let id: i64 = path.rsplit('/').next().unwrap().parse().unwrap();
                let key = if id == 99 { "" } else { &state.public_key };
                reply(
                    200,
                    json!({"id": id, "name": format!("org {id}"), "public_key": key}),
                )
            }
            (method, path) => reply(
                200,
                json!({"method": method.as_str(), "path": path, "query": query,
                    "body": String::from_utf8_lossy(body)}),
            ),
        }
    }
}

pub fn container_token(task: i64, secret: u32) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.{}",
        part(json!({"alg": "HS256", "typ": "JWT"})),
        part(json!({"sub": {
            "vantage6_client_type": "container", "node_id": 2, "organization_id": ORG,
            "collaboration_id": 1, "task_id": task, "image": "i", "databases": [],
        }})),
        URL_SAFE_NO_PAD.encode(format!("secret {secret}"))
    )
}
