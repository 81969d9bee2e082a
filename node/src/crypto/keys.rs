//! Keys of organizations (protocol 7.1).

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use zeroize::Zeroizing;

use super::CryptoError;
use super::base64::{decode_lenient, encode};

/// The private key of the node's organization.
///
/// It cannot be printed, and gives nothing away but its public half.
pub struct PrivateKey {
    decrypting: Pkcs1PrivateDecryptingKey,
    public_pem: String,
}

impl PrivateKey {
    /// Reads an unencrypted PEM key, traditional (PKCS#1, what vantage6 makes) or PKCS#8.
    ///
    /// # Errors
    /// [`CryptoError::PrivateKeyForm`] if there is no such PEM section in `pem`,
    /// [`CryptoError::PrivateKeyKind`] if it is not an RSA key of 2048 to 8192 bits.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CryptoError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| CryptoError::PrivateKeyForm)?;
        let key = match &der {
            PrivateKeyDer::Pkcs1(key) => {
                PrivateDecryptingKey::from_pkcs8(&pkcs8_of_pkcs1(key.secret_pkcs1_der()))
            }
            PrivateKeyDer::Pkcs8(key) => PrivateDecryptingKey::from_pkcs8(key.secret_pkcs8_der()),
            _ => return Err(CryptoError::PrivateKeyKind),
        }
        .map_err(|_| CryptoError::PrivateKeyKind)?;
        let spki: PublicKeyX509Der<'_> = key
            .public_key()
            .as_der()
            .map_err(|_| CryptoError::Library)?;
        Ok(Self {
            public_pem: public_pem(spki.as_ref()),
            decrypting: Pkcs1PrivateDecryptingKey::new(key).map_err(|_| CryptoError::Library)?,
        })
    }

    /// The public half as OpenSSL writes it: `SubjectPublicKeyInfo` in PEM, 64 characters a
    /// line, a newline at the end.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The public half in the form of HQ's field `public_key`: base64 of the PEM text.
    pub fn public_for_hq(&self) -> String {
        encode(self.public_pem.as_bytes())
    }

    /// Whether HQ's field `public_key` is this key, byte for byte, as the Python node and
    /// clients compare it.
    pub fn matches(&self, public_key_at_hq: &str) -> bool {
        decode_lenient(public_key_at_hq.as_bytes())
            .is_ok_and(|pem| pem == self.public_pem.as_bytes())
    }

    pub(super) fn decrypt(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut room = Zeroizing::new(vec![0; self.decrypting.min_output_size()]);
        let length = self
            .decrypting
            .decrypt(wrapped, &mut room)
            .map_err(|_| CryptoError::NotForUs)?
            .len();
        room.truncate(length);
        Ok(room)
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey([secret])")
    }
}

/// The public key of an organization that is to read a value.
#[derive(Debug)]
pub struct PublicKey(Pkcs1PublicEncryptingKey);

impl PublicKey {
    /// Reads HQ's field `public_key`.
    ///
    /// # Errors
    /// [`CryptoError::PublicKey`] if it is empty or anything but base64 of a PEM RSA key.
    pub fn from_hq(public_key: &str) -> Result<Self, CryptoError> {
        let pem = decode_lenient(public_key.as_bytes()).map_err(|_| CryptoError::PublicKey)?;
        Self::from_pem(&pem)
    }

    /// Reads a PEM `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`CryptoError::PublicKey`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, CryptoError> {
        let der =
            SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| CryptoError::PublicKey)?;
        PublicEncryptingKey::from_der(&der)
            .ok()
            .and_then(|key| Pkcs1PublicEncryptingKey::new(key).ok())
            .map(Self)
            .ok_or(CryptoError::PublicKey)
    }

    pub(super) fn encrypt(&self, secret: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut room = vec![0; self.0.ciphertext_size()];
        let length = self
            .0
            .encrypt(secret, &mut room)
            .map_err(|_| CryptoError::Library)?
            .len();
        room.truncate(length);
        Ok(room)
    }
}

fn public_pem(spki: &[u8]) -> String {
    let text = encode(spki);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so any index is a character boundary.
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem
}

/// Wraps a PKCS#1 `RSAPrivateKey` into a PKCS#8 `PrivateKeyInfo` (RFC 5208), which is
/// the only private form that aws-lc-rs takes for decryption.
fn pkcs8_of_pkcs1(pkcs1: &[u8]) -> Zeroizing<Vec<u8>> {
    /// `version` 0, then the `AlgorithmIdentifier` of rsaEncryption with NULL parameters.
    const HEAD: [u8; 18] = [
        0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01,
        0x01, 0x05, 0x00,
    ];
    let octets = der_head(0x04, pkcs1.len());
    let outer = der_head(0x30, HEAD.len() + octets.len() + pkcs1.len());
    let mut der = Zeroizing::new(Vec::with_capacity(
        outer.len() + HEAD.len() + octets.len() + pkcs1.len(),
    ));
    der.extend_from_slice(&outer);
    der.extend_from_slice(&HEAD);
    der.extend_from_slice(&octets);
    der.extend_from_slice(pkcs1);
    der
}

fn der_head(tag: u8, length: usize) -> Vec<u8> {
    let bytes = length.to_be_bytes();
    let significant = &bytes[length.leading_zeros() as usize / 8..];
    match length {
        0..=0x7f => vec![tag, length as u8],
        _ => [&[tag, 0x80 | significant.len() as u8], significant].concat(),
    }
}
