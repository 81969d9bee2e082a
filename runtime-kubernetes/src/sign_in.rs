//! Who we are at the API server: shown with each request, and read anew when that is not believed.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, Response, StatusCode};
use kube::Config;
use kube::client::middleware::AuthLayer;
use kube::client::{AuthError, Body, ConfigExt};
use kube::config::AuthInfo;
use tokio::sync::{Mutex, oneshot};
use tower::{BoxError, Layer, Service, ServiceExt};

use crate::access;
use crate::config::KubernetesConfig;
use crate::error::{ClientError, Error, Result};
use crate::oidc;

/// A token's file is read again after so long, as client-go does.
const FILE_AGE: Duration = Duration::from_secs(60);
/// What was not believed is read anew at most so often.
const PAUSE: Duration = Duration::from_secs(5);
/// So much is told of what a plugin says.
const WORDS: usize = 300;
const NO_WORD: &str = "the token cannot be sent: is it one word?";

pub(crate) struct Credentials {
    ours: KubernetesConfig,
    held: Mutex<Held>,
}

/// What shows who we are.
#[derive(Clone)]
enum Shown {
    /// The connection's certificate, or nothing.
    Nothing,
    /// What the library adds to a request.
    Added(Arc<AuthLayer>),
    OpenId(Arc<oidc::Provider>),
}

#[derive(Clone)]
struct Held {
    shown: Shown,
    info: AuthInfo,
    /// Which this is of those that there were.
    number: u64,
    made: Instant,
    /// When it was last tried to have another.
    tried: Option<Instant>,
}

impl Held {
    fn is_open_id(&self) -> bool {
        matches!(self.shown, Shown::OpenId(_))
    }
}

impl Credentials {
    /// Gets what the configuration says, which may be by a plugin's run.
    pub(crate) async fn new(ours: &KubernetesConfig, config: &Config) -> Result<Self> {
        let shown = shown(config, ours.call_timeout).await?;
        let held = Held {
            shown,
            info: config.auth_info.clone(),
            number: 0,
            made: Instant::now(),
            tried: None,
        };
        Ok(Self {
            ours: ours.clone(),
            held: Mutex::new(held),
        })
    }

    /// Whether it is shown by words, not by a certificate.
    pub(crate) async fn has_words(&self) -> bool {
        !matches!(self.held.lock().await.shown, Shown::Nothing)
    }

    async fn current(&self) -> Held {
        let mut held = self.held.lock().await;
        if held.info.token_file.is_some() && held.made.elapsed() >= FILE_AGE {
            // Whoever cannot be read any more may still be believed.
            held.made = Instant::now();
            let renewed = match access::find(&self.ours).await {
                Ok(found) => self.take(&mut held, found.config).await,
                Err(error) => Err(error),
            };
            if let Err(error) = renewed {
                tracing::warn!(%error, "the token cannot be read anew");
            }
        }
        held.clone()
    }

    /// What to try instead of what was not believed; `None` if there is nothing else.
    async fn instead_of(&self, number: u64) -> Result<Option<Held>> {
        let mut held = self.held.lock().await;
        if held.number != number {
            return Ok(Some(held.clone()));
        }
        if held.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return Ok(None);
        }
        held.tried = Some(Instant::now());
        let found = access::find(&self.ours).await?;
        // Of what such a provider gives, the file has only the first: we have more, until that is another.
        if let (Some(ours), Some(theirs)) = (
            &held.info.auth_provider,
            &found.config.auth_info.auth_provider,
        ) && (&ours.name, &ours.config) == (&theirs.name, &theirs.config)
        {
            return Ok(None);
        }
        self.take(&mut held, found.config).await?;
        Ok(Some(held.clone()))
    }

    async fn take(&self, held: &mut Held, found: Config) -> Result<()> {
        held.shown = shown(&found, self.ours.call_timeout).await?;
        held.info = found.auth_info;
        held.number += 1;
        held.made = Instant::now();
        Ok(())
    }
}

/// What a configuration says that shows who we are.
async fn shown(config: &Config, limit: Duration) -> Result<Shown> {
    if let Some(provider) = &config.auth_info.auth_provider
        && provider.name == "oidc"
    {
        let provider = oidc::Provider::new(&provider.config, limit)?;
        return Ok(Shown::OpenId(Arc::new(provider)));
    }
    let layer = layer(config, limit).await?;
    Ok(layer.map_or(Shown::Nothing, |layer| Shown::Added(Arc::new(layer))))
}

/// What adds who we are to requests.
async fn layer(config: &Config, limit: Duration) -> Result<Option<AuthLayer>> {
    let mut config = config.clone();
    if let (None, Some(path)) = (&config.auth_info.token, &config.auth_info.token_file) {
        let token = tokio::fs::read_to_string(path).await.map_err(|error| {
            Error::SignIn(format!("the token's file {path} cannot be read: {error}"))
        })?;
        // Most have the end of a line in them, and the library would send it.
        config.auth_info.token = Some(token.trim().to_owned().into());
    }
    let info = config.auth_info.clone();
    let (tell, told) = oneshot::channel();
    // It waits for a plugin, and panics at a token that is none. A thread of our own, since one of the
    // runtime's would keep the process from ending for as long as the plugin likes.
    std::thread::spawn(move || {
        let layer = config.auth_layer().and_then(|layer| {
            let nothing = layer.is_none() && config.auth_info.exec.is_some();
            if nothing {
                let tls = config.rustls_client_config()?;
                if !tls.client_auth_cert_resolver.has_certs() {
                    return Err(kube::Error::Auth(AuthError::ExecPluginFailed));
                }
            }
            Ok(layer)
        });
        // Nobody waits for it any more.
        let _ = tell.send(layer);
    });
    let got = match tokio::time::timeout(limit, told).await {
        Ok(Ok(got)) => got,
        Ok(Err(_)) => {
            return Err(Error::SignIn(NO_WORD.into()));
        }
        Err(_) => {
            let why = format!("{} does not answer within {limit:?}", plugin(&info));
            return Err(Error::SignIn(why));
        }
    };
    got.map_err(|error| match error {
        kube::Error::Auth(error) => Error::SignIn(words(&info, &error)),
        other => Error::api("signing in at the cluster")(other),
    })
}

fn plugin(info: &AuthInfo) -> String {
    let provider = || Some(info.auth_provider.as_ref()?.name.as_str());
    let command = info.exec.as_ref().and_then(|exec| exec.command.as_deref());
    match command.or_else(provider) {
        Some(name) => format!("the plugin {name}"),
        None => "the plugin".to_owned(),
    }
}

/// What went wrong, without what a plugin has printed: a token may be in it.
fn words(info: &AuthInfo, error: &AuthError) -> String {
    let who = plugin(info);
    match error {
        AuthError::AuthExecStart(error) => format!("{who} cannot be run: {error}"),
        AuthError::AuthExecRun { out, .. } => {
            let said = String::from_utf8_lossy(&out.stderr);
            let last = said.lines().rfind(|line| !line.trim().is_empty());
            let said: String = last
                .unwrap_or("it does not say why")
                .chars()
                .filter(|c| !c.is_control())
                .take(WORDS)
                .collect();
            format!("{who} has failed ({}): {said}", out.status)
        }
        AuthError::AuthExecParse(_) => format!("what {who} prints is no ExecCredential"),
        AuthError::ExecPluginFailed | AuthError::UnrefreshableTokenResponse => {
            format!("{who} gives neither a token nor a certificate")
        }
        AuthError::MalformedTokenExpirationDate(_) => {
            format!("{who} gives an `expirationTimestamp` that is no time")
        }
        AuthError::InvalidBearerToken(_) => NO_WORD.to_owned(),
        other => other.to_string(),
    }
}

/// Requests of a client with [`Credentials`].
#[derive(Clone)]
pub(crate) struct SigningIn<S> {
    pub(crate) inner: S,
    pub(crate) credentials: Arc<Credentials>,
}

impl<S, B> Service<Request<Body>> for SigningIn<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, credentials) = (self.inner.clone(), self.credentials.clone());
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let again = body.try_clone();
            let again = again.map(|body| Request::from_parts(parts.clone(), body));
            let held = credentials.current().await;
            let request = Request::from_parts(parts, body);
            let answer = send(&held, inner.clone(), request).await;
            let over = match &answer {
                Ok(answer) => answer.status() == StatusCode::UNAUTHORIZED,
                // A plugin has just been asked.
                Err(error) => held.is_open_id() && is_sign_in(error),
            };
            match again {
                Some(again) if over => match credentials.instead_of(held.number).await {
                    Ok(Some(other)) => send(&other, inner, again).await,
                    Ok(None) => answer,
                    Err(error) => {
                        let before = answer.err().map(|before| format!("{before}; "));
                        let why = format!("{}{error}", before.unwrap_or_default());
                        Err(ClientError::SignIn(why).into())
                    }
                },
                _ => answer,
            }
        })
    }
}

fn is_sign_in(error: &BoxError) -> bool {
    let ours = error.downcast_ref();
    matches!(ours, Some(ClientError::SignIn(_)))
}

async fn bearer(provider: &Arc<oidc::Provider>) -> Result<HeaderValue> {
    let token = provider.token().await?;
    let header = HeaderValue::try_from(format!("Bearer {}", token.expose()));
    let mut header = header.map_err(|_| Error::SignIn(NO_WORD.into()))?;
    header.set_sensitive(true);
    Ok(header)
}

async fn send<S, B>(
    held: &Held,
    inner: S,
    mut request: Request<Body>,
) -> Result<Response<B>, BoxError>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    let layer = match &held.shown {
        Shown::Nothing => return inner.oneshot(request).await,
        Shown::Added(layer) => layer,
        Shown::OpenId(provider) => {
            let shown = bearer(provider).await;
            let shown = shown.map_err(|error| ClientError::SignIn(error.to_string()))?;
            request.headers_mut().insert(AUTHORIZATION, shown);
            return inner.oneshot(request).await;
        }
    };
    let sent = layer.layer(inner).oneshot(request).await;
    sent.map_err(|error| match error.downcast_ref::<AuthError>() {
        Some(cause) => ClientError::SignIn(words(&held.info, cause)).into(),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use v6_runtime::{ImageRef, Owner};

    use super::*;

    /// With the token of a file.
    async fn of_file(folder: &std::path::Path) -> Arc<Credentials> {
        let kubeconfig = folder.join("kubeconfig");
        let text = "{clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], \
                    users: [{name: u, user: {tokenFile: token}}], current-context: x, \
                    contexts: [{name: x, context: {cluster: c, user: u}}]}";
        std::fs::write(&kubeconfig, text).expect("a file");
        let owner = Owner::new("hospital").expect("a name");
        let image = ImageRef::parse("localhost/helper").expect("a name");
        let ours = KubernetesConfig::new(owner, image).with_kubeconfig(Some(kubeconfig));
        let found = access::find(&ours).await.expect("a cluster");
        let credentials = Credentials::new(&ours, &found.config).await;
        Arc::new(credentials.expect("a token"))
    }

    /// What a server is shown, and whether it believes that.
    async fn shown(credentials: &Arc<Credentials>, believed: &'static str) -> (String, bool) {
        let inner = tower::service_fn(move |request: Request<Body>| async move {
            let header = request.headers().get(hyper::header::AUTHORIZATION);
            let token = header.and_then(|value| value.to_str().ok());
            let token = token.unwrap_or_default().to_owned();
            let mut answer = Response::new(token);
            if answer.body() != believed && !believed.is_empty() {
                *answer.status_mut() = StatusCode::UNAUTHORIZED;
            }
            Ok::<_, BoxError>(answer)
        });
        let service = SigningIn {
            inner,
            credentials: credentials.clone(),
        };
        let answer = service.oneshot(Request::new(Body::empty())).await;
        let answer = answer.expect("an answer");
        let ok = answer.status().is_success();
        (answer.into_body(), ok)
    }

    fn is(token: &str, believed: bool) -> (String, bool) {
        (format!("Bearer {token}"), believed)
    }

    #[tokio::test]
    async fn a_file_is_read_again_after_a_minute() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("token");
        std::fs::write(&token, " old\n").expect("a file");
        let credentials = of_file(folder.path()).await;
        std::fs::write(&token, "new\n").expect("a file");
        assert_eq!(shown(&credentials, "").await, is("old", true));
        let wait = async || credentials.held.lock().await.made -= FILE_AGE;
        wait().await;
        assert_eq!(shown(&credentials, "").await, is("new", true));
        // It may be that nobody is to read it any more.
        std::fs::remove_file(&token).expect("a file");
        wait().await;
        assert_eq!(shown(&credentials, "").await, is("new", true));
    }

    #[tokio::test]
    async fn what_is_not_believed_is_read_again_now_and_then() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("token");
        std::fs::write(&token, "old").expect("a file");
        let credentials = of_file(folder.path()).await;
        assert_eq!(shown(&credentials, "Bearer new").await, is("old", false));
        std::fs::write(&token, "new").expect("a file");
        assert_eq!(shown(&credentials, "Bearer new").await, is("old", false));
        let tried = credentials.held.lock().await.tried.expect("a try");
        credentials.held.lock().await.tried = tried.checked_sub(PAUSE);
        assert_eq!(shown(&credentials, "Bearer new").await, is("new", true));
    }
}
