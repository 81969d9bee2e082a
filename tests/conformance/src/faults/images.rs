//! Faults of images and their names.

use v6_runtime::{
    Error, ErrorKind, ImageIdentity, ImageRef, PullPolicy, ResolvedImage, Result, Runtime,
};

use super::Seed;
use super::runtime::Seeded;

pub(super) async fn resolve(
    it: &Seeded,
    image: &ImageRef,
    policy: PullPolicy,
) -> Result<ResolvedImage> {
    match (it.seed, it.inner.resolve(image, policy).await) {
        (Some(Seed::UnknownNamesResolve), Err(error)) if error.kind() == ErrorKind::NotFound => {
            let digest = v6_runtime::Digest::new(format!("sha256:{}", "0".repeat(64)))?;
            let identity = ImageIdentity::Manifest(digest);
            Ok(ResolvedImage::new(image.clone(), identity, "linux/amd64"))
        }
        (Some(Seed::UnknownNamesAreUnreachable), Err(error))
            if error.kind() == ErrorKind::NotFound =>
        {
            Err(Error::new(ErrorKind::Unavailable, error.message()))
        }
        (_, resolved) => resolved,
    }
}

pub(super) async fn prefetch(it: &Seeded, image: &ResolvedImage) -> Result<()> {
    if it.has(Seed::PrefetchIsDenied) {
        return Err(Error::new(ErrorKind::Denied, "images come with a run"));
    }
    it.inner.prefetch(image).await
}
