//! The library on Docker against the engine driven by hand.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use v6_runtime::{
    CleanupOptions, ContainerPath, ImageRef, Mount, MountSource, Output, OutputName, Owner,
    PullPolicy, RunId, RunSpec, Runtime, Tracker,
};
use v6_runtime_docker::{DockerConfig, DockerRuntime};

use crate::raw::{self, Raw};
use crate::report::Row;
use crate::{Plan, Result, log, transfer};

/// The input of the cycle's program, which copies it into its output.
const INPUT: &[u8] = &[b'i'; 1024];
/// How many cycles are under way together in the second measure.
const TOGETHER: usize = 16;

/// Our runtime, ready to measure.
pub(crate) struct Ours {
    pub(crate) runtime: Arc<DockerRuntime>,
    pub(crate) tracker: Tracker,
    pub(crate) spec: RunSpec,
    pub(crate) output: OutputName,
    owner: Owner,
    next: AtomicUsize,
}

impl Ours {
    async fn connect(image: &str, folder: &std::path::Path) -> Result<Self> {
        let owner = Owner::new(format!("bench-{}", std::process::id()))?;
        let config = DockerConfig::new(owner.clone())
            .with_runtime_dir(folder.to_owned())
            .with_log_bytes(NonZeroU64::new(512 << 20).ok_or("zero")?);
        let runtime = Arc::new(DockerRuntime::connect(config).await?);
        let tracker = Tracker::new(runtime.clone());
        let image = runtime
            .resolve(&ImageRef::parse(image)?, PullPolicy::IfNotPresent)
            .await?;
        let output = OutputName::new("result")?;
        let at = ContainerPath::new("/data/result")?;
        let input = MountSource::Inline(Bytes::from_static(INPUT));
        let spec = RunSpec::new(image)
            .with_command(["cp", "/data/input", "/data/result"])
            .with_mount(Mount::new(input, ContainerPath::new("/data/input")?))
            .with_output(output.clone(), Output::file(at, transfer::LIMIT));
        Ok(Self {
            runtime,
            tracker,
            spec,
            output,
            owner,
            next: AtomicUsize::new(0),
        })
    }

    /// An id that was not used yet.
    pub(crate) fn id(&self) -> Result<RunId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(RunId::new(format!("run-{number}"))?)
    }

    /// Runs to the end; what is there afterwards stays.
    pub(crate) async fn finish(&self, id: &RunId, spec: &RunSpec) -> Result<()> {
        self.runtime.run(id, spec).await?;
        let status = self.tracker.wait(id).await?;
        match status.outcome() {
            Some(outcome) if outcome.is_success() => Ok(()),
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
    async fn cycle(&self) -> Result<()> {
        let id = self.id()?;
        self.finish(&id, &self.spec).await?;
        let count = self.collect(&id).await?;
        self.cleanup(&id).await?;
        check(
            count == INPUT.len() as u64,
            "the output is not what was put in",
        )
    }
}

pub(crate) fn check(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// Everything about Docker.
pub(crate) async fn measure(plan: &Plan) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let ours = Ours::connect(&plan.image, folder.path()).await?;
    let mut raw = Raw::connect(&plan.image).await?;
    let measured = measures(plan, &ours, &mut raw).await;
    let left: Vec<_> = ours.runtime.list().try_collect().await?;
    for run in left {
        ours.cleanup(&run.id).await?;
    }
    raw.sweep().await?;
    measured
}

async fn measures(plan: &Plan, ours: &Ours, raw: &mut Raw) -> Result<Vec<Row>> {
    let pattern = ours.id()?;
    ours.finish(&pattern, &ours.spec).await?;
    raw.copy(ours.owner.as_str(), &pattern, INPUT).await?;
    ours.cleanup(&pattern).await?;
    let raw = &*raw;
    let mut rows = Vec::new();
    cycles(plan, ours, raw, &mut rows).await?;
    start_of_init(plan, raw, &mut rows).await?;
    log::measure(plan, ours, raw, &mut rows).await?;
    transfer::measure(plan, ours, raw, &mut rows).await?;
    Ok(rows)
}

pub(crate) async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<Duration> {
    let began = Instant::now();
    work.await?;
    Ok(began.elapsed())
}

async fn cycles(plan: &Plan, ours: &Ours, raw: &Raw, rows: &mut Vec<Row>) -> Result<()> {
    let (one, many) = (
        "docker: cycle, one at a time",
        "docker: cycle, 16 at once, each",
    );
    let bare = "docker: cycle against a bare container";
    if plan.wants(one) || plan.wants(bare) {
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..plan.times(60) {
            // Each goes first every other time.
            if round % 2 == 0 {
                a.push(timed(ours.cycle()).await?);
                b.push(timed(by_hand(raw, 0)).await?);
            } else {
                b.push(timed(by_hand(raw, 0)).await?);
                a.push(timed(ours.cycle()).await?);
            }
            c.push(timed(raw.bare(0)).await?);
        }
        rows.push(Row::of_times(one, &a, &b));
        rows.push(Row::of_times(bare, &a, &c));
    }
    if plan.wants(many) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let per_cycle = |whole: Duration| whole / TOGETHER as u32;
        for round in 0..plan.times(20) {
            let our = async { try_join_all((0..TOGETHER).map(|_| ours.cycle())).await };
            let hand = async { try_join_all((0..TOGETHER).map(|at| by_hand(raw, at))).await };
            if round % 2 == 0 {
                a.push(per_cycle(timed(our).await?));
                b.push(per_cycle(timed(hand).await?));
            } else {
                b.push(per_cycle(timed(hand).await?));
                a.push(per_cycle(timed(our).await?));
            }
        }
        rows.push(Row::of_times(many, &a, &b));
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
            let command = ["cp", "/data/input", "/data/result"];
            body.entrypoint = Some(command.map(str::to_owned).to_vec());
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
