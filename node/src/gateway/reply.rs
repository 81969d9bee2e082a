//! What the algorithm is told: always JSON, since its client parses every answer as that.

use bytes::Bytes;
use serde_json::{Value, json};

use super::subtask::Delivery;
use super::upstream::CallError;
use crate::hq::{HqError, RawAnswer};

pub(super) const JSON: &str = "application/json";
pub(super) const BYTES: &str = "application/octet-stream";

/// An answer to the algorithm.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    /// To be told once the whole answer has been written.
    pub(super) delivery: Option<Delivery>,
}

impl Reply {
    pub(super) fn new(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
            delivery: None,
        }
    }

    pub(super) fn json(status: u16, value: &Value) -> Self {
        Self::new(status, JSON, value.to_string())
    }

    /// An answer of the gateway's own.
    pub(super) fn message(status: u16, text: &str) -> Self {
        Self::json(status, &json!({ "msg": text }))
    }
}

impl From<RawAnswer> for Reply {
    fn from(answer: RawAnswer) -> Self {
        let said = answer
            .content_type
            .as_deref()
            .is_some_and(|of| of.to_ascii_lowercase().starts_with(JSON));
        if said || serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body).is_ok() {
            return Self::new(answer.status, JSON, answer.body);
        }
        if answer.body.is_empty() {
            return Self::json(answer.status, &json!({}));
        }
        let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::message(answer.status, &format!("not JSON from HQ: {text}"))
    }
}

impl From<CallError> for Reply {
    fn from(error: CallError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, cause, "a request of an algorithm was not answered by HQ");
        let hq = match error {
            CallError::Answer => {
                return Self::message(502, "the node could not understand HQ's answer");
            }
            CallError::Token(error) | CallError::Call(error) => error,
        };
        match hq {
            HqError::Unreachable { .. } => Self::message(
                503,
                "vantage6 HQ cannot be reached from the node at the moment; try again later",
            ),
            HqError::TooLarge { limit, .. } => Self::message(
                502,
                &format!(
                    "HQ's answer is larger than {limit} bytes, more than the node passes on; ask for fewer results at once"
                ),
            ),
            HqError::Status {
                status, message, ..
            } => Self::message(
                if (400..500).contains(&status) {
                    status
                } else {
                    502
                },
                &format!("HQ gives the node no token for this run: {message}"),
            ),
            other => Self::message(502, &other.to_string()),
        }
    }
}
