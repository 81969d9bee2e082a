//! What an image's name stands for, asked at its registry: the cluster does not tell.

use std::time::Duration;

use reqwest::header::{ACCEPT, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use v6_runtime::{
    Digest, Error, ErrorKind, ImageIdentity, ImageRef, PullPolicy, RegistryCredentials,
    ResolvedImage, Result,
};

use crate::config::KubernetesConfig;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// A manifest or a configuration is never longer.
const MAX: usize = 4 << 20;

/// Asks registries.
pub(crate) struct Registry {
    http: reqwest::Client,
    credentials: Vec<RegistryCredentials>,
    insecure: Vec<String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == v6_helper::ARCHITECTURE
    }

    fn text(&self) -> String {
        let Self {
            os,
            architecture,
            variant,
        } = self;
        if variant.is_empty() {
            format!("{os}/{architecture}")
        } else {
            format!("{os}/{architecture}/{variant}")
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    pub(crate) fn new(config: &KubernetesConfig) -> Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(config.call_timeout)
            .connect_timeout(config.call_timeout.min(Duration::from_secs(10)))
            .user_agent(concat!("v6-runtime-kubernetes/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                let message = "a client for registries cannot be made";
                Error::new(ErrorKind::Unexpected, message).with_source(error)
            })?;
        Ok(Self {
            http,
            credentials: config.credentials.clone(),
            insecure: config.insecure_registries.clone(),
        })
    }

    /// Settles what a name stands for.
    pub(crate) async fn resolve(
        &self,
        image: &ImageRef,
        policy: PullPolicy,
    ) -> Result<ResolvedImage> {
        if policy == PullPolicy::Never {
            // What the machines of a cluster have is not known here.
            let Some(digest) = image.digest() else {
                let message = format!(
                    "{image}: without its registry, only an image that is named by its digest is \
                     known in a cluster"
                );
                return Err(Error::new(ErrorKind::NotFound, message));
            };
            let platform = format!("linux/{}", v6_helper::ARCHITECTURE);
            let identity = ImageIdentity::Manifest(digest.clone());
            return Ok(ResolvedImage::new(image.clone(), identity, platform));
        }
        let what = match (image.digest(), image.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        let (digest, bytes) = self.manifest(image, &what).await?;
        if image.digest().is_some_and(|wanted| *wanted != digest) {
            let message = format!("{image}: the registry gave something else, {digest}");
            return Err(Error::new(ErrorKind::Protocol, message));
        }
        let platform = self.platform(image, &bytes).await?;
        Ok(ResolvedImage::new(
            image.clone(),
            ImageIdentity::Manifest(digest),
            platform,
        ))
    }

    /// Sees that the registry still gives an image to us.
    pub(crate) async fn check(&self, image: &ResolvedImage) -> Result<()> {
        let ImageIdentity::Manifest(digest) = &image.identity else {
            return Ok(());
        };
        self.manifest(&image.reference, digest.as_str())
            .await
            .map(drop)
    }

    async fn manifest(&self, image: &ImageRef, what: &str) -> Result<(Digest, Vec<u8>)> {
        let place = format!("manifests/{what}");
        let bytes = self.get(image, &place).await?;
        // Computed, so that it is the digest of what was read.
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        Ok((Digest::new(format!("sha256:{digest}"))?, bytes))
    }

    /// For which platform an image is: ours, if it is for several.
    async fn platform(&self, image: &ImageRef, manifest: &[u8]) -> Result<String> {
        let read = |bytes: &[u8]| serde_json::from_slice::<Manifest>(bytes);
        let manifest = read(manifest).map_err(|error| not_understood(image, error))?;
        if let Some(all) = &manifest.manifests {
            let mut platforms = all.iter().filter_map(|one| one.platform.as_ref());
            return match platforms.find(|platform| platform.is_ours()) {
                Some(platform) => Ok(platform.text()),
                None => {
                    let message =
                        format!("{image} is not there for linux/{}", v6_helper::ARCHITECTURE);
                    Err(Error::new(ErrorKind::NotFound, message))
                }
            };
        }
        let Some(config) = manifest.config else {
            let message = format!("{image}: the registry's manifest names no image");
            return Err(Error::new(ErrorKind::Protocol, message));
        };
        let config = self.get(image, &format!("blobs/{}", config.digest)).await?;
        let platform: Platform =
            serde_json::from_slice(&config).map_err(|error| not_understood(image, error))?;
        Ok(platform.text())
    }

    async fn get(&self, image: &ImageRef, place: &str) -> Result<Vec<u8>> {
        let registry = image.registry();
        let (scheme, host) = match registry {
            "docker.io" => ("https", "registry-1.docker.io"),
            host if self.is_plain(host) => ("http", host),
            host => ("https", host),
        };
        let url = format!("{scheme}://{host}/v2/{}/{place}", image.repository());
        let ask = || self.http.get(&url).header(ACCEPT, MANIFESTS);
        let mut answer = self.send(image, ask()).await?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(signed) = self.sign_in(image, &answer, ask()).await?
        {
            answer = self.send(image, signed).await?;
        }
        let status = answer.status();
        let bytes = self.read(image, answer).await?;
        if status.is_success() {
            return Ok(bytes);
        }
        let words = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
        let message = format!("{image}: the registry answered {status} {}", words.trim());
        let kind = match status.as_u16() {
            401 | 403 => ErrorKind::Denied,
            404 => ErrorKind::NotFound,
            408 | 504 => ErrorKind::Timeout,
            429 | 500..=599 => ErrorKind::Unavailable,
            _ => ErrorKind::Protocol,
        };
        Err(Error::new(kind, message))
    }

    fn is_plain(&self, registry: &str) -> bool {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        self.insecure.iter().any(|insecure| insecure == registry)
            || host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    fn login(&self, image: &ImageRef) -> Option<&RegistryCredentials> {
        let registry = image.registry();
        self.credentials
            .iter()
            .find(|login| login.registry == registry)
    }

    async fn send(&self, image: &ImageRef, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|error| {
            let kind = if error.is_timeout() {
                ErrorKind::Timeout
            } else {
                ErrorKind::Unavailable
            };
            let message = format!("{image}: its registry cannot be reached");
            Error::new(kind, message).with_source(error.without_url())
        })
    }

    async fn read(&self, image: &ImageRef, mut answer: Response) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let piece = answer.chunk().await.map_err(|error| {
                let message = format!("{image}: its registry broke off");
                Error::new(ErrorKind::Unavailable, message).with_source(error.without_url())
            })?;
            let Some(piece) = piece else {
                return Ok(bytes);
            };
            if bytes.len() + piece.len() > MAX {
                let message = format!("{image}: its registry's answer is too long");
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            bytes.extend_from_slice(&piece);
        }
    }

    /// The request with what the registry asks for; `None` if there is nothing to add.
    async fn sign_in(
        &self,
        image: &ImageRef,
        answer: &Response,
        request: RequestBuilder,
    ) -> Result<Option<RequestBuilder>> {
        let asked = answer.headers().get(WWW_AUTHENTICATE);
        let asked = asked
            .and_then(|asked| asked.to_str().ok())
            .unwrap_or_default();
        let login = self.login(image);
        let (scheme, parameters) = asked.split_once(' ').unwrap_or((asked, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Ok(login
                .map(|login| request.basic_auth(&login.username, Some(login.password.expose()))));
        }
        let find = |name: &str| parameter(parameters, name);
        let Some(realm) = find("realm").filter(|_| scheme.eq_ignore_ascii_case("bearer")) else {
            return Ok(None);
        };
        let mut query = vec![("scope", format!("repository:{}:pull", image.repository()))];
        if let Some(service) = find("service") {
            query.push(("service", service.to_owned()));
        }
        let mut token = self.http.get(realm).query(&query);
        if let Some(login) = login {
            token = token.basic_auth(&login.username, Some(login.password.expose()));
        }
        let answer = self.send(image, token).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let message = format!("{image}: signing in at its registry was answered {status}");
            return Err(Error::new(ErrorKind::Denied, message));
        }
        let bytes = self.read(image, answer).await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|error| not_understood(image, error))?;
        Ok(token
            .token
            .or(token.access_token)
            .map(|token| request.bearer_auth(token)))
    }
}

fn not_understood(image: &ImageRef, error: serde_json::Error) -> Error {
    let message = format!("{image}: its registry's answer was not understood");
    Error::new(ErrorKind::Protocol, message).with_source(error)
}

/// A parameter of a challenge: `name="value", …`.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = parameters;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"realm="https://a.example/token?x=1",service="b, c",scope="d""#;
        assert_eq!(
            parameter(text, "realm"),
            Some("https://a.example/token?x=1")
        );
        assert_eq!(parameter(text, "service"), Some("b, c"));
        assert_eq!(parameter(text, "scope"), Some("d"));
        assert_eq!(parameter(text, "error"), None);
        assert_eq!(parameter("realm=plain, a=b", "a"), Some("b"));
        assert_eq!(parameter(r#"realm="open"#, "realm"), None);
    }
}
