//! OpenID Connect: the `id-token` of a kubeconfig, and another one for its `refresh-token`.
//!
//! As client-go does it. The library's own asks only providers whose certificate is of the system's
//! authorities, without a proxy or a limit of time, and only for clients that have a secret.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::redirect::Policy;
use reqwest::{Certificate, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use v6_runtime::Secret;

use crate::access::is_loopback;
use crate::client::{certificate, is_stranger};
use crate::error::{Error, Result, deepest};

/// A token that ends sooner may end on its way.
const SOON: Duration = Duration::from_secs(10);
/// A provider that has given nothing is asked again after so long: some lock who asks in vain too often.
const PAUSE: Duration = Duration::from_secs(5);
/// Metadata and tokens are never longer.
const MAX: usize = 1 << 20;
const AGAIN: &str = "sign in again, by what has written the kubeconfig";

/// Who gives tokens, and what it has given.
pub(crate) struct Provider {
    /// Who can be asked for more; `None` if the kubeconfig has no `refresh-token`.
    client: Option<Client>,
    held: Mutex<Held>,
    limit: Duration,
}

struct Client {
    http: reqwest::Client,
    issuer: String,
    id: String,
    secret: Option<Secret>,
    /// Whether only the authorities of the kubeconfig are believed.
    has_authority: bool,
}

struct Held {
    id_token: Option<Secret>,
    /// The newest: a provider may take each only once.
    refresh_token: Option<Secret>,
    endpoint: Option<String>,
    /// When nothing was given, and why.
    failed: Option<(Instant, String)>,
}

#[derive(Deserialize)]
struct Metadata {
    token_endpoint: String,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: Option<String>,
    refresh_token: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Provider {
    /// Reads the configuration of a kubeconfig's `auth-provider`; asks nobody. A call of ours waits at
    /// most for `limit`.
    pub(crate) fn new(config: &HashMap<String, String>, limit: Duration) -> Result<Self> {
        let get = |key: &str| config.get(key).filter(|value| !value.is_empty());
        let secret = |key| get(key).map(|value| Secret::new(value.as_str()));
        let held = Held {
            id_token: secret("id-token"),
            refresh_token: secret("refresh-token"),
            endpoint: None,
            failed: None,
        };
        if held.id_token.is_none() && held.refresh_token.is_none() {
            let why = format!("there is neither an `id-token` nor a `refresh-token`: {AGAIN}");
            return Err(failed(&why));
        }
        let needed = |key: &str| {
            let value = get(key).cloned();
            value.ok_or_else(|| failed(&format!("a `refresh-token` needs `{key}` beside it")))
        };
        let client = match &held.refresh_token {
            None => None,
            Some(_) => {
                let authority = authority(
                    get("idp-certificate-authority-data"),
                    get("idp-certificate-authority"),
                )?;
                let has_authority = authority.is_some();
                let issuer = needed("idp-issuer-url")?;
                Some(Client {
                    http: http(&issuer, authority)?,
                    issuer: issuer.trim_end_matches('/').to_owned(),
                    id: needed("client-id")?,
                    secret: secret("client-secret"),
                    has_authority,
                })
            }
        };
        Ok(Self {
            client,
            held: Mutex::new(held),
            // Half, so that it is told who has not answered.
            limit: limit / 2,
        })
    }

    /// A token that is valid for now.
    pub(crate) async fn token(self: &Arc<Self>) -> Result<Secret> {
        if let Some(token) = self.held.lock().await.valid() {
            return Ok(token);
        }
        let this = self.clone();
        // Of its own: what a provider gives once only is kept, also if nobody waits for it any more.
        let asked = tokio::spawn(async move { this.renew().await });
        asked
            .await
            .unwrap_or_else(|_| Err(failed("asking the provider broke off")))
    }

    async fn renew(&self) -> Result<Secret> {
        let mut held = self.held.lock().await;
        if let Some(token) = held.valid() {
            return Ok(token);
        }
        let recent = |at: &Instant| at.elapsed() < PAUSE;
        if let Some((_, why)) = held.failed.as_ref().filter(|(at, _)| recent(at)) {
            return Err(failed(why));
        }
        let asked = tokio::time::timeout(self.limit, self.ask(&mut held)).await;
        let done = asked.unwrap_or_else(|_| Err(self.silent()));
        match done {
            Ok(token) => {
                held.failed = None;
                Ok(token)
            }
            Err(why) => {
                held.failed = Some((Instant::now(), why.clone()));
                Err(failed(&why))
            }
        }
    }

    fn silent(&self) -> String {
        let issuer = self.client.as_ref().map_or("", |client| &client.issuer);
        format!("{issuer} has not answered within {:?}", self.limit)
    }

    async fn ask(&self, held: &mut Held) -> Result<Secret, String> {
        let (Some(client), Some(refresh)) = (&self.client, held.refresh_token.clone()) else {
            let why = match held.id_token.as_ref().map(expiry) {
                Some(None) => "the `id-token` is not one",
                _ => "the `id-token` has expired",
            };
            return Err(format!("{why}, and there is no `refresh-token`: {AGAIN}"));
        };
        let endpoint = match &held.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => client.endpoint().await?,
        };
        held.endpoint = Some(endpoint.clone());
        let tokens = client.refresh(&endpoint, &refresh).await?;
        if let Some(next) = tokens.refresh_token.filter(|next| !next.is_empty()) {
            held.refresh_token = Some(next.into());
        }
        let issuer = &client.issuer;
        let Some(token) = tokens.id_token else {
            return Err(format!(
                "{issuer} gives no id token for the `refresh-token`: was that asked for with the \
                 scope `openid`?"
            ));
        };
        held.id_token = Some(token.into());
        held.valid().ok_or_else(|| {
            format!("the id token that {issuer} gives is none, or has expired: is this machine's clock right?")
        })
    }
}

impl Held {
    fn valid(&self) -> Option<Secret> {
        let token = self.id_token.as_ref()?;
        let ends = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(expiry(token)?))?;
        (SystemTime::now() + SOON < ends).then(|| token.clone())
    }
}

impl Client {
    /// Where tokens are given.
    async fn endpoint(&self) -> Result<String, String> {
        let place = format!("{}/.well-known/openid-configuration", self.issuer);
        let (status, bytes) = self.send(self.http.get(place)).await?;
        if !status.is_success() {
            return Err(format!(
                "{} answers {status} where its metadata should be: is `idp-issuer-url` right?",
                self.issuer
            ));
        }
        let metadata: Metadata = self.read(&bytes)?;
        Ok(metadata.token_endpoint)
    }

    async fn refresh(&self, endpoint: &str, token: &Secret) -> Result<Tokens, String> {
        let what = [
            ("grant_type", "refresh_token"),
            ("refresh_token", token.expose()),
        ];
        let mut named = what.to_vec();
        named.push(("client_id", &self.id));
        let ask = || self.http.post(endpoint);
        // Providers differ in where they want the client's secret.
        let ways = match &self.secret {
            None => vec![ask().form(&named)],
            Some(secret) => {
                named.push(("client_secret", secret.expose()));
                let head = ask().basic_auth(escaped(&self.id), Some(escaped(secret.expose())));
                vec![head.form(&what), ask().form(&named)]
            }
        };
        let mut why = String::new();
        for way in ways {
            let (status, bytes) = self.send(way).await?;
            if status.is_success() {
                return self.read(&bytes);
            }
            let code = serde_json::from_slice::<Refusal>(&bytes).ok();
            let code = code.map(|refusal| refusal.error).filter(|it| is_code(it));
            let said = code.as_deref().unwrap_or("without a reason that is known");
            let advice = match (code.as_deref(), status.is_server_error()) {
                (_, true) => "",
                (Some("invalid_client"), _) => ": are `client-id` and `client-secret` right?",
                _ => &format!(": {AGAIN}"),
            };
            why = format!(
                "{} gives no other id token for the `refresh-token` ({status}, {said}){advice}",
                self.issuer
            );
            // It was understood, and counts.
            if code.as_deref() == Some("invalid_grant") || status.is_server_error() {
                break;
            }
        }
        Err(why)
    }

    async fn send(&self, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), String> {
        let broken = |error: reqwest::Error| self.unreachable(&error);
        let mut answer = request.send().await.map_err(broken)?;
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(broken)? {
            if bytes.len() + piece.len() > MAX {
                return Err(format!("the answer of {} is too long", self.issuer));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((answer.status(), bytes))
    }

    fn unreachable(&self, error: &reqwest::Error) -> String {
        let advice = match certificate(error) {
            None => "",
            Some(why) if is_stranger(why) && self.has_authority => {
                "; its certificate is of another authority than `idp-certificate-authority`"
            }
            Some(why) if is_stranger(why) => {
                "; name its certificate's authority as `idp-certificate-authority`"
            }
            Some(_) => "; see `idp-issuer-url`, and this machine's clock",
        };
        let why = deepest(error);
        format!("{} cannot be reached: {why}{advice}", self.issuer)
    }

    /// Without the words of the reader: there may be tokens in them.
    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, String> {
        let issuer = &self.issuer;
        serde_json::from_slice(bytes)
            .map_err(|_| format!("what {issuer} answers is not understood"))
    }
}

fn failed(why: &str) -> Error {
    Error::SignIn(format!("OpenID Connect: {why}"))
}

/// What a provider's certificate has to be of; `None` if the system's authorities.
fn authority(data: Option<&String>, path: Option<&String>) -> Result<Option<Vec<Certificate>>> {
    let wrong = |key: &str, why: &str| Err(Error::Config(format!("`{key}`: {why}")));
    // In client-go's order.
    let (key, pem) = match (data, path) {
        (Some(data), _) => {
            let key = "idp-certificate-authority-data";
            match STANDARD.decode(data) {
                Ok(pem) => (key, pem),
                Err(_) => return wrong(key, "it is not in base64"),
            }
        }
        (None, Some(path)) => {
            let key = "idp-certificate-authority";
            match std::fs::read(path) {
                Ok(pem) => (key, pem),
                Err(error) => return wrong(key, &format!("{path} cannot be read: {error}")),
            }
        }
        (None, None) => return Ok(None),
    };
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(Some(found)),
        _ => wrong(key, "there is no certificate in PEM in it"),
    }
}

fn http(issuer: &str, authority: Option<Vec<Certificate>>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        // Tokens go only to who is named, and never in clear.
        .redirect(Policy::none())
        .https_only(true)
        .user_agent(concat!("v6-runtime-kubernetes/", env!("CARGO_PKG_VERSION")));
    if let Some(authority) = authority {
        builder = builder.tls_certs_only(authority);
    }
    let wrong = |why| Err(Error::Config(format!("`idp-issuer-url` {why}")));
    let issuer = match Url::parse(issuer) {
        Ok(issuer) if issuer.scheme() == "https" => issuer,
        _ => return wrong("is no address that begins with `https://`"),
    };
    // It is told in errors.
    if issuer.password().is_some() {
        return wrong("has a password in it: a provider has none there");
    }
    if issuer.host_str().is_some_and(is_loopback) {
        builder = builder.no_proxy();
    }
    let http = builder.build();
    http.map_err(|error| failed(&format!("no client can be made: {}", deepest(&error))))
}

/// When a token ends, in seconds since 1970; `None` if it is no token.
fn expiry(token: &Secret) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: serde_json::Number,
    }
    let claims = token.expose().split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let exp = serde_json::from_slice::<Claims>(&claims).ok()?.exp;
    exp.as_u64()
        .or_else(|| Some(Duration::try_from_secs_f64(exp.as_f64()?).ok()?.as_secs()))
}

/// As RFC 6749 wants names and secrets in a header.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte.into());
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// Whether it is a word for a reason, as RFC 6749 has them, and not something that was sent.
fn is_code(text: &str) -> bool {
    text.len() <= 40 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With these claims, and no signature.
    fn token(claims: &str) -> Secret {
        let claims = URL_SAFE_NO_PAD.encode(claims);
        Secret::new(format!("e30.{claims}.c2ln"))
    }

    fn provider(fields: &[(&str, &str)]) -> Result<Provider> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Provider::new(&fields.iter().map(own).collect(), Duration::from_secs(1))
    }

    #[test]
    fn the_end_of_a_token_is_read() {
        assert_eq!(expiry(&token(r#"{"exp":12}"#)), Some(12));
        assert_eq!(expiry(&token(r#"{"exp":1.25e1}"#)), Some(12));
        for wrong in [r#"{"exp":"12"}"#, r#"{"exp":-1}"#, "{}", "hunter2", ""] {
            assert_eq!(expiry(&token(wrong)), None, "{wrong}");
        }
        for wrong in ["", "hunter2", ".", "a.?.b"] {
            assert_eq!(expiry(&Secret::new(wrong)), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_token_is_used_until_shortly_before_its_end() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.expect("a time").as_secs();
        let is_valid = async |end: u64| {
            let token = token(&format!(r#"{{"exp":{end}}}"#));
            let provider = Arc::new(provider(&[("id-token", token.expose())]).expect("a token"));
            provider.token().await.map_err(|error| error.to_string())
        };
        assert!(is_valid(now + 60).await.is_ok());
        let error = is_valid(now + 5).await.expect_err("its end");
        for wanted in ["has expired", "no `refresh-token`", "sign in again"] {
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let url = "idp-issuer-url";
        let issuer = (url, "https://127.0.0.1:1");
        let refresh = ("refresh-token", "hunter2");
        let client = ("client-id", "v6");
        let (data, path) = (
            "idp-certificate-authority-data",
            "idp-certificate-authority",
        );
        for (fields, wanted) in [
            (vec![issuer, ("id-token", "")], "neither an `id-token`"),
            (vec![refresh, issuer], "`client-id`"),
            (vec![refresh, client], "`idp-issuer-url`"),
            (vec![refresh, issuer, client, (data, "?")], "base64"),
            (vec![refresh, issuer, client, (data, "eA==")], "in PEM"),
            (vec![refresh, issuer, client, (path, "/none")], "/none"),
            (vec![refresh, client, (url, "hunter2")], "no address"),
            (vec![refresh, client, (url, "http://x")], "no address"),
            (
                vec![refresh, client, (url, "https://x:hunter2@y")],
                "a password",
            ),
        ] {
            let error = provider(&fields).err().expect("an error").to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(provider(&[refresh, issuer, client]).is_ok());
    }

    #[test]
    fn only_a_known_kind_of_reason_is_told() {
        assert!(is_code("invalid_grant"));
        for other in ["Token abc is over", "eyJhbGciOiJub25lIn0", &"x".repeat(41)] {
            assert!(!is_code(other), "{other}");
        }
        assert_eq!(escaped("a b:ü~"), "a%20b%3A%C3%BC~");
    }
}
