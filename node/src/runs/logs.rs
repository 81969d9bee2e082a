//! What algorithms print: as it comes, for those who watch, and whole at the end.

use futures_util::StreamExt;
use v6_runtime::{LogChunk, LogOptions, LogPosition, RunId};

use super::context::RunContext;
use super::shared::{Node, patience};
use super::verdict::Printed;
use crate::cli::render;
use crate::hq::Emit;

/// At most so many bytes of a run are sent while it runs. HQ keeps every line it is sent and
/// broadcasts it; the whole log follows at the end.
const LIVE_MAX: usize = 256 << 10;
/// At most so many bytes go into one event.
const EVENT_MAX: usize = 32 << 10;

/// Sends a run's output to HQ line by line until it ends. Lines that HQ's connection has no room
/// for are lost here; the final report has them.
pub async fn stream(node: &Node, context: &RunContext) {
    let id = context.run_id();
    let mut since: Option<LogPosition> = None;
    let mut sent = 0;
    let mut line = Vec::new();
    let mut pause = patience();
    loop {
        let mut options = LogOptions::default().with_follow(true);
        options.since = since.clone();
        let mut chunks = node.runtime.logs(&id, options);
        while let Some(chunk) = chunks.next().await {
            let LogChunk {
                bytes, position, ..
            } = match chunk {
                Ok(chunk) => chunk,
                Err(error) if error.is_retryable() => break,
                Err(error) => {
                    tracing::debug!(
                        run = context.run,
                        error = render(&error),
                        "the log cannot be followed"
                    );
                    return;
                }
            };
            since = Some(position);
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if line.ends_with(b"\n") || line.len() >= EVENT_MAX {
                    sent += line.len();
                    emit(node, context, &mut line);
                }
                if sent > LIVE_MAX {
                    line.extend_from_slice(b"[node] more output follows when the run has ended");
                    emit(node, context, &mut line);
                    return;
                }
            }
        }
        emit(node, context, &mut line);
        let running = node
            .tracker
            .last_known(&id)
            .is_some_and(|run| !run.phase.is_finished());
        if !running {
            return;
        }
        tokio::time::sleep(pause.pause()).await;
    }
}

fn emit(node: &Node, context: &RunContext, line: &mut Vec<u8>) {
    if line.ends_with(b"\n") {
        line.pop();
    }
    if line.is_empty() {
        return;
    }
    let text = String::from_utf8_lossy(line).into_owned();
    line.clear();
    let event = Emit::Log {
        run: context.run,
        task: context.task,
        text,
    };
    if let Err(error) = node.socket.try_emit(event) {
        tracing::debug!(run = context.run, %error, "a line of the log was not sent");
    }
}

/// All that a run has printed, up to the node's limit, as HQ may see it.
pub async fn whole(node: &Node, context: &RunContext, id: &RunId) -> Printed {
    if !context.share_logs {
        return Printed::Withheld;
    }
    let limit = node.config.runtime.run.log_bytes.get();
    let mut chunks = node.runtime.logs(
        id,
        LogOptions::default().with_limit_bytes(limit.saturating_add(1)),
    );
    let mut bytes: Vec<u8> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => bytes.extend_from_slice(&chunk.bytes),
            Err(error) => {
                tracing::warn!(
                    run = context.run,
                    error = render(&error),
                    "the log could not be read"
                );
                if bytes.is_empty() {
                    return Printed::Unreadable;
                }
                bytes.extend_from_slice(b"\n[node] the rest of the log could not be read");
                break;
            }
        }
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if bytes.len() > limit {
        bytes.truncate(limit);
        bytes.extend_from_slice(format!("\n[node] cut after {limit} bytes").as_bytes());
    }
    Printed::Shared(String::from_utf8_lossy(&bytes).into_owned())
}
