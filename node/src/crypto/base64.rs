//! Base64 with the standard alphabet and padding (protocol 7.5).

use ::base64::Engine as _;
use ::base64::engine::general_purpose::STANDARD;

use super::CryptoError;

/// Standard alphabet, padded.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes as CPython's `base64.b64decode` does: characters outside the alphabet are
/// skipped, everything after complete padding is ignored, spare bits are not looked at.
///
/// # Errors
/// [`CryptoError::Base64`] where Python raises "Incorrect padding".
pub fn decode_lenient(text: &[u8]) -> Result<Vec<u8>, CryptoError> {
    match STANDARD.decode(text) {
        Ok(bytes) => Ok(bytes),
        Err(_) => decode_as_python(text),
    }
}

fn decode_as_python(text: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut filled, mut pads, mut left) = (0_u8, 0_u8, 0_u8);
    for &byte in text {
        if byte == b'=' {
            if filled >= 2 {
                pads += 1;
                if filled + pads >= 4 {
                    return Ok(out);
                }
            }
            continue;
        }
        let Some(value) = sextet(byte) else { continue };
        pads = 0;
        match filled {
            0 => left = value,
            1 => {
                out.push(left << 2 | value >> 4);
                left = value & 0x0f;
            }
            2 => {
                out.push(left << 4 | value >> 2);
                left = value & 0x03;
            }
            _ => out.push(left << 6 | value),
        }
        filled = (filled + 1) % 4;
    }
    if filled == 0 {
        Ok(out)
    } else {
        Err(CryptoError::Base64)
    }
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Answers of CPython 3.13's `base64.b64decode`; `None` where it raises.
    const PYTHON: &[(&str, Option<&[u8]>)] = &[
        ("", Some(b"")),
        ("aGVsbG8=", Some(b"hello")),
        ("aGVs bG8=", Some(b"hello")),
        ("aGVs\nbG8=\n", Some(b"hello")),
        ("aGVsbG8=aGVs", Some(b"hello")),
        ("aGVsbG9=", Some(b"hello")),
        ("aGVsbG8", None),
        ("a", None),
        ("=", Some(b"")),
        ("====", Some(b"")),
        ("aGVsbA=x=", Some(b"hell\x0c")),
        ("hello world", None),
        ("{\"a\": NaN}", Some(b"\x68\xd6\x8d")),
    ];

    #[test]
    fn reads_what_python_reads() {
        for (text, want) in PYTHON {
            assert_eq!(
                decode_lenient(text.as_bytes()).ok().as_deref(),
                *want,
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn both_ways(bytes: Vec<u8>) {
            let text = encode(&bytes);
            prop_assert_eq!(decode_lenient(text.as_bytes()).ok(), Some(bytes.clone()));
            prop_assert_eq!(decode_as_python(text.as_bytes()).ok(), Some(bytes));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = decode_lenient(&bytes);
        }
    }
}
