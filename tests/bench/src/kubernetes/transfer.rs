//! Large files in and out, through the API server.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use v6_runtime::{ContainerPath, InputReader, InputStream, Mount, MountSource, Runtime};

use crate::ours::{Ours, check};
use crate::report::Row;
use crate::{Plan, Result};

const MIB: u64 = 1 << 20;
/// What is aimed at, in MiB/s and MiB.
const AIM_IN: f64 = 90.0;
const AIM_OUT: f64 = 160.0;
const AIM_MEMORY: f64 = 20.0;

/// How fast files of these sizes go in and out, and what memory the largest take.
pub(crate) async fn measure(plan: &Plan, ours: &Ours, rows: &mut Vec<Row>) -> Result<()> {
    let inputs = [
        ("kubernetes: 256 MiB of input, against the aim", 256),
        ("kubernetes: 1 GiB of input, against the aim", 1024),
    ];
    let outputs = [
        ("kubernetes: 256 MiB of output, against the aim", 256),
        ("kubernetes: 1 GiB of output, against the aim", 1024),
    ];
    let mut most = 0.0;
    for (row, size) in inputs {
        if plan.wants(row) {
            let (rate, memory) = input(ours, size * MIB, plan.times(5)).await?;
            rows.push(Row::of(row, "MiB/s", rate, AIM_IN));
            most = memory.max(most);
        }
    }
    for (row, size) in outputs {
        if plan.wants(row) {
            let (rate, memory) = output(ours, size * MIB, plan.times(5)).await?;
            rows.push(Row::of(row, "MiB/s", rate, AIM_OUT));
            most = memory.max(most);
        }
    }
    if most > 0.0 {
        let row = "kubernetes: memory for these, against the aim";
        rows.push(Row::of(row, "MiB", most, AIM_MEMORY));
    }
    Ok(())
}

/// From the first byte that is asked for until the run has all of them.
async fn input(ours: &Ours, size: u64, times: usize) -> Result<(f64, f64)> {
    let (mut took, mut most) = (Vec::new(), 0.0);
    for _ in 0..times {
        let began = Arc::new(OnceLock::new());
        let noted = began.clone();
        let stream = InputStream::reopenable(size, move || {
            let bytes = tokio::io::repeat(b'v').take(size);
            let began = noted.clone();
            async move { Ok(Box::pin(Noting { bytes, began }) as InputReader) }
        });
        let at = ContainerPath::new("/data/large")?;
        let spec = ours.spec.clone();
        let spec = spec.with_mount(Mount::new(MountSource::Stream(stream), at));
        let id = ours.id()?;
        let run = async { Ok(ours.runtime.run(&id, &spec).await?) };
        let (_, memory) = memory_during(run).await?;
        let began = began.get().ok_or("the input was not read")?;
        took.push(began.elapsed());
        most = memory.max(most);
        ours.cleanup(&id).await?;
    }
    Ok((rate(size, &mut took), most))
}

async fn output(ours: &Ours, size: u64, times: usize) -> Result<(f64, f64)> {
    let id = ours.id()?;
    let script = format!("head -c {size} /dev/zero > /data/result");
    let spec = ours.spec.clone().with_command(["sh", "-c", &script]);
    ours.finish(&id, &spec).await?;
    let (mut took, mut most) = (Vec::new(), 0.0);
    for _ in 0..times {
        let began = Instant::now();
        let (count, memory) = memory_during(ours.collect(&id)).await?;
        took.push(began.elapsed());
        check(count == size, "the output is not whole")?;
        most = memory.max(most);
    }
    ours.cleanup(&id).await?;
    Ok((rate(size, &mut took), most))
}

#[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
fn rate(size: u64, took: &mut [Duration]) -> f64 {
    took.sort();
    (size / MIB) as f64 / took[took.len() / 2].as_secs_f64()
}

/// What this process needs for itself meanwhile, in MiB beyond what it had before.
async fn memory_during<T>(work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let before = anonymous()?;
    let mut most = before;
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(Duration::from_millis(20), &mut work).await {
            Ok(done) => return Ok((done?, (most - before) / 1024.0)),
            Err(_) => most = anonymous()?.max(most),
        }
    }
}

/// In KiB.
fn anonymous() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    Ok(word.ok_or("the kernel tells no RssAnon")?.parse()?)
}

/// Notes when it was first asked.
struct Noting<R> {
    bytes: R,
    began: Arc<OnceLock<Instant>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Noting<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.began.get_or_init(Instant::now);
        Pin::new(&mut self.bytes).poll_read(context, buffer)
    }
}
