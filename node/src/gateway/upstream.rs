//! Calls to HQ in the name of one run.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::token::ContainerTokens;
use crate::hq::{Backoff, Hq, HqError, RawAnswer, Retry};
use crate::runs::RunContext;

/// Why there is no answer of HQ to pass on.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// HQ gave no token, so nothing was sent.
    #[error("HQ gave no token for the container")]
    Token(#[source] HqError),
    /// The call itself.
    #[error(transparent)]
    Call(#[from] HqError),
    /// An answer that HQ 5.0 does not give.
    #[error("HQ's answer could not be understood")]
    Answer,
}

impl CallError {
    /// Whether HQ may have received and carried out the request.
    pub(super) fn perhaps_done(&self) -> bool {
        matches!(
            self,
            Self::Call(HqError::Unreachable { .. } | HqError::TooLarge { .. })
        )
    }
}

/// HQ, with the tokens of containers.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) hq: Hq,
    pub(super) tokens: ContainerTokens,
}

/// The answer of something before HQ that cannot reach it.
pub(super) fn is_away(status: u16) -> bool {
    matches!(status, 502..=504)
}

impl Upstream {
    /// Sends a request with HQ's token of the run and gives HQ's answer, whatever its status.
    ///
    /// A `GET` is repeated until `deadline` while HQ is away; another method only while it
    /// surely never reached HQ. A refusal that a new token may lift is followed by one more
    /// attempt: HQ looks at the token first, so a request with a bad one was not carried out.
    pub(super) async fn call(
        &self,
        context: &RunContext,
        method: Method,
        path_and_query: &str,
        body: Option<(&'static str, Bytes)>,
        deadline: Instant,
    ) -> Result<RawAnswer, CallError> {
        let mut token = self
            .tokens
            .current(context)
            .await
            .map_err(CallError::Token)?;
        let mut renewed = false;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let patient = self.hq.with_retry(Retry {
                within: deadline.saturating_duration_since(Instant::now()),
                first_pause: Duration::from_millis(200),
                longest_pause: Duration::from_secs(5),
            });
            let answer = patient
                .forward_as(&token, method.clone(), path_and_query, body.clone())
                .await?;
            if matches!(answer.status, 401 | 422 | 500)
                && !renewed
                && let Some(other) = self.tokens.renewed(context, &token).await
            {
                (token, renewed) = (other, true);
                continue;
            }
            let pause = backoff.pause();
            if method == Method::GET && is_away(answer.status) && Instant::now() + pause < deadline
            {
                tokio::time::sleep(pause).await;
                continue;
            }
            return Ok(answer);
        }
    }

    /// A `GET` that is to succeed.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        context: &RunContext,
        path_and_query: &str,
        deadline: Instant,
    ) -> Result<T, CallError> {
        let answer = self
            .call(context, Method::GET, path_and_query, None, deadline)
            .await?;
        if !(200..300).contains(&answer.status) {
            return Err(CallError::Answer);
        }
        serde_json::from_slice(&answer.body).map_err(|_| CallError::Answer)
    }
}
