//! An HTTP proxy: `CONNECT` and absolute addresses, with a password or without.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What it does with those who may pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// The value of `Proxy-Authorization` without which it answers 407.
    pub password: Option<&'static str>,
    /// Answers 403 to every `CONNECT`.
    pub no_connect: bool,
    /// Answers 403 to everything.
    pub closed: bool,
}

pub struct HttpProxy {
    pub port: u16,
    /// First lines of requests, without what is different each time.
    seen: Arc<Mutex<Vec<String>>>,
}

impl HttpProxy {
    /// Names in `hosts` lead to ports of this machine, so that tests need no name service.
    pub async fn start(manners: Manners, hosts: &[(&str, u16)]) -> Self {
        Self::start_with(None, manners, hosts).await
    }

    /// One that is itself reached by TLS, if `tls` is given.
    pub async fn start_with(
        tls: Option<TlsAcceptor>,
        manners: Manners,
        hosts: &[(&str, u16)],
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hosts: Arc<BTreeMap<String, u16>> = Arc::new(
            hosts
                .iter()
                .map(|(name, port)| ((*name).to_owned(), *port))
                .collect(),
        );
        let log = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, hosts, log) = (tls.clone(), hosts.clone(), log.clone());
                tokio::spawn(async move {
                    // A client may leave at any time.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, manners, &hosts, &log).await,
                            Err(error) => Err(error),
                        },
                        None => serve(stream, manners, &hosts, &log).await,
                    };
                });
            }
        });
        Self { port, seen }
    }

    /// What it was asked so far, e.g. `CONNECT hq.test:443` or `GET http://hq.test/hq/version`.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub fn has_seen(&self, request: &str) -> bool {
        self.seen().iter().any(|line| line.starts_with(request))
    }
}

async fn serve(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    manners: Manners,
    hosts: &BTreeMap<String, u16>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let (first, rest) = head.split_once("\r\n").unwrap();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    seen.lock().unwrap().push(format!("{method} {target}"));
    let is_header = |line: &&str, name: &str| {
        line.split_once(':')
            .is_some_and(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    let given = rest
        .lines()
        .find(|line| is_header(line, "proxy-authorization"));
    let given = given
        .and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim());
    if given != manners.password {
        return refuse(client, "407 Proxy Authentication Required").await;
    }
    if manners.closed || (manners.no_connect && method == "CONNECT") {
        return refuse(client, "403 Forbidden").await;
    }
    let authority = match target.strip_prefix("http://") {
        Some(rest) => rest.split(['/', '?']).next().unwrap(),
        None => target,
    };
    let port = match authority.split_once(':') {
        Some((name, port)) if !hosts.contains_key(name) => port.parse().unwrap(),
        Some((name, _)) => hosts[name],
        None => hosts[authority],
    };
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    if method == "CONNECT" {
        client
            .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await?;
    } else {
        // As proxies do: what concerns this hop alone is not passed on, an upgrade neither.
        let path = target
            .strip_prefix("http://")
            .unwrap()
            .strip_prefix(authority)
            .unwrap();
        let kept = rest.lines().filter(|line| {
            !["proxy-authorization", "connection", "upgrade"]
                .iter()
                .any(|name| is_header(line, name))
        });
        let kept: Vec<&str> = kept.take_while(|line| !line.is_empty()).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{}\r\nConnection: close\r\n\r\n",
            kept.join("\r\n")
        );
        server.write_all(head.as_bytes()).await?;
    }
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

async fn refuse(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    status: &str,
) -> std::io::Result<()> {
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: 16\r\nConnection: close\r\n\r\n<h1>Proxy</h1>\r\n"
    );
    client.write_all(answer.as_bytes()).await?;
    // The rest of a request that is still under way would turn the answer into a reset.
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await?;
    Ok(())
}
