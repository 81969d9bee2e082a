//! What the contract's own parts promise: the hub behind a watch, the tracker, the digest of a
//! spec, validation and admission.

#![expect(clippy::unwrap_used, reason = "a test")]

mod admission;
mod digest;
mod hub;
mod tracker;

use std::num::NonZeroU64;

use v6_runtime::{
    ContainerPath, Digest, ImageIdentity, ImageRef, OutputName, ResolvedImage, RunId, RunSpec,
};

fn image(digit: char) -> ResolvedImage {
    let digest = Digest::new(format!("sha256:{}", digit.to_string().repeat(64))).unwrap();
    let name = ImageRef::parse("example.org/image:1").unwrap();
    ResolvedImage::new(name, ImageIdentity::Manifest(digest), "linux/amd64")
}

fn spec() -> RunSpec {
    RunSpec::new(image('0'))
}

fn id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

fn path(text: &str) -> ContainerPath {
    ContainerPath::new(text).unwrap()
}

fn output(name: &str) -> OutputName {
    OutputName::new(name).unwrap()
}

fn bytes(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).unwrap()
}
