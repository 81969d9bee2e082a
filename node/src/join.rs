//! Joining HQ: sign-in, who am I, and does the encryption fit (protocol 1.5 to 1.7).

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::render;
use crate::config::Config;
use crate::crypto::{Codec, CryptoError, PrivateKey};
use crate::hq::{
    Collaboration, Credentials, Hq, HqAddress, HqError, Http, HttpSettings, HttpSetupError,
    Identity, SignInError, Tokens,
};
use crate::runs::patience;

/// What a node is once HQ knows it.
#[derive(Debug)]
pub struct Membership {
    /// HQ, signed in.
    pub hq: Hq,
    /// Who the node is.
    pub us: Identity,
    /// The name of its organization.
    pub organization: String,
    /// Its collaboration.
    pub collaboration: Collaboration,
    /// How values are written there.
    pub codec: Codec,
}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// A proxy or certificate in the configuration cannot be used.
    #[error("the connection to HQ cannot be set up")]
    Http(#[from] HttpSetupError),
    /// Keycloak does not let the node in.
    #[error("the node cannot sign in")]
    SignIn(#[from] SignInError),
    /// HQ does not answer as it should.
    #[error("HQ does not let the node join")]
    Hq(#[from] HqError),
    /// The two sides disagree about encryption.
    #[error(
        "the collaboration \"{collaboration}\" is {} at HQ, but encryption.enabled is {configured} in the configuration: set it to {}",
        if *.configured { "not encrypted" } else { "encrypted" },
        !.configured
    )]
    EncryptionMismatch {
        /// The collaboration's name.
        collaboration: String,
        /// What the configuration says.
        configured: bool,
    },
    /// The file of the private key cannot be read.
    #[error("the private key {} cannot be read: give encryption.private_key the file of this organization's key, or make one with `openssl genrsa -traditional 4096`", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds no usable key.
    #[error("the private key in {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CryptoError,
    },
}

impl JoinError {
    /// Whether trying again may help without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::SignIn(error) => error.is_retryable(),
            Self::Hq(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Signs in and joins, waiting for a server that is not there yet; each failed try is logged.
/// Cancel-safe.
///
/// # Errors
/// Only those that are not [retryable](JoinError::is_retryable).
pub async fn join_patiently(config: &Config) -> Result<Membership, JoinError> {
    let mut pause = patience();
    loop {
        match join(config).await {
            Err(error) if error.is_retryable() => {
                let pause = pause.pause();
                tracing::warn!(
                    error = render(&error as &dyn StdError),
                    ?pause,
                    "HQ cannot be joined yet; trying again"
                );
                tokio::time::sleep(pause).await;
            }
            other => return other,
        }
    }
}

/// Signs in and joins, once.
///
/// # Errors
/// [`JoinError`].
pub async fn join(config: &Config) -> Result<Membership, JoinError> {
    let http = Http::new(http_settings(config))?;
    let key = private_key(config)?;
    let address = HqAddress::new(config.hq.api())?;
    let tokens = Tokens::sign_in(&http, credentials(config)).await?;
    let hq = Hq::new(http, address, tokens);
    let us = hq.whoami().await?;
    let organization = hq.organization(us.organization).await?;
    let collaboration = hq.collaboration(us.collaboration).await?;
    let codec = match (key, collaboration.encrypted) {
        (None, false) => Codec::Plain,
        (Some(key), true) => {
            if !key.matches(&organization.public_key) {
                publish(&hq, &us, &key, organization.public_key.is_empty()).await?;
            }
            Codec::Encrypted(Arc::new(key))
        }
        (key, _) => {
            let (configured, collaboration) = (key.is_some(), collaboration.name);
            return Err(JoinError::EncryptionMismatch {
                collaboration,
                configured,
            });
        }
    };
    Ok(Membership {
        hq,
        us,
        organization: organization.name,
        collaboration,
        codec,
    })
}

/// HQ keeps one key for each organization, and its nodes set it, as the Python node does.
async fn publish(hq: &Hq, us: &Identity, key: &PrivateKey, first: bool) -> Result<(), HqError> {
    if first {
        tracing::info!("publishing this organization's public key at HQ");
    } else {
        tracing::warn!(
            "HQ has another public key for this organization; it is replaced by this node's, and what was encrypted for the other cannot be read here"
        );
    }
    hq.set_public_key(us.organization, &key.public_for_hq())
        .await
}

fn private_key(config: &Config) -> Result<Option<PrivateKey>, JoinError> {
    let path = match &config.encryption.private_key {
        Some(path) if config.encryption.enabled => path.clone(),
        _ => return Ok(None),
    };
    let pem = std::fs::read(&path).map_err(|source| JoinError::KeyFile {
        path: path.clone(),
        source,
    })?;
    PrivateKey::from_pem(&pem)
        .map(Some)
        .map_err(|source| JoinError::Key { path, source })
}

fn http_settings(config: &Config) -> HttpSettings {
    let proxy = &config.runtime.proxy;
    HttpSettings {
        http_proxy: proxy.http.clone(),
        https_proxy: proxy.https.clone(),
        no_proxy: proxy.no_proxy.clone(),
        ca_certificates: config.runtime.ca_certificates.clone(),
        ..HttpSettings::default()
    }
}

fn credentials(config: &Config) -> Credentials {
    Credentials {
        keycloak: config.keycloak.url.clone(),
        realm: config.keycloak.realm.clone(),
        node_name: config.name.clone(),
        api_key: config.api_key.clone(),
    }
}
