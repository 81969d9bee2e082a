//! The tunnel inside a pod: one listener, and streams in both directions over whichever
//! connection was made last.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

use crate::pod::Failure;
use crate::pod_handshake::{self as handshake, Key};

/// Anybody in the pod can connect: so many may be at the handshake at once, for so long.
const UNPROVEN: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);
/// What all streams of a tunnel may have in memory.
const WINDOW: usize = 64 << 20;
const STREAMS: usize = 248;

/// A stream of the tunnel.
pub type Stream = Compat<yamux::Stream>;

type Ask = oneshot::Sender<Stream>;

/// The way to the other end, as long as there is one.
#[derive(Clone)]
pub struct Tunnel(watch::Receiver<Option<mpsc::Sender<Ask>>>);

impl Tunnel {
    /// Opens a stream, as soon as there is a connection.
    pub async fn open(&mut self) -> io::Result<Stream> {
        loop {
            let asks = self.0.borrow_and_update().clone();
            if let Some(asks) = asks {
                let (give, got) = oneshot::channel();
                if asks.send(give).await.is_ok()
                    && let Ok(stream) = got.await
                {
                    return Ok(stream);
                }
            }
            // That one has ended: the next will be told here.
            if self.0.changed().await.is_err() {
                return Err(io::ErrorKind::NotConnected.into());
            }
        }
    }
}

/// Listens for the other end, and serves each stream that it opens with `serve`, until the
/// surroundings are dropped.
///
/// # Errors
///
/// The listener cannot be made.
pub fn listen<F, Fut>(port: u16, key: Key, mode: &'static str, serve: F) -> Result<Tunnel, Failure>
where
    F: Fn(Stream) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = std::net::TcpListener::bind(("127.0.0.1", port))
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })
        .map_err(|error| Failure::new(format!("the tunnel's port {port}: {error}")))?;
    let (newest, tunnel) = watch::channel(None);
    let (newest, serve) = (Rc::new(newest), Rc::new(serve));
    tokio::task::spawn_local(async move {
        let room = std::sync::Arc::new(tokio::sync::Semaphore::new(UNPROVEN));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else {
                return;
            };
            let Ok((mut stream, _)) = listener.accept().await else {
                // Out of files or memory: a moment later there may be some.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (key, newest, serve) = (key.clone(), newest.clone(), serve.clone());
            tokio::task::spawn_local(async move {
                let _ = stream.set_nodelay(true);
                let proven = handshake::accept(&mut stream, &key, mode);
                let proven = tokio::time::timeout(PATIENCE, proven).await;
                drop(place);
                match proven {
                    Ok(Ok(())) => carry(stream, &newest, &*serve).await,
                    Ok(Err(error)) => eprintln!("v6-helper: refused a connection: {error}"),
                    Err(_) => eprintln!("v6-helper: a connection said nothing"),
                }
            });
        }
    });
    Ok(Tunnel(tunnel))
}

/// Carries streams over one connection until it ends.
async fn carry<F, Fut>(
    stream: TcpStream,
    newest: &watch::Sender<Option<mpsc::Sender<Ask>>>,
    serve: &F,
) where
    F: Fn(Stream) -> Fut,
    Fut: Future<Output = ()> + 'static,
{
    let mut config = yamux::Config::default();
    config.set_max_num_streams(STREAMS);
    config.set_max_connection_receive_window(Some(WINDOW));
    let mut connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Server);
    let (asks, mut asked) = mpsc::channel::<Ask>(1);
    newest.send_replace(Some(asks));
    let mut next: Option<Ask> = None;
    poll_fn(|context| {
        loop {
            if next.is_none()
                && let Poll::Ready(Some(ask)) = asked.poll_recv(context)
            {
                next = Some(ask);
            }
            if next.is_some() {
                match connection.poll_new_outbound(context) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(ask) = next.take() {
                            let _ = ask.send(stream.compat());
                        }
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(context) {
                Poll::Ready(Some(Ok(stream))) => {
                    tokio::task::spawn_local(serve(stream.compat()));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
