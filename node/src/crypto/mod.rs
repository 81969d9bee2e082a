//! End-to-end encryption of arguments and results, as vantage6 5.0 and 4.x do it
//! (`vantage6.common.encryption`).
//!
//! A value is encrypted with a fresh AES-256-CTR key, and that key with the
//! receiver's RSA key in PKCS#1 v1.5. There is no MAC and no signature, and a node alone
//! cannot change that: see `docs/security.md`.
//!
//! - [`PrivateKey`], [`PublicKey`]: the keys of organizations and their PEM forms;
//! - [`Codec`]: what a collaboration uses, encrypted or not; whole values in memory;
//! - [`ResultEncoder`]: the same text form for large values, in constant memory.
//!
//! RSA and AES are aws-lc-rs's. Padding is checked there in constant time, and a failed
//! decryption is told to nobody but the node's own log.

mod base64;
mod json;
mod keys;
mod stream;
mod text;

pub use self::base64::{decode_lenient, encode};
pub use self::keys::{PrivateKey, PublicKey};
pub use self::stream::ResultEncoder;
pub use self::text::Codec;

/// Why a value or a key could not be used.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CryptoError {
    /// The text holds no unencrypted PEM private key.
    #[error(
        "the private key is not an unencrypted PEM private key (\"BEGIN RSA PRIVATE KEY\" or \"BEGIN PRIVATE KEY\")"
    )]
    PrivateKeyForm,
    /// The PEM text is fine, what it holds is not an RSA key of 2048 to 8192 bits.
    #[error("the private key is not an RSA key of 2048 to 8192 bits")]
    PrivateKeyKind,
    /// An organization's public key, as HQ gave it, cannot be used.
    #[error(
        "the public key of the organization is missing or is not base64 of a PEM RSA public key"
    )]
    PublicKey,
    /// The value is not `base64$base64$base64`.
    #[error("the value is not in the encrypted form (three parts joined by '$')")]
    Form,
    /// Not base64, even read as leniently as Python does.
    #[error("the value is not base64")]
    Base64,
    /// The AES key inside was not encrypted for this organization's key.
    #[error("the value was not encrypted for the key of this organization")]
    NotForUs,
    /// The cryptographic library failed, e.g. for want of random bytes.
    #[error("the cryptographic library failed")]
    Library,
}
