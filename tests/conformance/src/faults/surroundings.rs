//! Faults of leases, examinations and secrets.

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;

use v6_runtime::memory::MemoryRuntime;
use v6_runtime::{
    EnvValue, Error, ErrorKind, Held, Lease, MountSource, Observation, Owner, Result, RunSpec,
    Runtime,
};

use super::Seed;
use super::runtime::Seeded;

pub(super) async fn examine(it: &Seeded) -> Result<Vec<Observation>> {
    match it.seed {
        Some(Seed::ExaminationFindsAHole) => {
            let mut seen = it.inner.examine().await?;
            seen.push(Observation::new(
                "read the host's memory",
                false,
                "it was allowed",
            ));
            Ok(seen)
        }
        Some(Seed::ExaminationSeesNothing) => Ok(Vec::new()),
        Some(Seed::ExaminationLeavesARun) => {
            let whose = it.inner.owner().clone();
            let left = (whose, "the run of an examination".to_owned());
            it.world.notes().left_behind.push(left);
            it.inner.examine().await
        }
        _ => it.inner.examine().await,
    }
}

/// A lease that nobody else is kept out by.
struct Nominal;

impl Held for Nominal {
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

pub(super) async fn acquire(it: &Seeded) -> Result<Lease> {
    match it.seed {
        Some(Seed::LeasesAreShared) => Ok(Lease::new(Nominal)),
        Some(Seed::LeasesAreNotGivenBack) => {
            std::mem::forget(it.inner.acquire().await?);
            Ok(Lease::new(Nominal))
        }
        Some(Seed::DroppedAcquireHoldsTheLease) => {
            let lease = ManuallyDrop::new(it.inner.acquire().await?);
            tokio::task::yield_now().await;
            Ok(ManuallyDrop::into_inner(lease))
        }
        Some(Seed::OneLeaseForAllOwners) => {
            // Held under a name that every owner shares.
            let everybody: MemoryRuntime = it.world.engine.runtime(Owner::new("everybody")?);
            everybody.acquire().await
        }
        Some(Seed::TakenLeaseIsUnavailable) => it
            .inner
            .acquire()
            .await
            .map_err(|error| Error::new(ErrorKind::Unavailable, error.message())),
        _ => it.inner.acquire().await,
    }
}

/// What a runtime shows that keeps the specs it was given, and derives `Debug` on them.
pub(super) fn secrets(it: &Seeded) -> Vec<String> {
    let notes = it.world.notes();
    let specs = notes.asked.values();
    specs.flat_map(|asked| secrets_of(&asked.spec)).collect()
}

pub(super) fn secrets_of(spec: &RunSpec) -> Vec<String> {
    let values = spec.env.values().filter_map(|value| match value {
        EnvValue::Secret(secret) => Some(secret),
        _ => None,
    });
    let files = spec.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Secret(secret) => Some(secret),
        _ => None,
    });
    let all = values.chain(files);
    all.map(|secret| secret.expose().to_owned()).collect()
}
