//! Which HTTP proxy a connection takes, and tunnels through one.

use std::fmt;
use std::sync::Arc;

use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::connection::{ConnectionError, Reason};

/// Reads the address of an HTTP proxy; as in the environment's variables, the scheme may be
/// left out. `None` if it is none that the node can use, e.g. one of a SOCKS proxy.
pub fn address(text: &str) -> Option<Url> {
    let url = match text.contains("://") {
        true => Url::parse(text),
        false => Url::parse(&format!("http://{text}")),
    };
    url.ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// The configured proxies, by the same rules as those of the HTTP client.
#[derive(Debug, Clone)]
pub(super) struct Proxies(Arc<Matcher>);

impl Proxies {
    pub(super) fn new(http: Option<&Url>, https: Option<&Url>, except: &str) -> Self {
        let text = |url: Option<&Url>| url.map(Url::to_string).unwrap_or_default();
        let matcher = Matcher::builder()
            .http(text(http))
            .https(text(https))
            .no(except.to_owned())
            .build();
        Self(Arc::new(matcher))
    }

    /// The proxy on the way to `url`.
    pub(super) fn of(&self, url: &Url) -> Option<Proxy> {
        let found = self.0.intercept(&url.as_str().parse().ok()?)?;
        Some(Proxy {
            uri: found.uri().clone(),
            authorization: found.basic_auth().cloned(),
        })
    }
}

/// One proxy. `Display` shows its address without the password.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    uri: Uri,
    authorization: Option<HeaderValue>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or("http");
        match self.uri.authority() {
            Some(authority) => write!(f, "{scheme}://{authority}"),
            None => f.write_str(scheme),
        }
    }
}

impl Proxy {
    /// Whether the node's way to the proxy itself is by TLS.
    pub(super) fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// A connection to the host of `url`, made by the proxy (`CONNECT`, RFC 9110 9.3.6).
    /// The proxy is one without TLS. Dropping the future gives the connection up.
    ///
    /// # Errors
    /// The proxy is out of reach or refuses.
    pub(super) async fn tunnel(&self, url: &Url) -> Result<TokioIo<Upgraded>, ConnectionError> {
        let failed = |reason, source: Box<dyn std::error::Error + Send + Sync>| {
            ConnectionError::new(reason, url, Some(self), true, source)
        };
        let broken = |source| failed(Reason::Broken, source);
        let host = self.uri.host().unwrap_or_default();
        let host = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, self.uri.port_u16().unwrap_or(80)))
            .await
            .map_err(|error| broken(error.into()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, String>(TokioIo::new(stream))
                .await
                .map_err(|error| broken(error.into()))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
        let target = format!(
            "{}:{}",
            url.host_str().unwrap_or_default(),
            url.port_or_known_default().unwrap_or(80)
        );
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&target)
            .header(HOST, &target);
        if let Some(authorization) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        let request = request
            .body(String::new())
            .map_err(|error| broken(error.into()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(error.into()))?;
        if !response.status().is_success() {
            let said = format!("the proxy answered {}", response.status());
            return Err(failed(Reason::ProxyRefusal, said.into()));
        }
        let tunnel = hyper::upgrade::on(response)
            .await
            .map_err(|error| broken(error.into()))?;
        // Ends by itself once it has handed the connection over.
        driver.detach();
        Ok(TokioIo::new(tunnel))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, read) in [
            ("http://u:p@proxy:3128", Some("http://u:p@proxy:3128/")),
            ("https://proxy", Some("https://proxy/")),
            ("proxy:3128", Some("http://proxy:3128/")),
            ("10.0.0.1:8080", Some("http://10.0.0.1:8080/")),
            ("socks5://proxy:1080", None),
            ("ftp://proxy", None),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(address(text).as_ref().map(Url::as_str), read, "{text}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let proxy = address("http://user:hunter2@proxy:3128").unwrap();
        let proxies = Proxies::new(Some(&proxy), None, "other.example");
        let target = Url::parse("http://hq.example/hq").unwrap();
        let found = proxies.of(&target).unwrap();
        assert_eq!(found.to_string(), "http://proxy:3128");
        assert!(found.authorization.as_ref().unwrap().is_sensitive());
        let shown = format!("{found:?} {proxies:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("dXNlcjpodW50ZXIy"),
            "{shown}"
        );
    }

    #[test]
    fn exceptions() {
        let proxy = address("proxy:3128").unwrap();
        let except = "localhost, .example.org,10.0.0.0/8,[::1]";
        let proxies = Proxies::new(Some(&proxy), Some(&proxy), except);
        for (target, goes) in [
            ("http://localhost:7601/", false),
            ("https://hq.example.org/", false),
            ("https://example.org/", false),
            ("https://notexample.org/", true),
            ("http://10.9.8.7/", false),
            ("http://11.0.0.1/", true),
        ] {
            let found = proxies.of(&Url::parse(target).unwrap());
            assert_eq!(found.is_some(), goes, "{target}");
        }
        let all = Proxies::new(Some(&proxy), Some(&proxy), "*");
        assert!(all.of(&Url::parse("http://h/").unwrap()).is_none());
    }
}
