//! The REST calls that a node makes (protocol 2).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use url::Url;

use super::address::HqAddress;
use super::auth::Tokens;
use super::error::HqError;
use super::http::Http;
use super::result_body::{self, ResultSource};
use super::retry::{RawAnswer, Retry, name_of, once, until_answered};
use super::types::{
    AlgorithmStore, Collaboration, Column, Identity, OpenRun, Organization, PatchOutcome, RunPatch,
    RunState,
};
use super::wire::{self, Page, WireOpenRun, WirePatch};
use crate::crypto::{Codec, ResultEncoder};
use crate::secret::Secret;

/// Largest answer of most calls, in bytes.
const SMALL: usize = 8 << 20;
/// Largest page of runs, whose arguments come with them.
pub(super) const LARGE: usize = 256 << 20;
/// Runs asked for at once; fewer are tried where a page is larger than [`LARGE`].
const PAGE_SIZES: [usize; 3] = [250, 10, 1];
/// More pages than this are not believed.
const MAX_PAGES: usize = 10_000;

/// The REST client. Clones share it.
///
/// Every call has a time-out, is repeated with growing pauses on connection errors and
/// passing faults ([`Retry`]), and may be repeated by HQ's semantics. Dropping a future
/// stops waiting; HQ may have carried the request out.
#[derive(Debug, Clone)]
pub struct Hq {
    pub(super) http: Http,
    pub(super) address: HqAddress,
    tokens: Tokens,
    pub(super) retry: Retry,
}

impl Hq {
    /// A client with the default [`Retry`].
    pub fn new(http: Http, address: HqAddress, tokens: Tokens) -> Self {
        Self {
            http,
            address,
            tokens,
            retry: Retry::default(),
        }
    }

    /// The same client with other patience.
    #[must_use]
    pub fn with_retry(&self, retry: Retry) -> Self {
        Self {
            retry,
            ..self.clone()
        }
    }

    /// Where HQ is.
    pub fn address(&self) -> &HqAddress {
        &self.address
    }

    /// The node's tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The HTTP client.
    pub fn http(&self) -> &Http {
        &self.http
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        limit: usize,
        dress: impl Fn(RequestBuilder) -> RequestBuilder + Sync,
    ) -> Result<RawAnswer, HqError> {
        let url = self.address.join(path)?;
        let call = name_of(&method, path);
        let (call, http, url, dress) = (call.as_str(), &self.http, &url, &dress);
        until_answered(call, &self.tokens, self.retry, |token| {
            let request = http
                .client
                .request(method.clone(), url.clone())
                .bearer_auth(token.expose());
            once(http, call, url, dress(request), limit)
        })
        .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, limit: usize) -> Result<T, HqError> {
        let answer = self
            .send(Method::GET, path, limit, |request| request)
            .await?;
        read(&name_of(&Method::GET, path), answer)
    }

    async fn submit(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<RawAnswer, HqError> {
        self.send(method, path, SMALL, |request| request.json(body))
            .await
    }

    /// `GET /version`: HQ's version.
    ///
    /// # Errors
    /// See [`HqError`]; so for all calls.
    pub async fn version(&self) -> Result<String, HqError> {
        Ok(self.get::<wire::Version>("version", SMALL).await?.version)
    }

    /// `GET /node/me`.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn whoami(&self) -> Result<Identity, HqError> {
        Ok(self.get::<wire::NodeMe>("node/me", SMALL).await?.into())
    }

    /// `GET /organization/{id}`, with the public key.
    ///
    /// # Errors
    /// See [`HqError`]; status 404 if there is none.
    pub async fn organization(&self, id: i64) -> Result<Organization, HqError> {
        let path = format!("organization/{id}");
        Ok(self
            .get::<wire::WireOrganization>(&path, SMALL)
            .await?
            .into())
    }

    /// Ids of the organizations with exactly this name. HQ compares by SQL `LIKE`, so its
    /// answer is compared again.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn organizations_named(&self, name: &str) -> Result<Vec<i64>, HqError> {
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("name", name)
            .append_pair("per_page", "250")
            .finish();
        let page: Page = self.get(&format!("organization?{query}"), SMALL).await?;
        Ok(page
            .data
            .into_iter()
            .filter_map(|item| serde_json::from_value::<wire::WireOrganization>(item).ok())
            .map(Organization::from)
            .filter(|organization| organization.name == name)
            .map(|organization| organization.id)
            .collect())
    }

    /// `PATCH /organization/{id}`: replaces the public key of the node's organization.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn set_public_key(&self, organization: i64, key: &str) -> Result<(), HqError> {
        let path = format!("organization/{organization}");
        let answer = self
            .submit(Method::PATCH, &path, &json!({ "public_key": key }))
            .await?;
        accepted(&name_of(&Method::PATCH, &path), answer)
    }

    /// `GET /collaboration/{id}`.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn collaboration(&self, id: i64) -> Result<Collaboration, HqError> {
        let path = format!("collaboration/{id}");
        Ok(self
            .get::<wire::WireCollaboration>(&path, SMALL)
            .await?
            .into())
    }

    /// The runs that HQ has for `node` and that are not finished, oldest first; of one task
    /// only, if `task` is given.
    ///
    /// HQ lists finished runs too while another organization is still at the task; they are
    /// left out. A run that makes no sense is left out with a warning.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn open_runs(&self, node: i64, task: Option<i64>) -> Result<Vec<OpenRun>, HqError> {
        let mut sizes = PAGE_SIZES.into_iter();
        let mut outcome = Ok(Vec::new());
        for size in sizes.by_ref() {
            outcome = self.open_runs_by(node, task, size).await;
            if !matches!(outcome, Err(HqError::TooLarge { .. })) {
                break;
            }
        }
        outcome
    }

    async fn open_runs_by(
        &self,
        node: i64,
        task: Option<i64>,
        size: usize,
    ) -> Result<Vec<OpenRun>, HqError> {
        let task = task
            .map(|task| format!("&task_id={task}"))
            .unwrap_or_default();
        let mut runs = BTreeMap::new();
        for number in 1..=MAX_PAGES {
            let path = format!(
                "run?state=open&node_id={node}&include=task{task}&per_page={size}&page={number}"
            );
            let page: Page = match self.get(&path, LARGE).await {
                Err(error @ HqError::TooLarge { .. }) if size == 1 => {
                    tracing::error!(%error, "a run is passed over, because its arguments are too large");
                    continue;
                }
                other => other?,
            };
            for item in page.data {
                let id = item.get("id").cloned();
                match serde_json::from_value::<WireOpenRun>(item) {
                    Ok(run) if run.finished_at.is_some() => {}
                    Ok(run) => {
                        let run = OpenRun::from(run);
                        runs.insert(run.id, run);
                    }
                    Err(error) => {
                        tracing::warn!(run = ?id, %error, "a run from HQ could not be understood");
                    }
                }
            }
            if page.links.next.is_none() {
                break;
            }
        }
        Ok(runs.into_values().collect())
    }

    /// `GET /run/{id}`; `None` if HQ knows no such run.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn run(&self, id: i64) -> Result<Option<RunState>, HqError> {
        match self
            .get::<wire::WireRunState>(&format!("run/{id}"), LARGE)
            .await
        {
            Ok(run) => Ok(Some(run.into())),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `PATCH /run/{id}`. After a lost answer the repeat of a final report is told
    /// [`PatchOutcome::AlreadyFinished`], which then means that it is stored.
    ///
    /// # Errors
    /// See [`HqError`]; a refusal for another reason than the run's end is a status.
    pub async fn patch_run(&self, id: i64, patch: &RunPatch) -> Result<PatchOutcome, HqError> {
        let path = format!("run/{id}");
        let answer = self
            .submit(Method::PATCH, &path, &WirePatch::from(patch))
            .await?;
        self.verdict(id, answer).await
    }

    /// The same with a result that is read, encoded by `codec` for the organization with the
    /// public key `receiver`, and sent piece by piece; `patch.result` is not looked at.
    /// Memory does not depend on the length of the result. The source is read anew for each
    /// attempt.
    ///
    /// # Errors
    /// See [`HqError`]; [`HqError::ResultSource`] if the source fails, has another length
    /// than it said, or the receiver's key cannot be used.
    pub async fn patch_run_streaming(
        &self,
        id: i64,
        patch: &RunPatch,
        source: &dyn ResultSource,
        codec: &Codec,
        receiver: &str,
    ) -> Result<PatchOutcome, HqError> {
        let path = format!("run/{id}");
        let (url, call) = (self.address.join(&path)?, name_of(&Method::PATCH, &path));
        let mut patch = patch.clone();
        patch.result = None;
        // Time for a slow line, 100 kB a second, beside that of any call.
        let limit =
            self.http.settings.request_timeout + Duration::from_secs(source.length() / 75_000);
        let (call, http, patch, url) = (call.as_str(), &self.http, &patch, &url);
        let answer = until_answered(call, &self.tokens, self.retry, |token| async move {
            let failed = |source| HqError::ResultSource {
                call: call.to_owned(),
                source,
            };
            let encoder = ResultEncoder::for_codec(codec, receiver)
                .map_err(|error| failed(std::io::Error::other(error)))?;
            let input = source.open().await.map_err(failed)?;
            let (length, body) = result_body::body(patch, encoder, source.length(), input)
                .map_err(|error| failed(error.into()))?;
            let (body, fault) = watched(body);
            let request = http
                .client
                .patch(url.clone())
                .bearer_auth(token.expose())
                .header(reqwest::header::CONTENT_TYPE, "application/json")
                .header(reqwest::header::CONTENT_LENGTH, length)
                .timeout(limit)
                .body(reqwest::Body::wrap_stream(body));
            let answer = once(http, call, url, request, SMALL).await;
            match fault.try_recv() {
                Ok(fault) if answer.is_err() => Err(failed(fault)),
                _ => answer,
            }
        })
        .await?;
        self.verdict(id, answer).await
    }

    /// What HQ's answer to a PATCH means. Its 400 stands for a closed run as well as for a
    /// wrong body; the run itself tells which.
    async fn verdict(&self, id: i64, answer: RawAnswer) -> Result<PatchOutcome, HqError> {
        match answer.status {
            200 | 201 => Ok(PatchOutcome::Accepted),
            404 => Ok(PatchOutcome::Gone),
            400 => match self.run(id).await? {
                None => Ok(PatchOutcome::Gone),
                Some(run) if run.finished_at.is_some() => Ok(PatchOutcome::AlreadyFinished),
                Some(_) => Err(answer.into_error(&format!("PATCH run/{id}"))),
            },
            _ => Err(answer.into_error(&format!("PATCH run/{id}"))),
        }
    }

    /// `POST /token/container`: the token with which an algorithm of this task may act.
    ///
    /// # Errors
    /// See [`HqError`]; status 400 if the task is finished, 401 if it is no central one.
    pub async fn container_token(&self, task: i64, image: &str) -> Result<Secret, HqError> {
        let path = "token/container";
        let answer = self
            .submit(
                Method::POST,
                path,
                &json!({ "task_id": task, "image": image }),
            )
            .await?;
        let token: wire::ContainerToken = read(&name_of(&Method::POST, path), answer)?;
        Ok(Secret::new(token.container_token))
    }

    /// `POST /session/dataframe/{id}/column`: replaces this node's columns of a dataframe.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn set_columns(&self, dataframe: i64, columns: &[Column]) -> Result<(), HqError> {
        let path = format!("session/dataframe/{dataframe}/column");
        let answer = self.submit(Method::POST, &path, &columns).await?;
        accepted(&name_of(&Method::POST, &path), answer)
    }

    /// Names of the dataframes of a session; `None` if the session is gone.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn session_dataframes(&self, session: i64) -> Result<Option<Vec<String>>, HqError> {
        let path = format!("session/{session}/dataframe?no_pagination=1");
        let answer = self
            .send(Method::GET, &path, LARGE, |request| request)
            .await?;
        if answer.status == 404 {
            return Ok(None);
        }
        let call = name_of(&Method::GET, &path);
        let list: serde_json::Value = read(&call, answer)?;
        // Without pages 5.0.3 sends the list itself; the form with `data` is the paged one.
        let items = list.get("data").unwrap_or(&list).clone();
        let named: Vec<wire::Named> =
            serde_json::from_value(items).map_err(|source| HqError::Answer { call, source })?;
        Ok(Some(named.into_iter().map(|item| item.name).collect()))
    }

    /// `GET /algorithmstore/{id}`.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn algorithm_store(&self, id: i64) -> Result<AlgorithmStore, HqError> {
        let path = format!("algorithmstore/{id}");
        Ok(self.get::<wire::WireStore>(&path, SMALL).await?.into())
    }

    /// Whether an algorithm store has approved the image (protocol 2.7).
    ///
    /// The node's token is shown to the store: ask only a store that policy allows.
    ///
    /// # Errors
    /// See [`HqError`]; a store that answers 400 knows no such image, which is `false`.
    pub async fn store_approves(
        &self,
        store: &AlgorithmStore,
        image: &str,
    ) -> Result<bool, HqError> {
        let base = format!("{}{}", store.url.trim_end_matches('/'), store.api_path);
        let address = Url::parse(&base).map_err(|_| HqError::Address { address: base })?;
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("image", image)
            .finish();
        let store = Self {
            address: HqAddress::new(address)?,
            ..self.clone()
        };
        let path = format!("algorithm?{query}");
        let answer = store
            .send(Method::GET, &path, SMALL, |request| request)
            .await?;
        if answer.status == 400 {
            return Ok(false);
        }
        let page: Page = read(&name_of(&Method::GET, &path), answer)?;
        Ok(!page.data.is_empty())
    }

    /// `GET /blobstream/status`: whether HQ has a store for large values.
    ///
    /// # Errors
    /// See [`HqError`].
    pub async fn blob_store_enabled(&self) -> Result<bool, HqError> {
        let path = "blobstream/status";
        let answer = self
            .send(Method::GET, path, SMALL, |request| {
                request.header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
            })
            .await?;
        let status: wire::BlobStatus = read(&name_of(&Method::GET, path), answer)?;
        Ok(status.blob_store_enabled)
    }
}

fn read<T: DeserializeOwned>(call: &str, answer: RawAnswer) -> Result<T, HqError> {
    if !(200..300).contains(&answer.status) {
        return Err(answer.into_error(call));
    }
    serde_json::from_slice(&answer.body).map_err(|source| HqError::Answer {
        call: call.to_owned(),
        source,
    })
}

fn accepted(call: &str, answer: RawAnswer) -> Result<(), HqError> {
    if (200..300).contains(&answer.status) {
        Ok(())
    } else {
        Err(answer.into_error(call))
    }
}

/// The stream, and a place where its first error is told: the HTTP client only says that
/// the body failed.
fn watched(
    body: impl futures_core::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> (
    impl futures_core::Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    std::sync::mpsc::Receiver<std::io::Error>,
) {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let body = futures_util::StreamExt::map(body, move |piece| {
        piece.map_err(|error| {
            let copy = std::io::Error::new(error.kind(), error.to_string());
            let _ = tell.try_send(error);
            copy
        })
    });
    (body, told)
}
