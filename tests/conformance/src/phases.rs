//! How long each step of a run's life takes, one run at a time.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use v6_runtime::{CleanupOptions, Output, Runtime, RuntimeExt};

use crate::bench::{Bench, output, path, run_id};
use crate::case::Failure;
use crate::harness::Harness;

const ROUNDS: usize = 7;

/// Medians in milliseconds, by step. Empty if it could not be measured.
pub(crate) async fn measure(harness: &Arc<dyn Harness>) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let Ok(bench) = Bench::new(harness.clone()).await else {
        return BTreeMap::new();
    };
    for round in 0..=ROUNDS {
        let Ok(steps) = cycle(&bench).await else {
            let _ = bench.tidy().await;
            return BTreeMap::new();
        };
        // What the first one takes is partly that of the engine's caches.
        if round > 0 {
            for (step, took) in steps {
                all.entry(step.to_owned()).or_default().push(took);
            }
        }
    }
    all.into_iter()
        .map(|(step, mut times)| {
            times.sort();
            let median = times[times.len() / 2].as_secs_f64() * 1e3;
            (step, (median * 100.0).round() / 100.0)
        })
        .collect()
}

async fn cycle(bench: &Bench) -> Result<Vec<(&'static str, Duration)>, Failure> {
    let id = run_id("measured");
    let collects = bench.runtime.capabilities().outputs.file;
    let mut spec = bench.spec("exit 0").await?;
    if collects {
        spec = spec.with_args("write /out/result 1000".split(' '));
        let limit = NonZeroU64::new(1 << 20).ok_or("a MiB is not zero")?;
        spec = spec.with_output(output("result"), Output::file(path("/out/result"), limit));
    }
    let mut steps = Vec::new();
    let began = Instant::now();
    let mut last = began;
    let mut step = |name| {
        let now = Instant::now();
        steps.push((name, now - last));
        last = now;
    };
    bench.runtime.run(&id, &spec).await?;
    step("accepted");
    bench.running(&id).await?;
    step("running");
    bench.ended(&id).await?;
    step("ended");
    if collects {
        let name = output("result");
        bench.runtime.collect_bytes(&id, &name, 1 << 20).await?;
        step("collected");
    }
    bench
        .runtime
        .cleanup(&id, CleanupOptions::default())
        .await?;
    step("cleaned up");
    steps.push(("whole", began.elapsed()));
    Ok(steps)
}
