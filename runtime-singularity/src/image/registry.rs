//! What a name stands for, asked of its registry (OCI distribution): two small files, no content.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use v6_runtime::{
    Digest, Error, ErrorKind, ImageIdentity, ImageRef, RegistryCredentials, ResolvedImage, Result,
};

use super::describe::{Description, Manifest, digest_of, own_platform};

const KINDS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// A manifest or configuration has some kilobytes.
const MAX_JSON: usize = 4 << 20;

/// Whether a registry is spoken to without encryption: only on this machine, as Docker does.
pub(crate) fn is_plain(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let ip = host.parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// The credentials for the registry of an image.
pub(crate) fn credentials<'a>(
    all: &'a [RegistryCredentials],
    image: &ImageRef,
) -> Option<&'a RegistryCredentials> {
    all.iter().find(|entry| entry.registry == image.registry())
}

/// Clients for all registries.
#[derive(Debug)]
pub(crate) struct Clients {
    /// Of this machine: no proxy leads there.
    here: Client,
    elsewhere: Client,
}

impl Clients {
    pub(crate) fn new(timeout: Duration) -> Result<Self> {
        let build = |builder: reqwest::ClientBuilder| {
            builder.timeout(timeout).build().map_err(|error| {
                let message = "no client for registries can be made";
                Error::new(ErrorKind::Unexpected, message).with_source(error)
            })
        };
        Ok(Self {
            here: build(Client::builder().no_proxy())?,
            elsewhere: build(Client::builder())?,
        })
    }
}

/// An image's identity and description.
pub(crate) async fn resolve(
    clients: &Clients,
    credentials: Option<&RegistryCredentials>,
    image: &ImageRef,
) -> Result<(ResolvedImage, Description)> {
    let client = match is_plain(image.registry()) {
        true => &clients.here,
        false => &clients.elsewhere,
    };
    let mut asking = Asking {
        client,
        credentials,
        image,
        authorization: None,
    };
    let name = match (image.digest(), image.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, tag) => tag.unwrap_or("latest"),
    };
    let top = asking.manifest(name).await?;
    let digest = digest_of(&top);
    if image.digest().is_some_and(|wanted| *wanted != digest) {
        return Err(asking.broken(format!("{name} is {digest}")));
    }
    let understood = |text: String| Error::new(ErrorKind::Protocol, format!("{image}: {text}"));
    let mut manifest = Manifest::parse(&top).map_err(understood)?;
    if manifest.manifests.is_some() {
        let ours = manifest.ours().ok_or_else(|| {
            let message = format!("{image} has nothing for {}", own_platform());
            Error::new(ErrorKind::NotFound, message)
        })?;
        let ours = Digest::new(ours.digest.as_str())?;
        let bytes = asking.manifest(ours.as_str()).await?;
        if digest_of(&bytes) != ours {
            return Err(asking.broken(format!("{ours} is {}", digest_of(&bytes))));
        }
        manifest = Manifest::parse(&bytes).map_err(understood)?;
    }
    let config = manifest
        .config
        .ok_or_else(|| asking.broken("its manifest names no configuration".into()))?;
    let config = Digest::new(config.digest.as_str())?;
    let bytes = asking.get(&format!("blobs/{config}")).await?;
    if digest_of(&bytes) != config {
        return Err(asking.broken(format!("{config} is {}", digest_of(&bytes))));
    }
    let described = Description::parse(&bytes).map_err(understood)?;
    if !described.runs_here() {
        let message = format!(
            "{image} is for {}, not {}",
            described.platform,
            own_platform()
        );
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let platform = described.platform.clone();
    let resolved = ResolvedImage::new(image.clone(), ImageIdentity::Manifest(digest), platform);
    Ok((resolved, described))
}

struct Asking<'a> {
    client: &'a Client,
    credentials: Option<&'a RegistryCredentials>,
    image: &'a ImageRef,
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Asking<'_> {
    async fn manifest(&mut self, name: &str) -> Result<Vec<u8>> {
        self.get(&format!("manifests/{name}")).await
    }

    async fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        let registry = self.image.registry();
        let scheme = if is_plain(registry) { "http" } else { "https" };
        // Where the names of this registry are really answered.
        let host = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let url = format!("{scheme}://{host}/v2/{}/{path}", self.image.repository());
        let request = |authorization: Option<&String>| {
            let request = self.client.get(&url).header(ACCEPT, KINDS);
            match authorization {
                Some(value) => request.header(AUTHORIZATION, value),
                None => request,
            }
        };
        let mut response = self.send(request(self.authorization.as_ref())).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            let challenge = response.headers().get(WWW_AUTHENTICATE);
            let challenge = challenge
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            let authorization = self.authorize(challenge).await?;
            response = self.send(request(Some(&authorization))).await?;
            self.authorization = Some(authorization);
        }
        self.body(response).await
    }

    /// Gets what answers a challenge.
    async fn authorize(&self, challenge: &str) -> Result<String> {
        let (kind, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if kind.eq_ignore_ascii_case("basic") {
            let Some(credentials) = self.credentials else {
                let message = format!("{} wants credentials, and has none", self.image.registry());
                return Err(Error::new(ErrorKind::Denied, message));
            };
            return Ok(basic(credentials));
        }
        let parameters = parameters(rest);
        let get = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        let realm = get("realm").filter(|_| kind.eq_ignore_ascii_case("bearer"));
        let Some(realm) = realm else {
            return Err(self.broken(format!("the challenge {challenge:?} is not understood")));
        };
        // A password is sent where the registry says, and nowhere without encryption.
        if !realm.starts_with("https://") && !is_plain(self.image.registry()) {
            return Err(self.broken(format!("it wants a password sent to {realm}")));
        }
        let scope = get("scope").map_or_else(
            || format!("repository:{}:pull", self.image.repository()),
            str::to_owned,
        );
        let mut request = self.client.get(realm).query(&[("scope", scope.as_str())]);
        if let Some(service) = get("service") {
            request = request.query(&[("service", service)]);
        }
        if let Some(credentials) = self.credentials {
            request = request.header(AUTHORIZATION, basic(credentials));
        }
        let response = self.send(request).await?;
        let answer: Token = serde_json::from_slice(&self.body(response).await?)
            .map_err(|error| self.broken(format!("the token is not readable: {error}")))?;
        let token = answer.token.or(answer.access_token);
        let token = token.ok_or_else(|| self.broken("there is no token in the answer".into()))?;
        Ok(format!("Bearer {token}"))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        request
            .send()
            .await
            .map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        let registry = self.image.registry();
        let (kind, what) = if error.is_timeout() {
            (ErrorKind::Timeout, "does not answer")
        } else {
            (ErrorKind::Unavailable, "cannot be reached")
        };
        // The address is ours, and the reason below it.
        let error = error.without_url();
        let cause = std::error::Error::source(&error).map_or_else(String::new, |source| {
            let mut deepest = source;
            while let Some(next) = deepest.source() {
                deepest = next;
            }
            format!(": {deepest}")
        });
        Error::new(kind, format!("the registry {registry} {what}{cause}")).with_source(error)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let status = response.status();
        let mut bytes = Vec::new();
        loop {
            let piece = response.chunk().await;
            let Some(piece) = piece.map_err(|error| self.unreachable(error))? else {
                break;
            };
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_JSON {
                return Err(self.broken(format!("an answer has over {MAX_JSON} bytes")));
            }
        }
        if status.is_success() {
            return Ok(bytes);
        }
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Unavailable,
            status if status.is_server_error() => ErrorKind::Unavailable,
            _ => ErrorKind::Protocol,
        };
        Err(Error::new(
            kind,
            format!("{}: {}", self.image, words(status, &bytes)),
        ))
    }

    fn broken(&self, why: String) -> Error {
        let message = format!("{}: {why}", self.image);
        Error::new(ErrorKind::Protocol, message)
    }
}

/// What a registry says, for people.
fn words(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Option<Answer> = serde_json::from_slice(body).ok();
    let said = answer.and_then(|answer| answer.errors.into_iter().next());
    match said {
        Some(One { code, message }) => {
            let said: String = format!("{code} {message}").chars().take(500).collect();
            format!("{} ({status})", said.trim())
        }
        None => status.to_string(),
    }
}

fn basic(credentials: &RegistryCredentials) -> String {
    use base64::Engine as _;
    let pair = format!("{}:{}", credentials.username, credentials.password.expose());
    let coded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {coded}")
}

/// `name="value", name=value`: a comma in quotes is part of the value.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((name, tail)) = rest.split_once('=') {
        let name = name
            .trim_start_matches([',', ' '])
            .trim()
            .to_ascii_lowercase();
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        found.push((name, value.to_owned()));
        rest = tail;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"realm="https://auth.example.org/token",service=r.example.org,scope="repository:a/b:pull,push""#;
        let read = parameters(text);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            read,
            [
                pair("realm", "https://auth.example.org/token"),
                pair("service", "r.example.org"),
                pair("scope", "repository:a/b:pull,push"),
            ]
        );
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for plain in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3"] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in [
            "docker.io",
            "10.0.0.1:5000",
            "localhost.example.org",
            "127.0.0.1.example.org:80",
        ] {
            assert!(!is_plain(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_challenge_can_come(text in "\\PC{0,80}") {
            let _ = parameters(&text);
        }
    }
}
