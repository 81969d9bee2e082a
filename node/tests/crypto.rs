//! The codec against texts that vantage6's own Python code made and read:
//! `data/encryption-vectors.json` (4.15.2 and the browser UI) and
//! `data/encryption-5.0.3.json`. The key in them is for tests only.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use v6_node::crypto::{Codec, CryptoError, PrivateKey, PublicKey, ResultEncoder, decode_lenient};

fn vectors() -> Value {
    serde_json::from_str(include_str!("data/encryption-vectors.json")).unwrap()
}

fn recorded() -> Value {
    serde_json::from_str(include_str!("data/encryption-5.0.3.json")).unwrap()
}

fn key() -> PrivateKey {
    PrivateKey::from_pem(vectors()["private_key_pem"].as_str().unwrap().as_bytes()).unwrap()
}

fn codec() -> Codec {
    Codec::Encrypted(Arc::new(key()))
}

fn bytes(value: &Value) -> Vec<u8> {
    decode_lenient(value.as_str().unwrap().as_bytes()).unwrap()
}

#[test]
fn public_key_is_byte_exact() {
    let want = vectors()["public_key_as_in_api"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(key().public_for_hq(), want);
    assert_eq!(recorded()["public_key_as_in_api"], want);
    assert!(key().matches(&want));
    assert!(!key().matches(""));
    assert!(!key().matches(&want[4..]));
}

#[test]
fn reads_both_private_forms_and_names_what_it_cannot_read() {
    let recorded = recorded();
    let pkcs8 = PrivateKey::from_pem(
        recorded["private_key_pkcs8_pem"]
            .as_str()
            .unwrap()
            .as_bytes(),
    );
    assert_eq!(pkcs8.unwrap().public_for_hq(), key().public_for_hq());
    let locked = recorded["private_key_encrypted_pem"].as_str().unwrap();
    assert_eq!(
        PrivateKey::from_pem(locked.as_bytes()).unwrap_err(),
        CryptoError::PrivateKeyForm
    );
    assert_eq!(
        PrivateKey::from_pem(b"nonsense").unwrap_err(),
        CryptoError::PrivateKeyForm
    );
    let empty = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(
        PrivateKey::from_pem(empty).unwrap_err(),
        CryptoError::PrivateKeyKind
    );
    assert_eq!(PublicKey::from_hq("").unwrap_err(), CryptoError::PublicKey);
    assert_eq!(format!("{:?}", key()), "PrivateKey([secret])");
}

/// Where Python raises, the caller would go on with the ciphertext; we give the plaintext.
#[test]
fn reads_every_vector_as_python_does() {
    let (vectors, recorded, codec) = (vectors(), recorded(), codec());
    let entries = vectors["strings"].as_array().unwrap();
    assert_eq!(entries.len(), 14);
    for (entry, by_5_0) in entries
        .iter()
        .zip(recorded["vectors_decrypted"].as_array().unwrap())
    {
        let by_4 = &entry["python_4_15_decrypts_to_base64"];
        let want = if by_4.is_null() {
            &entry["plaintext_base64"]
        } else {
            by_4
        };
        let got = codec.decode(entry["encrypted"].as_str().unwrap()).unwrap();
        assert_eq!(
            got,
            bytes(want),
            "{} by {}",
            entry["name"],
            entry["made_by"]
        );
        if !by_5_0.is_null() {
            assert_eq!(
                got,
                bytes(by_5_0),
                "{} by {}, read by 5.0.3",
                entry["name"],
                entry["made_by"]
            );
        }
    }
    let blob = &vectors["blob"];
    assert_eq!(
        codec
            .decode_blob(&bytes(&blob["encrypted_base64"]))
            .unwrap(),
        bytes(&blob["plaintext_base64"])
    );
}

#[test]
fn reads_what_5_0_3_writes() {
    let (recorded, codec) = (recorded(), codec());
    let entries = recorded["strings"].as_array().unwrap();
    assert_eq!(entries.len(), 9);
    for entry in entries {
        let by_python = &entry["python_decrypts_to_base64"];
        let want = if by_python.is_null() {
            &entry["plaintext_base64"]
        } else {
            by_python
        };
        let got = codec.decode(entry["encrypted"].as_str().unwrap()).unwrap();
        assert_eq!(got, bytes(want), "{}", entry["name"]);
    }
    for blob in recorded["blobs"].as_array().unwrap() {
        assert_eq!(
            codec
                .decode_blob(&bytes(&blob["encrypted_base64"]))
                .unwrap(),
            bytes(&blob["plaintext_base64"])
        );
    }
}

#[test]
fn damaged_values_are_errors() {
    let codec = codec();
    let good = codec.encode(b"{}", &key().public_for_hq()).unwrap();
    let (wrapped, rest) = good.split_once('$').unwrap();
    assert_eq!(codec.decode("no parts"), Err(CryptoError::Form));
    assert_eq!(
        codec.decode(&format!("{wrapped}$AAAA$")),
        Err(CryptoError::Form)
    );
    assert_eq!(
        codec.decode(&format!("{wrapped}$x${rest}")),
        Err(CryptoError::Base64)
    );
    let other = format!("{}${rest}", v6_node::crypto::encode(&[7; 512]));
    assert_eq!(codec.decode(&other), Err(CryptoError::NotForUs));
    assert_eq!(Codec::Plain.decode("a"), Err(CryptoError::Base64));
}

#[test]
fn empty_results() {
    assert_eq!(Codec::Plain.encode(b"", "").unwrap(), "");
    let text = codec().encode(b"", &key().public_for_hq()).unwrap();
    let parts: Vec<&str> = text.split('$').collect();
    assert_eq!(
        parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
        [684, 24, 0]
    );
    assert_eq!(codec().decode(&text).unwrap(), b"");
}

fn in_pieces(mut encoder: ResultEncoder, bytes: &[u8], cuts: &[usize]) -> String {
    let mut out = String::new();
    let mut rest = bytes;
    for &cut in cuts {
        let (piece, tail) = rest.split_at(cut.min(rest.len()));
        encoder.push(piece, &mut out).unwrap();
        rest = tail;
    }
    encoder.push(rest, &mut out).unwrap();
    encoder.finish(&mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_make_the_same_text(bytes: Vec<u8>, cuts in prop::collection::vec(0usize..40, 0..8)) {
        let plain = ResultEncoder::plain();
        prop_assert_eq!(plain.encoded_len(bytes.len() as u64), Codec::Plain.encode(&bytes, "").unwrap().len() as u64);
        prop_assert_eq!(in_pieces(plain, &bytes, &cuts), v6_node::crypto::encode(&bytes));
    }

    #[test]
    fn encrypted_pieces_come_back(bytes: Vec<u8>, cuts in prop::collection::vec(0usize..40, 0..8)) {
        let key = key();
        let encoder = ResultEncoder::encrypted(&PublicKey::from_hq(&key.public_for_hq()).unwrap()).unwrap();
        let length = encoder.encoded_len(bytes.len() as u64);
        let text = in_pieces(encoder, &bytes, &cuts);
        prop_assert_eq!(text.len() as u64, length);
        // As a blob, since the text form would look at what the bytes say.
        let (head, body) = text.rsplit_once('$').unwrap();
        let mut blob = format!("{head}$").into_bytes();
        blob.extend(decode_lenient(body.as_bytes()).unwrap());
        prop_assert_eq!(Codec::Encrypted(Arc::new(key)).decode_blob(&blob).unwrap(), bytes);
    }
}
