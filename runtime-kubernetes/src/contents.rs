//! What a run's Secrets hold: the key of its tunnel, small inputs, a login for its image.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rand::RngCore;
use v6_runtime::{EnvValue, MountSource, Owner, RegistryCredentials, RunSpec};

use crate::error::{Error, Result};
use crate::record::{self, Record};

/// A Secret's content may have so many bytes.
const SECRET_MAX: usize = 1 << 20;

/// Under which the tunnel's key is.
pub(crate) const KEY: &str = "key";

/// One piece of a run's content that goes into a Secret.
struct Piece {
    key: String,
    bytes: Vec<u8>,
}

/// What a run's Secrets hold, before they have an owner.
pub(crate) struct Contents {
    /// The key of the tunnel.
    pub(crate) key: Vec<u8>,
    secrets: Vec<BTreeMap<String, ByteString>>,
    /// In which Secret each key is.
    places: BTreeMap<String, usize>,
    pull: Option<ByteString>,
}

impl Contents {
    /// Takes the content of a spec that is neither streamed nor elsewhere.
    pub(crate) fn new(spec: &RunSpec, credentials: &[RegistryCredentials]) -> Result<Self> {
        let mut key = vec![0; 32];
        rand::rng().fill_bytes(&mut key);
        // In text, since it is compared as it is.
        let key: Vec<u8> = key
            .iter()
            .flat_map(|b| format!("{b:02x}").into_bytes())
            .collect();
        let mut pieces = vec![Piece {
            key: KEY.into(),
            bytes: key.clone(),
        }];
        for (index, value) in spec.env.values().enumerate() {
            if let EnvValue::Secret(secret) = value {
                pieces.push(Piece {
                    key: env_key(index),
                    bytes: secret.expose().as_bytes().to_vec(),
                });
            }
        }
        for (index, mount) in spec.mounts.iter().enumerate() {
            let bytes = match &mount.source {
                MountSource::Inline(bytes) => bytes.to_vec(),
                MountSource::Secret(secret) => secret.expose().as_bytes().to_vec(),
                _ => continue,
            };
            pieces.push(Piece {
                key: given_key(index),
                bytes,
            });
        }
        let (mut secrets, mut places) = (vec![(0, BTreeMap::new())], BTreeMap::new());
        for Piece { key, bytes } in pieces {
            if bytes.len() > SECRET_MAX {
                let why = format!("{} bytes are too many for a Secret", bytes.len());
                return Err(v6_runtime::Error::invalid("env", why).into());
            }
            let room = |(used, _): &(usize, _)| used + bytes.len() <= SECRET_MAX;
            let at = secrets.iter().position(room).unwrap_or_else(|| {
                secrets.push((0, BTreeMap::new()));
                secrets.len() - 1
            });
            secrets[at].0 += bytes.len();
            places.insert(key.clone(), at);
            secrets[at].1.insert(key, ByteString(bytes));
        }
        Ok(Self {
            key,
            secrets: secrets.into_iter().map(|(_, data)| data).collect(),
            places,
            pull: pull_secret(spec, credentials)?,
        })
    }

    /// In which Secret the content of this key is, if in any.
    pub(crate) fn place(&self, key: &str) -> Option<usize> {
        self.places.get(key).copied()
    }

    /// The Secret with the login for the image, if there is one.
    pub(crate) fn login(&self) -> Option<usize> {
        self.pull.as_ref().map(|_| self.secrets.len())
    }

    /// How many Secrets there will be.
    pub(crate) fn len(&self) -> usize {
        self.secrets.len() + usize::from(self.pull.is_some())
    }

    /// The Secrets, owned by the pod: without it, the cluster removes them.
    pub(crate) fn secrets(self, owner: &Owner, record: &Record, pod: &Pod) -> Vec<Secret> {
        let owned = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: record::name(owner, &record.id),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let kinds = self.secrets.into_iter().map(|data| ("Opaque", data));
        let pull = self.pull.map(|config| {
            let data = BTreeMap::from([(".dockerconfigjson".to_owned(), config)]);
            ("kubernetes.io/dockerconfigjson", data)
        });
        let secret =
            |(index, (kind, data)): (usize, (&str, BTreeMap<String, ByteString>))| Secret {
                metadata: ObjectMeta {
                    name: Some(record.secret_name(owner, index)),
                    labels: Some(record.secret_labels(owner)),
                    owner_references: Some(vec![owned.clone()]),
                    ..ObjectMeta::default()
                },
                immutable: Some(true),
                type_: Some(kind.to_owned()),
                data: Some(data),
                ..Secret::default()
            };
        kinds.chain(pull).enumerate().map(secret).collect()
    }
}

pub(crate) fn env_key(index: usize) -> String {
    format!("env-{index}")
}

pub(crate) fn given_key(index: usize) -> String {
    format!("given-{index}")
}

/// What the cluster needs to fetch the image with, if it is in one of these registries.
fn pull_secret(spec: &RunSpec, credentials: &[RegistryCredentials]) -> Result<Option<ByteString>> {
    let registry = spec.image.reference.registry();
    let Some(login) = credentials.iter().find(|login| login.registry == registry) else {
        return Ok(None);
    };
    let host = match registry {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    let config = serde_json::json!({
        "auths": { host: { "username": login.username, "password": login.password.expose() } }
    });
    let config = serde_json::to_vec(&config).map_err(|error| Error::Config(error.to_string()))?;
    Ok(Some(ByteString(config)))
}
