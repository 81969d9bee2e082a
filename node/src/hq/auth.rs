//! Sign-in at Keycloak with the node's API key (protocol 1.5 and 14).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use serde::Deserialize;
use tokio::task::AbortHandle;
use url::Url;

use super::backoff::Backoff;
use super::connection::{ConnectionError, causes};
use super::http::Http;
use super::retry::{ReadError, read_bounded, stranger};
use crate::secret::Secret;

/// Who the node is for Keycloak.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Base address of Keycloak.
    pub keycloak: Url,
    /// The realm, normally `vantage6`.
    pub realm: String,
    /// The node's name as it was registered at HQ.
    pub node_name: String,
    /// What the user was shown when the node was made.
    pub api_key: Secret,
}

/// Why a token could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignInError {
    /// Keycloak knows no such node with that key. It says the same of a disabled node.
    #[error(
        "Keycloak refuses the API key of node '{node}' ({message}): check V6_NODE_NAME and V6_API_KEY; the name must be the one under which the node was created"
    )]
    WrongKey {
        /// The node's name.
        node: String,
        /// Keycloak's words.
        message: String,
    },
    /// An answer that no waiting will better, e.g. an unknown realm.
    #[error(
        "Keycloak at {address} answered {status} ({message}): check KEYCLOAK_URL and KEYCLOAK_REALM"
    )]
    Refused {
        /// The token endpoint.
        address: String,
        /// HTTP status.
        status: u16,
        /// Keycloak's words.
        message: String,
    },
    /// An answer that waiting may better.
    #[error("Keycloak at {address} is not ready (it answered {status}: {message})")]
    NotReady {
        /// The token endpoint.
        address: String,
        /// HTTP status; 200 if the body was not a token.
        status: u16,
        /// Keycloak's words.
        message: String,
    },
    /// No connection, or no answer in time.
    #[error("Keycloak at {address} could not be reached")]
    Unreachable {
        /// The token endpoint.
        address: String,
        /// The HTTP client's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `KEYCLOAK_URL` and the realm make no address.
    #[error("'{0}' is not a usable address of Keycloak")]
    Address(String),
}

impl SignInError {
    /// Whether it may work later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotReady { .. } | Self::Unreachable { .. })
    }
}

/// An access token with what is known of its life.
#[derive(Debug, Clone)]
pub struct Token {
    text: Secret,
    serial: u64,
    born: Instant,
    born_by_clock: SystemTime,
    life: Duration,
}

impl Token {
    /// For the `Authorization` header.
    pub fn secret(&self) -> &Secret {
        &self.text
    }

    /// The greater of the two: the monotonic clock stands still while a machine sleeps.
    fn age(&self) -> Duration {
        self.born
            .elapsed()
            .max(self.born_by_clock.elapsed().unwrap_or_default())
    }

    fn is_expired(&self) -> bool {
        self.age() + self.life.min(Duration::from_secs(100)) / 10 >= self.life
    }

    /// Whether a refusal may well be the token's fault.
    pub(super) fn is_doubtful(&self) -> bool {
        self.age() * 2 >= self.life
    }
}

/// The node's access token, always fresh. Clones share it; when the last one is dropped,
/// renewal stops.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Arc<Inner>,
    renewal: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

#[derive(Debug)]
struct Inner {
    http: Http,
    endpoint: Url,
    credentials: Credentials,
    current: Mutex<Token>,
    /// Held while a token is being asked for, so that there is one request at a time.
    asking: tokio::sync::Mutex<()>,
}

impl Tokens {
    /// Signs in once, and from then on renews the token at 50 to 75 % of its life, as long
    /// as it takes. Must be called within a Tokio runtime. Dropping the future leaves nothing.
    ///
    /// # Errors
    /// See [`SignInError`]; [`SignInError::is_retryable`] says whether to come again.
    pub async fn sign_in(http: &Http, credentials: Credentials) -> Result<Self, SignInError> {
        let endpoint = endpoint(&credentials)?;
        let first = ask(http, &endpoint, &credentials, 0).await?;
        let inner = Arc::new(Inner {
            http: http.clone(),
            endpoint,
            credentials,
            current: Mutex::new(first),
            asking: tokio::sync::Mutex::new(()),
        });
        let renewal = tokio::spawn(renew_ahead(inner.clone())).abort_handle();
        Ok(Self(Arc::new(Shared { inner, renewal })))
    }

    /// Signs in, waiting for a Keycloak that is not reachable or not ready, with growing
    /// pauses of at most a minute; each failed attempt is logged.
    ///
    /// # Errors
    /// Only those that are not retryable.
    pub async fn sign_in_patiently(
        http: &Http,
        credentials: Credentials,
    ) -> Result<Self, SignInError> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            match Self::sign_in(http, credentials.clone()).await {
                Err(error) if error.is_retryable() => {
                    let pause = backoff.pause();
                    let cause = causes(&error);
                    tracing::warn!(%error, cause, ?pause, "sign-in failed, trying again");
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
    }

    /// A token that has not expired. Waits as long as Keycloak cannot be reached, so put a
    /// limit around it; cancel-safe.
    pub async fn current(&self) -> Token {
        let token = self.0.inner.latest();
        if token.is_expired() {
            self.renewed(&token).await
        } else {
            token
        }
    }

    /// A token newer than `stale`, which HQ has refused. One request serves all who ask
    /// meanwhile. Waits as long as it takes; cancel-safe.
    pub async fn renewed(&self, stale: &Token) -> Token {
        self.0.inner.renewed(stale).await
    }
}

impl Inner {
    fn latest(&self) -> Token {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn renewed(&self, stale: &Token) -> Token {
        let _one_at_a_time = self.asking.lock().await;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let latest = self.latest();
            if latest.serial > stale.serial {
                return latest;
            }
            match ask(
                &self.http,
                &self.endpoint,
                &self.credentials,
                latest.serial + 1,
            )
            .await
            {
                Ok(token) => {
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = token;
                }
                // Even a refusal: a client that was disabled may be enabled again.
                Err(error) => {
                    let pause = backoff.pause();
                    let cause = causes(&error);
                    if error.is_retryable() {
                        tracing::warn!(%error, cause, ?pause, "token not renewed, trying again");
                    } else {
                        tracing::error!(%error, cause, ?pause, "token not renewed, trying again");
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

async fn renew_ahead(inner: Arc<Inner>) {
    loop {
        let token = inner.latest();
        let due = token.life.mul_f64(rand::rng().random_range(0.5..0.75));
        tokio::time::sleep(due.saturating_sub(token.age())).await;
        inner.renewed(&token).await;
    }
}

fn endpoint(credentials: &Credentials) -> Result<Url, SignInError> {
    let mut url = credentials.keycloak.clone();
    let path = [
        "realms",
        &credentials.realm,
        "protocol",
        "openid-connect",
        "token",
    ];
    url.path_segments_mut()
        .map_err(|()| SignInError::Address(credentials.keycloak.to_string()))?
        .pop_if_empty()
        .extend(path);
    Ok(url)
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: f64,
}

#[derive(Deserialize)]
struct Denied {
    error: Option<String>,
    error_description: Option<String>,
}

async fn ask(
    http: &Http,
    endpoint: &Url,
    credentials: &Credentials,
    serial: u64,
) -> Result<Token, SignInError> {
    let address = endpoint.to_string();
    let unreachable = |error: ConnectionError| SignInError::Unreachable {
        address: address.clone(),
        source: Box::new(error),
    };
    // Counted from before the request: the token is at least as old as we think.
    let (born, born_by_clock) = (Instant::now(), SystemTime::now());
    let client_id = format!("{}-node-client", credentials.node_name);
    let request = http.client.post(endpoint.clone()).form(&[
        ("grant_type", "client_credentials"),
        ("client_id", &client_id),
        ("client_secret", credentials.api_key.expose()),
        ("scope", "openid"),
    ]);
    let response = http.send(endpoint, request).await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let body = read_bounded(http, response, 1 << 20)
        .await
        .map_err(|error| match error {
            ReadError::Connection(error) => unreachable(error),
            ReadError::TooLarge => SignInError::NotReady {
                address: address.clone(),
                status,
                message: "the answer is too large".to_owned(),
            },
        })?;
    if status == 200 {
        if let Ok(granted) = serde_json::from_slice::<Granted>(&body)
            && granted.expires_in.is_finite()
        {
            return Ok(Token {
                text: Secret::new(granted.access_token),
                serial,
                born,
                born_by_clock,
                life: Duration::from_secs_f64(granted.expires_in.clamp(1.0, 86_400.0)),
            });
        }
        let message = "the answer holds no access token".to_owned();
        return Err(SignInError::NotReady {
            address,
            status,
            message,
        });
    }
    let message = match serde_json::from_slice::<Denied>(&body) {
        Ok(
            Denied {
                error_description: Some(text),
                ..
            }
            | Denied {
                error: Some(text), ..
            },
        ) => text,
        _ => {
            let proxy = http.clear_proxy(endpoint).map(|proxy| proxy.to_string());
            stranger(&body, proxy.as_deref())
        }
    };
    Err(match status {
        401 => SignInError::WrongKey {
            node: credentials.node_name.clone(),
            message,
        },
        408 | 429 | 500..=599 => SignInError::NotReady {
            address,
            status,
            message,
        },
        _ => SignInError::Refused {
            address,
            status,
            message,
        },
    })
}
