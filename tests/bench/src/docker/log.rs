//! Reading a long log.

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::TryStreamExt;
use v6_runtime::{LogOptions, Runtime};

use super::raw::Raw;
use crate::ours::{Ours, check, timed};
use crate::report::Row;
use crate::{Plan, Result};

const LENGTH: u64 = 16 << 20;

/// 16 MiB of log, as the library gives it and as the client does.
pub(crate) async fn measure(
    plan: &Plan,
    ours: &Ours,
    raw: &Raw,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (short, long) = (
        "docker: 16 MiB of log in short lines",
        "docker: 16 MiB of log in long lines",
    );
    let line = "0123456789".repeat(7);
    let lines = format!("yes {line} | head -c {LENGTH}");
    let blob = format!("head -c {LENGTH} /dev/zero | tr '\\0' x");
    for (row, script) in [(short, lines), (long, blob)] {
        if !plan.wants(row) {
            continue;
        }
        let id = ours.id()?;
        let spec = ours.spec.clone().with_command(["sh", "-c", &script]);
        ours.finish(&id, &spec).await?;
        let container = format!("v6-{}.{id}", ours.runtime.owner());
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..plan.times(7) {
            a.push(timed(by_us(ours, &id)).await?);
            b.push(timed(by_hand(raw, &container)).await?);
        }
        rows.push(Row::of_times(row, &a, &b));
        ours.cleanup(&id).await?;
    }
    Ok(())
}

async fn by_us(ours: &Ours, id: &v6_runtime::RunId) -> Result<()> {
    let chunks = ours.runtime.logs(id, LogOptions::default());
    let count = chunks.try_fold(
        0,
        |sum, chunk| async move { Ok(sum + chunk.bytes.len() as u64) },
    );
    check(count.await? == LENGTH, "the log is not whole")
}

/// The same entries with their times, as positions need them.
async fn by_hand(raw: &Raw, container: &str) -> Result<()> {
    let options = LogsOptionsBuilder::default()
        .stdout(true)
        .stderr(true)
        .timestamps(true)
        .build();
    let entries = raw.docker.logs(container, Some(options));
    let count = entries.try_fold(0, |sum, entry| async move {
        Ok(sum + entry.into_bytes().len() as u64)
    });
    check(count.await? > LENGTH, "the log by hand is not whole")
}
