//! What can go wrong between the node and HQ.

use std::error::Error as StdError;

/// A call to HQ that gave no usable answer.
///
/// `Display` is one level; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HqError {
    /// No connection, or it broke, or the time was up. The request may have been carried out.
    #[error("{call}: HQ could not be reached")]
    Unreachable {
        /// Method and path.
        call: String,
        /// The HTTP client's words.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// HQ refused, or something before it did.
    #[error("{call}: HQ answered {status}: {message}")]
    Status {
        /// Method and path.
        call: String,
        /// HTTP status.
        status: u16,
        /// HQ's `msg`, or the beginning of the body.
        message: String,
    },
    /// More bytes than the call allows.
    #[error("{call}: HQ's answer is larger than {limit} bytes")]
    TooLarge {
        /// Method and path.
        call: String,
        /// In bytes.
        limit: usize,
    },
    /// Not the JSON that HQ 5.0 sends.
    #[error("{call}: HQ's answer could not be understood")]
    Answer {
        /// Method and path.
        call: String,
        /// Where it stopped making sense.
        source: serde_json::Error,
    },
    /// The result that was to be sent could not be read or encrypted.
    #[error("{call}: the result could not be read")]
    ResultSource {
        /// Method and path.
        call: String,
        /// Why.
        source: std::io::Error,
    },
    /// An address could not be built from what HQ or the configuration gave.
    #[error("'{address}' is not a usable address")]
    Address {
        /// What was given.
        address: String,
    },
}

impl HqError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // 401 and 422 too: HQ refuses fresh tokens after a change of Keycloak's signing
            // key until it is restarted (protocol 14); 500 is its answer to many a bad token.
            Self::Status { status, .. } => matches!(status, 401 | 408 | 422 | 429 | 500..=599),
            _ => false,
        }
    }

    /// HQ's HTTP status, if it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}
