//! Whole values in memory: arguments, and results that an algorithm asks for.

use std::sync::Arc;

use super::CryptoError;
use super::base64::{decode_lenient, encode};
use super::json::is_python_json;
use super::keys::{PrivateKey, PublicKey};
use super::stream::{Ctr, IV_LEN, KEY_LEN, ResultEncoder, seal};

/// How a collaboration writes values.
#[derive(Clone, Debug)]
pub enum Codec {
    /// Base64 only ("dummy cryptor", protocol 7.4).
    Plain,
    /// Encrypted for the receiving organization; ours is read with this key.
    Encrypted(Arc<PrivateKey>),
}

impl Codec {
    /// Whether values are encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// Writes `bytes` for the organization whose `public_key` at HQ is `receiver`; without
    /// encryption `receiver` is not looked at.
    ///
    /// # Errors
    /// [`CryptoError::PublicKey`], [`CryptoError::Library`].
    pub fn encode(&self, bytes: &[u8], receiver: &str) -> Result<String, CryptoError> {
        let mut encoder = ResultEncoder::for_codec(self, receiver)?;
        let mut out = String::new();
        encoder.push(bytes, &mut out)?;
        encoder.finish(&mut out);
        Ok(out)
    }

    /// Writes `bytes` in the binary form of the blob store (protocol 7.3): the two heads as
    /// text, then the ciphertext itself; without encryption base64 all the same.
    ///
    /// # Errors
    /// [`CryptoError::PublicKey`], [`CryptoError::Library`].
    pub fn encode_blob(&self, bytes: &[u8], receiver: &str) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::Plain => Ok(encode(bytes).into_bytes()),
            Self::Encrypted(_) => encrypt_blob(&PublicKey::from_hq(receiver)?, bytes),
        }
    }

    /// Reads a blob that was written for this organization. The plaintext is given as it
    /// is, whatever it holds; only the AES key may have been encoded once more.
    ///
    /// # Errors
    /// [`CryptoError::Form`], [`CryptoError::Base64`], [`CryptoError::NotForUs`].
    pub fn decode_blob(&self, blob: &[u8]) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::Plain => decode_lenient(blob),
            Self::Encrypted(key) => {
                let mut parts = blob.splitn(3, |&byte| byte == b'$');
                let (Some(wrapped), Some(iv), Some(body)) =
                    (parts.next(), parts.next(), parts.next())
                else {
                    return Err(CryptoError::Form);
                };
                open(key, wrapped, iv, body)
            }
        }
    }

    /// Reads a value that was written for this organization.
    ///
    /// In an encrypted collaboration this follows protocol 7.2: an AES key that a browser
    /// encoded once more is decoded once more, and a plaintext that is no JSON is taken as
    /// base64 if it is that. Unlike Python, plaintext that is neither is given as it is.
    ///
    /// # Errors
    /// [`CryptoError::Form`], [`CryptoError::Base64`], [`CryptoError::NotForUs`].
    pub fn decode(&self, value: &str) -> Result<Vec<u8>, CryptoError> {
        match self {
            Self::Plain => decode_lenient(value.as_bytes()),
            Self::Encrypted(key) => decrypt_text(key, value),
        }
    }
}

fn decrypt_text(private: &PrivateKey, value: &str) -> Result<Vec<u8>, CryptoError> {
    let mut parts = value.splitn(3, '$');
    let (Some(wrapped), Some(iv), Some(body)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(CryptoError::Form);
    };
    let body = decode_lenient(body.as_bytes())?;
    let plain = open(private, wrapped.as_bytes(), iv.as_bytes(), &body)?;
    Ok(match std::str::from_utf8(&plain) {
        Ok(text) if !is_python_json(text) => decode_lenient(&plain).unwrap_or(plain),
        _ => plain,
    })
}

/// Decrypts `body` by the base64 heads before it.
fn open(
    private: &PrivateKey,
    wrapped: &[u8],
    iv: &[u8],
    body: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let iv: [u8; IV_LEN] = decode_lenient(iv)?
        .try_into()
        .map_err(|_| CryptoError::Form)?;
    let mut key = private.decrypt(&decode_lenient(wrapped)?)?;
    if key.len() != KEY_LEN {
        // The browser encrypts base64 of the key, since it cannot encrypt bytes.
        *key = decode_lenient(&key).map_err(|_| CryptoError::NotForUs)?;
    }
    if key.len() != KEY_LEN {
        return Err(CryptoError::NotForUs);
    }
    let mut plain = Vec::with_capacity(body.len() + IV_LEN);
    Ctr::new(&key, &iv)?.apply(body, &mut plain)?;
    Ok(plain)
}

fn encrypt_blob(receiver: &PublicKey, bytes: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let (head, mut cipher) = seal(receiver)?;
    let mut blob = head.into_bytes();
    cipher.apply(bytes, &mut blob)?;
    Ok(blob)
}
