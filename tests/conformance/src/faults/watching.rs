//! Faults of `watch`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;
use v6_runtime::{
    CancelOptions, Error, ErrorKind, Outcome, Pending, Result, ResultStream, RunId, RunPhase,
    RunStatus, Runtime, WatchEvent,
};

use super::Seed;
use super::looking::seen;
use super::runtime::Seeded;

const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

type Item = Result<WatchEvent>;

/// What a stream remembers of what it gave.
#[derive(Default)]
struct Memory {
    items: usize,
    /// Whether the connection has broken.
    broken: bool,
    over: bool,
    /// Nothing that comes is told any more.
    deaf: bool,
    last_end: Option<(RunId, Instant)>,
    ranks: HashMap<RunId, u8>,
}

pub(super) fn watch(it: &Seeded) -> ResultStream<WatchEvent> {
    it.own().watches += 1;
    if it.has(Seed::WatchAsksForEachRun) && it.own().watches == 1 {
        let inner = it.inner.clone();
        it.own().tasks.spawn(poll(inner));
    }
    let guard = it.has(Seed::DroppedWatchEndsRuns).then(|| Unread {
        value: it.clone(),
        read: false,
    });
    let start = (it.clone(), it.inner.watch(), Memory::default(), guard);
    let batches = stream::unfold(
        start,
        |(it, mut events, mut memory, mut guard)| async move {
            if memory.over {
                return None;
            }
            let event = events.next().await?;
            guard.iter_mut().for_each(|guard| guard.read = true);
            let batch = told(&it, &mut memory, event);
            memory.items += 1;
            Some((stream::iter(batch), (it, events, memory, guard)))
        },
    );
    Box::pin(batches.flatten())
}

/// Looks at every run again and again, as one does who has no stream of events.
async fn poll(inner: Arc<dyn Runtime>) {
    loop {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let runs: Vec<RunStatus> = inner.list().try_collect().await.unwrap_or_default();
        for run in runs {
            let _ = inner.status(&run.id).await;
        }
    }
}

/// What is told instead of this item.
fn told(it: &Seeded, memory: &mut Memory, item: Item) -> Vec<Item> {
    match item {
        Ok(_) if memory.deaf => Vec::new(),
        Ok(WatchEvent::Snapshot(runs)) => {
            let runs = runs.into_iter().filter_map(|run| seen(it, run)).collect();
            snapshot(it, memory, runs)
        }
        Ok(WatchEvent::Changed(run)) => match seen(it, *run) {
            Some(run) => changed(it, memory, run),
            None => Vec::new(),
        },
        Ok(WatchEvent::Removed(_)) if it.has(Seed::RemovalsAreNotTold) => Vec::new(),
        Ok(other) => vec![Ok(other)],
        Err(error) => broken(it, memory, error),
    }
}

fn snapshot(it: &Seeded, memory: &mut Memory, mut runs: Vec<RunStatus>) -> Vec<Item> {
    let again = memory.broken;
    match it.seed {
        Some(Seed::EndedStreamStaysEnded) if memory.items > 0 && !again => {
            memory.deaf = true;
            return Vec::new();
        }
        Some(Seed::NoSnapshotAfterABreak) if again => return Vec::new(),
        Some(Seed::RunsAreGoneAfterABreak) if again => runs.clear(),
        Some(Seed::BrokenConnectionEndsRuns) if again => {
            for run in runs.iter_mut().filter(|run| !run.phase.is_finished()) {
                let lost = Outcome::Lost("the connection broke".into());
                run.phase = RunPhase::Finished(lost);
            }
        }
        Some(Seed::SnapshotForgetsTheFinished)
            if runs.iter().any(|run| !run.phase.is_finished()) =>
        {
            runs.retain(|run| !run.phase.is_finished());
        }
        Some(Seed::WatchBeginsWithANotice) if memory.items == 0 => {
            let notices = runs
                .iter()
                .map(|run| Ok(WatchEvent::Notice(run.id.clone(), "it is watched".into())));
            let mut items: Vec<Item> = notices.collect();
            items.push(Ok(WatchEvent::Snapshot(runs)));
            return items;
        }
        _ => {}
    }
    vec![Ok(WatchEvent::Snapshot(runs))]
}

fn changed(it: &Seeded, memory: &mut Memory, run: RunStatus) -> Vec<Item> {
    let event = |run: RunStatus| Ok(WatchEvent::Changed(Box::new(run)));
    let rank = run.phase.rank();
    let before = memory.ranks.insert(run.id.clone(), rank);
    match it.seed {
        Some(Seed::OneOfTwoEndsIsLost) if rank == 3 => {
            let now = Instant::now();
            let last = memory.last_end.replace((run.id.clone(), now));
            if last.is_some_and(|(other, at)| other != run.id && at == now) {
                return Vec::new();
            }
        }
        Some(Seed::PhasesGoBack) if rank == 1 && before == Some(0) => {
            let mut stale = run.clone();
            stale.phase = RunPhase::Pending(Pending::Starting);
            return vec![event(run), event(stale)];
        }
        _ => {}
    }
    vec![event(run)]
}

fn broken(it: &Seeded, memory: &mut Memory, error: Error) -> Vec<Item> {
    memory.broken = true;
    match it.seed {
        Some(Seed::WatchEndsWithItsConnection) => {
            memory.over = true;
            Vec::new()
        }
        Some(Seed::BreakIsFinal) => {
            memory.over = true;
            vec![Err(Error::new(ErrorKind::Protocol, error.message()))]
        }
        _ => vec![Err(error)],
    }
}

/// A watch that, dropped before anything was read of it, takes the runs with it.
struct Unread {
    value: Seeded,
    read: bool,
}

impl Drop for Unread {
    fn drop(&mut self) {
        let value = self.value.clone();
        if self.read || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        tokio::spawn(async move {
            let started = value.own().started.clone();
            for id in started {
                let _ = value.inner.cancel(&id, CancelOptions::default()).await;
            }
        });
    }
}
