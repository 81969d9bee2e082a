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
        (Some(Seed::RegistriesFailInOneWay), Err(error)) => {
            Err(Error::new(ErrorKind::Unexpected, error.message()))
        }
        (Some(Seed::ResolveFetches), Ok(image)) => {
            // An image that cannot be fetched shows when it is run.
            let _ = it.inner.prefetch(&image).await;
            Ok(image)
        }
        (_, resolved) => resolved,
    }
}

pub(super) async fn prefetch(it: &Seeded, image: &ResolvedImage) -> Result<()> {
    if it.has(Seed::PrefetchIsDenied) {
        return Err(Error::new(ErrorKind::Denied, "images come with a run"));
    }
    if it.has(Seed::PrefetchDoesNothing) {
        return Ok(());
    }
    it.inner.prefetch(image).await
}
