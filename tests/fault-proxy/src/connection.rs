//! One client's connection: each request meets its faults on the way to the engine and back.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, on};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;

use crate::address::Address;
use crate::body::{ReplyBody, RequestBody};
use crate::engine::{Behalf, Engine};
use crate::rule::{Answer, Fault, Rewrite, Seen};
use crate::shape::Shape;
use crate::table::{Due, Table};
use crate::tasks::{Open, Tasks};
use crate::tunnel;
use crate::wire::{Line, Socket, Wire};

/// The largest request body that is rewritten.
const REWRITABLE: usize = 16 * 1024 * 1024;

/// Instead of a reply: the connection is closed.
#[derive(Debug)]
struct Close;

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without a reply")
    }
}

impl std::error::Error for Close {}

type Reply = Result<Response<ReplyBody>, Close>;

pub(crate) struct Connection {
    table: Arc<Table>,
    address: Address,
    tasks: Tasks,
    client: Arc<Line>,
    /// One for one, so that the end of either is the end of the other. `None` while it is in use,
    /// and before the first use.
    engine: Mutex<Option<Engine>>,
    lost: Arc<Notify>,
    open: Arc<Open>,
}

/// What the faults want of the way there and back.
#[derive(Default)]
struct Wishes {
    rewrites: Vec<Rewrite>,
    lose: bool,
    shape: Shape,
}

impl Connection {
    pub(crate) fn new(client: Socket, address: Address, table: Arc<Table>, tasks: Tasks) -> Self {
        Self {
            table,
            address,
            client: Line::new(client),
            engine: Mutex::default(),
            lost: Arc::default(),
            open: Arc::new(tasks.open()),
            tasks,
        }
    }

    /// Serves the client until either side ends the connection.
    pub(crate) async fn serve(self) {
        let connection = Arc::new(self);
        let (lost, wire) = (connection.lost.clone(), Wire(connection.client.clone()));
        let service = service_fn(move |request| {
            let connection = connection.clone();
            async move { connection.handle(request).await }
        });
        let http = Builder::new()
            // Whether to answer a client that says no more is up to the engine.
            .half_close(true)
            .preserve_header_case(true)
            .auto_date_header(false)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(wire), service)
            .with_upgrades();
        let mut http = pin!(http);
        loop {
            tokio::select! {
                _ = &mut http => return,
                () = lost.notified() => http.as_mut().graceful_shutdown(),
            }
        }
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let mut wishes = Wishes::default();
        for Due { fault, released } in self.table.see(Seen::new(&request)) {
            match fault {
                Fault::Nothing => {}
                Fault::Delay(time) => tokio::time::sleep(time).await,
                Fault::Hold => released.cancelled().await,
                Fault::Refuse => return Err(Close),
                Fault::Answer(answer) => return reply_with(answer, request.into_body()).await,
                Fault::Rewrite(rewrite) => wishes.rewrites.push(rewrite),
                Fault::LoseReply => wishes.lose = true,
                Fault::CutReplyAfter(bytes) => wishes.shape.cut_after(bytes),
                Fault::EndReplyAfter(bytes) => wishes.shape.end_after(bytes),
                Fault::EndReplyAtRelease => wishes.shape.end_at(released),
                Fault::Split(pieces) => wishes.shape.split(&pieces),
            }
        }
        Box::pin(self.pass(request, wishes)).await
    }

    async fn pass(&self, mut request: Request<Incoming>, wishes: Wishes) -> Reply {
        let upgrade = request.headers().contains_key(UPGRADE);
        let client = upgrade.then(|| on(&mut request));
        let request = if wishes.rewrites.is_empty() {
            request.map(Either::Left)
        } else {
            match rewritten(request, &wishes.rewrites).await {
                Ok(request) => request.map(Either::Right),
                Err(why) => {
                    let answer = Answer::new(502).body(format!("v6-fault-proxy: {why}"));
                    return Ok(response(answer));
                }
            }
        };
        let mut engine = self.engine().await?;
        // A connection that is no longer one for HTTP is not lost.
        engine.be_discreet(upgrade);
        let request = request.map(|body| RequestBody::new(body, engine.sending()));
        let mut reply = engine.send(request).await.map_err(|_| Close)?;
        let switched = reply.status() == StatusCode::SWITCHING_PROTOCOLS;
        if wishes.lose {
            if !switched {
                drain(reply.into_body()).await?;
            }
            return Err(Close);
        }
        if let Some(client) = client.filter(|_| switched) {
            let engine = on(&mut reply);
            self.tunnel(client, engine, wishes.shape);
            return Ok(reply.map(ReplyBody::passed));
        }
        // After an early end the engine's connection is closed, and the client's is not.
        engine.be_discreet(wishes.shape.may_end());
        self.lock().replace(engine);
        if wishes.shape.is_plain() || reply.body().is_end_stream() {
            return Ok(reply.map(ReplyBody::passed));
        }
        if wishes.shape.may_end() || wishes.shape.is_split() {
            reply.headers_mut().remove(CONTENT_LENGTH);
        }
        let client = self.client.clone();
        Ok(reply.map(|body| ReplyBody::shaped(body, wishes.shape, client)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Engine>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn engine(&self) -> Result<Engine, Close> {
        let engine = self.lock().take();
        if let Some(mut engine) = engine
            && engine.is_usable().await
        {
            return Ok(engine);
        }
        let behalf = Behalf {
            client: self.client.clone(),
            lost: self.lost.clone(),
        };
        let connected = Engine::connect(&self.address, behalf, &self.tasks).await;
        connected.map_err(|_| Close)
    }

    fn tunnel(&self, client: OnUpgrade, engine: OnUpgrade, shape: Shape) {
        let open = self.open.clone();
        self.tasks.spawn(async move {
            let _open = open;
            if let Ok((client, engine)) = tokio::try_join!(client, engine) {
                let _ = tunnel::pass(client, engine, shape).await;
            }
        });
    }
}

async fn reply_with(answer: Answer, request: Incoming) -> Reply {
    drain(request).await?;
    Ok(response(answer))
}

fn response(answer: Answer) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::fixed(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// Reads a body to its end, and keeps nothing of it.
async fn drain(mut body: Incoming) -> Result<(), Close> {
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| Close)?;
    }
    Ok(())
}

async fn rewritten(
    request: Request<Incoming>,
    rewrites: &[Rewrite],
) -> Result<Request<Full<Bytes>>, String> {
    let seen = Seen::new(&request);
    let (mut head, body) = request.into_parts();
    let body = Limited::new(body, REWRITABLE).collect().await;
    let body = body.map_err(|error| format!("the body of {seen}: {error}"))?;
    let body: Result<serde_json::Value, _> = serde_json::from_slice(&body.to_bytes());
    let mut body = body.map_err(|error| format!("the body of {seen} is not JSON: {error}"))?;
    for rewrite in rewrites {
        rewrite.apply(&mut body);
    }
    let body = Bytes::from(body.to_string());
    head.headers.remove(TRANSFER_ENCODING);
    let length = HeaderValue::from(body.len());
    head.headers.insert(CONTENT_LENGTH, length);
    Ok(Request::from_parts(head, Full::new(body)))
}
