//! One HTTP client for everything on the way to HQ.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, NoProxy, Proxy, RequestBuilder, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use url::Url;

use super::connection::{ConnectionError, Reason};
use super::proxy::{self, Proxies};
use crate::secret::Secret;

/// How the node reaches Keycloak, HQ and algorithm stores.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Proxy for `http` addresses; `http://` may be left out. The process's environment is
    /// not looked at: the configuration has read it.
    pub http_proxy: Option<Secret>,
    /// Proxy for `https` addresses.
    pub https_proxy: Option<Secret>,
    /// Hosts reached without the two proxies above, as in `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// PEM files of certificate authorities to trust besides the system's.
    pub ca_certificates: Vec<PathBuf>,
    /// Limit for name look-up, TCP and TLS.
    pub connect_timeout: Duration,
    /// Limit for a call from its start to the last byte of the answer; uploads of results
    /// get more by their length.
    pub request_timeout: Duration,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            ca_certificates: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
        }
    }
}

/// Why no HTTP client could be made. All of these are mistakes in the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpSetupError {
    /// A file of certificates is not there or not readable.
    #[error("cannot read the CA certificates in {}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of certificates holds none, or one that can't be read.
    #[error("{} is not a file of PEM certificates, or one of them is damaged", path.display())]
    CaForm {
        /// The file.
        path: PathBuf,
    },
    /// A proxy's address is wrong. It is not shown, since it may hold a password.
    #[error(
        "the address of the {0} proxy is not one of an HTTP proxy: write for example http://proxy.example.org:3128"
    )]
    Proxy(&'static str),
    /// TLS could not be set up, e.g. because the system has no CA certificates at all.
    #[error("the HTTP client could not be set up (are CA certificates installed?)")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The HTTP client. Clones share it.
#[derive(Debug, Clone)]
pub struct Http {
    pub(super) client: reqwest::Client,
    pub(super) settings: HttpSettings,
    pub(super) proxies: Proxies,
}

impl Http {
    /// Reads the certificates and makes the client; nothing is sent yet.
    ///
    /// # Errors
    /// A wrong setting, by name.
    pub fn new(settings: HttpSettings) -> Result<Self, HttpSetupError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("v6-node/", env!("CARGO_PKG_VERSION")))
            // HQ under uWSGI closes each connection after one answer without saying so; a
            // pooled one then fails on its next use.
            .pool_max_idle_per_host(0)
            // A followed redirect would turn a PATCH into a GET; better to be told.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.request_timeout);
        let http = proxy_address(settings.http_proxy.as_ref(), "HTTP")?;
        let https = proxy_address(settings.https_proxy.as_ref(), "HTTPS")?;
        let except = settings.no_proxy.as_deref().unwrap_or_default();
        builder = builder.no_proxy();
        if let Some(address) = &http {
            let proxy = Proxy::http(address.clone()).map_err(|_| HttpSetupError::Proxy("HTTP"))?;
            builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(except)));
        }
        if let Some(address) = &https {
            let proxy =
                Proxy::https(address.clone()).map_err(|_| HttpSetupError::Proxy("HTTPS"))?;
            builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(except)));
        }
        let proxies = Proxies::new(http.as_ref(), https.as_ref(), except);
        let mut certificates = Vec::new();
        for path in &settings.ca_certificates {
            let pem = std::fs::read(path).map_err(|source| HttpSetupError::CaFile {
                path: path.clone(),
                source,
            })?;
            let bundle = read_certificates(&pem);
            certificates
                .extend(bundle.ok_or_else(|| HttpSetupError::CaForm { path: path.clone() })?);
        }
        if !certificates.is_empty() {
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder
            .build()
            .map_err(|error| HttpSetupError::Tls(Box::new(error)))?;
        Ok(Self {
            client,
            settings,
            proxies,
        })
    }

    /// Sends a request, once.
    ///
    /// # Errors
    /// No answer, or only one of a proxy that wants to know who the node is.
    pub(super) async fn send(
        &self,
        url: &Url,
        request: RequestBuilder,
    ) -> Result<Response, ConnectionError> {
        let response = request
            .send()
            .await
            .map_err(|error| self.failed(url, error))?;
        match self.clear_proxy(url) {
            Some(proxy) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                let said = format!("the proxy answered {}", response.status());
                let (reason, proxy) = (Reason::ProxyRefusal, Some(&proxy));
                Err(ConnectionError::new(reason, url, proxy, true, said.into()))
            }
            _ => Ok(response),
        }
    }

    /// The HTTP client's error in our words.
    pub(super) fn failed(&self, url: &Url, error: reqwest::Error) -> ConnectionError {
        ConnectionError::of_client(&self.proxies, url, error)
    }

    /// The proxy that sees requests to `url` unencrypted, and can answer in the server's place.
    pub(super) fn clear_proxy(&self, url: &Url) -> Option<proxy::Proxy> {
        let is_clear = url.scheme() == "http";
        is_clear.then(|| self.proxies.of(url)).flatten()
    }
}

fn proxy_address(text: Option<&Secret>, kind: &'static str) -> Result<Option<Url>, HttpSetupError> {
    text.map(|text| proxy::address(text.expose()).ok_or(HttpSetupError::Proxy(kind)))
        .transpose()
}

/// The certificates of a file, at least one. `None` if one of them is none: TLS would say so
/// later, without the file's name.
fn read_certificates(pem: &[u8]) -> Option<Vec<Certificate>> {
    let mut trusted = rustls::RootCertStore::empty();
    let mut found = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.ok()?;
        found.push(Certificate::from_der(&der).ok()?);
        trusted.add(der).ok()?;
    }
    (!found.is_empty()).then_some(found)
}
