//! What an image says of itself, as OCI writes it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use v6_runtime::Digest;

/// What a run needs to know of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    /// `NAME=VALUE`
    pub(crate) env: Vec<String>,
    pub(crate) workdir: Option<String>,
    /// Folders that the image wants to write to.
    pub(crate) volumes: Vec<String>,
    /// `os/architecture[/variant]`
    pub(crate) platform: String,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
    #[serde(default)]
    config: Option<Inner>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Inner {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

impl Description {
    /// Reads an image's configuration.
    pub(crate) fn parse(config: &[u8]) -> Result<Self, String> {
        let config: Config = serde_json::from_slice(config)
            .map_err(|error| format!("the image's configuration is not readable: {error}"))?;
        let inner = config.config.unwrap_or_default();
        let mut platform = format!("{}/{}", config.os, config.architecture);
        if let Some(variant) = config.variant.filter(|variant| !variant.is_empty()) {
            platform = format!("{platform}/{variant}");
        }
        Ok(Self {
            entrypoint: inner.entrypoint.unwrap_or_default(),
            cmd: inner.cmd.unwrap_or_default(),
            env: inner.env.unwrap_or_default(),
            workdir: inner.working_dir.filter(|path| !path.is_empty()),
            volumes: inner.volumes.unwrap_or_default().into_keys().collect(),
            platform,
        })
    }

    /// Of what is no OCI image: a script that it brings, if any, and nothing else is known.
    pub(crate) fn of_native() -> Self {
        Self {
            entrypoint: vec!["/.singularity.d/runscript".to_owned()],
            env: Vec::new(),
            platform: own_platform(),
            ..Self::default()
        }
    }

    /// Whether programs of it run here.
    pub(crate) fn runs_here(&self) -> bool {
        let ours = own_platform();
        let rest = self.platform.strip_prefix(&ours);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

pub(crate) fn own_platform() -> String {
    format!("linux/{}", v6_helper::ARCHITECTURE)
}

/// The digest of these bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    digest_from(Sha256::digest(bytes).as_slice())
}

pub(crate) fn digest_from(hash: &[u8]) -> Digest {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in hash {
        let _ = write!(text, "{byte:02x}");
    }
    Digest::new(text).expect("64 hexadecimal digits")
}

/// One of an index's manifests, or the manifest itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Option<Descriptor>,
    /// Of an index.
    pub(crate) manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) digest: String,
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
}

impl Manifest {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("the image's manifest is not readable: {error}"))
    }

    /// Of an index: the manifest for this machine, where it says so, or the only one.
    pub(crate) fn ours(&self) -> Option<&Descriptor> {
        let all = self.manifests.as_ref()?;
        let fits = |entry: &&Descriptor| {
            entry.platform.as_ref().is_some_and(|platform| {
                platform.os == "linux" && platform.architecture == v6_helper::ARCHITECTURE
            })
        };
        let only = || match &all[..] {
            [one] if one.platform.is_none() => Some(one),
            _ => None,
        };
        all.iter().find(fits).or_else(only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let text =
            br#"{"architecture":"arm64","os":"linux","variant":"v8","config":{"Entrypoint":["/a"],
            "Cmd":null,"Env":["PATH=/bin"],"WorkingDir":"","Volumes":{"/data":{}},"Labels":null}}"#;
        let described = Description::parse(text).expect("it is one");
        assert_eq!(described.entrypoint, ["/a"]);
        assert_eq!(described.workdir, None);
        assert_eq!(described.volumes, ["/data"]);
        assert_eq!(described.platform, "linux/arm64/v8");
        assert!(Description::parse(b"[").is_err());
        assert!(Description::parse(b"{}").is_ok_and(|d| !d.runs_here()));
    }

    #[test]
    fn of_many_the_one_for_this_machine_is_taken() {
        let entry = |arch: &str| {
            format!(
                r#"{{"digest":"sha256:{arch}","platform":{{"os":"linux","architecture":"{arch}"}}}}"#
            )
        };
        let index = |entries: &[String]| {
            let text = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
            Manifest::parse(text.as_bytes()).expect("an index")
        };
        let both = index(&[entry("s390x"), entry(v6_helper::ARCHITECTURE)]);
        let ours = both.ours().map(|entry| entry.digest.clone());
        assert_eq!(ours, Some(format!("sha256:{}", v6_helper::ARCHITECTURE)));
        assert!(index(&[entry("s390x")]).ours().is_none());
        assert!(index(&[r#"{"digest":"sha256:x"}"#.into()]).ours().is_some());
    }
}
