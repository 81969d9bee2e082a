//! The library on Kubernetes against pods of the same shape that are made, watched and deleted by hand.

mod by_hand;
mod transfer;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use v6_runtime::{ImageRef, Owner, Runtime};
use v6_runtime_kubernetes::{Gate, KubernetesConfig, KubernetesRuntime};

use self::by_hand::{ByHand, Shape};
use crate::ours::{Ours, TOGETHER, each, in_turns};
use crate::report::Row;
use crate::{Plan, Result};

/// How soon an end is to be known after the API server has told it.
const NEWS: Duration = Duration::from_millis(100);

/// Where the cluster is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How to reach the cluster, as a node does: its context names the namespace.
    #[arg(long, value_name = "FILE", env = "V6_KUBERNETES_CONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The image with the helper's program, in a registry that the cluster can fetch from.
    #[arg(long, value_name = "IMAGE", env = "V6_KUBERNETES_HELPER")]
    helper_image: Option<String>,
}

/// Everything about Kubernetes, and which one it was.
pub(crate) async fn measure(plan: &Plan, at: &Options) -> Result<(Vec<Row>, String)> {
    let ours = connect(plan, at, "bench", Gate::default()).await?;
    let ungated = connect(plan, at, "bench-ungated", Gate::Off).await?;
    let by_hand = ByHand::new(client(at).await?, &plan.image);
    let measured = Box::pin(measures(plan, &ours, &ungated, &by_hand)).await;
    ours.sweep().await?;
    ungated.sweep().await?;
    by_hand.sweep().await?;
    let engine = ours.runtime.ping().await?;
    Ok((measured?, format!("{} {}", engine.name, engine.version)))
}

async fn connect(plan: &Plan, at: &Options, owner: &str, gate: Gate) -> Result<Ours> {
    let owner = Owner::new(format!("{owner}-{}", std::process::id()))?;
    let helper = at
        .helper_image
        .as_deref()
        .ok_or("--helper-image is missing")?;
    let config = KubernetesConfig::new(owner, ImageRef::parse(helper)?)
        .with_kubeconfig(at.kubeconfig.clone())
        .with_memory_bytes(NonZeroU64::new(128 << 20).ok_or("zero")?)
        .with_cpu_request_milli(20.try_into().ok())
        .with_canary_every(None)
        .with_gate(gate);
    let runtime = Arc::new(Box::pin(KubernetesRuntime::connect(config)).await?);
    Ours::new(runtime, &plan.image).await
}

async fn client(at: &Options) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let config = match &at.kubeconfig {
        Some(file) => {
            let file = Kubeconfig::read_from(file)?;
            kube::Config::from_custom_kubeconfig(file, &options).await?
        }
        None => kube::Config::infer().await?,
    };
    Ok(Client::try_from(config)?)
}

async fn measures(plan: &Plan, ours: &Ours, ungated: &Ours, by_hand: &ByHand) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let shape = pattern(ours, by_hand).await?;
    let row = "kubernetes: cycle, one at a time";
    if plan.wants(row) {
        let hand = || by_hand.cycle(&shape);
        let (a, b) = Box::pin(in_turns(plan.times(20), || ours.cycle(), hand)).await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let row = "kubernetes: cycle, 16 at once, each";
    if plan.wants(row) {
        let our = || async {
            try_join_all((0..TOGETHER).map(|_| ours.cycle())).await?;
            Ok(())
        };
        let hand = || async {
            try_join_all((0..TOGETHER).map(|_| by_hand.cycle(&shape))).await?;
            Ok(())
        };
        let (a, b) = Box::pin(in_turns(plan.times(5), our, hand)).await?;
        rows.push(Row::of_times(row, &each(a), &each(b)));
    }
    let row = "kubernetes: cycle against a bare pod";
    if plan.wants(row) {
        let (a, b) = Box::pin(in_turns(plan.times(20), || ours.cycle(), || by_hand.bare())).await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let shape = pattern(ungated, by_hand).await?;
    let row = "kubernetes: cycle without the gate";
    if plan.wants(row) {
        let hand = || by_hand.cycle(&shape);
        let (a, b) = Box::pin(in_turns(plan.times(20), || ungated.cycle(), hand)).await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let row = "kubernetes: cycle with the gate against without";
    if plan.wants(row) {
        let (a, b) = Box::pin(in_turns(
            plan.times(20),
            || ours.cycle(),
            || ungated.cycle(),
        ))
        .await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let row = "kubernetes: from the pod's status to its news, against the aim";
    if plan.wants(row) {
        let mut times = Vec::new();
        for _ in 0..plan.times(20) {
            times.push(news(ours, by_hand).await?);
        }
        rows.push(Row::against(row, &times, NEWS));
    }
    transfer::measure(plan, ours, &mut rows).await?;
    Ok(rows)
}

/// A run of ours, as the API server has it.
async fn pattern(ours: &Ours, by_hand: &ByHand) -> Result<Shape> {
    let id = ours.id()?;
    ours.finish(&id, &ours.spec).await?;
    let shape = by_hand.shape(ours, &id).await?;
    ours.cleanup(&id).await?;
    Ok(shape)
}

/// How much later than a watch by hand ours tells that a run has ended.
async fn news(ours: &Ours, by_hand: &ByHand) -> Result<Duration> {
    let id = ours.id()?;
    ours.runtime.run(&id, &ours.spec).await?;
    let told = async {
        ours.tracker.wait(&id).await?;
        Ok(Instant::now())
    };
    let (told, seen) = tokio::try_join!(told, by_hand.end_of(ours, &id))?;
    ours.cleanup(&id).await?;
    Ok(told.saturating_duration_since(seen))
}
