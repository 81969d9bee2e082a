//! What an algorithm may ask HQ, over HTTP on the connection that its grant gives it
//! (protocol 6).

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::audit::{Audit, Record, shown};
use super::reply::{BYTES, JSON, Reply};
use super::rewrite::{blocking, open_results};
use super::subtask::{self, Delivery, Subtasks};
use crate::crypto::CryptoError;
use crate::runs::RunContext;

/// Largest body of a request that creates a subtask or uploads a value, in bytes.
const BODY_MAX: usize = 256 << 20;
/// Largest body of any other request.
const SMALL_BODY_MAX: usize = 1 << 20;
/// Request line and headers together.
const HEAD_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
/// For a request's head, and between two requests on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// For a call that HQ may not be asked twice.
const CALL_WAIT: Duration = Duration::from_secs(60);
/// For the end of a request when the node stops.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// What one run's requests share.
#[derive(Debug)]
pub(super) struct RunState {
    pub(super) journal: subtask::Slot,
    /// One request with large values at a time: the run's bound in memory.
    large: Arc<Semaphore>,
}

impl Default for RunState {
    fn default() -> Self {
        Self {
            journal: subtask::Slot::default(),
            large: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The proxy; one for all runs.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) subtasks: Arc<Subtasks>,
    pub(super) audit: Arc<Audit>,
    /// How long a request waits for an HQ that is away.
    pub(super) wait: Duration,
}

/// One connection of a run.
struct Session {
    proxy: Arc<Proxy>,
    run: Arc<RunState>,
    context: Arc<RunContext>,
    grant: String,
    /// What is to be let go once the answer has been written.
    writing: Mutex<Option<Writing>>,
}

#[derive(Default)]
struct Writing {
    delivery: Option<Delivery>,
    _large: Option<OwnedSemaphorePermit>,
}

impl Proxy {
    /// Serves HTTP/1.1 on a connection until either side ends it.
    pub(super) async fn serve(
        self: Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        run: Arc<RunState>,
        context: Arc<RunContext>,
        grant: String,
        stop: CancellationToken,
    ) -> Result<(), hyper::Error> {
        let session = Arc::new(Session {
            proxy: self,
            run,
            context,
            grant,
            writing: Mutex::default(),
        });
        let service = {
            let session = session.clone();
            service_fn(move |request| {
                let session = session.clone();
                async move { Ok::<_, Infallible>(session.respond(request).await) }
            })
        };
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(STOP_WAIT, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return Ok(()),
                }
            }
        };
        // An answer that notes its delivery is the last on its connection, so a connection that
        // ended well has written it whole.
        if ended.is_ok()
            && let Some(Writing {
                delivery: Some(delivery),
                ..
            }) = session.hold(None)
        {
            delivery.acknowledge().await;
        }
        ended
    }
}

impl Session {
    fn hold(&self, writing: Option<Writing>) -> Option<Writing> {
        let mut held = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, writing)
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        drop(self.hold(None));
        let (head, body) = request.into_parts();
        let (path, query) = (head.uri.path(), head.uri.query());
        let mut line = Line::new(self, &head.method, shown(path, query));
        let mut writing = Writing::default();
        let mut reply = self
            .answer(
                &head.method,
                path,
                query,
                &head.headers,
                body,
                &mut line.record.from_run,
                &mut writing,
            )
            .await
            .unwrap_or_else(|reply| reply);
        line.answered(&reply);
        drop(line);
        writing.delivery = reply.delivery.take();
        let last = writing.delivery.is_some() || writing._large.is_some();
        drop(self.hold(Some(writing)));
        let mut response = Response::new(Body::from(reply.body));
        *response.status_mut() =
            StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
        if last {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    async fn answer(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        body: Incoming,
        received: &mut u64,
        writing: &mut Writing,
    ) -> Result<Reply, Reply> {
        let parts = segments(path)
            .ok_or_else(|| Reply::message(400, "the path is not one below vantage6 HQ's API"))?;
        if !matches!(
            *method,
            Method::GET | Method::POST | Method::PATCH | Method::PUT | Method::DELETE
        ) {
            return Err(Reply::message(405, "this method is not passed on to HQ"));
        }
        self.check_token(headers)?;

        let small = *method == Method::GET && !is_large(&parts);
        if !small {
            let permit = self.run.large.clone().acquire_owned().await;
            writing._large = permit.ok();
        }
        let body = read(body, if small { SMALL_BODY_MAX } else { BODY_MAX }).await?;
        *received = body.len() as u64;

        let subtasks = &self.proxy.subtasks;
        let codec = &subtasks.codec;
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["task"]) => {
                let deadline = Instant::now() + self.proxy.wait;
                let (slot, context) = (self.run.journal.clone(), self.context.clone());
                let post = subtasks.clone().post(slot, context, body, deadline);
                // Goes on when the algorithm hangs up, so that the answer is known when it asks
                // again.
                tokio::spawn(post)
                    .await
                    .map_err(|_| Reply::message(500, "the node failed to create the subtask"))
            }
            ("GET", ["result"]) if !has_task_id(query) => {
                Err(Reply::message(400, "'task_id' is missing in the query"))
            }
            ("GET", ["result"] | ["result", _]) => {
                let answer = self.call(method, path, query, None).await?;
                if !codec.is_encrypted() || !(200..300).contains(&answer.status) {
                    return Ok(answer.into());
                }
                let (codec, status) = (codec.clone(), answer.status);
                let opened = blocking(move || {
                    let mut value: Value =
                        serde_json::from_slice(&answer.body).map_err(|_| CryptoError::Form)?;
                    drop(answer);
                    open_results(&mut value, &codec);
                    Ok(value.to_string())
                })
                .await
                .map_err(|_| Reply::message(502, "the node could not understand HQ's answer"))?;
                Ok(Reply::new(status, JSON, opened))
            }
            ("GET", ["blobstream", id]) if *id != "status" => {
                let answer = self.call(method, path, query, None).await?;
                let is_blob = answer
                    .content_type
                    .as_deref()
                    .is_some_and(|of| of.starts_with(BYTES));
                if !is_blob || !(200..300).contains(&answer.status) {
                    return Ok(answer.into());
                }
                let (codec, blob) = (codec.clone(), answer.body);
                let opened = blocking(move || codec.decode_blob(&blob))
                    .await
                    .map_err(|error| {
                        Reply::message(502, &format!("the blob could not be decrypted: {error}"))
                    })?;
                Ok(Reply::new(200, BYTES, opened))
            }
            ("POST", ["blobstream"]) => {
                let key = headers
                    .get("x-public-key")
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
                    .to_owned();
                if key.is_empty() && codec.is_encrypted() {
                    return Err(Reply::message(
                        400,
                        "the header X-Public-Key with the receiving organization's key is missing",
                    ));
                }
                let codec = codec.clone();
                let sealed = blocking(move || codec.encode_blob(&body, &key))
                    .await
                    .map_err(|error| {
                        Reply::message(400, &format!("the blob could not be encrypted: {error}"))
                    })?;
                let body = Some((BYTES, Bytes::from(sealed)));
                Ok(self.call(method, path, query, body).await?.into())
            }
            _ => {
                let body = (!body.is_empty()).then_some((JSON, body));
                Ok(self.call(method, path, query, body).await?.into())
            }
        }
    }

    /// The claims must be those of the run whose connection this is.
    fn check_token(&self, headers: &HeaderMap) -> Result<(), Reply> {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token else {
            return Err(Reply::message(
                401,
                "the header 'Authorization: Bearer …' with the container's token is missing",
            ));
        };
        if self
            .proxy
            .subtasks
            .upstream
            .tokens
            .accepts(token, &self.context)
        {
            Ok(())
        } else {
            Err(Reply::message(
                401,
                "the token is not the one that was given to this container",
            ))
        }
    }

    async fn call(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<crate::hq::RawAnswer, Reply> {
        let target = match query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let wait = if *method == Method::GET {
            self.proxy.wait
        } else {
            CALL_WAIT.min(self.proxy.wait)
        };
        let upstream = &self.proxy.subtasks.upstream;
        let deadline = Instant::now() + wait;
        Ok(upstream
            .call(&self.context, method.clone(), &target, body, deadline)
            .await?)
    }
}

/// The audit's line for one request; written also if the run hangs up before its answer.
struct Line<'a> {
    audit: &'a Audit,
    start: Instant,
    record: Record,
}

impl<'a> Line<'a> {
    fn new(session: &'a Session, method: &Method, path: String) -> Self {
        let record = Record {
            time: Record::now(),
            event: "request",
            run: session.context.run_id().to_string(),
            task: Some(session.context.task),
            grant: session.grant.clone(),
            destination: "vantage6 HQ".to_owned(),
            method: Some(method.as_str().chars().take(16).collect()),
            path: Some(path),
            status: None,
            from_run: 0,
            to_run: 0,
            milliseconds: 0,
            outcome: "the run hung up".to_owned(),
        };
        Self {
            audit: &session.proxy.audit,
            start: Instant::now(),
            record,
        }
    }

    fn answered(&mut self, reply: &Reply) {
        self.record.status = Some(reply.status);
        self.record.to_run = reply.body.len() as u64;
        "answered".clone_into(&mut self.record.outcome);
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.record.milliseconds = Record::milliseconds(self.start.elapsed());
        self.audit.write(&self.record);
    }
}

/// The parts of a path below the API. HQ's paths are words and numbers; anything that a server
/// in between might read in another way is refused.
fn segments(path: &str) -> Option<Vec<&str>> {
    let word = |part: &str| {
        !part.is_empty()
            && part.bytes().any(|b| b != b'.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    parts.iter().all(|part| word(part)).then_some(parts)
}

/// Whether the answer may hold values of algorithms.
fn is_large(parts: &[&str]) -> bool {
    !matches!(
        parts,
        ["blobstream", "status"]
            | ["task", _, "status"]
            | [
                "organization" | "collaboration" | "study" | "version" | "health",
                ..
            ]
    )
}

fn has_task_id(query: Option<&str>) -> bool {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .any(|(name, value)| name == "task_id" && !value.is_empty())
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, Reply> {
    if hyper::body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(Reply::message(
            413,
            &format!("the body is larger than {limit} bytes"),
        ));
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(Body::new(body), limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Reply::message(
            413,
            &format!("the body broke off or is larger than {limit} bytes"),
        )),
        Err(_) => Err(Reply::message(408, "the body did not arrive in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_api() {
        assert_eq!(
            segments("/task/3/status"),
            Some(vec!["task", "3", "status"])
        );
        for bad in [
            "",
            "/",
            "*",
            "task",
            "//task",
            "/task/",
            "/../x",
            "/a/./b",
            "/a/..",
            "/%2e%2e/x",
            "/a%2f..",
            "/a\\b",
            "/a;b",
            "/a/.../b",
        ] {
            assert_eq!(segments(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_query_of_results() {
        assert!(has_task_id(Some("page=1&task_id=3")));
        for query in [None, Some(""), Some("task_id="), Some("xtask_id=3")] {
            assert!(!has_task_id(query));
        }
    }
}
