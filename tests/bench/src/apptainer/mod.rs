//! The library on Apptainer against its command called by hand.

pub(crate) mod by_hand;
pub(crate) mod slurm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::try_join_all;
use v6_runtime::{ImageRef, Owner, Runtime};
use v6_runtime_singularity::{ImageFormat, SingularityConfig, SingularityRuntime, SlurmConfig};

use self::by_hand::{ByHand, Pattern};
use crate::ours::{Ours, TOGETHER, each, in_turns};
use crate::report::Row;
use crate::{Apptainer, Plan, Result};

/// Everything about Apptainer on this machine, and which one it was.
pub(crate) async fn measure(plan: &Plan, at: &Apptainer) -> Result<(Vec<Row>, String)> {
    let folder = tempfile::tempdir()?;
    let ours = connect(plan, at, folder.path(), ImageFormat::Folder, None).await?;
    let measured = measures(plan, at, folder.path(), &ours).await;
    ours.sweep().await?;
    Ok((measured?, engine(&ours).await?))
}

async fn measures(plan: &Plan, at: &Apptainer, folder: &Path, ours: &Ours) -> Result<Vec<Row>> {
    let pattern = Pattern::of(ours, folder).await?;
    let by_hand = ByHand::new(pattern, folder.join("by-hand"))?;
    let mut rows = Vec::new();
    let row = "apptainer: cycle, one at a time";
    if plan.wants(row) {
        let (a, b) = in_turns(plan.times(60), || ours.cycle(), || by_hand.cycle(0)).await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let row = "apptainer: cycle against a bare exec";
    if plan.wants(row) {
        let (a, b) = in_turns(plan.times(60), || ours.cycle(), || by_hand.bare()).await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let row = "apptainer: cycle, 16 at once, each";
    if plan.wants(row) {
        let our = || async {
            try_join_all((0..TOGETHER).map(|_| ours.cycle())).await?;
            Ok(())
        };
        let hand = || async {
            try_join_all((0..TOGETHER).map(|at| by_hand.cycle(at))).await?;
            Ok(())
        };
        let (a, b) = in_turns(plan.times(20), our, hand).await?;
        rows.push(Row::of_times(row, &each(a), &each(b)));
    }
    let row = "apptainer: cycle, image as SIF against folder";
    if plan.wants(row) {
        let sif = connect(plan, at, &folder.join("sif"), ImageFormat::Sif, None).await?;
        let measured = in_turns(plan.times(30), || sif.cycle(), || ours.cycle()).await;
        sif.sweep().await?;
        let (a, b) = measured?;
        rows.push(Row::of_times(row, &a, &b));
    }
    Ok(rows)
}

/// The library with everything in one folder. The image is unpacked already.
async fn connect(
    plan: &Plan,
    at: &Apptainer,
    folder: &Path,
    format: ImageFormat,
    slurm: Option<SlurmConfig>,
) -> Result<Ours> {
    let archive = at.archive.clone().ok_or(
        "name the image's archive with --archive (tests/algorithms/build --to FOLDER busybox)",
    )?;
    let archive: PathBuf = std::path::absolute(archive)?;
    let owner = Owner::new(format!("bench-{}", std::process::id()))?;
    let images = BTreeMap::from([(ImageRef::parse(&plan.image)?, archive)]);
    let config = SingularityConfig::new(owner, folder)
        .with_program(at.apptainer.clone())
        .with_image_format(format)
        .with_images(images)
        .with_slurm(slurm);
    let runtime = Arc::new(SingularityRuntime::connect(config).await?);
    let ours = Ours::new(runtime, &plan.image).await?;
    ours.runtime.prefetch(&ours.spec.image).await?;
    Ok(ours)
}

async fn engine(ours: &Ours) -> Result<String> {
    let told = ours.runtime.ping().await?;
    Ok(format!("{} {}", told.name, told.version))
}
