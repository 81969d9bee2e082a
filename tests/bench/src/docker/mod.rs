//! The library on Docker against the engine driven by hand.

mod log;
mod raw;
mod transfer;

use std::num::NonZeroU64;
use std::sync::Arc;

use futures_util::future::try_join_all;
use v6_runtime::{Owner, Runtime};
use v6_runtime_docker::{DockerConfig, DockerRuntime};

use self::raw::Raw;
use crate::ours::{COMMAND, INPUT, Ours, TOGETHER, check, each, in_turns, timed};
use crate::report::Row;
use crate::{Plan, Result};

/// Everything about Docker, and which one it was.
pub(crate) async fn measure(plan: &Plan) -> Result<(Vec<Row>, String)> {
    let folder = tempfile::tempdir()?;
    let owner = Owner::new(format!("bench-{}", std::process::id()))?;
    let config = DockerConfig::new(owner)
        .with_runtime_dir(folder.path().to_owned())
        .with_log_bytes(NonZeroU64::new(512 << 20).ok_or("zero")?);
    let runtime = Arc::new(DockerRuntime::connect(config).await?);
    let ours = Ours::new(runtime, &plan.image).await?;
    let mut raw = Raw::connect(&plan.image).await?;
    let measured = measures(plan, &ours, &mut raw).await;
    ours.sweep().await?;
    raw.sweep().await?;
    Ok((measured?, raw.engine().await?))
}

async fn measures(plan: &Plan, ours: &Ours, raw: &mut Raw) -> Result<Vec<Row>> {
    let pattern = ours.id()?;
    ours.finish(&pattern, &ours.spec).await?;
    raw.copy(ours.runtime.owner().as_str(), &pattern, INPUT)
        .await?;
    ours.cleanup(&pattern).await?;
    let raw = &*raw;
    let mut rows = Vec::new();
    cycles(plan, ours, raw, &mut rows).await?;
    start_of_init(plan, raw, &mut rows).await?;
    log::measure(plan, ours, raw, &mut rows).await?;
    transfer::measure(plan, ours, raw, &mut rows).await?;
    Ok(rows)
}

async fn cycles(plan: &Plan, ours: &Ours, raw: &Raw, rows: &mut Vec<Row>) -> Result<()> {
    let (one, many) = (
        "docker: cycle, one at a time",
        "docker: cycle, 16 at once, each",
    );
    let bare = "docker: cycle against a bare container";
    if plan.wants(one) {
        let (a, b) = in_turns(plan.times(60), || ours.cycle(), || by_hand(raw, 0)).await?;
        rows.push(Row::of_times(one, &a, &b));
    }
    if plan.wants(bare) {
        let (a, b) = in_turns(plan.times(60), || ours.cycle(), || raw.bare(0)).await?;
        rows.push(Row::of_times(bare, &a, &b));
    }
    if plan.wants(many) {
        let our = || async {
            try_join_all((0..TOGETHER).map(|_| ours.cycle())).await?;
            Ok(())
        };
        let hand = || async {
            try_join_all((0..TOGETHER).map(|at| by_hand(raw, at))).await?;
            Ok(())
        };
        let (a, b) = in_turns(plan.times(20), our, hand).await?;
        rows.push(Row::of_times(many, &each(a), &each(b)));
    }
    Ok(())
}

async fn by_hand(raw: &Raw, number: usize) -> Result<()> {
    // In an archive a file comes with its name before and padding after.
    let count = raw.cycle(number).await?;
    check(
        count > INPUT.len() as u64,
        "the output by hand is not what was put in",
    )
}

/// From the request to start to the end's event: with `init` before the program, and without.
async fn start_of_init(plan: &Plan, raw: &Raw, rows: &mut Vec<Row>) -> Result<()> {
    let row = "docker: start to end, with init";
    if !plan.wants(row) {
        return Ok(());
    }
    let name = raw::name(0);
    let files = raw.store(&name).await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..plan.times(60) * 2 {
        let mut body = raw.body(&name)?;
        let times = if round % 2 == 0 {
            &mut with
        } else {
            &mut without
        };
        if round % 2 == 1 {
            body.entrypoint = Some(COMMAND.map(str::to_owned).to_vec());
        }
        let ended = raw.ended(&name);
        raw.create(&name, body).await?;
        let work = async {
            raw.start(&name).await?;
            Ok(ended.await?)
        };
        times.push(timed(work).await?);
        raw.remove(&name).await?;
    }
    raw.remove(&files).await?;
    rows.push(Row::of_times(row, &with, &without));
    Ok(())
}
