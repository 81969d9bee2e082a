//! Faults of what is said about runs, in `status`, `list` and `watch`.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use v6_runtime::{
    Annotations, Error, ErrorKind, ImageRef, Outcome, Pending, Result, ResultStream, Retry, RunId,
    RunPhase, RunStatus, Runtime, StartFailure, StartFailureCause,
};

use super::Seed;
use super::runtime::Seeded;

/// How many runs a listing's first page has.
const PAGE: usize = 20;

pub(super) async fn status(it: &Seeded, id: &RunId) -> Result<RunStatus> {
    if it.has(Seed::DroppedLooksHoldTheLine) {
        // Given back by nobody but the call itself.
        let line = it.line.acquire().await;
        line.map_err(|_| Error::no_such_run(id))?.forget();
        tokio::task::yield_now().await;
    }
    let looked = it.inner.status(id).await;
    if it.has(Seed::DroppedLooksHoldTheLine) {
        it.line.add_permits(1);
    }
    match (it.seed, looked) {
        (Some(Seed::StatusOfAnyOwner), Err(error)) if error.kind() == ErrorKind::NotFound => {
            for other in it.others() {
                if let Ok(status) = other.status(id).await {
                    return Ok(status);
                }
            }
            Err(error)
        }
        (Some(Seed::NoCallCanBeRepeated), Err(error)) => Err(error.with_retry(Retry::Never)),
        (Some(Seed::UnknownIsUnavailable), Err(error)) if error.kind() == ErrorKind::NotFound => {
            Err(Error::new(ErrorKind::Unavailable, "no answer"))
        }
        (_, looked) => seen(it, looked?).ok_or_else(|| Error::no_such_run(id)),
    }
}

pub(super) fn list(it: &Seeded) -> ResultStream<RunStatus> {
    let value = it.clone();
    let all = it.inner.list();
    let all = all.try_filter_map(move |status| {
        let seen = seen(&value, status);
        async move { Ok(seen) }
    });
    match it.seed {
        Some(Seed::ListEndsAfterAPage) => Box::pin(all.take(PAGE)),
        Some(Seed::ListForgetsTheFinished) => {
            let some = async move {
                let all: Vec<RunStatus> = all.try_collect().await?;
                let alive = |run: &RunStatus| !run.phase.is_finished();
                let some_alive = all.iter().any(alive);
                let some = all.into_iter().filter(move |run| !some_alive || alive(run));
                Ok::<_, Error>(stream::iter(some.map(Ok)))
            };
            Box::pin(stream::once(some).try_flatten())
        }
        Some(Seed::ListOfEveryOwner | Seed::OwnersMatchByPrefix) => {
            let mut others = it.others();
            if it.has(Seed::OwnersMatchByPrefix) {
                let short = it.inner.owner().as_str();
                others.retain(|other| other.owner().as_str().starts_with(short));
            }
            let others = others.into_iter().map(|other| other.list());
            Box::pin(all.chain(stream::iter(others).flatten()))
        }
        _ => Box::pin(all),
    }
}

/// What this value says of a run; `None`: nothing at all.
pub(super) fn seen(it: &Seeded, mut status: RunStatus) -> Option<RunStatus> {
    let key = it.key(&status.id);
    {
        let notes = it.world.notes();
        if notes.doubles.values().any(|double| *double == status.id) {
            return None;
        }
        // What the engine got may be another spec, which is the fault, and not that it shows.
        if let Some(asked) = notes.asked.get(&key) {
            status.spec = asked.digest.clone();
            status.egress = asked.spec.egress.clone();
            status.deadline = asked.spec.deadline;
        }
    }
    status.usage.cpu = used(it, &status);
    if let RunPhase::Finished(outcome) = status.phase {
        status.phase = RunPhase::Finished(told(it, &status.id, outcome));
    }
    let mine = it.own().started.contains(&status.id);
    match it.seed {
        Some(Seed::OnlyOwnRunsAreSeen) if !mine => return None,
        Some(Seed::EndsAreRememberedByTheProcess) if !mine && status.phase.is_finished() => {
            return None;
        }
        Some(Seed::AnnotationsAreCut) => {
            status.annotations = noted(&status, |text| text.chars().take(4096).collect());
        }
        Some(Seed::AnnotationsAreOneLine) => {
            status.annotations = noted(&status, |text| text.replace(['\r', '\n'], " "));
        }
        Some(Seed::EmptyAnnotationsAreDropped) => {
            let some = status
                .annotations
                .iter()
                .filter(|(_, text)| !text.is_empty());
            status.annotations = some.collect();
        }
        Some(Seed::LastNotesStay) => {
            if let Some(asked) = it.world.notes().asked.get(&key) {
                status.annotations = asked.spec.annotations.clone();
            }
        }
        Some(Seed::AnnotationsStayInTheProcess) if !mine => {
            status.annotations = Annotations::default();
        }
        Some(Seed::StatusTellsTheTagOnly) => {
            let name = status.image.reference.name();
            if let Ok(other) = ImageRef::parse(&format!("{name}:latest")) {
                status.image.reference = other;
            }
        }
        Some(Seed::TimesAreNotTold) => {
            status.started = None;
            status.finished = None;
        }
        Some(Seed::MemoryIsNotTold) => status.usage.peak_memory_bytes = None,
        Some(Seed::AbandonedLooksAccepted) if status.phase == ABANDONED => {
            status.phase = RunPhase::Pending(Pending::Accepted);
        }
        Some(Seed::CleanupShowsAnotherEnd) if it.world.notes().going.contains(&key) => {
            status.phase = RunPhase::Finished(Outcome::Lost("it has no container".into()));
        }
        Some(Seed::OldEndsComeBack) => {
            if let Some(outcome) = it.world.notes().ended.get(&key) {
                status.phase = RunPhase::Finished(outcome.clone());
            }
        }
        _ => {}
    }
    Some(status)
}

/// Processor time, which memory does not count: a program there has a processor of its own.
fn used(it: &Seeded, status: &RunStatus) -> Option<Duration> {
    let (end, start) = status.finished.zip(status.started)?;
    let took = end.duration_since(start).ok()?;
    let asked = it.world.notes().asked.get(&it.key(&status.id)).cloned();
    let limit = asked.and_then(|asked| asked.spec.resources.cpu_milli);
    match it.seed {
        Some(Seed::ProcessorTimeIsNotTold) => None,
        Some(Seed::ProcessorLimitIsIgnored) => Some(took),
        _ => Some(limit.map_or(took, |milli| took * milli.get() / 1000)),
    }
}

const ABANDONED: RunPhase = RunPhase::Pending(Pending::Abandoned);

fn noted(status: &RunStatus, change: impl Fn(&str) -> String) -> Annotations {
    let notes = status.annotations.iter();
    notes.map(|(name, text)| (name, change(text))).collect()
}

/// Which outcome is told instead of this one.
fn told(it: &Seeded, id: &RunId, outcome: Outcome) -> Outcome {
    let failed = |cause, message: &str| Outcome::FailedToStart(StartFailure::new(cause, message));
    match (it.seed, outcome) {
        (Some(Seed::ExitCodesHaveSevenBits), Outcome::Exited(code)) => Outcome::Exited(code & 0x7f),
        (Some(Seed::CodesAbove128AreSignals), Outcome::Exited(code @ 129..=192)) => {
            Outcome::Signaled(code - 128)
        }
        (Some(Seed::SignalsAreCodes), Outcome::Signaled(signal)) => Outcome::Exited(128 + signal),
        (Some(Seed::SignalsAreKills), Outcome::Signaled(_)) => Outcome::Signaled(9),
        (Some(Seed::OutOfMemoryIsAKill), Outcome::OutOfMemory) => Outcome::Signaled(9),
        (Some(Seed::MissingCommandIs127), Outcome::FailedToStart(failure))
            if failure.cause == StartFailureCause::CommandNotFound =>
        {
            Outcome::Exited(127)
        }
        (Some(Seed::StartFailuresAreNotToldApart), Outcome::FailedToStart(failure)) => {
            failed(StartFailureCause::Engine, &failure.message)
        }
        (Some(Seed::MissingImageIs125), Outcome::FailedToStart(failure))
            if failure.cause == StartFailureCause::ImageNotFound =>
        {
            Outcome::Exited(125)
        }
        (Some(Seed::CancelledIsACode), Outcome::Cancelled) => Outcome::Exited(143),
        (Some(Seed::CancelIsForgotten), Outcome::Cancelled) if !it.own().cancelled.contains(id) => {
            Outcome::Signaled(15)
        }
        (Some(Seed::DeadlineIsCalledCancel), Outcome::DeadlineExceeded) => Outcome::Cancelled,
        (Some(Seed::DeadlineNeedsTheCaller), Outcome::Cancelled)
            if it.world.notes().late.contains(&it.key(id)) =>
        {
            Outcome::DeadlineExceeded
        }
        (Some(Seed::DeadlineChangesTheEnd), Outcome::Exited(code)) => {
            let asked = it.world.notes().asked.get(&it.key(id)).cloned();
            let deadline = asked.and_then(|asked| asked.spec.deadline);
            match deadline.is_some_and(|deadline| deadline < it.world.engine.now()) {
                true => Outcome::DeadlineExceeded,
                false => Outcome::Exited(code),
            }
        }
        (Some(Seed::CancelChangesTheEnd), Outcome::Exited(_))
            if it.world.notes().cancelled.contains_key(&it.key(id)) =>
        {
            Outcome::Cancelled
        }
        (_, outcome) => outcome,
    }
}

/// What a fault waits that has nothing else to wait for.
pub(super) const A_MOMENT: Duration = Duration::from_millis(1);
