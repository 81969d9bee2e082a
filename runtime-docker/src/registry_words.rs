//! What an engine's complaint about an image means, by its words: the API has no codes for it.

/// Who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no such image: whoever wrote its name.
    Absent,
    /// Credentials are wanted or refused: the operator.
    Denied,
    /// No way to the registry: the operator's network, or time.
    Unreachable,
    /// It is there and damaged, or for another platform.
    Unusable,
}

/// The meaning of an answer of the engine; `None` if it is not about an image.
///
/// Registries that hide what is private answer "denied" for what does not exist, and the engine
/// passes that on with both in one sentence; then "denied" is the truth: without credentials
/// nobody can tell.
pub(crate) fn trouble(status: Option<u16>, words: &str) -> Option<Trouble> {
    let words = words.to_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if any(&[
        "no matching manifest for",
        "does not match the specified platform",
        "unsupported media type",
        "unknown blob",
        "failed to register layer",
        "filesystem layer verification failed",
        "exec format error",
    ]) {
        return Some(Trouble::Unusable);
    }
    if any(&[
        "unauthorized",
        "authentication required",
        "no basic auth credentials",
        "access to the resource is denied",
        "requested access",
        "may require 'docker login'",
        "incorrect username or password",
        "denied:",
        "forbidden",
    ]) {
        return Some(Trouble::Denied);
    }
    if any(&[
        "manifest unknown",
        "manifest for",
        "name unknown",
        "repository name not known",
        "not found: manifest",
        "no such image",
    ]) {
        return Some(Trouble::Absent);
    }
    if any(&[
        "connection refused",
        "no such host",
        "server misbehaving",
        "dial tcp",
        "i/o timeout",
        "tls handshake",
        "x509:",
        "certificate",
        "network is unreachable",
        "no route to host",
        "request canceled",
        "context deadline exceeded",
        "http response to https client",
        "toomanyrequests",
        "too many requests",
        "unexpected eof",
        "connection reset",
        "bad gateway",
        "service unavailable",
    ]) {
        return Some(Trouble::Unreachable);
    }
    match status {
        Some(401 | 403) => Some(Trouble::Denied),
        Some(404) => Some(Trouble::Absent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Trouble, trouble};

    #[derive(serde::Deserialize)]
    struct Answer {
        case: String,
        status: u16,
        meaning: String,
        message: String,
    }

    /// What Docker 20.10 said with Debian's docker-registry 2.8 behind it; only the name server's
    /// address was changed.
    const DOCKER: &str = include_str!("../tests/data/registry-answers.json");
    /// What Podman 4.3.1 said with the same behind it, asked by a list and when it pulled.
    const PODMAN: &str = include_str!("../tests/data/registry-answers-podman.json");

    #[test]
    fn recorded_answers_are_understood() {
        let mut answers = Vec::new();
        for recorded in [DOCKER, PODMAN] {
            let more: Vec<Answer> = serde_json::from_str(recorded).expect("the recording is JSON");
            assert!(more.len() >= 9);
            answers.extend(more);
        }
        for Answer {
            case,
            status,
            meaning,
            message,
        } in answers
        {
            let told = trouble(Some(status), &message);
            assert_eq!(
                format!("{told:?}"),
                format!("Some({meaning})"),
                "{case}: {message}"
            );
            // Within a pull there is no status.
            assert_eq!(trouble(None, &message), told, "{case}: {message}");
        }
    }

    #[test]
    fn what_may_be_private_is_denied() {
        let hub = "pull access denied for x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied";
        assert_eq!(trouble(Some(404), hub), Some(Trouble::Denied));
    }

    #[test]
    fn other_complaints_are_not_about_images() {
        assert_eq!(trouble(Some(500), "the daemon is shutting down"), None);
        assert_eq!(trouble(None, ""), None);
    }
}
