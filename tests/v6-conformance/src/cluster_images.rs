//! The probe's image in registries from which a cluster fetches it, and others made of it.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use v6_runtime::{Error, ErrorKind, ImageRef, RegistryCredentials, Result};

/// For one request to a registry of this machine.
const LIMIT: Duration = Duration::from_secs(60);
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BLOB: &str = "application/octet-stream";

/// In what an image differs from the one that it is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// In nothing.
    Nothing,
    /// It runs this, whatever arguments follow.
    Runs(&'static [&'static str]),
    /// It has a file more, so that a machine with the other has to fetch it.
    HasMore(&'static str),
}

/// Speaks to registries without TLS, with a login or without.
pub(crate) struct Images {
    http: Client,
    login: Option<RegistryCredentials>,
}

impl Images {
    pub(crate) fn new(login: Option<RegistryCredentials>) -> Result<Self> {
        let http = Client::builder().timeout(LIMIT).no_proxy().build();
        let http = http.map_err(unsent)?;
        Ok(Self { http, login })
    }

    fn ask(&self, method: Method, image: &ImageRef, place: &str) -> RequestBuilder {
        let (registry, repository) = (image.registry(), image.repository());
        let url = format!("http://{registry}/v2/{repository}/{place}");
        self.signed(self.http.request(method, url), registry)
    }

    fn signed(&self, request: RequestBuilder, registry: &str) -> RequestBuilder {
        match &self.login {
            Some(login) if login.registry == registry => {
                request.basic_auth(&login.username, Some(login.password.expose()))
            }
            _ => request,
        }
    }

    /// Makes the image `to` of another, which is one of this machine's kind and not a list.
    pub(crate) async fn derive(
        &self,
        from: &ImageRef,
        to: &ImageRef,
        change: Change,
    ) -> Result<()> {
        let place = format!("manifests/{}", from.tag().unwrap_or("latest"));
        let asked = self.ask(Method::GET, from, &place).header(ACCEPT, MANIFEST);
        let mut manifest: Value = read(&bytes(send(asked).await?).await?)?;
        let config = digest_in(&manifest["config"])?;
        let mut config: Value = read(&self.blob(from, &config).await?)?;
        let mut blobs = Vec::new();
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            blobs.push(self.blob(from, &digest_in(layer)?).await?);
        }
        match change {
            Change::Nothing => {}
            Change::Runs(words) => config["config"]["Entrypoint"] = json!(words),
            Change::HasMore(name) => {
                let layer = one_file(name)?;
                push(&mut manifest["layers"], descriptor(LAYER, &layer))?;
                push(&mut config["rootfs"]["diff_ids"], json!(digest(&layer)))?;
                blobs.push(layer);
            }
        }
        let config = write(&config)?;
        let kind = manifest["config"]["mediaType"].clone();
        manifest["config"] = descriptor(kind.as_str().unwrap_or_default(), &config);
        blobs.push(config);
        for blob in &blobs {
            self.store(to, blob).await?;
        }
        let place = format!("manifests/{}", to.tag().unwrap_or("latest"));
        let body = write(&manifest)?;
        let put = self.ask(Method::PUT, to, &place);
        send(put.header(CONTENT_TYPE, MANIFEST).body(body)).await?;
        Ok(())
    }

    async fn blob(&self, image: &ImageRef, digest: &str) -> Result<Vec<u8>> {
        let asked = self.ask(Method::GET, image, &format!("blobs/{digest}"));
        bytes(send(asked).await?).await
    }

    async fn store(&self, image: &ImageRef, blob: &[u8]) -> Result<()> {
        let digest = digest(blob);
        let known = self.ask(Method::HEAD, image, &format!("blobs/{digest}"));
        let known = known.send().await.map_err(unsent)?;
        if known.status() == StatusCode::OK {
            return Ok(());
        }
        let begun = send(self.ask(Method::POST, image, "blobs/uploads/")).await?;
        let at = begun.headers().get(LOCATION);
        let at = at.and_then(|at| at.to_str().ok());
        let at = at.and_then(|at| begun.url().join(at).ok());
        let mut at: Url = at.ok_or_else(|| broken("it does not say where a blob goes"))?;
        at.query_pairs_mut().append_pair("digest", &digest);
        let put = self.signed(self.http.put(at), image.registry());
        send(put.header(CONTENT_TYPE, BLOB).body(blob.to_vec())).await?;
        Ok(())
    }
}

async fn send(request: RequestBuilder) -> Result<Response> {
    let answer = request.send().await.map_err(unsent)?;
    answer.error_for_status().map_err(unsent)
}

fn unsent(error: reqwest::Error) -> Error {
    let what = "the suite, filling a registry";
    Error::new(ErrorKind::Unexpected, what).with_source(error)
}

fn broken(why: &str) -> Error {
    let what = format!("the suite, filling a registry: {why}");
    Error::new(ErrorKind::Unexpected, what)
}

async fn bytes(answer: Response) -> Result<Vec<u8>> {
    Ok(answer.bytes().await.map_err(unsent)?.to_vec())
}

fn read(text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text).map_err(|error| broken(&error.to_string()))
}

fn write(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| broken(&error.to_string()))
}

fn push(list: &mut Value, more: Value) -> Result<()> {
    let list = list.as_array_mut();
    list.ok_or_else(|| broken("an image without layers"))?
        .push(more);
    Ok(())
}

fn digest_in(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str();
    let digest = digest.ok_or_else(|| broken("it has no manifest of one image"))?;
    Ok(digest.to_owned())
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

/// A layer with one empty file.
fn one_file(name: &str) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o444);
    let mut layer = tar::Builder::new(Vec::new());
    let made = layer.append_data(&mut header, name, std::io::empty());
    made.and_then(|()| layer.into_inner())
        .map_err(|error| broken(&error.to_string()))
}
