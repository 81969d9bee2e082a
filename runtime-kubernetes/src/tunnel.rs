//! The tunnel into a pod: a port that the API server forwards, both ends proven, and streams in it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use hmac_sha256::HMAC;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::task::AbortOnDropHandle;
use v6_runtime::RunId;

use crate::api::Cluster;
use crate::error::{Error, Result};
use crate::forward::PIECE;

/// The version of the tunnel, as the helper speaks it.
const VERSION: &str = "v6-tunnel/1";
/// How long the other end may take to prove itself, and to open a stream.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line of the protocol.
const LINE: u64 = 4096;
/// Silence for so long, and the other end is asked whether it is there: what lies in between may
/// forget an idle connection.
const SILENCE: Duration = Duration::from_secs(30);
/// What all streams of a tunnel may have in memory. Each may have 256 KiB.
const WINDOW: usize = 128 << 20;
const STREAMS: usize = 496;
/// What a frame of the tunnel begins with, in bytes: with its content it is one message.
const FRAME_HEADER: usize = 12;

/// A stream of the tunnel.
pub(crate) type Stream = Compat<yamux::Stream>;

/// What takes the streams that the pod opens.
pub(crate) type Incoming = Arc<dyn Fn(Stream) + Send + Sync>;

/// Which of the helper's modes answers in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Receive,
    Sidecar,
}

impl Mode {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Sidecar => "sidecar",
        }
    }
}

/// A tunnel that is open, or was.
#[derive(Clone)]
pub(crate) struct Tunnel {
    asks: mpsc::Sender<oneshot::Sender<Stream>>,
    _work: Arc<AbortOnDropHandle<()>>,
}

impl Tunnel {
    /// Opens the way into a pod. The listener there is believed only if it has the key.
    pub(crate) async fn open(
        cluster: &Cluster,
        pod: &str,
        key: &[u8],
        mode: Mode,
        incoming: Incoming,
    ) -> Result<Self> {
        let forwarded = cluster.forward(pod, v6_helper::TUNNEL_PORT).await?;
        // A frame is written in two parts.
        let forwarded = BufWriter::with_capacity(PIECE, forwarded);
        let opened = Self::over(forwarded, key, mode, incoming).await;
        opened.map_err(|source| Error::Tunnel {
            step: "speaking to the helper",
            source,
        })
    }

    /// Makes a tunnel of any connection.
    async fn over<S>(mut stream: S, key: &[u8], mode: Mode, incoming: Incoming) -> io::Result<Self>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        tokio::time::timeout(PATIENCE, prove(&mut stream, key, mode))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS);
        config.set_max_connection_receive_window(Some(WINDOW));
        config.set_split_send_size(PIECE - FRAME_HEADER);
        let connection = yamux::Connection::new(stream.compat(), config, yamux::Mode::Client);
        let (asks, asked) = mpsc::channel(8);
        let work = tokio::spawn(async move { carry(connection, asked, &incoming).await });
        Ok(Self {
            asks,
            _work: Arc::new(AbortOnDropHandle::new(work)),
        })
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.asks.is_closed()
    }

    /// Opens a stream and sends the one line that says what it is for.
    pub(crate) async fn request(&self, line: &str) -> io::Result<Stream> {
        let asking = async {
            let (give, got) = oneshot::channel();
            let gone = || io::Error::from(io::ErrorKind::NotConnected);
            self.asks.send(give).await.map_err(|_| gone())?;
            let mut stream = got.await.map_err(|_| gone())?;
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            stream.flush().await?;
            Ok(stream)
        };
        tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Asks something that is answered by one line.
    pub(crate) async fn ask(&self, line: &str) -> io::Result<String> {
        let mut stream = self.request(line).await?;
        let answer = tokio::time::timeout(PATIENCE, read_line(&mut stream)).await;
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Becomes ready when the tunnel has ended, or does not answer any more.
    pub(crate) async fn ended(&self) {
        loop {
            tokio::select! {
                () = self.asks.closed() => return,
                () = tokio::time::sleep(SILENCE) => {}
            }
            if self.ask("PING").await.is_err() {
                return;
            }
        }
    }
}

async fn carry<T>(
    mut connection: yamux::Connection<T>,
    mut asked: mpsc::Receiver<oneshot::Sender<Stream>>,
    incoming: &Incoming,
) where
    T: futures_util::io::AsyncRead + futures_util::io::AsyncWrite + Unpin,
{
    let mut next: Option<oneshot::Sender<Stream>> = None;
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
                            // Whoever asked may have given up.
                            let _ = ask.send(stream.compat());
                        }
                        continue;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(context) {
                Poll::Ready(Some(Ok(stream))) => incoming(stream.compat()),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Shows that we have the key, and sees that the other end has.
async fn prove<S>(stream: &mut S, key: &[u8], mode: Mode) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let refused = |what: &str| io::Error::new(io::ErrorKind::PermissionDenied, what.to_owned());
    let ours = format!(
        "{:032x}{:032x}",
        rand::random::<u128>(),
        rand::random::<u128>()
    );
    let hello = format!("{VERSION} {ours}\n");
    stream.write_all(hello.as_bytes()).await?;
    stream.flush().await?;
    let answer = read_line(stream).await?;
    let words: Vec<&str> = answer.split(' ').collect();
    let [VERSION, said, theirs, proof] = words[..] else {
        return Err(refused("not the helper, or one of another version"));
    };
    if said != mode.as_str() {
        return Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            format!("mode {said} answers"),
        ));
    }
    let words = |who: &str| format!("{who}\n{said}\n{ours}\n{theirs}\n");
    let proof = unhex(proof).and_then(|proof| <[u8; 32]>::try_from(proof).ok());
    // In constant time.
    if !proof.is_some_and(|proof| HMAC::verify(words("server"), key, &proof)) {
        return Err(refused("whoever listens in the pod has not the run's key"));
    }
    let proof: String = HMAC::mac(words("client"), key)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    stream.write_all(format!("{proof}\n").as_bytes()).await?;
    stream.flush().await?;
    match read_line(stream).await?.as_str() {
        "ok" => Ok(()),
        _ => Err(refused("the helper did not take our proof")),
    }
}

/// Reads one line byte by byte: what follows it belongs to somebody else.
pub(crate) async fn read_line<S>(stream: &mut S) -> io::Result<String>
where
    S: tokio::io::AsyncRead + Unpin,
{
    let mut one = BufReader::with_capacity(1, stream).take(LINE);
    let mut text = String::new();
    one.read_line(&mut text).await?;
    match text.strip_suffix('\n') {
        Some(text) => Ok(text.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

/// The tunnels that are open, one for each run: the pod sends its connections into the last one.
#[derive(Default)]
pub(crate) struct Tunnels {
    open: Mutex<HashMap<RunId, (String, Tunnel)>>,
    /// One at a time for each run.
    opening: Mutex<HashMap<RunId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Tunnels {
    /// The tunnel into this very pod, if it is open.
    fn get(&self, id: &RunId, uid: &str) -> Option<Tunnel> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, tunnel) = open.get(id)?;
        (of == uid && !tunnel.is_closed()).then(|| tunnel.clone())
    }

    /// The tunnel into the sidecar of this pod, opened if need be.
    pub(crate) async fn sidecar(
        &self,
        cluster: &Cluster,
        id: &RunId,
        pod: &Pod,
        key: &[u8],
        incoming: Incoming,
    ) -> Result<Tunnel> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let opening = {
            let mut all = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(id.clone()).or_default().clone()
        };
        let _turn = opening.lock().await;
        if let Some(tunnel) = self.get(id, &uid) {
            return Ok(tunnel);
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let tunnel = Tunnel::open(cluster, name, key, Mode::Sidecar, incoming).await?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(id.clone(), (uid, tunnel.clone()));
        Ok(tunnel)
    }

    /// Lets go of a run's tunnel; whoever uses it goes on.
    pub(crate) fn close(&self, id: &RunId) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(id);
        drop(open);
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        opening.remove(id);
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
