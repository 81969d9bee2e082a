//! A run at the engine, from its start to its removal.

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use v6_runtime::{CancelOptions, Error, ErrorKind, Outcome, RunPhase, RunStatus as EngineStatus};

use std::sync::Arc;

use super::context::RunContext;
use super::shared::{Node, patience};
use super::{deliver, logs};
use crate::cli::render;
use crate::hq::{PatchOutcome, RunPatch, RunStatus};

/// Sees a run through: reports that it runs, streams its log, ends it when `kill` says so, and
/// delivers what it leaves. Dropping it leaves the run alone; another call takes it up again.
pub async fn follow(node: &Arc<Node>, context: RunContext, kill: &CancellationToken) {
    let id = context.run_id();
    let begun = node.tracker.wait_until(&id, |run| run.phase.rank() > 0);
    let begun = match kill.run_until_cancelled(begun).await {
        Some(begun) => begun,
        None => return end(node, &context).await,
    };
    let mut streaming = None;
    match begun {
        Ok(status) if status.phase == RunPhase::Running => {
            if !report_active(node, &context).await {
                kill.cancel();
            } else if context.share_logs {
                let (node, context) = (node.clone(), context.clone());
                let task = async move { logs::stream(&node, &context).await };
                streaming = Some(AbortOnDropHandle::new(tokio::spawn(task)));
            }
        }
        Ok(_) => {}
        Err(error) => return lost(node, &context, error).await,
    }
    let ended = match kill.run_until_cancelled(node.tracker.wait(&id)).await {
        Some(ended) => ended,
        None => return end(node, &context).await,
    };
    drop(streaming);
    match ended {
        Ok(ended) => deliver::deliver(node, &context, &ended).await,
        Err(error) => lost(node, &context, error).await,
    }
}

/// Tells HQ that the run runs. `false`: HQ has closed it.
async fn report_active(node: &Node, context: &RunContext) -> bool {
    // Not for a run that was reported before a restart: the PATCH would erase its log.
    match node.hq.run(context.run).await {
        Ok(Some(state)) if state.finished_at.is_some() => return false,
        Ok(Some(state)) if state.status == RunStatus::Active.as_str() => return true,
        Ok(Some(_)) => {}
        Ok(None) => return false,
        Err(error) => {
            tracing::warn!(
                run = context.run,
                error = render(&error),
                "HQ could not be asked about the run"
            );
            return true;
        }
    }
    match node
        .hq
        .patch_run(context.run, &RunPatch::active(None))
        .await
    {
        Ok(PatchOutcome::Accepted) => {
            node.announce(context, RunStatus::Active).await;
            true
        }
        Ok(PatchOutcome::AlreadyFinished | PatchOutcome::Gone) => false,
        Err(error) => {
            // The final report does not depend on it.
            tracing::warn!(
                run = context.run,
                error = render(&error),
                "HQ was not told that the run runs"
            );
            true
        }
    }
}

/// Ends a run at the engine, and delivers its log.
async fn end(node: &Arc<Node>, context: &RunContext) {
    let id = context.run_id();
    tracing::info!(run = context.run, "the run is ended on request");
    let mut pause = patience();
    loop {
        match node.runtime.cancel(&id, CancelOptions::default()).await {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return lost(node, context, error).await;
            }
            Err(error) => {
                tracing::warn!(
                    run = context.run,
                    error = render(&error),
                    "the run could not be ended; trying again"
                );
                tokio::time::sleep(pause.pause()).await;
            }
        }
    }
    match node.tracker.wait(&id).await {
        Ok(ended) => deliver::deliver(node, context, &ended).await,
        Err(error) => lost(node, context, error).await,
    }
}

/// The record itself is gone: somebody removed it at the engine.
async fn lost(node: &Arc<Node>, context: &RunContext, error: Error) {
    tracing::error!(
        run = context.run,
        error = render(&error),
        "the run's record is gone from the engine"
    );
    let outcome = Outcome::Lost("its record was removed from the engine".into());
    let verdict = super::verdict::Verdict::of(&outcome, context.output_limit);
    deliver::refuse(node, Some(context), context.run, verdict).await;
    deliver::remove(node, context).await;
}

/// Whether the engine has the run in hand, so that it is to be followed and not started.
#[must_use]
pub fn in_hand(status: &EngineStatus) -> bool {
    status.phase != RunPhase::Pending(v6_runtime::Pending::Abandoned)
}
