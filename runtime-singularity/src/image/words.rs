//! What Apptainer's complaint about an image means, by its words: it has one exit code for all.

use v6_runtime::StartFailureCause;

/// Who can do something about it.
pub(crate) fn cause(words: &str) -> StartFailureCause {
    let words = words.to_lowercase();
    let any = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    if any(&[
        "unauthorized",
        "authentication required",
        "denied",
        "forbidden",
        "invalid username/password",
    ]) {
        return StartFailureCause::ImageDenied;
    }
    if any(&[
        "manifest unknown",
        "name unknown",
        "not found",
        "no such file",
    ]) {
        return StartFailureCause::ImageNotFound;
    }
    if any(&[
        "connection refused",
        "no such host",
        "dial tcp",
        "i/o timeout",
        "tls handshake",
        "x509:",
        "network is unreachable",
        "no route to host",
        "connection reset",
        "unexpected eof",
        "toomanyrequests",
        "bad gateway",
        "service unavailable",
        "http response to https client",
        "deadline exceeded",
    ]) {
        return StartFailureCause::RegistryUnreachable;
    }
    if any(&["no space left", "disk quota exceeded"]) {
        return StartFailureCause::Unschedulable;
    }
    StartFailureCause::ImageUnusable
}

/// The last lines of what a command said, without colours and dates: the reason comes last.
pub(crate) fn last_lines(words: &str) -> String {
    const MAX: usize = 1000;
    let plain: String = words
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            line.replace("[0m", "")
                .replace("[31m", "")
                .replace("[34m", "")
                .replace("[33m", "")
        })
        .collect::<Vec<_>>()
        .join("; ");
    let skip = plain.chars().count().saturating_sub(MAX);
    plain.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Apptainer 1.4.5 said it, but for names.
    #[test]
    fn complaints_are_understood() {
        let cases = [
            (
                "FATAL:   While making image from oci registry: error fetching image: failed to get checksum for docker://127.0.0.1:1/a@sha256:0: pinging container registry 127.0.0.1:1: Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                StartFailureCause::RegistryUnreachable,
            ),
            (
                "FATAL: reading manifest latest in r/a: manifest unknown: manifest unknown",
                StartFailureCause::ImageNotFound,
            ),
            (
                "FATAL: unable to retrieve auth token: invalid username/password: unauthorized: authentication required",
                StartFailureCause::ImageDenied,
            ),
            (
                "FATAL: while unpacking: write /x: no space left on device",
                StartFailureCause::Unschedulable,
            ),
            ("FATAL: something else", StartFailureCause::ImageUnusable),
        ];
        for (words, wanted) in cases {
            assert_eq!(cause(words), wanted, "{words}");
        }
    }

    #[test]
    fn the_reason_comes_last() {
        let long = format!("{}\n\n\u{1b}[31mFATAL: \u{1b}[0m why\n", "x".repeat(5000));
        let kept = last_lines(&long);
        assert!(kept.ends_with("FATAL:  why"), "{kept:?}");
        assert_eq!(kept.chars().count(), 1000);
    }
}
