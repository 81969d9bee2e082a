//! A provider of OpenID Connect, as far as API servers and nodes need one.

use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use reqwest::Url;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::tls::Authority;

pub const CLIENT: &str = "v6-tests";
/// With what has to be escaped in a header.
pub const SECRET: &str = "hunter2:%";

/// How clients have to show who they are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Way {
    Public,
    Header,
    Form,
}

/// What a provider does when it is asked for tokens.
pub struct Manner {
    pub way: Way,
    /// How long its tokens are valid, in seconds.
    pub life: i64,
    /// The one token that it takes; each time another.
    pub refresh: String,
    /// Says nothing to anybody.
    pub silent: bool,
    /// How often it was asked for tokens.
    pub asked: usize,
    pub given: usize,
}

pub struct Issuer {
    pub authority: Authority,
    pub url: String,
    inner: Arc<Inner>,
    _work: AbortOnDropHandle<()>,
}

struct Inner {
    url: String,
    subject: String,
    key: EcdsaKeyPair,
    manner: Mutex<Manner>,
}

impl Issuer {
    /// One that knows a single user.
    pub async fn start(subject: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let authority = Authority::new();
        // The second is what only a proxy knows the way to.
        let tls = authority.acceptor(&["127.0.0.1", "192.0.2.1"]);
        let inner = Arc::new(Inner {
            url: url.clone(),
            subject: subject.to_owned(),
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            manner: Mutex::new(Manner {
                way: Way::Public,
                life: 600,
                refresh: "refresh-hunter2-0".into(),
                silent: false,
                asked: 0,
                given: 0,
            }),
        });
        let serving = inner.clone();
        let work = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(tls.clone(), stream, serving.clone()));
            }
        });
        Self {
            authority,
            url,
            inner,
            _work: AbortOnDropHandle::new(work),
        }
    }

    pub fn manner(&self) -> MutexGuard<'_, Manner> {
        self.inner.manner.lock().unwrap()
    }

    /// A token that is valid for so many seconds.
    pub fn token(&self, life: i64) -> String {
        self.inner.token(life, CLIENT)
    }

    pub fn token_for(&self, audience: &str) -> String {
        self.inner.token(600, audience)
    }

    /// What an API server that trusts it is told.
    pub fn trusted(&self) -> Value {
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": {
                    "url": self.url, "audiences": [CLIENT],
                    "certificateAuthority": self.authority.pem(),
                },
                "claimMappings": { "username": { "claim": "sub", "prefix": "" } },
            }],
        })
    }

    /// What a kubeconfig has of one that has signed in, and whose token has expired.
    pub fn expired(&self) -> Value {
        json!({ "auth-provider": { "name": "oidc", "config": {
            "idp-issuer-url": self.url,
            "idp-certificate-authority-data": STANDARD.encode(self.authority.pem()),
            "client-id": CLIENT,
            "id-token": self.token(-60),
            "refresh-token": self.manner().refresh,
        }}})
    }
}

impl Inner {
    fn token(&self, life: i64, audience: &str) -> String {
        let now = Timestamp::now().as_second();
        let claims = json!({
            "iss": self.url, "sub": self.subject, "aud": audience,
            "iat": now - 600, "exp": now + life,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = json!({ "alg": "ES256", "kid": "1", "typ": "JWT" });
        let signed = format!("{}.{}", part(&head), part(&claims));
        let random = SystemRandom::new();
        let signature = self.key.sign(&random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn answer(&self, request: &str, authorization: &str, body: &str) -> (u16, Value) {
        let url = &self.url;
        match request {
            "GET /.well-known/openid-configuration" => {
                let metadata = json!({
                    "issuer": url,
                    "authorization_endpoint": format!("{url}/auth"),
                    "token_endpoint": format!("{url}/token"),
                    "jwks_uri": format!("{url}/keys"),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"],
                });
                (200, metadata)
            }
            "GET /keys" => {
                // After a byte that says so, the two coordinates.
                let point = &self.key.public_key().as_ref()[1..];
                let part = |range| URL_SAFE_NO_PAD.encode(&point[range]);
                let key = json!({
                    "kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "use": "sig",
                    "x": part(0..32), "y": part(32..64),
                });
                (200, json!({ "keys": [key] }))
            }
            "POST /token" => self.give(authorization, body),
            _ => (404, json!({})),
        }
    }

    fn give(&self, authorization: &str, body: &str) -> (u16, Value) {
        let mut manner = self.manner.lock().unwrap();
        manner.asked += 1;
        let form = Url::parse(&format!("https://form.example/?{body}")).unwrap();
        let field = |name: &str| {
            let found = form.query_pairs().find(|(key, _)| key == name);
            found.map(|(_, value)| value.into_owned())
        };
        // v6-tests:hunter2%3A%25
        let header = "Basic djYtdGVzdHM6aHVudGVyMiUzQSUyNQ==";
        let client = field("client_id");
        let known = match manner.way {
            Way::Public => client.as_deref() == Some(CLIENT) && authorization.is_empty(),
            Way::Header => authorization == header && field("client_secret").is_none(),
            Way::Form => {
                let secret = field("client_secret");
                client.as_deref() == Some(CLIENT) && secret.as_deref() == Some(SECRET)
            }
        };
        if !known {
            return (401, json!({ "error": "invalid_client" }));
        }
        let token = field("refresh_token").unwrap_or_default();
        if field("grant_type").as_deref() != Some("refresh_token") || token != manner.refresh {
            // As some do: with what nobody is to read.
            let description = format!("{token} is over");
            let refusal = json!({ "error": "invalid_grant", "error_description": description });
            return (400, refusal);
        }
        manner.given += 1;
        manner.refresh = format!("refresh-hunter2-{}", manner.given);
        let tokens = json!({
            "token_type": "Bearer",
            "access_token": "hunter2",
            "id_token": self.token(manner.life, CLIENT),
            "refresh_token": manner.refresh,
        });
        (200, tokens)
    }
}

async fn serve(tls: TlsAcceptor, stream: TcpStream, inner: Arc<Inner>) {
    // Who does not believe the certificate leaves.
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let mut stream = BufReader::new(stream);
    loop {
        let (mut request, mut authorization, mut length) = (String::new(), String::new(), 0);
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(1..) => {}
                _ => return,
            }
            let line = line.trim_end();
            match line.split_once(": ") {
                None if line.is_empty() => break,
                None => request = line.trim_end_matches(" HTTP/1.1").to_owned(),
                Some((name, value)) => match name.to_ascii_lowercase().as_str() {
                    "authorization" => authorization = value.to_owned(),
                    "content-length" => length = value.parse().unwrap(),
                    _ => {}
                },
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        if inner.manner.lock().unwrap().silent {
            return std::future::pending().await;
        }
        let body = String::from_utf8(body).unwrap();
        let (status, answer) = inner.answer(&request, &authorization, &body);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}",
            answer.len()
        );
        let answer = format!("{head}\r\n\r\n{answer}");
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
