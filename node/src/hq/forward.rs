//! Requests of algorithms, passed on to HQ as they are.

use bytes::Bytes;
use reqwest::Method;

use super::backoff::Backoff;
use super::connection::ConnectionError;
use super::error::HqError;
use super::rest::{Hq, LARGE};
use super::retry::{RawAnswer, name_of, once};
use crate::secret::Secret;

impl Hq {
    /// Passes a request of an algorithm on to HQ with the algorithm's own token, and gives
    /// HQ's answer as it is, whatever its status. `path_and_query` begins with a slash and
    /// is below the API's path.
    ///
    /// Only a `GET` is repeated when the connection breaks; another method was perhaps
    /// carried out. What never reached HQ is repeated for every method.
    ///
    /// # Errors
    /// [`HqError::Unreachable`], [`HqError::TooLarge`] for an answer of more than 256 MiB,
    /// [`HqError::Address`].
    pub async fn forward(
        &self,
        bearer: &Secret,
        method: Method,
        path_and_query: &str,
        json: Option<Bytes>,
    ) -> Result<RawAnswer, HqError> {
        let body = json.map(|json| ("application/json", json));
        self.forward_as(bearer, method, path_and_query, body).await
    }

    /// As [`forward`](Self::forward), with the type of the body beside it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub async fn forward_as(
        &self,
        bearer: &Secret,
        method: Method,
        path_and_query: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<RawAnswer, HqError> {
        let path = path_and_query.trim_start_matches('/');
        let (url, call) = (self.address.join(path)?, name_of(&method, path));
        let start = std::time::Instant::now();
        let mut backoff = Backoff::new(self.retry.first_pause, self.retry.longest_pause);
        loop {
            let mut request = self
                .http
                .client
                .request(method.clone(), url.clone())
                .bearer_auth(bearer.expose());
            if let Some((content_type, body)) = &body {
                request = request
                    .header(reqwest::header::CONTENT_TYPE, *content_type)
                    .body(body.clone());
            }
            match once(&self.http, &call, &url, request, LARGE).await {
                Err(HqError::Unreachable { call, source }) => {
                    let never_sent = source
                        .downcast_ref::<ConnectionError>()
                        .is_some_and(ConnectionError::never_sent);
                    let pause = backoff.pause();
                    if !(never_sent || method == Method::GET)
                        || start.elapsed() + pause > self.retry.within
                    {
                        return Err(HqError::Unreachable { call, source });
                    }
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
    }
}
