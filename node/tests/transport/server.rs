//! Keycloak and HQ on one port, with TLS or without, that know one node.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A private certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server with a certificate for `name`.
    pub fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Starts it and gives its port.
pub async fn start(tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let polled = Arc::new(Polled::default());
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, polled) = (tls.clone(), polled.clone());
            tokio::spawn(async move {
                // A client may leave at any time, e.g. over our certificate.
                let _ = match tls {
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => answer(stream, &polled).await,
                        Err(error) => Err(error),
                    },
                    None => answer(stream, &polled).await,
                };
            });
        }
    });
    port
}

/// Progress of the polling client.
#[derive(Default)]
struct Polled {
    joined: Notify,
    for_ever: Notify,
}

const OPEN: &str =
    r#"0{"sid":"s","upgrades":[],"pingTimeout":20000,"pingInterval":25000,"maxPayload":1000000}"#;
const SYNC: &str = "40/tasks,{\"sid\":\"x\"}\u{1e}42/tasks,[\"sync\"]";

async fn answer<S>(mut stream: S, polled: &Polled) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
    };
    let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut sent = vec![0; length];
    stream.read_exact(&mut sent).await?;
    assert_eq!(
        header("proxy-authorization"),
        None,
        "the proxy's password is for the proxy"
    );
    let target: Vec<&str> = head.split(' ').take(2).collect();
    let target = target.join(" ");
    if target != "POST /auth/realms/v/protocol/openid-connect/token" {
        assert_eq!(header("authorization").as_deref(), Some("Bearer token-1"));
    }
    let body = match target.as_str() {
        "POST /auth/realms/v/protocol/openid-connect/token" => {
            r#"{"access_token":"token-1","expires_in":300}"#
        }
        "GET /hq/version" => r#"{"version":"5.0.3"}"#,
        "GET /hq/node/me" => {
            r#"{"id":2,"name":"n","organization":{"id":4},"collaboration":{"id":1}}"#
        }
        "GET /hq/organization/4" => r#"{"id":4,"name":"o","public_key":""}"#,
        "GET /hq/collaboration/1" => r#"{"id":1,"name":"c","encrypted":false}"#,
        "GET /socket.io/?transport=websocket&EIO=4" if header("upgrade").is_some() => {
            let accept = derive_accept_key(header("sec-websocket-key").unwrap().as_bytes());
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            let _ = web_socket(stream).await;
            return Ok(());
        }
        "GET /socket.io/?transport=polling&EIO=4" => OPEN,
        "POST /socket.io/?transport=polling&EIO=4&sid=s" => {
            if sent == b"40/tasks,{}" {
                polled.joined.notify_one();
            }
            "ok"
        }
        "GET /socket.io/?transport=polling&EIO=4&sid=s" => {
            tokio::select! {
                () = polled.joined.notified() => SYNC,
                () = polled.for_ever.notified() => return Ok(()),
            }
        }
        _ => {
            stream
                .write_all(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .await?;
            return stream.shutdown().await;
        }
    };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn web_socket<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Option<()> {
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    socket.send(Message::text(OPEN)).await.ok()?;
    socket.next().await?.ok()?;
    socket
        .send(Message::text(r#"40/tasks,{"sid":"x"}"#))
        .await
        .ok()?;
    socket
        .send(Message::text(r#"42/tasks,["sync"]"#))
        .await
        .ok()?;
    while socket.next().await?.is_ok() {}
    None
}
