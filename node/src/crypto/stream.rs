//! The text form of a result, produced piece by piece.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, StreamingDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use zeroize::Zeroizing;

use super::base64::encode;
use super::keys::PublicKey;
use super::{Codec, CryptoError};

pub(super) const KEY_LEN: usize = 32;
pub(super) const IV_LEN: usize = 16;
const BLOCK_LEN: usize = 16;

/// AES-256-CTR with a given first counter block. Encryption and decryption are the same
/// operation; aws-lc-rs lets only its decrypting half take a counter block from outside.
pub(super) struct Ctr(StreamingDecryptingKey);

impl Ctr {
    pub(super) fn new(key: &[u8], iv: &[u8; IV_LEN]) -> Result<Self, CryptoError> {
        let key = UnboundCipherKey::new(&AES_256, key).map_err(|_| CryptoError::Library)?;
        StreamingDecryptingKey::ctr(key, DecryptionContext::Iv128(FixedLength::from(iv)))
            .map(Self)
            .map_err(|_| CryptoError::Library)
    }

    pub(super) fn apply(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), CryptoError> {
        /// The library takes lengths below `i32::MAX` only.
        const PIECE: usize = 1 << 20;
        for piece in input.chunks(PIECE) {
            let from = out.len();
            out.resize(from + piece.len() + BLOCK_LEN, 0);
            let written = self
                .0
                .update(piece, &mut out[from..])
                .map_err(|_| CryptoError::Library)?
                .written()
                .len();
            out.truncate(from + written);
        }
        Ok(())
    }
}

/// A fresh AES key and counter block: their text heads for `receiver`, and the cipher.
pub(super) fn seal(receiver: &PublicKey) -> Result<(String, Ctr), CryptoError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let mut iv = [0; IV_LEN];
    aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| CryptoError::Library)?;
    aws_lc_rs::rand::fill(&mut iv).map_err(|_| CryptoError::Library)?;
    let wrapped = receiver.encrypt(key.as_slice())?;
    let head = format!("{}${}$", encode(&wrapped), encode(&iv));
    Ok((head, Ctr::new(key.as_slice(), &iv)?))
}

/// Turns the bytes of a result into the text that goes into HQ's field `result`, a piece
/// at a time: base64, or `base64(rsa)$base64(iv)$base64(aes)` (protocol 7.2, 7.4).
///
/// Memory is that of the piece at hand. Each encoder has a fresh key, so a repeated
/// attempt to send needs a new encoder.
pub struct ResultEncoder {
    head: String,
    cipher: Option<Ctr>,
    /// Up to two bytes that do not fill a base64 group yet.
    left: Vec<u8>,
    work: Vec<u8>,
}

impl ResultEncoder {
    /// For an unencrypted collaboration.
    pub fn plain() -> Self {
        Self {
            head: String::new(),
            cipher: None,
            left: Vec::new(),
            work: Vec::new(),
        }
    }

    /// For the organization that `receiver` belongs to.
    ///
    /// # Errors
    /// [`CryptoError::Library`] if there are no random bytes or RSA fails.
    pub fn encrypted(receiver: &PublicKey) -> Result<Self, CryptoError> {
        let (head, cipher) = seal(receiver)?;
        Ok(Self {
            head,
            cipher: Some(cipher),
            left: Vec::new(),
            work: Vec::new(),
        })
    }

    /// The encoder that `codec` asks for; `receiver` is HQ's `public_key` of the
    /// organization that is to read the result, and is not looked at without encryption.
    ///
    /// # Errors
    /// [`CryptoError::PublicKey`], [`CryptoError::Library`].
    pub fn for_codec(codec: &Codec, receiver: &str) -> Result<Self, CryptoError> {
        match codec {
            Codec::Plain => Ok(Self::plain()),
            Codec::Encrypted(_) => Self::encrypted(&PublicKey::from_hq(receiver)?),
        }
    }

    /// How many characters `input_len` bytes will become, all pieces and the end together.
    pub fn encoded_len(&self, input_len: u64) -> u64 {
        self.head.len() as u64 + input_len.div_ceil(3) * 4
    }

    /// Appends the text of the next bytes to `out`.
    ///
    /// # Errors
    /// [`CryptoError::Library`].
    pub fn push(&mut self, bytes: &[u8], out: &mut String) -> Result<(), CryptoError> {
        out.push_str(&std::mem::take(&mut self.head));
        self.work.clear();
        self.work.append(&mut self.left);
        match &mut self.cipher {
            None => self.work.extend_from_slice(bytes),
            Some(cipher) => cipher.apply(bytes, &mut self.work)?,
        }
        let whole = self.work.len() / 3 * 3;
        self.left.extend_from_slice(&self.work[whole..]);
        ::base64::Engine::encode_string(
            &::base64::engine::general_purpose::STANDARD,
            &self.work[..whole],
            out,
        );
        Ok(())
    }

    /// Appends what is left. An encoder that got no bytes at all gives the text of an
    /// empty result: nothing, or the two heads and an empty third part.
    pub fn finish(mut self, out: &mut String) {
        out.push_str(&std::mem::take(&mut self.head));
        out.push_str(&encode(&self.left));
    }
}

impl std::fmt::Debug for ResultEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResultEncoder")
            .field("encrypted", &self.cipher.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        key_hex: String,
        iv_hex: String,
        plaintext: String,
        ciphertext_hex: String,
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn aes_256_ctr_vectors() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/encryption-vectors.json")).unwrap();
        let vectors: Vec<Vector> = serde_json::from_value(file["aes_256_ctr"].clone()).unwrap();
        assert_eq!(vectors.len(), 2);
        for vector in vectors {
            // At once, and in pieces that never end at a block.
            for piece in [usize::MAX, 7] {
                let iv = unhex(&vector.iv_hex).try_into().unwrap();
                let mut cipher = Ctr::new(&unhex(&vector.key_hex), &iv).unwrap();
                let mut out = Vec::new();
                for part in vector.plaintext.as_bytes().chunks(piece) {
                    cipher.apply(part, &mut out).unwrap();
                }
                assert_eq!(out, unhex(&vector.ciphertext_hex));
            }
        }
    }
}
