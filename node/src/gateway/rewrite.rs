//! Values on their way between the algorithm, which sees plain base64, and HQ, which sees what
//! the collaboration asks for (protocol 6.5, 7).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::reply::Reply;
use crate::crypto::{Codec, CryptoError, decode_lenient, encode};
use crate::hq::{Hq, HqError};

/// How long an organization's key and HQ's blob store setting are believed.
const FRESH: Duration = Duration::from_secs(60);

/// What the rewriting needs to know of HQ, kept for a minute.
#[derive(Debug)]
pub(super) struct Directory {
    hq: Hq,
    keys: Mutex<HashMap<i64, (Instant, String)>>,
    blobs: Mutex<Option<(Instant, bool)>>,
}

impl Directory {
    pub(super) fn new(hq: Hq) -> Self {
        Self {
            hq,
            keys: Mutex::default(),
            blobs: Mutex::default(),
        }
    }

    /// The public key of an organization, which is not empty.
    async fn key(&self, organization: i64) -> Result<String, Reply> {
        if let Some((at, key)) = lock(&self.keys).get(&organization)
            && at.elapsed() < FRESH
        {
            return Ok(key.clone());
        }
        let found = self.hq.organization(organization).await.map_err(|error| {
            let text = format!("the public key of organization {organization} could not be had");
            match error {
                HqError::Status {
                    status, message, ..
                } if (400..500).contains(&status) => {
                    Reply::message(400, &format!("{text}: {message}"))
                }
                error => {
                    tracing::warn!(%error, organization, "no public key for a subtask");
                    Reply::message(503, &format!("{text}: HQ cannot be reached"))
                }
            }
        })?;
        if found.public_key.is_empty() {
            return Err(Reply::message(
                400,
                &format!(
                    "organization {organization} ('{}') has no public key at HQ, so nothing can be encrypted for it; its node uploads the key when it starts",
                    found.name
                ),
            ));
        }
        lock(&self.keys).insert(organization, (Instant::now(), found.public_key.clone()));
        Ok(found.public_key)
    }

    async fn has_blob_store(&self) -> Result<bool, Reply> {
        if let Some((at, enabled)) = *lock(&self.blobs)
            && at.elapsed() < FRESH
        {
            return Ok(enabled);
        }
        let enabled = self.hq.blob_store_enabled().await.map_err(|error| {
            tracing::warn!(%error, "HQ does not say whether it has a blob store");
            Reply::message(503, "HQ does not say whether it has a blob store")
        })?;
        *lock(&self.blobs) = Some((Instant::now(), enabled));
        Ok(enabled)
    }

    /// Encrypts the arguments of a `POST /task` for each organization in it.
    ///
    /// # Errors
    /// The answer that says what is wrong, with the organization.
    pub(super) async fn seal_arguments(
        &self,
        body: &mut Value,
        codec: &Codec,
    ) -> Result<(), Reply> {
        if !codec.is_encrypted() {
            return Ok(());
        }
        let blobs = self.has_blob_store().await?;
        let Some(organizations) = body.get_mut("organizations").and_then(Value::as_array_mut)
        else {
            return Ok(());
        };
        for item in organizations {
            let id = item.get("id").and_then(Value::as_i64).ok_or_else(|| {
                Reply::message(
                    400,
                    "each of 'organizations' needs an 'id' that is a number",
                )
            })?;
            let Some(Value::String(arguments)) = item.get_mut("arguments") else {
                continue;
            };
            // With a blob store the algorithm's client has uploaded them, and this is the id.
            if blobs && is_uuid(arguments) {
                continue;
            }
            let key = self.key(id).await?;
            let (codec, plain) = (codec.clone(), std::mem::take(arguments));
            let sealed = blocking(move || {
                let bytes = decode_lenient(plain.as_bytes())?;
                codec.encode(&bytes, &key)
            })
            .await
            .map_err(|error| {
                Reply::message(
                    400,
                    &format!("the arguments for organization {id} could not be encrypted: {error}"),
                )
            })?;
            *arguments = sealed;
        }
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work of the processor on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CryptoError> + Send + 'static,
) -> Result<T, CryptoError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(CryptoError::Library))
}

/// Opens the results in an answer to `GET /result`, one item or a page of them. What cannot be
/// opened stays as it is.
pub(super) fn open_results(answer: &mut Value, codec: &Codec) {
    match answer.get_mut("data").and_then(Value::as_array_mut) {
        Some(items) => items.iter_mut().for_each(|item| open_result(item, codec)),
        None => open_result(answer, codec),
    }
}

fn open_result(item: &mut Value, codec: &Codec) {
    if item.get("blob_storage_used").and_then(Value::as_bool) == Some(true) {
        return;
    }
    let Some(Value::String(result)) = item.get_mut("result") else {
        return;
    };
    if result.is_empty() {
        return;
    }
    match codec.decode(result) {
        Ok(bytes) => *result = encode(&bytes),
        Err(error) => {
            let run = item.get("id").and_then(Value::as_i64);
            tracing::warn!(run, %error, "a result is passed to the algorithm as HQ has it");
        }
    }
}

/// The canonical form, in which blobs are named.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::crypto::PrivateKey;

    fn sealed() -> (Codec, String) {
        let file: Value =
            serde_json::from_str(include_str!("../../tests/data/encryption-vectors.json")).unwrap();
        let pem = file["private_key_pem"].as_str().unwrap();
        let key = PrivateKey::from_pem(pem.as_bytes()).unwrap();
        let public = key.public_for_hq();
        (Codec::Encrypted(Arc::new(key)), public)
    }

    #[test]
    fn results_with_both_codecs() {
        let (codec, public) = sealed();
        for (codec, value) in [
            (Codec::Plain, encode(b"{\"n\": 1}")),
            (codec.clone(), codec.encode(b"{\"n\": 1}", &public).unwrap()),
        ] {
            let mut page = json!({"data": [
                {"id": 1, "result": value},
                {"id": 2, "result": null},
                {"id": 3, "result": ""},
                {"id": 4, "result": value, "blob_storage_used": true},
            ], "links": {"next": "/n"}});
            open_results(&mut page, &codec);
            assert_eq!(page["data"][0]["result"], encode(b"{\"n\": 1}"));
            assert_eq!(page["data"][1]["result"], Value::Null);
            assert_eq!(page["data"][2]["result"], "");
            assert_eq!(page["data"][3]["result"], value);
            assert_eq!(page["links"]["next"], "/n");
            let mut one = json!({"id": 1, "result": value});
            open_results(&mut one, &codec);
            assert_eq!(one["result"], encode(b"{\"n\": 1}"));
        }
    }

    #[test]
    fn what_cannot_be_opened_stays() {
        let (codec, _) = sealed();
        for bad in ["hello", "a$b$c", "eyJuIjogMX0="] {
            let mut one = json!({"id": 1, "result": bad});
            open_results(&mut one, &codec);
            assert_eq!(one["result"], bad);
        }
    }

    #[test]
    fn uuids() {
        assert!(is_uuid("01234567-89ab-cdef-0123-456789abcdef"));
        assert!(!is_uuid("0123456789abcdef0123456789abcdef0123"));
        assert!(!is_uuid("eyJuIjogMX0="));
    }
}
