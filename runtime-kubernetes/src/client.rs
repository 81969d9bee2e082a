//! What speaks to the API server.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::legacy::{Client as Http, Error as HttpError};
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use rustls::CertificateError;
use tower::limit::RateLimitLayer;
use tower::retry::RetryLayer;
use tower::util::MapErr;
use tower::{BoxError, ServiceBuilder};

use crate::access::Access;
use crate::error::{ClientError, Error, Result, deepest};
use crate::sign_in::{Credentials, SigningIn};

const KEEPALIVE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// A client whose connections do not wait to fill a packet, which the library's own do: through a tunnel,
/// that is 40 ms now and again.
pub(crate) async fn open(
    access: Access,
    credentials: Credentials,
    most: NonZeroU32,
) -> Result<Client> {
    let failed = Error::api("connecting to the API server");
    let Access { mut config, proxy } = access;
    if credentials.has_words().await {
        // It has been run: for a certificate it would be once more.
        config.auth_info.exec = None;
        config.auth_info.auth_provider = None;
    }
    let mut straight = HttpConnector::new();
    straight.enforce_http(false);
    straight.set_nodelay(true);
    straight.set_connect_timeout(config.connect_timeout);
    straight.set_keepalive(Some(KEEPALIVE));
    // One implementation of cryptography in the process; it may be there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let credentials = Arc::new(credentials);
    let server = config.cluster_url.to_string();
    let Some(proxy) = proxy else {
        let connector = config.rustls_https_connector_with_connector(straight);
        return assemble(
            &config,
            credentials,
            connector.map_err(&failed)?,
            server,
            most,
        );
    };
    let mut to_proxy = config.clone();
    // That is the API server's name.
    to_proxy.tls_server_name = None;
    let connector = to_proxy.rustls_https_connector_with_connector(straight);
    let connector = MapErr::new(connector.map_err(&failed)?, ProxyError);
    let mut tunnel = Tunnel::new(proxy.uri().clone(), connector);
    if let Some(login) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(login.clone());
    }
    let connector = config.rustls_https_connector_with_connector(tunnel);
    let place = format!("{server} by the proxy {}", proxy.uri());
    assemble(
        &config,
        credentials,
        connector.map_err(&failed)?,
        place,
        most,
    )
}

fn assemble<C>(
    config: &Config,
    credentials: Arc<Credentials>,
    connector: C,
    place: String,
    most: NonZeroU32,
) -> Result<Client>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let extra = config.extra_headers_layer();
    let extra = extra.map_err(Error::api("connecting to the API server"))?;
    let service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(most.get().into(), SECOND))
        .layer(config.base_uri_layer())
        // Honours Retry-After.
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .map_err(move |error| explain(error, &place))
        .layer_fn(move |inner| SigningIn {
            inner,
            credentials: credentials.clone(),
        })
        // Whom we act as, if the operator's file says so.
        .layer(extra)
        .map_err(BoxError::from)
        .service(Http::builder(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// What goes wrong on the way to the proxy, not on that through it.
#[derive(Debug, thiserror::Error)]
#[error("connecting to the proxy")]
struct ProxyError(#[source] BoxError);

/// Says of a connection that could not be made where to it was, and what to look at.
fn explain(error: BoxError, place: &str) -> BoxError {
    let connecting = error.downcast_ref::<HttpError>();
    if !connecting.is_some_and(HttpError::is_connect) {
        return error;
    }
    let why = deepest(&*error);
    let proxy = find::<ProxyError>(&*error).is_some();
    let advice = match certificate(&*error) {
        None => "",
        Some(why) if is_stranger(why) && proxy => {
            "; the authority of the proxy's certificate has to be in the kubeconfig's \
             `certificate-authority`, too"
        }
        Some(why) if is_stranger(why) => {
            "; its certificate is of another authority than the kubeconfig's `certificate-authority`"
        }
        Some(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "; is this machine's clock right?",
        Some(_) if proxy => "; `proxy-url` has to have a name that is in the proxy's certificate",
        Some(_) => "; see `certificate-authority` and `tls-server-name` of the kubeconfig",
    };
    ClientError::Connect(format!("{place}: {why}{advice}")).into()
}

/// What is wrong with the other end's certificate, if that is it.
pub(crate) fn certificate<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a CertificateError> {
    match find(error)? {
        rustls::Error::InvalidCertificate(why) => Some(why),
        _ => None,
    }
}

/// Whether a certificate is of an authority that is not known. Many have the same name as that: of a
/// cluster, it is often `kubernetes`.
pub(crate) fn is_stranger(why: &CertificateError) -> bool {
    matches!(
        why,
        CertificateError::UnknownIssuer | CertificateError::BadSignature
    )
}

/// The first error of a type, below all wrapping.
fn find<'a, E: std::error::Error + 'static>(
    mut error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let held = error.downcast_ref::<std::io::Error>();
        error = match held.and_then(std::io::Error::get_ref) {
            // Its source is below what it holds.
            Some(held) => held,
            None => error.source()?,
        };
    }
}
