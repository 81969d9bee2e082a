//! Whether HQ lets the node in.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Finding, Probe};
use crate::cli::exit::Exit;
use crate::cli::render;
use crate::config::Config;
use crate::hq::SignInError;
use crate::join::{JoinError, join};

/// The versions that this node was tried with.
const KNOWN: &str = "5.0.";

/// Signs in at Keycloak, asks HQ who the node is, and compares the encryption. Changes one thing,
/// as a start would: HQ gets the organization's public key if it has another.
pub struct Hq(pub Arc<Config>);

#[async_trait]
impl Probe for Hq {
    fn name(&self) -> Cow<'_, str> {
        "hq".into()
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(40)
    }

    async fn run(&self) -> Finding {
        let member = match join(&self.0).await {
            Ok(member) => member,
            Err(error) => return failed(&self.0, &error),
        };
        let version = match member.hq.version().await {
            Ok(version) => version,
            Err(error) => {
                let message = format!(
                    "HQ let the node in, but does not tell its version: {}",
                    render(&error)
                );
                return Finding::warn(
                    message,
                    "check that hq_url, port and api_path lead to HQ itself",
                );
            }
        };
        let name = &member.collaboration.name;
        let encryption = if member.codec.is_encrypted() {
            "encrypted"
        } else {
            "not encrypted"
        };
        let message = format!(
            "HQ {version} knows this node as \"{}\" of \"{}\" in collaboration \"{name}\" ({encryption})",
            member.us.node_name, member.organization
        );
        if version.starts_with(KNOWN) {
            Finding::ok(message)
        } else {
            Finding::warn(
                message,
                format!("this node was tried with HQ {KNOWN}x; watch the first runs closely"),
            )
        }
    }
}

fn failed(config: &Config, error: &JoinError) -> Finding {
    let message = render(error);
    let (remedy, exit) = match error {
        JoinError::SignIn(SignInError::WrongKey { .. }) => (
            format!(
                "check V6_NODE_NAME (\"{}\") and V6_API_KEY; HQ shows a new key after \"reset API key\"",
                config.name
            ),
            Exit::Denied,
        ),
        _ if error.is_retryable() => (
            format!(
                "check KEYCLOAK_URL ({}), hq_url and port ({}), the proxy and the CA certificates, and that both servers run",
                config.keycloak.url, config.hq.root
            ),
            Exit::Unavailable,
        ),
        JoinError::EncryptionMismatch { .. }
        | JoinError::KeyFile { .. }
        | JoinError::Key { .. }
        | JoinError::Http(_) => ("correct the configuration".into(), Exit::Usage),
        _ => (
            "ask the administrator of HQ whether this node still exists there".into(),
            Exit::Denied,
        ),
    };
    Finding::fail(message, remedy).with_exit(exit)
}
