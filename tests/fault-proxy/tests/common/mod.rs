//! An engine of the test's own, a proxy before it, and clients.
#![allow(dead_code)] // Each test target uses another part.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use v6_fault_proxy::{Address, FaultProxy};

pub const KINDS: [Kind; 2] = [Kind::Unix, Kind::Tcp];

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Unix,
    Tcp,
}

impl Kind {
    pub fn address(self, folder: &TempDir, name: &str) -> Address {
        match self {
            Self::Unix => Address::Unix(folder.path().join(name)),
            Self::Tcp => "tcp://127.0.0.1:0".parse().expect("an address"),
        }
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
pub type BoxStream = Box<dyn Stream>;

pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    pub async fn bind(address: &Address) -> (Self, Address) {
        match address {
            Address::Unix(path) => {
                let listener = UnixListener::bind(path).expect("a socket");
                (Self::Unix(listener), address.clone())
            }
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await.expect("a port");
                let address = Address::Tcp(listener.local_addr().expect("an address"));
                (Self::Tcp(listener), address)
            }
        }
    }

    pub async fn accept(&self) -> BoxStream {
        match self {
            Self::Unix(listener) => Box::new(listener.accept().await.expect("a client").0),
            Self::Tcp(listener) => Box::new(listener.accept().await.expect("a client").0),
        }
    }
}

pub async fn connect(address: &Address) -> std::io::Result<BoxStream> {
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tcp(address) => Box::new(TcpStream::connect(address).await?),
    })
}

/// A body that is whole, or comes through a channel.
pub type AnyBody = Either<Full<Bytes>, Piped>;

pub fn whole(body: impl Into<Bytes>) -> AnyBody {
    Either::Left(Full::new(body.into()))
}

pub fn piped() -> (mpsc::Sender<Frame<Bytes>>, AnyBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Either::Right(Piped(receiver)))
}

pub fn data(bytes: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(bytes.into())
}

pub struct Piped(mpsc::Receiver<Frame<Bytes>>);

impl Body for Piped {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// An engine, and a proxy before it, with sockets of the same kind.
pub struct Bench {
    pub folder: TempDir,
    pub engine: Address,
    pub proxy: FaultProxy,
    _serving: AbortOnDropHandle<()>,
}

impl Bench {
    /// With an engine that answers so.
    pub async fn new<F>(
        kind: Kind,
        handle: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let handle = Arc::new(handle);
        Self::raw(kind, move |stream| {
            let handle = handle.clone();
            async move {
                let service = service_fn(move |request| {
                    let reply = handle(request);
                    async move { Ok::<_, std::convert::Infallible>(reply.await) }
                });
                let http = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                let _ = http.await;
            }
        })
        .await
    }

    /// With an engine that does so with each connection.
    pub async fn raw<F>(kind: Kind, serve: impl Fn(BoxStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let folder = tempfile::tempdir().expect("a folder");
        let (listener, engine) = Listener::bind(&kind.address(&folder, "engine.sock")).await;
        let serving = tokio::spawn(async move {
            loop {
                tokio::spawn(serve(listener.accept().await));
            }
        });
        let listen = kind.address(&folder, "proxy.sock");
        Self {
            proxy: FaultProxy::start(listen, engine.clone()).expect("a proxy"),
            folder,
            engine,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    pub async fn stream(&self) -> BoxStream {
        connect(self.proxy.address()).await.expect("a connection")
    }

    pub async fn client(&self) -> Client {
        Client::new(self.stream().await).await
    }
}

/// One connection.
pub struct Client {
    sender: SendRequest<AnyBody>,
    connection: AbortOnDropHandle<()>,
}

impl Client {
    pub async fn new(stream: BoxStream) -> Self {
        let (sender, http) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("no bytes are exchanged yet");
        let connection = tokio::spawn(async move {
            let _ = http.with_upgrades().await;
        });
        Self {
            sender,
            connection: AbortOnDropHandle::new(connection),
        }
    }

    pub async fn send(&mut self, request: Request<AnyBody>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    pub async fn get(&mut self, target: &str) -> hyper::Result<Response<Incoming>> {
        self.send(request("GET", target, whole(""))).await
    }

    pub async fn post(&mut self, target: &str, body: &str) -> hyper::Result<Response<Incoming>> {
        self.send(request("POST", target, whole(body.to_owned())))
            .await
    }

    /// Waits until the connection is over.
    pub async fn closed(self) {
        let _ = self.connection.await;
    }
}

pub fn request(method: &str, target: &str, body: AnyBody) -> Request<AnyBody> {
    let request = Request::builder().method(method).uri(target);
    let request = request.header("Host", "engine");
    request.body(body).expect("a request")
}

pub fn reply(body: AnyBody) -> Response<AnyBody> {
    Response::new(body)
}

pub async fn text(reply: Response<Incoming>) -> String {
    let body = reply.into_body().collect().await.expect("a whole body");
    String::from_utf8(body.to_bytes().to_vec()).expect("text")
}

/// The next bytes of a body; `None` at its end.
pub async fn next(body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
    let frame = body.frame().await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

/// What arrives, and whether the end is a good one.
pub async fn all(mut body: Incoming) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    while let Some(piece) = next(&mut body).await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(_) => return (bytes, false),
        }
    }
    (bytes, true)
}
