//! The way to Keycloak, to HQ's REST API and to its socket: HTTP proxies and private
//! certificate authorities, on servers of the test's own.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod proxy;
mod server;

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proxy::{HttpProxy, Manners};
use server::Authority;
use url::Url;
use v6_node::config::{self, Environment};
use v6_node::hq::{
    Credentials, Event, Hq, HqAddress, Http, HttpSettings, HttpSetupError, Retry, Socket,
    SocketSettings, Tokens,
};
use v6_node::join::{self, Membership};
use v6_node::secret::Secret;

/// `user:hunter2`.
const PASSWORD: &str = "Basic dXNlcjpodW50ZXIy";

type Failure = Box<dyn Error + Send + Sync>;

/// An error with all its causes; it must not show a password.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    for secret in ["hunter2", "dXNlcjpodW50ZXIy", "the-key", "token-1"] {
        assert!(!text.contains(secret), "{text}");
    }
    text
}

fn assert_tells(error: &dyn Error, words: &[&str]) {
    let text = told(error);
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

/// Signs in and asks for HQ's version.
async fn rest(settings: HttpSettings, server: &str) -> Result<Hq, Failure> {
    let http = Http::new(settings)?;
    let credentials = Credentials {
        keycloak: Url::parse(&format!("{server}/auth"))?,
        realm: "v".to_owned(),
        node_name: "n".to_owned(),
        api_key: Secret::new("the-key"),
    };
    let tokens = Tokens::sign_in(&http, credentials).await?;
    let address = HqAddress::new(Url::parse(&format!("{server}/hq"))?)?;
    let once = Retry {
        within: Duration::ZERO,
        ..Retry::default()
    };
    let hq = Hq::new(http, address, tokens).with_retry(once);
    assert_eq!(hq.version().await?, "5.0.3");
    Ok(hq)
}

/// Waits until HQ's socket has said `sync`.
async fn socket(hq: &Hq) {
    let us = hq.whoami().await.unwrap();
    let (socket, mut events) = Socket::start(hq, us, SocketSettings::default());
    let first = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    assert_eq!(first.unwrap(), Some(Event::Sync));
    socket.close().await;
}

fn through(proxy: &HttpProxy, user: &str) -> HttpSettings {
    let address = Secret::new(format!("http://{user}127.0.0.1:{}", proxy.port));
    HttpSettings {
        http_proxy: Some(address.clone()),
        https_proxy: Some(address),
        ..HttpSettings::default()
    }
}

/// The authority's file, which lives as long as the directory.
fn ca_file(authority: &Authority) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, authority.pem()).unwrap();
    (directory, path)
}

#[tokio::test]
async fn plain_http_is_forwarded_and_its_websocket_tunnelled() {
    for (password, user) in [(None, ""), (Some(PASSWORD), "user:hunter2@")] {
        let port = server::start(None).await;
        let manners = Manners {
            password,
            ..Manners::default()
        };
        let proxy = HttpProxy::start(manners, &[("hq.test", port)]).await;
        let hq = rest(through(&proxy, user), "http://hq.test").await.unwrap();
        assert!(
            proxy.has_seen("POST http://hq.test/auth/realms/v/"),
            "{:?}",
            proxy.seen()
        );
        assert!(proxy.has_seen("GET http://hq.test/hq/version"));
        socket(&hq).await;
        assert!(proxy.has_seen("CONNECT hq.test:80"));
        assert!(
            !proxy.has_seen("GET http://hq.test/socket.io/"),
            "{:?}",
            proxy.seen()
        );
    }
}

#[tokio::test]
async fn without_connect_the_socket_polls() {
    let port = server::start(None).await;
    let manners = Manners {
        no_connect: true,
        ..Manners::default()
    };
    let proxy = HttpProxy::start(manners, &[("hq.test", port)]).await;
    let hq = rest(through(&proxy, ""), "http://hq.test").await.unwrap();
    socket(&hq).await;
    assert!(proxy.has_seen("CONNECT hq.test:80"));
    assert!(proxy.has_seen("GET http://hq.test/socket.io/?transport=polling"));
}

#[tokio::test]
async fn https_is_tunnelled_whole() {
    let authority = Authority::new();
    let (_directory, ca) = ca_file(&authority);
    for (password, user) in [(None, ""), (Some(PASSWORD), "user:hunter2@")] {
        let port = server::start(Some(authority.acceptor("hq.test"))).await;
        let manners = Manners {
            password,
            ..Manners::default()
        };
        let proxy = HttpProxy::start(manners, &[("hq.test", port)]).await;
        let settings = HttpSettings {
            ca_certificates: vec![ca.clone()],
            ..through(&proxy, user)
        };
        let hq = rest(settings, "https://hq.test").await.unwrap();
        socket(&hq).await;
        let seen = proxy.seen();
        // Sign-in, version, who am I, and the WebSocket.
        assert_eq!(seen, ["CONNECT hq.test:443"; 4]);
    }
}

/// For an `http` HQ such a proxy is asked to forward the upgrade; this one does not.
#[tokio::test]
async fn a_proxy_with_tls() {
    let authority = Authority::new();
    let (_directory, ca) = ca_file(&authority);
    let manners = Manners {
        password: Some(PASSWORD),
        ..Manners::default()
    };
    for (server, tls, request) in [
        (
            "http://hq.test",
            None,
            "GET http://hq.test/socket.io/?transport=polling",
        ),
        (
            "https://hq.test",
            Some(authority.acceptor("hq.test")),
            "CONNECT hq.test:443",
        ),
    ] {
        let port = server::start(tls).await;
        let own = Some(authority.acceptor("localhost"));
        let proxy = HttpProxy::start_with(own, manners, &[("hq.test", port)]).await;
        let address = Secret::new(format!("https://user:hunter2@localhost:{}", proxy.port));
        let settings = |ca_certificates| HttpSettings {
            http_proxy: Some(address.clone()),
            https_proxy: Some(address.clone()),
            ca_certificates,
            ..HttpSettings::default()
        };
        let hq = rest(settings(vec![ca.clone()]), server).await.unwrap();
        socket(&hq).await;
        assert!(proxy.has_seen(request), "{:?}", proxy.seen());
        let error = rest(settings(Vec::new()), server).await.unwrap_err();
        let name = format!("proxy https://localhost:{}", proxy.port);
        assert_tells(error.as_ref(), &[&name, "runtime.ca_certificates"]);
    }
}

#[tokio::test]
async fn exceptions_are_reached_directly() {
    let port = server::start(None).await;
    let proxy = HttpProxy::start(
        Manners {
            closed: true,
            ..Manners::default()
        },
        &[],
    )
    .await;
    let server = format!("http://127.0.0.1:{port}");
    let settings = HttpSettings {
        no_proxy: Some("hq.test, 127.0.0.0/8".to_owned()),
        ..through(&proxy, "")
    };
    let hq = rest(settings, &server).await.unwrap();
    socket(&hq).await;
    assert!(proxy.seen().is_empty());
    rest(through(&proxy, ""), &server).await.unwrap_err();
    assert_eq!(proxy.seen().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let http = "http://hq.test";
    let password = Manners {
        password: Some(PASSWORD),
        ..Manners::default()
    };
    let closed = Manners {
        closed: true,
        ..Manners::default()
    };
    for (manners, user, server, code) in [
        (password, "user:wrong@", http, "407"),
        (
            password,
            "",
            "https://hq.test",
            "proxy authorization required",
        ),
        (closed, "user:hunter2@", "https://hq.test", "runtime.proxy"),
    ] {
        // The proxy takes a password only where one is asked for.
        let manners = match user {
            "user:hunter2@" => Manners {
                password: Some(PASSWORD),
                ..manners
            },
            _ => manners,
        };
        let proxy = HttpProxy::start(manners, &[]).await;
        let error = rest(through(&proxy, user), server).await.unwrap_err();
        let name = format!("http://127.0.0.1:{}", proxy.port);
        assert_tells(
            error.as_ref(),
            &[&name, "hq.test:", "let the node through", code],
        );
    }
    // What a proxy says to a plain request may as well come from the server.
    let proxy = HttpProxy::start(closed, &[]).await;
    let error = rest(through(&proxy, ""), http).await.unwrap_err();
    let name = format!("perhaps said by the proxy http://127.0.0.1:{}", proxy.port);
    assert_tells(error.as_ref(), &["403", "<h1>Proxy</h1>", &name]);
}

#[tokio::test]
async fn a_proxy_out_of_reach_is_named() {
    // A port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for server in ["http://hq.test", "https://hq.test"] {
        let address = Secret::new(format!("user:hunter2@127.0.0.1:{port}"));
        let settings = HttpSettings {
            http_proxy: Some(address.clone()),
            https_proxy: Some(address),
            ..HttpSettings::default()
        };
        let error = rest(settings, server).await.unwrap_err();
        let name = format!("through the proxy http://127.0.0.1:{port}");
        assert_tells(error.as_ref(), &[&name, "Connection refused"]);
    }
}

/// A node's configuration, in an environment with these variables beside the usual ones.
async fn member(
    server: &str,
    port: u16,
    section: &str,
    variables: &[(&str, &str)],
) -> Result<Membership, Failure> {
    let text = format!("hq_url: {server}\nport: {port}\napi_path: /hq\n{section}");
    let keycloak = format!("{server}:{port}/auth");
    let usual = [
        ("HOME", "/nonexistent"),
        ("V6_NODE_NAME", "n"),
        ("V6_API_KEY", "the-key"),
        ("KEYCLOAK_URL", &keycloak),
        ("KEYCLOAK_REALM", "v"),
    ];
    let environment: Environment = usual.iter().chain(variables).copied().collect();
    let config = config::parse(Path::new("/nonexistent/node.yaml"), &text, &environment)?;
    Ok(join::join(&config).await?)
}

#[tokio::test]
async fn proxies_of_the_environment_and_of_the_file() {
    let port = server::start(None).await;
    let manners = Manners {
        password: Some(PASSWORD),
        ..Manners::default()
    };
    let good = HttpProxy::start(manners, &[("hq.test", port)]).await;
    let good_address = format!("http://user:hunter2@127.0.0.1:{}", good.port);
    let bad = HttpProxy::start(
        Manners {
            closed: true,
            ..Manners::default()
        },
        &[],
    )
    .await;
    let bad_address = format!("http://127.0.0.1:{}", bad.port);
    let of_file = format!("runtime:\n  proxy:\n    http: {good_address}\n");
    let cases: [(&str, &[(&str, &str)]); 5] = [
        (
            "",
            &[("HTTP_PROXY", &good_address), ("HTTPS_PROXY", &bad_address)],
        ),
        (
            "",
            &[("http_proxy", &good_address), ("HTTP_PROXY", &bad_address)],
        ),
        ("", &[("ALL_PROXY", &good_address)]),
        (
            "",
            &[("HTTP_PROXY", &good_address), ("ALL_PROXY", &bad_address)],
        ),
        (&of_file, &[("HTTP_PROXY", &bad_address)]),
    ];
    for (section, variables) in cases {
        let before = good.seen().len();
        let member = member("http://hq.test", 80, section, variables)
            .await
            .unwrap();
        socket(&member.hq).await;
        assert!(good.seen().len() > before, "{variables:?}");
    }
    assert!(bad.seen().is_empty(), "{:?}", bad.seen());

    let here = [
        ("HTTP_PROXY", bad_address.as_str()),
        ("NO_PROXY", "127.0.0.1"),
    ];
    let member_here = member("http://127.0.0.1", port, "", &here).await.unwrap();
    socket(&member_here.hq).await;
    assert!(bad.seen().is_empty(), "{:?}", bad.seen());
    let error = member("http://hq.test", 80, "", &here).await.unwrap_err();
    assert_tells(error.as_ref(), &[&bad_address]);

    let socks = [("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:1080")];
    let error = member("http://hq.test", 80, "", &socks).await.unwrap_err();
    assert_tells(
        error.as_ref(),
        &["ALL_PROXY", "not the address of an HTTP proxy"],
    );
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_configured() {
    let authority = Authority::new();
    let (_directory, ca) = ca_file(&authority);
    let port = server::start(Some(authority.acceptor("localhost"))).await;
    let section = format!("runtime:\n  ca_certificates: [{}]\n", ca.display());
    let joined = member("https://localhost", port, &section, &[])
        .await
        .unwrap();
    socket(&joined.hq).await;

    let error = member("https://localhost", port, "", &[])
        .await
        .unwrap_err();
    let peer = format!("localhost:{port}");
    assert_tells(
        error.as_ref(),
        &[
            "certificate",
            &peer,
            "runtime.ca_certificates",
            "UnknownIssuer",
        ],
    );

    // Another authority is not enough, even of the same name.
    let (_directory, other) = ca_file(&Authority::new());
    let settings = HttpSettings {
        ca_certificates: vec![other],
        ..HttpSettings::default()
    };
    let error = rest(settings, &format!("https://localhost:{port}"))
        .await
        .unwrap_err();
    assert_tells(error.as_ref(), &["runtime.ca_certificates"]);
}

#[tokio::test]
async fn a_certificate_of_another_host_is_refused() {
    let authority = Authority::new();
    let (_directory, ca) = ca_file(&authority);
    let port = server::start(Some(authority.acceptor("other.test"))).await;
    let settings = HttpSettings {
        ca_certificates: vec![ca],
        ..HttpSettings::default()
    };
    let error = rest(settings, &format!("https://localhost:{port}"))
        .await
        .unwrap_err();
    assert_tells(
        error.as_ref(),
        &["one of another host", "localhost:", "other.test"],
    );
}

#[test]
fn a_file_of_certificates_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let with = |content: Option<&str>| {
        let path = directory.path().join("ca.pem");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let settings = HttpSettings {
            ca_certificates: vec![path],
            ..HttpSettings::default()
        };
        Http::new(settings).unwrap_err()
    };
    let error = with(None);
    assert!(matches!(error, HttpSetupError::CaFile { .. }), "{error:?}");
    assert_tells(&error, &["ca.pem", "No such file"]);
    let broken =
        "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    for garbage in ["", "hello\n", "-----BEGIN CERTIFICATE-----\n???\n", broken] {
        let error = with(Some(garbage));
        assert_tells(&error, &["ca.pem"]);
        assert!(
            matches!(error, HttpSetupError::CaForm { .. }),
            "{garbage:?}: {error:?}"
        );
    }
}
