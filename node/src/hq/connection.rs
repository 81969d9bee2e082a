//! Why a request got no answer, in words that say what to mend.

use std::error::Error as StdError;
use std::fmt;

use url::Url;

use super::proxy::{Proxies, Proxy};

/// No connection, a broken one, or no answer in time.
///
/// `Display` is one level; the words of the libraries below are the source.
#[derive(Debug)]
pub(super) struct ConnectionError {
    reason: Reason,
    /// Host and port.
    peer: String,
    /// Without its password.
    proxy: Option<String>,
    never_sent: bool,
    source: Box<dyn StdError + Send + Sync>,
}

/// What is wrong with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A certificate of an authority that nobody trusts here.
    UnknownAuthority,
    /// A certificate of another host.
    WrongName,
    /// A certificate that is wrong in another way.
    Certificate,
    /// The proxy says no.
    ProxyRefusal,
    /// Anything else.
    Broken,
}

impl ConnectionError {
    pub(super) fn new(
        reason: Reason,
        url: &Url,
        proxy: Option<&Proxy>,
        never_sent: bool,
        source: Box<dyn StdError + Send + Sync>,
    ) -> Self {
        let peer = format!(
            "{}:{}",
            url.host_str().unwrap_or_default(),
            url.port_or_known_default().unwrap_or_default()
        );
        let proxy = proxy.map(ToString::to_string);
        Self {
            reason,
            peer,
            proxy,
            never_sent,
            source,
        }
    }

    /// What the HTTP client says about a request to `url`.
    pub(super) fn of_client(proxies: &Proxies, url: &Url, error: reqwest::Error) -> Self {
        let proxy = proxies.of(url);
        let error = error.without_url();
        let tls = find::<rustls::Error>(&error);
        let reason = match tls {
            Some(rustls::Error::InvalidCertificate(error)) => match error {
                // A bad signature is one of an authority with the same name and another key.
                rustls::CertificateError::UnknownIssuer
                | rustls::CertificateError::BadSignature => Reason::UnknownAuthority,
                rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. } => Reason::WrongName,
                _ => Reason::Certificate,
            },
            // Nothing below failed, so it was the proxy's answer to CONNECT.
            None if proxy.is_some()
                && error.is_connect()
                && !error.is_timeout()
                && find::<std::io::Error>(&error).is_none() =>
            {
                Reason::ProxyRefusal
            }
            _ => Reason::Broken,
        };
        let never_sent = error.is_connect();
        Self::new(reason, url, proxy.as_ref(), never_sent, Box::new(error))
    }

    /// Whether the request certainly did not reach the server.
    pub(super) fn never_sent(&self) -> bool {
        self.never_sent
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = &self.peer;
        match (self.reason, self.proxy.as_deref()) {
            (Reason::UnknownAuthority, proxy) => {
                write!(f, "the TLS certificate of {peer}")?;
                if let Some(proxy) = proxy {
                    write!(f, " (reached through the proxy {proxy})")?;
                }
                f.write_str(" is not signed by an authority that this node trusts: add the PEM file of that authority to runtime.ca_certificates")
            }
            (Reason::WrongName, _) => write!(
                f,
                "the TLS certificate that was shown for {peer} is one of another host: check the address in the configuration"
            ),
            (Reason::Certificate, _) => {
                write!(f, "the TLS certificate of {peer} cannot be accepted")
            }
            (Reason::ProxyRefusal, proxy) => write!(
                f,
                "the proxy {} does not let the node through to {peer}: check the user name and password in its address (runtime.proxy) and which hosts and ports it allows",
                proxy.unwrap_or_default()
            ),
            (Reason::Broken, Some(proxy)) => {
                write!(f, "no answer from {peer} through the proxy {proxy}")
            }
            (Reason::Broken, None) => write!(f, "no answer from {peer}"),
        }
    }
}

impl StdError for ConnectionError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.source.as_ref())
    }
}

/// The first error of a type in a chain. An `io::Error` is asked for what it wraps, since
/// its `source` leaves that out.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// All causes of an error on one line, for the log; a cause that the one above it prints
/// already is left out.
pub(super) fn causes(error: &dyn StdError) -> Option<String> {
    let mut shown: Option<String> = None;
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        shown = Some(match shown {
            Some(shown) if shown.ends_with(&text) => shown,
            Some(shown) => format!("{shown}: {text}"),
            None => text,
        });
        next = cause.source();
    }
    shown
}
