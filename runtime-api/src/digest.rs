//! Whether two specs are the same: a digest over a canonical, versioned form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::{Access, EnvValue, Error, Gpu, MountSource, OutputKind, Result, RunSpec};

/// The identity of a [`RunSpec`]: `v1:` and a SHA-256 in hexadecimal.
///
/// Computed over the fields that differ from their default, so that a field added later changes
/// nothing for specs that do not use it. Streams count by kind and length, not content; secrets
/// by name, not value; the deadline and the annotations do not count, since a caller that repeats
/// a call after a crash may compute them anew.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpecDigest(Box<str>);

impl SpecDigest {
    /// The digest of a spec.
    #[must_use]
    pub fn of(spec: &RunSpec) -> Self {
        let mut form = Canonical(Sha256::new());
        form.0.update(b"v1\0");
        write_spec(&mut form, spec);
        let mut text = String::from("v1:");
        for byte in form.0.finalize() {
            use fmt::Write;
            let _ = write!(text, "{byte:02x}");
        }
        Self(text.into())
    }

    /// The digest as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Length-prefixed, tagged values: no two different specs have the same bytes.
struct Canonical(Sha256);

impl Canonical {
    fn field(&mut self, name: &str, values: &[&[u8]]) {
        self.bytes(name.as_bytes());
        self.0.update((values.len() as u64).to_be_bytes());
        for value in values {
            self.bytes(value);
        }
    }

    fn bytes(&mut self, value: &[u8]) {
        self.0.update((value.len() as u64).to_be_bytes());
        self.0.update(value);
    }
}

fn write_spec(form: &mut Canonical, spec: &RunSpec) {
    let RunSpec {
        image,
        command,
        args,
        env,
        workdir,
        mounts,
        outputs,
        resources,
        egress,
        deadline: _,
        grace,
        trust,
        supplementary_groups,
        annotations: _,
    } = spec;
    form.field("image", &[image.identity.digest().as_str().as_bytes()]);
    if let Some(words) = command {
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        form.field("command", &words);
    }
    if !args.is_empty() {
        let words: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        form.field("args", &words);
    }
    for (name, value) in env {
        match value {
            EnvValue::Plain(text) => form.field("env", &[name.as_bytes(), text.as_bytes()]),
            EnvValue::Secret(_) => form.field("env-secret", &[name.as_bytes()]),
        }
    }
    if let Some(path) = workdir {
        form.field("workdir", &[path.as_str().as_bytes()]);
    }
    for mount in mounts {
        let target = mount.target.as_str().as_bytes();
        let access: &[u8] = match mount.access {
            Access::ReadOnly => b"ro",
            Access::ReadWrite => b"rw",
        };
        match &mount.source {
            MountSource::Inline(bytes) => {
                form.field(
                    "mount",
                    &[target, access, b"inline", &Sha256::digest(bytes)],
                );
            }
            MountSource::Secret(_) => form.field("mount", &[target, access, b"secret"]),
            MountSource::Stream(stream) => {
                form.field(
                    "mount",
                    &[target, access, b"stream", &stream.len().to_be_bytes()],
                );
            }
            MountSource::HostPath(path) => {
                let path = path.as_os_str().as_encoded_bytes();
                form.field("mount", &[target, access, b"host-path", path]);
            }
            MountSource::Volume(name) => {
                form.field("mount", &[target, access, b"volume", name.as_bytes()]);
            }
            MountSource::VolumePart(name, path) => {
                let path = path.as_str().as_bytes();
                form.field(
                    "mount",
                    &[target, access, b"volume-part", name.as_bytes(), path],
                );
            }
            MountSource::Scratch(limit) => {
                let limit = limit.map_or(0, std::num::NonZero::get).to_be_bytes();
                form.field("mount", &[target, access, b"scratch", &limit]);
            }
        }
    }
    for (name, output) in outputs {
        let kind: &[u8] = match output.kind {
            OutputKind::File => b"file",
            OutputKind::Folder => b"folder",
        };
        let limit = output.limit.get().to_be_bytes();
        let path = output.path.as_str().as_bytes();
        form.field("output", &[name.as_str().as_bytes(), path, kind, &limit]);
    }
    let crate::Resources {
        cpu_milli,
        memory_bytes,
        pids,
        scratch_bytes,
        gpu,
    } = resources;
    let numbers = [
        ("cpu-milli", cpu_milli.map(|n| u64::from(n.get()))),
        ("memory-bytes", memory_bytes.map(|n| n.get())),
        ("pids", pids.map(|n| u64::from(n.get()))),
        ("scratch-bytes", scratch_bytes.map(|n| n.get())),
        (
            "gpu",
            gpu.map(|gpu| match gpu {
                Gpu::All => u64::MAX,
                Gpu::Count(n) => u64::from(n.get()),
            }),
        ),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            form.field(name, &[&number.to_be_bytes()]);
        }
    }
    for grant in egress {
        let port = grant.port.to_be_bytes();
        form.field(
            "egress",
            &[grant.name.as_str().as_bytes(), grant.host.as_bytes(), &port],
        );
    }
    if *grace != crate::DEFAULT_GRACE {
        form.field("grace", &[&grace.as_nanos().to_be_bytes()]);
    }
    let crate::Trust {
        image_user,
        writable_root,
    } = trust;
    if *image_user {
        form.field("image-user", &[]);
    }
    if *writable_root {
        form.field("writable-root", &[]);
    }
    for group in supplementary_groups {
        form.field("group", &[&group.to_be_bytes()]);
    }
}

impl fmt::Display for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for SpecDigest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let ok = text.split_once(':').is_some_and(|(version, hex)| {
            version.starts_with('v')
                && hex.len() == 64
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        });
        if ok {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid("spec digest", format!("{text:?} is none")))
        }
    }
}

impl Serialize for SpecDigest {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SpecDigest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
