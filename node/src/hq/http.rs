//! One HTTP client for everything on the way to HQ.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, NoProxy, Proxy};

use crate::secret::Secret;

/// How the node reaches Keycloak, HQ and algorithm stores.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Proxy for `http` addresses. If neither this nor `https_proxy` is set, the process's
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are used.
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
    /// A file of certificates holds none that can be read.
    #[error("there is no usable PEM certificate in {}", path.display())]
    CaForm {
        /// The file.
        path: PathBuf,
    },
    /// A proxy's address is wrong. It is not shown, since it may hold a password.
    #[error("the address of the {0} proxy is not valid")]
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
        if settings.http_proxy.is_some() || settings.https_proxy.is_some() {
            let except = settings.no_proxy.as_deref().and_then(NoProxy::from_string);
            builder = builder.no_proxy();
            if let Some(address) = &settings.http_proxy {
                let proxy =
                    Proxy::http(address.expose()).map_err(|_| HttpSetupError::Proxy("HTTP"))?;
                builder = builder.proxy(proxy.no_proxy(except.clone()));
            }
            if let Some(address) = &settings.https_proxy {
                let proxy =
                    Proxy::https(address.expose()).map_err(|_| HttpSetupError::Proxy("HTTPS"))?;
                builder = builder.proxy(proxy.no_proxy(except));
            }
        }
        let mut certificates = Vec::new();
        for path in &settings.ca_certificates {
            let pem = std::fs::read(path).map_err(|source| HttpSetupError::CaFile {
                path: path.clone(),
                source,
            })?;
            let bundle = Certificate::from_pem_bundle(&pem).unwrap_or_default();
            if bundle.is_empty() {
                return Err(HttpSetupError::CaForm { path: path.clone() });
            }
            certificates.extend(bundle);
        }
        if !certificates.is_empty() {
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder
            .build()
            .map_err(|error| HttpSetupError::Tls(Box::new(error)))?;
        Ok(Self { client, settings })
    }
}
