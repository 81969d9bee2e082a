//! Which image: as people write it, and as it was resolved.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result, Secret};

/// A content digest, `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

impl Digest {
    /// Parses a digest.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec) for any other form.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self> {
        let text = text.into();
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.strip_prefix("sha256:") {
            Some(rest) if rest.len() == 64 && rest.bytes().all(hex) => Ok(Self(text)),
            _ => Err(Error::invalid(
                "digest",
                format!("{text:?} is not sha256:<64 hex digits>"),
            )),
        }
    }

    /// The digest as text, algorithm included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Self::new(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// An image as people name it: `[registry/]repository[:tag][@digest]`, by the rules of the
/// [distribution reference grammar](https://github.com/distribution/reference).
///
/// Short names are completed as everywhere: no registry is `docker.io`, a one-part name there is
/// `library/NAME`, no tag and no digest is `latest`. `Display` gives the complete form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: Box<str>,
    repository: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Parses a reference.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec), saying what is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid("image", format!("{text:?}: {why}"));
        if text.is_empty() || text.len() > 512 {
            return Err(bad("wanted 1 to 512 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(Digest::new(digest).map_err(|e| bad(e.message()))?),
            ),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let ok = tag.len() <= 128
                && tag.bytes().next().is_some_and(word)
                && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
            if !ok {
                return Err(bad("the tag is not well formed"));
            }
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':']) || first == "localhost" || has_upper(first) =>
            {
                (first, path)
            }
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" {
            "docker.io"
        } else {
            registry
        };
        if !is_host(registry) {
            return Err(bad("the registry is not a host name with an optional port"));
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(bad(
                "the repository needs lower-case parts of a-z, 0-9 and inner '.', '_', '-'",
            ));
        }
        let repository = if registry == "docker.io" && !path.contains('/') {
            format!("library/{path}").into()
        } else {
            path.into()
        };
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.into()),
            (None, None) => Some("latest".into()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            registry: registry.into(),
            repository,
            tag,
            digest,
        })
    }

    /// The registry's host, with its port if one was given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only beside a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at exactly this digest, without a tag.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0))
}

fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    // Separators between alphanumeric parts: one '.', one or two '_', any number of '-'.
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|gap| !gap.is_empty())
        .all(|gap| gap == "." || gap == "_" || gap == "__" || gap.bytes().all(|b| b == b'-'))
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl FromStr for ImageRef {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// What identifies the image's content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "digest")]
pub enum ImageIdentity {
    /// The digest of a registry's manifest (or index): the same on every machine.
    Manifest(Digest),
    /// The digest of the image's configuration, as an engine that holds the image locally names
    /// it: an image that was built or loaded here and never was in a registry has no other.
    ImageId(Digest),
}

impl ImageIdentity {
    /// The digest, whichever kind.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Manifest(digest) | Self::ImageId(digest) => digest,
        }
    }
}

/// An image whose content is settled: what [`Runtime::resolve`](crate::Runtime::resolve) returns,
/// and what a run uses, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResolvedImage {
    /// The name that was resolved.
    pub reference: ImageRef,
    /// What it stands for.
    pub identity: ImageIdentity,
    /// `os/architecture[/variant]`, as OCI writes it.
    pub platform: String,
}

impl ResolvedImage {
    /// Puts a resolved image together; for backends.
    #[must_use]
    pub fn new(reference: ImageRef, identity: ImageIdentity, platform: impl Into<String>) -> Self {
        Self {
            reference,
            identity,
            platform: platform.into(),
        }
    }
}

/// When to ask the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PullPolicy {
    /// Always ask the registry what the name stands for now.
    #[default]
    Always,
    /// Take what the engine has under that name; ask the registry only if it has none, or if what
    /// it has is not known.
    IfNotPresent,
    /// Never ask the registry. Needs [`image_store`](crate::Capabilities::image_store).
    Never,
}

/// What to sign in to one registry with.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RegistryCredentials {
    /// The registry's host as in [`ImageRef::registry`].
    pub registry: String,
    /// The account.
    pub username: String,
    /// Its password or token.
    pub password: Secret,
}

impl RegistryCredentials {
    /// Credentials for one registry.
    pub fn new(registry: impl Into<String>, username: impl Into<String>, password: Secret) -> Self {
        Self {
            registry: registry.into(),
            username: username.into(),
            password,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ImageRef;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn completes_short_names() {
        let cases = [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("a/b", "docker.io/a/b:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1"),
            ("localhost/a:b", "localhost/a:b"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            (
                "example.org/a/b/c__d-e.f",
                "example.org/a/b/c__d-e.f:latest",
            ),
        ];
        for (text, complete) in cases {
            let parsed = ImageRef::parse(text).expect(text);
            assert_eq!(parsed.to_string(), complete);
            assert_eq!(ImageRef::parse(complete).expect(complete), parsed);
        }
        let both = ImageRef::parse(&format!("a:1@{DIGEST}")).expect("tag and digest");
        assert_eq!(
            (both.tag(), both.digest().map(super::Digest::as_str)),
            (Some("1"), Some(DIGEST))
        );
        assert_eq!(
            ImageRef::parse(&format!("a@{DIGEST}"))
                .expect("digest")
                .tag(),
            None
        );
    }

    #[test]
    fn refuses_what_is_no_reference() {
        for bad in [
            "",
            "A",
            "a b",
            "a:",
            ":a",
            "/a",
            "a/",
            "a//b",
            "a@sha256:1",
            "a:b:c",
            "-a",
            "a..b",
            "a___b",
            "ex ample.org/a",
            "example.org:0/a",
            "example.org:x/a",
            "a\n",
        ] {
            assert!(ImageRef::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "[a-z0-9A-Z._:/@-]{0,60}") {
            if let Ok(parsed) = ImageRef::parse(&text) {
                prop_assert_eq!(ImageRef::parse(&parsed.to_string()).expect("its own form"), parsed);
            }
        }
    }
}
