//! The library on one engine, ready to measure.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use v6_runtime::{
    CleanupOptions, ContainerPath, ImageRef, Mount, MountSource, Output, OutputName, PullPolicy,
    RunId, RunSpec, RunStatus, Runtime, Tracker,
};

use crate::Result;

/// The input of the cycle's program, which copies it into its output.
pub(crate) const INPUT: &[u8] = &[b'i'; 1024];
/// The cycle's program.
pub(crate) const COMMAND: [&str; 3] = ["cp", "/data/input", "/data/result"];
/// How many cycles are under way together in the measures with many.
pub(crate) const TOGETHER: usize = 16;
/// What an output may have.
const LIMIT: NonZeroU64 = NonZeroU64::new(1 << 30).expect("not zero");

/// A runtime, and the run that everything is measured with.
pub(crate) struct Ours {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) tracker: Tracker,
    pub(crate) spec: RunSpec,
    pub(crate) output: OutputName,
    next: AtomicUsize,
}

impl Ours {
    pub(crate) async fn new(runtime: Arc<dyn Runtime>, image: &str) -> Result<Self> {
        let tracker = Tracker::new(runtime.clone());
        let image = runtime
            .resolve(&ImageRef::parse(image)?, PullPolicy::IfNotPresent)
            .await?;
        let output = OutputName::new("result")?;
        let at = ContainerPath::new("/data/result")?;
        let input = MountSource::Inline(Bytes::from_static(INPUT));
        let spec = RunSpec::new(image)
            .with_command(COMMAND)
            .with_mount(Mount::new(input, ContainerPath::new("/data/input")?))
            .with_output(output.clone(), Output::file(at, LIMIT));
        Ok(Self {
            runtime,
            tracker,
            spec,
            output,
            next: AtomicUsize::new(0),
        })
    }

    /// An id that was not used yet.
    pub(crate) fn id(&self) -> Result<RunId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(RunId::new(format!("run-{number}"))?)
    }

    /// Runs to the end; what is there afterwards stays.
    pub(crate) async fn finish(&self, id: &RunId, spec: &RunSpec) -> Result<RunStatus> {
        self.runtime.run(id, spec).await?;
        let status = self.tracker.wait(id).await?;
        match status.outcome() {
            Some(outcome) if outcome.is_success() => Ok(status),
            other => Err(format!("{id} ended with {other:?}").into()),
        }
    }

    pub(crate) async fn collect(&self, id: &RunId) -> Result<u64> {
        let pieces = self.runtime.collect(id, &self.output);
        let count = pieces.try_fold(0, |sum, piece| async move { Ok(sum + piece.len() as u64) });
        Ok(count.await?)
    }

    pub(crate) async fn cleanup(&self, id: &RunId) -> Result<()> {
        let force = CleanupOptions::default().with_force(true);
        self.runtime.cleanup(id, force).await?;
        Ok(())
    }

    /// One run from the call of `run` to the return of `cleanup`.
    pub(crate) async fn cycle(&self) -> Result<()> {
        let id = self.id()?;
        self.finish(&id, &self.spec).await?;
        let count = self.collect(&id).await?;
        self.cleanup(&id).await?;
        check(
            count == INPUT.len() as u64,
            "the output is not what was put in",
        )
    }

    /// Removes what a failed measure has left.
    pub(crate) async fn sweep(&self) -> Result<()> {
        let left: Vec<_> = self.runtime.list().try_collect().await?;
        for run in left {
            self.cleanup(&run.id).await?;
        }
        Ok(())
    }
}

pub(crate) fn check(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

pub(crate) async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<Duration> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed())
}

/// The times of two pieces of work, done in turns; each goes first every other time.
pub(crate) async fn in_turns<A: Future<Output = Result<()>>, B: Future<Output = Result<()>>>(
    times: usize,
    mut first: impl FnMut() -> A,
    mut second: impl FnMut() -> B,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 0..times {
        if round % 2 == 0 {
            a.push(timed(first()).await?);
            b.push(timed(second()).await?);
        } else {
            b.push(timed(second()).await?);
            a.push(timed(first()).await?);
        }
    }
    Ok((a, b))
}

/// What one of many took that were under way together.
pub(crate) fn each(whole: Vec<Duration>) -> Vec<Duration> {
    let parts = u32::try_from(TOGETHER).unwrap_or(u32::MAX);
    whole.into_iter().map(|whole| whole / parts).collect()
}
