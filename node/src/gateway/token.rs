//! Tokens for containers: with claims, without power.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::base64::Engine as _;
use ::base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;
use serde::Deserialize;
use v6_runtime::RunId;

use crate::hq::{Hq, HqError, Identity};
use crate::runs::RunContext;
use crate::secret::Secret;

/// After a renewal that gave the same token again, HQ is not asked for this long.
const FRUITLESS: Duration = Duration::from_secs(1);
/// Longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 64 << 10;

/// What a container's token says (protocol 2.6).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Claims {
    vantage6_client_type: String,
    node_id: i64,
    organization_id: i64,
    collaboration_id: i64,
    task_id: i64,
}

#[derive(Deserialize)]
struct Payload {
    sub: Claims,
}

/// The claims of a token, whoever signed it, and its two first parts.
fn read(token: &str) -> Option<(&str, &str, Claims)> {
    let mut parts = (token.len() <= TOKEN_MAX).then_some(token)?.split('.');
    let (header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let payload_read: Payload = serde_json::from_slice(&json).ok()?;
    Some((header, payload, payload_read.sub))
}

/// HQ's tokens of containers, which never leave the node's memory, and those given to the
/// containers in their place.
///
/// A container's token is a JWT with the claims of HQ's under a random signature. The
/// algorithm's client reads the claims; HQ would refuse it.
#[derive(Debug)]
pub(super) struct ContainerTokens {
    hq: Hq,
    identity: Identity,
    held: Mutex<HashMap<RunId, Slot>>,
}

type Slot = Arc<tokio::sync::Mutex<Held>>;

#[derive(Debug, Default)]
struct Held {
    token: Option<Secret>,
    fruitless: Option<Instant>,
}

impl ContainerTokens {
    pub(super) fn new(hq: Hq, identity: Identity) -> Self {
        Self {
            hq,
            identity,
            held: Mutex::default(),
        }
    }

    /// Asks HQ for the token of this run, keeps it, and makes the one for the container.
    pub(super) async fn issue(&self, context: &RunContext) -> Result<Secret, HqError> {
        let slot = self.slot(context);
        let mut held = slot.lock().await;
        let token = self.ask(context).await?;
        let made = powerless(&token).ok_or_else(misfit)?;
        held.token = Some(token);
        Ok(made)
    }

    /// Whether a presented token says what HQ's token of this run says. The signature is not
    /// looked at: that the connection is this run's is certain without it.
    pub(super) fn accepts(&self, presented: &str, context: &RunContext) -> bool {
        read(presented).is_some_and(|(_, _, claims)| self.is_of(&claims, context))
    }

    fn is_of(&self, claims: &Claims, context: &RunContext) -> bool {
        let me = &self.identity;
        claims.vantage6_client_type == "container"
            && claims.task_id == context.task
            && claims.node_id == me.node
            && claims.organization_id == me.organization
            && claims.collaboration_id == me.collaboration
    }

    /// HQ's token of the run; asked for if a restart has lost it.
    pub(super) async fn current(&self, context: &RunContext) -> Result<Secret, HqError> {
        let slot = self.slot(context);
        let mut held = slot.lock().await;
        if let Some(token) = &held.token {
            return Ok(token.clone());
        }
        let token = self.ask(context).await?;
        held.token = Some(token.clone());
        Ok(token)
    }

    /// Another token than `stale`, which HQ has refused; `None` if HQ gives the same again. It
    /// has no date in it, so the same means that the token was not why HQ refused.
    pub(super) async fn renewed(&self, context: &RunContext, stale: &Secret) -> Option<Secret> {
        let slot = self.slot(context);
        let mut held = slot.lock().await;
        if let Some(token) = held.token.as_ref().filter(|token| *token != stale) {
            return Some(token.clone());
        }
        if held.fruitless.is_some_and(|at| at.elapsed() < FRUITLESS) {
            return None;
        }
        match self.ask(context).await {
            Ok(token) if token != *stale => {
                held.token = Some(token.clone());
                held.fruitless = None;
                Some(token)
            }
            Ok(_) => {
                held.fruitless = Some(Instant::now());
                None
            }
            Err(error) => {
                tracing::debug!(run = context.run, %error, "no new token for a container");
                held.fruitless = Some(Instant::now());
                None
            }
        }
    }

    pub(super) fn forget(&self, run: &RunId) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(run);
    }

    fn slot(&self, context: &RunContext) -> Slot {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(context.run_id())
            .or_default()
            .clone()
    }

    async fn ask(&self, context: &RunContext) -> Result<Secret, HqError> {
        let token = self
            .hq
            .container_token(context.task, &context.image)
            .await?;
        let fits = read(token.expose()).is_some_and(|(_, _, claims)| self.is_of(&claims, context));
        if fits { Ok(token) } else { Err(misfit()) }
    }
}

/// The same header and claims without a signature of worth.
fn powerless(token: &Secret) -> Option<Secret> {
    let (header, payload, _) = read(token.expose())?;
    // As long as that of HS256, and no signature of anything.
    let mut signature = [0_u8; 32];
    rand::rng().fill_bytes(&mut signature);
    let signature = URL_SAFE_NO_PAD.encode(signature);
    Some(Secret::new(format!("{header}.{payload}.{signature}")))
}

fn misfit() -> HqError {
    HqError::Answer {
        call: "POST token/container".to_owned(),
        source: serde::de::Error::custom("the token is not one for this task and node"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use serde_json::json;

    fn token(sub: &serde_json::Value) -> String {
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!(
            "{}.{}.c2ln",
            part(&json!({"alg": "HS256", "typ": "JWT"})),
            part(&json!({ "sub": sub }))
        )
    }

    #[test]
    fn the_claims_stay_and_the_signature_does_not() {
        let sub = json!({
            "vantage6_client_type": "container", "node_id": 2, "organization_id": 3,
            "collaboration_id": 4, "study_id": null, "task_id": 5, "image": "i", "databases": [],
        });
        let real = token(&sub);
        let made = powerless(&Secret::new(real.clone())).unwrap();
        let (real_head, real_signature) = real.rsplit_once('.').unwrap();
        let (made_head, made_signature) = made.expose().rsplit_once('.').unwrap();
        assert_eq!(real_head, made_head);
        assert_ne!(real_signature, made_signature);
        let claims = read(made.expose()).unwrap().2;
        assert_eq!((claims.node_id, claims.task_id), (2, 5));
    }

    #[test]
    fn what_is_no_token() {
        let long = "x".repeat(TOKEN_MAX + 1);
        for text in ["", "a", "a.b", "a.b.c", "a.b.c.d", "e30.e30.", &long] {
            assert!(read(text).is_none(), "{text:.20}");
        }
        assert!(read(&token(&json!({"task_id": 1}))).is_none());
        assert!(read(&token(&json!("1"))).is_none());
    }
}
