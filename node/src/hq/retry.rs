//! Sending a request until there is an answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use url::Url;

use super::auth::Tokens;
use super::backoff::Backoff;
use super::connection::{ConnectionError, causes};
use super::error::HqError;
use super::http::Http;

/// How long and how often a call is repeated.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// No new attempt begins after this; zero for one attempt only.
    pub within: Duration,
    /// First pause between attempts.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub longest_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            within: Duration::from_secs(60),
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(10),
        }
    }
}

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct RawAnswer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`, if it was given as text.
    pub content_type: Option<String>,
    /// The body, bounded by the caller's limit.
    pub body: Bytes,
    /// An HTTP proxy on the way that could have answered in HQ's place, without its password.
    pub proxy: Option<String>,
}

impl RawAnswer {
    pub(super) fn into_error(self, call: &str) -> HqError {
        #[derive(Deserialize)]
        struct Said {
            msg: String,
        }
        let message = serde_json::from_slice::<Said>(&self.body).map_or_else(
            |_| stranger(&self.body, self.proxy.as_deref()),
            |said| said.msg,
        );
        HqError::Status {
            call: call.to_owned(),
            status: self.status,
            message,
        }
    }
}

pub(super) enum ReadError {
    Connection(ConnectionError),
    TooLarge,
}

/// The whole body, if it has at most `limit` bytes.
pub(super) async fn read_bounded(
    http: &Http,
    mut response: Response,
    limit: usize,
) -> Result<Bytes, ReadError> {
    let url = response.url().clone();
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(ReadError::TooLarge);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| ReadError::Connection(http.failed(&url, error)))?
    {
        if body.len() + chunk.len() > limit {
            return Err(ReadError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

/// The beginning of a body that is not ours to understand, on one line.
pub(super) fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The beginning of a body that HQ or Keycloak would hardly have sent, and who else may
/// have.
pub(super) fn stranger(body: &[u8], proxy: Option<&str>) -> String {
    let text = excerpt(body);
    match proxy {
        Some(proxy) => format!("{text} (perhaps said by the proxy {proxy} on the way)"),
        None => text,
    }
}

/// One attempt with a given token.
pub(super) async fn once(
    http: &Http,
    call: &str,
    url: &Url,
    request: RequestBuilder,
    limit: usize,
) -> Result<RawAnswer, HqError> {
    let unreachable = |error: ConnectionError| HqError::Unreachable {
        call: call.to_owned(),
        source: Box::new(error),
    };
    let start = Instant::now();
    let response = http.send(url, request).await.map_err(unreachable)?;
    let status = response.status().as_u16();
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    tracing::debug!(call, status, milliseconds, "HQ answered");
    let content_type = response
        .headers()
        .get(reqwest::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    match read_bounded(http, response, limit).await {
        Ok(body) => Ok(RawAnswer {
            status,
            content_type,
            body,
            proxy: http.clear_proxy(url).map(|proxy| proxy.to_string()),
        }),
        Err(ReadError::Connection(error)) => Err(unreachable(error)),
        Err(ReadError::TooLarge) => Err(HqError::TooLarge {
            call: call.to_owned(),
            limit,
        }),
    }
}

/// Sends what `request` builds for each attempt until HQ answers with a status that is not
/// a passing fault, or the time is up. A refusal that may be the token's fault (HQ says
/// 401, 422 or 500) is repeated once at once with a new token.
pub(super) async fn until_answered<F, Fut>(
    call: &str,
    tokens: &Tokens,
    retry: Retry,
    mut request: F,
) -> Result<RawAnswer, HqError>
where
    F: FnMut(crate::secret::Secret) -> Fut,
    Fut: Future<Output = Result<RawAnswer, HqError>>,
{
    let start = Instant::now();
    let mut backoff = Backoff::new(retry.first_pause, retry.longest_pause);
    let mut token_replaced = false;
    loop {
        let left = retry
            .within
            .saturating_sub(start.elapsed())
            .max(Duration::from_secs(10));
        let token = tokio::time::timeout(left, tokens.current())
            .await
            .map_err(|elapsed| HqError::Unreachable {
                call: call.to_owned(),
                source: Box::new(elapsed),
            })?;
        let failed = match request(token.secret().clone()).await {
            Ok(answer) if matches!(answer.status, 401 | 422 | 500) && !token_replaced => {
                if token.is_doubtful() {
                    token_replaced = true;
                    if tokio::time::timeout(left, tokens.renewed(&token))
                        .await
                        .is_ok()
                    {
                        continue;
                    }
                }
                if answer.status == 500 {
                    answer.into_error(call)
                } else {
                    return Ok(answer);
                }
            }
            Ok(answer) if matches!(answer.status, 408 | 429 | 500..=599) => answer.into_error(call),
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error),
        };
        // A plain 500 is as often a bug in HQ as a passing fault: not worth the whole time.
        let patience = match failed.status() {
            Some(500) => retry.within / 10,
            Some(501) => Duration::ZERO,
            _ => retry.within,
        };
        let pause = backoff.pause();
        if start.elapsed() + pause > patience {
            return Err(failed);
        }
        let cause = causes(&failed);
        tracing::debug!(error = %failed, cause, ?pause, "call repeated");
        tokio::time::sleep(pause).await;
    }
}

pub(super) fn name_of(method: &Method, path: &str) -> String {
    format!("{method} {}", path.split('?').next().unwrap_or(path))
}
