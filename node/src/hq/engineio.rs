//! Engine.IO protocol 4: a WebSocket, or HTTP long polling where that fails.
//!
//! Both go through the HTTP client of everything else, so that time-outs, proxies and
//! certificate authorities are the same. A WebSocket is tried first: with several HQ
//! processes polling needs a load balancer that keeps a client at one of them.
//!
//! Through a proxy a WebSocket goes by `CONNECT` (RFC 6455 4.1): for an `https` HQ the HTTP
//! client does so for everything; for an `http` one it would have the proxy forward the
//! request, and proxies drop the upgrade, so the tunnel is made here. Only a proxy that is
//! itself reached by TLS gets the upgrade to forward.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::{StatusCode, header};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::address::HqAddress;
use super::connection::{ConnectionError, causes};
use super::http::Http;
use super::proxy::Proxy;
use super::retry::{ReadError, read_bounded, stranger};
use crate::secret::Secret;

/// Largest message that is taken from HQ, in bytes.
const LARGEST: usize = 8 << 20;
/// Separates packets in one polling body.
const SEPARATOR: char = '\u{1e}';
/// Limit for handshakes and for sending one packet.
const STEP: Duration = Duration::from_secs(30);

/// Why a connection could not be made or has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("HQ could not be reached")]
    Connection(#[from] ConnectionError),
    #[error("the WebSocket failed")]
    WebSocket(#[source] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("HQ answered {0}: {1}")]
    Status(u16, String),
    #[error("HQ broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("HQ has closed the connection")]
    Closed,
    #[error("no answer in time")]
    Timeout,
}

impl From<ReadError> for LinkError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Connection(error) => Self::Connection(error),
            ReadError::TooLarge => Self::Protocol("more than 8 MiB at once"),
        }
    }
}

/// What HQ says when a connection opens.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Open {
    sid: String,
    /// Milliseconds.
    ping_interval: u64,
    /// Milliseconds.
    ping_timeout: u64,
}

impl Open {
    /// A connection on which nothing comes for so long is dead: HQ's two intervals, and a
    /// little for the way.
    pub(super) fn silence(&self) -> Duration {
        let sum = self.ping_interval.saturating_add(self.ping_timeout);
        Duration::from_millis(sum.min(600_000)) + Duration::from_secs(5)
    }
}

/// A packet from HQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Ping,
    Message(String),
    /// Nothing that asks for anything.
    Other,
}

/// A packet by its first character; `None` is a closing one.
fn read_packet(text: &str) -> Option<Frame> {
    match text.as_bytes().first() {
        Some(b'1') => None,
        Some(b'2') => Some(Frame::Ping),
        Some(b'4') => Some(Frame::Message(text[1..].to_owned())),
        _ => Some(Frame::Other),
    }
}

fn read_open(packet: &str) -> Result<Open, LinkError> {
    packet
        .strip_prefix('0')
        .and_then(|json| serde_json::from_str(json).ok())
        .ok_or(LinkError::Protocol("no opening packet"))
}

/// What a WebSocket runs on.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

type WebSocket = WebSocketStream<Box<dyn Duplex>>;

/// An open connection.
pub(super) enum Link {
    WebSocket(Box<WebSocket>),
    Polling(Box<Polling>),
}

impl Link {
    /// Connects with the token, by WebSocket if that works.
    pub(super) async fn open(
        http: &Http,
        address: &HqAddress,
        token: &Secret,
    ) -> Result<(Self, Open), LinkError> {
        match limited(web_socket(http, address, token)).await {
            Ok((socket, open)) => Ok((Self::WebSocket(Box::new(socket)), open)),
            Err(error) => {
                let cause = causes(&error);
                tracing::debug!(%error, cause, "no WebSocket to HQ, polling instead");
                let (polling, open) = limited(Polling::open(http, address, token)).await?;
                Ok((Self::Polling(Box::new(polling)), open))
            }
        }
    }

    /// `websocket` or `polling`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::WebSocket(_) => "websocket",
            Self::Polling(_) => "polling",
        }
    }

    /// The next packet. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Frame, LinkError> {
        match self {
            Self::WebSocket(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return read_packet(&text).ok_or(LinkError::Closed);
                    }
                    Some(Ok(Message::Close(_))) | None => return Err(LinkError::Closed),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(LinkError::WebSocket(Box::new(error))),
                }
            },
            Self::Polling(polling) => polling.receive().await,
        }
    }

    /// Sends a Socket.IO packet.
    pub(super) async fn send_message(&mut self, text: &str) -> Result<(), LinkError> {
        self.send(format!("4{text}")).await
    }

    /// Answers HQ's ping.
    pub(super) async fn send_pong(&mut self) -> Result<(), LinkError> {
        self.send("3".to_owned()).await
    }

    /// Takes leave; how it goes does not matter.
    pub(super) async fn close(mut self) {
        if self.send("1".to_owned()).await.is_ok()
            && let Self::WebSocket(socket) = &mut self
        {
            let _ = WebSocketStream::close(socket, None).await;
        }
    }

    async fn send(&mut self, packet: String) -> Result<(), LinkError> {
        match self {
            Self::WebSocket(socket) => {
                let sending = async {
                    let sent = socket.send(Message::text(packet)).await;
                    sent.map_err(|error| LinkError::WebSocket(Box::new(error)))
                };
                limited(sending).await
            }
            Self::Polling(polling) => limited(polling.send(packet)).await,
        }
    }
}

async fn limited<T>(step: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    tokio::time::timeout(STEP, step)
        .await
        .unwrap_or(Err(LinkError::Timeout))
}

/// A status that is not the one of success.
async fn refused(http: &Http, response: reqwest::Response) -> LinkError {
    let status = response.status().as_u16();
    let proxy = http.clear_proxy(response.url());
    match read_bounded(http, response, 1 << 16).await {
        Ok(body) => {
            let proxy = proxy.map(|proxy| proxy.to_string());
            LinkError::Status(status, stranger(&body, proxy.as_deref()))
        }
        Err(error) => error.into(),
    }
}

async fn web_socket(
    http: &Http,
    address: &HqAddress,
    token: &Secret,
) -> Result<(WebSocket, Open), LinkError> {
    let url = address.socket("websocket", None);
    let mut socket = match http.clear_proxy(&url) {
        Some(proxy) if !proxy.is_https() => tunnelled(http, &proxy, url, token).await?,
        _ => upgraded(http, &url, token).await?,
    };
    match socket.next().await {
        Some(Ok(Message::Text(text))) => Ok((socket, read_open(&text)?)),
        Some(Err(error)) => Err(LinkError::WebSocket(Box::new(error))),
        _ => Err(LinkError::Closed),
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(LARGEST))
        .max_frame_size(Some(LARGEST))
}

/// A WebSocket as an upgraded request of the HTTP client.
async fn upgraded(http: &Http, url: &Url, token: &Secret) -> Result<WebSocket, LinkError> {
    let key = generate_key();
    let request = http
        .client
        .get(url.clone())
        .bearer_auth(token.expose())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    let response = http.send(url, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(http, response).await);
    }
    let accept = response
        .headers()
        .get(header::SEC_WEBSOCKET_ACCEPT)
        .map(|value| value.as_bytes());
    if accept != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(LinkError::Protocol("a wrong Sec-WebSocket-Accept"));
    }
    let stream = response.upgrade().await;
    let stream = stream.map_err(|error| http.failed(url, error))?;
    let stream: Box<dyn Duplex> = Box::new(stream);
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config())).await)
}

/// A WebSocket through a tunnel that the proxy makes.
async fn tunnelled(
    http: &Http,
    proxy: &Proxy,
    mut url: Url,
    token: &Secret,
) -> Result<WebSocket, LinkError> {
    let tunnel = tokio::time::timeout(http.settings.connect_timeout, proxy.tunnel(&url));
    let stream = tunnel.await.map_err(|_| LinkError::Timeout)??;
    let wrong = || LinkError::Protocol("an address that no WebSocket can have");
    url.set_scheme("ws").map_err(|()| wrong())?;
    let uri = url.as_str().parse().map_err(|_| wrong())?;
    let request = ClientRequestBuilder::new(uri)
        .with_header("Authorization", format!("Bearer {}", token.expose()));
    let stream: Box<dyn Duplex> = Box::new(stream);
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config()))
        .await
        .map_err(|error| LinkError::WebSocket(Box::new(error)))?;
    Ok(socket)
}

/// HTTP long polling: a task asks for packets all the time, so that nothing that HQ hands
/// over is lost when a receiving future is dropped.
pub(super) struct Polling {
    http: Http,
    address: HqAddress,
    token: Secret,
    sid: String,
    packets: mpsc::Receiver<Result<Frame, LinkError>>,
    _poller: AbortOnDropHandle<()>,
}

impl Polling {
    async fn open(
        http: &Http,
        address: &HqAddress,
        token: &Secret,
    ) -> Result<(Self, Open), LinkError> {
        let body = poll(http, address, token, None, STEP).await?;
        let mut packets: VecDeque<&str> = body.split(SEPARATOR).collect();
        let open = read_open(packets.pop_front().unwrap_or_default())?;
        let early: Vec<String> = packets.into_iter().map(str::to_owned).collect();
        let (tell, told) = mpsc::channel(64);
        let poller = {
            let (http, address, token) = (http.clone(), address.clone(), token.clone());
            let open = open.clone();
            async move {
                if !hand_over(&tell, early.iter().map(String::as_str)).await {
                    return;
                }
                loop {
                    match poll(&http, &address, &token, Some(&open.sid), open.silence()).await {
                        Ok(body) => {
                            if !hand_over(&tell, body.split(SEPARATOR)).await {
                                return;
                            }
                        }
                        Err(error) => {
                            let _ = tell.send(Err(error)).await;
                            return;
                        }
                    }
                }
            }
        };
        let polling = Self {
            http: http.clone(),
            address: address.clone(),
            token: token.clone(),
            sid: open.sid.clone(),
            packets: told,
            _poller: AbortOnDropHandle::new(tokio::spawn(poller)),
        };
        Ok((polling, open))
    }

    async fn receive(&mut self) -> Result<Frame, LinkError> {
        self.packets.recv().await.unwrap_or(Err(LinkError::Closed))
    }

    async fn send(&mut self, packet: String) -> Result<(), LinkError> {
        let (http, url) = (&self.http, self.address.socket("polling", Some(&self.sid)));
        let request = http
            .client
            .post(url.clone())
            .bearer_auth(self.token.expose())
            .header(header::CONTENT_TYPE, "text/plain;charset=UTF-8")
            .body(packet);
        let response = http.send(&url, request).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(http, response).await);
        }
        read_bounded(http, response, 1 << 16).await?;
        Ok(())
    }
}

/// Whether the connection goes on.
async fn hand_over<'a>(
    tell: &mpsc::Sender<Result<Frame, LinkError>>,
    packets: impl Iterator<Item = &'a str>,
) -> bool {
    for packet in packets {
        let frame = read_packet(packet).ok_or(LinkError::Closed);
        let over = frame.is_err();
        if tell.send(frame).await.is_err() || over {
            return false;
        }
    }
    true
}

async fn poll(
    http: &Http,
    address: &HqAddress,
    token: &Secret,
    sid: Option<&str>,
    limit: Duration,
) -> Result<String, LinkError> {
    let url = address.socket("polling", sid);
    let request = http
        .client
        .get(url.clone())
        .bearer_auth(token.expose())
        .timeout(limit);
    let response = http.send(&url, request).await?;
    if response.status() != StatusCode::OK {
        return Err(refused(http, response).await);
    }
    let body = read_bounded(http, response, LARGEST).await?;
    String::from_utf8(body.into()).map_err(|_| LinkError::Protocol("a body that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn opening_as_recorded() {
        let open = read_open(
            r#"0{"sid":"RY90","upgrades":["websocket"],"pingTimeout":60000,"pingInterval":25000,"maxPayload":1000000}"#,
        )
        .unwrap();
        assert_eq!(
            (open.sid.as_str(), open.silence()),
            ("RY90", Duration::from_secs(90))
        );
        assert!(read_open("40").is_err() && read_open("").is_err() && read_open("0{}").is_err());
    }

    #[test]
    fn packets() {
        assert_eq!(read_packet("2"), Some(Frame::Ping));
        assert_eq!(
            read_packet("42/tasks,[]"),
            Some(Frame::Message("2/tasks,[]".to_owned()))
        );
        assert_eq!(read_packet("6"), Some(Frame::Other));
        assert_eq!(read_packet(""), Some(Frame::Other));
        assert_eq!(read_packet("1"), None);
    }
}
