//! A run that is over: its output is taken, HQ is told until it has answered, then all that is
//! left of it at the engine is removed. Every step can be repeated after a crash.

use std::time::SystemTime;

use v6_runtime::{
    CleanupOptions, Error, ErrorKind, Outcome, OutputName, RunStatus as EngineStatus,
};

use super::context::RunContext;
use super::logs;
use super::sessions::{self, NotKept};
use super::shared::{EngineTries, Node, patience};
use super::spec::RESULT;
use super::spool::{self, Spool};
use super::verdict::{Printed, Verdict};
use crate::cli::render;
use crate::crypto::{CryptoError, ResultEncoder};
use crate::hq::{Action, HqError, PatchOutcome, RunPatch, RunStatus};

/// What HQ is given at the end.
struct Report {
    verdict: Verdict,
    result: Option<Spool>,
}

/// Brings a finished run to HQ and removes it.
pub async fn deliver(node: &Node, context: &RunContext, ended: &EngineStatus) {
    let id = context.run_id();
    let outcome = ended
        .outcome()
        .cloned()
        .unwrap_or_else(|| Outcome::Lost("it has no end".into()));
    let printed = async {
        match ended.started {
            Some(_) => logs::whole(node, context, &id).await,
            None if context.share_logs => Printed::Shared(String::new()),
            None => Printed::Withheld,
        }
    };
    let (report, printed) = tokio::join!(harvest(node, context, &outcome), printed);
    tracing::info!(run = context.run, task = context.task, verdict = %report.verdict, "the run is over");
    if let Some(ended) = ended.finished.and_then(|at| at.elapsed().ok()) {
        let milliseconds = ended.as_secs_f64() * 1e3;
        tracing::debug!(
            run = context.run,
            milliseconds,
            "since the algorithm's end, by the engine's clock"
        );
    }
    let log = report.verdict.log(&printed);
    let finished = ended.finished.unwrap_or_else(SystemTime::now);
    let status = report.verdict.status;
    tell(node, context, report, finished, log).await;
    node.announce(context, status).await;
    remove(node, context).await;
}

/// Takes what the run has left, as its action asks.
async fn harvest(node: &Node, context: &RunContext, outcome: &Outcome) -> Report {
    let verdict = Verdict::of(outcome, context.output_limit);
    if !outcome.is_success() {
        return Report {
            verdict,
            result: None,
        };
    }
    let (mut pause, mut tries) = (patience(), EngineTries::default());
    loop {
        match take(node, context).await {
            Ok(report) => return report,
            Err(Harvest::Verdict(verdict)) => {
                return Report {
                    verdict,
                    result: None,
                };
            }
            Err(Harvest::Engine(error)) if tries.again(&error) => {
                tracing::warn!(
                    run = context.run,
                    error = render(&error),
                    "the output could not be read; trying again"
                );
            }
            Err(Harvest::Engine(error)) => {
                return Report {
                    verdict: unusable(context, &error),
                    result: None,
                };
            }
            Err(Harvest::Hq(error)) if error.is_retryable() => {
                tracing::warn!(
                    run = context.run,
                    error = render(&error),
                    "HQ did not take the columns; trying again"
                );
            }
            Err(Harvest::Hq(error)) => {
                let reason = format!(
                    "HQ did not take the dataframe's columns: {}",
                    render(&error)
                );
                return Report {
                    verdict: Verdict::new(RunStatus::Failed, reason),
                    result: None,
                };
            }
        }
        tokio::time::sleep(pause.pause()).await;
    }
}

enum Harvest {
    Verdict(Verdict),
    Engine(Error),
    Hq(HqError),
}

impl From<NotKept> for Harvest {
    fn from(reason: NotKept) -> Self {
        match reason {
            NotKept::Verdict(verdict) => Self::Verdict(verdict),
            NotKept::Engine(error) => Self::Engine(error),
        }
    }
}

impl From<Error> for Harvest {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

async fn take(node: &Node, context: &RunContext) -> Result<Report, Harvest> {
    let id = context.run_id();
    let name = OutputName::new(RESULT)?;
    let output = node.runtime.collect(&id, &name);
    let spool = node.spool();
    match context.action() {
        Ok(action @ (Action::DataExtraction | Action::Preprocessing)) => {
            let file = spool::to_named_file(output, &spool).await?;
            if file
                .as_file()
                .metadata()
                .is_ok_and(|about| about.len() == 0)
            {
                return Err(Harvest::Verdict(no_result()));
            }
            let columns = sessions::keep(node, context, action, Some(file.path())).await?;
            if let Some(dataframe) = &context.dataframe {
                node.hq
                    .set_columns(dataframe.id, &columns)
                    .await
                    .map_err(Harvest::Hq)?;
            }
            Ok(Report {
                verdict: Verdict::completed(),
                result: None,
            })
        }
        Ok(action) => {
            let result = Spool::collect(output, &spool).await?;
            if result.is_empty() {
                return Err(Harvest::Verdict(no_result()));
            }
            sessions::keep(node, context, action, None).await?;
            Ok(Report {
                verdict: Verdict::completed(),
                result: Some(result),
            })
        }
        Err(word) => Err(Harvest::Verdict(Verdict::new(
            RunStatus::Failed,
            word.to_string(),
        ))),
    }
}

fn no_result() -> Verdict {
    Verdict::new(
        RunStatus::UnexpectedOutput,
        "the algorithm ended without an error and without writing a result",
    )
}

/// The output exists and is not what was agreed.
fn unusable(context: &RunContext, error: &Error) -> Verdict {
    let reason = match error.kind() {
        ErrorKind::Quota => {
            format!(
                "the algorithm wrote more than {} bytes, the limit of this node",
                context.output_limit
            )
        }
        ErrorKind::InvalidSpec | ErrorKind::NotFound => {
            format!(
                "the algorithm left no regular file as its result: {}",
                error.message()
            )
        }
        _ => format!("the result could not be read: {}", render(error)),
    };
    Verdict::new(RunStatus::UnexpectedOutput, reason)
}

/// Tells HQ, as long as it takes.
async fn tell(
    node: &Node,
    context: &RunContext,
    report: Report,
    finished: SystemTime,
    log: String,
) {
    let Report {
        mut verdict,
        mut result,
    } = report;
    let mut log = log;
    let mut pause = patience();
    loop {
        let patch = RunPatch::finished(verdict.status, finished, log.clone(), String::new());
        match send(node, context, &patch, result.as_ref()).await {
            Ok(PatchOutcome::Accepted) => {
                tracing::debug!(run = context.run, "HQ has taken the result");
                return;
            }
            // Told before a crash, or closed by HQ: a kill leaves room for the log alone.
            Ok(PatchOutcome::AlreadyFinished) => {
                if verdict.status == RunStatus::Killed {
                    let patch = RunPatch::log_only(log);
                    if let Err(error) = node.hq.patch_run(context.run, &patch).await {
                        tracing::debug!(
                            run = context.run,
                            error = render(&error),
                            "HQ did not take the log of a killed run"
                        );
                    }
                }
                return;
            }
            Ok(PatchOutcome::Gone) => return,
            Err(Undelivered::Later(error)) => {
                tracing::warn!(
                    run = context.run,
                    error = render(&error),
                    "HQ has not taken the result yet; trying again"
                );
                tokio::time::sleep(pause.pause()).await;
            }
            Err(Undelivered::Never(reason)) => {
                tracing::error!(run = context.run, reason, "the result cannot be delivered");
                if result.take().is_none() && verdict.status == RunStatus::Failed {
                    // Not even the bare verdict: nothing is thrown away, a later version may do it.
                    tokio::time::sleep(pause.pause()).await;
                    continue;
                }
                verdict = Verdict::new(
                    RunStatus::Failed,
                    format!("the result could not be delivered: {reason}"),
                );
                log = verdict.log(&Printed::Shared(log));
            }
        }
    }
}

enum Undelivered {
    Later(HqError),
    Never(String),
}

async fn send(
    node: &Node,
    context: &RunContext,
    patch: &RunPatch,
    result: Option<&Spool>,
) -> Result<PatchOutcome, Undelivered> {
    let sort = |error: HqError| match error.is_retryable() {
        true => Undelivered::Later(error),
        false => Undelivered::Never(render(&error)),
    };
    let Some(result) = result else {
        // An encrypted collaboration's client would take bare text for damage; there is none.
        return node.hq.patch_run(context.run, patch).await.map_err(sort);
    };
    let receiver = receiver(node, context).await?;
    node.hq
        .patch_run_streaming(context.run, patch, result, &node.codec, &receiver)
        .await
        .map_err(sort)
}

/// The public key of the organization that gets the result; nothing where nothing is encrypted.
async fn receiver(node: &Node, context: &RunContext) -> Result<String, Undelivered> {
    if !node.codec.is_encrypted() {
        return Ok(String::new());
    }
    let organization = context.init_org.ok_or_else(|| {
        Undelivered::Never("the organization that asked for it is not known at HQ any more".into())
    })?;
    let found =
        node.hq
            .organization(organization)
            .await
            .map_err(|error| match error.is_retryable() {
                true => Undelivered::Later(error),
                false => Undelivered::Never(render(&error)),
            })?;
    match ResultEncoder::for_codec(&node.codec, &found.public_key) {
        Ok(_) => Ok(found.public_key),
        Err(CryptoError::PublicKey) => Err(Undelivered::Never(format!(
            "organization {} (\"{}\") has no usable public key at HQ, so its result cannot be encrypted",
            found.id, found.name
        ))),
        Err(error) => Err(Undelivered::Never(error.to_string())),
    }
}

/// Reports a run that never came to the engine.
pub async fn refuse(node: &Node, context: Option<&RunContext>, run: i64, verdict: Verdict) {
    tracing::warn!(run, %verdict, "the run is not carried out");
    let log = verdict.log(&Printed::Shared(String::new()));
    let mut pause = patience();
    loop {
        let patch = RunPatch::finished(
            verdict.status,
            SystemTime::now(),
            log.clone(),
            String::new(),
        );
        match node.hq.patch_run(run, &patch).await {
            Ok(_) => break,
            Err(error) if error.is_retryable() => {
                tracing::warn!(
                    run,
                    error = render(&error),
                    "HQ has not taken the report yet; trying again"
                );
                tokio::time::sleep(pause.pause()).await;
            }
            Err(error) => {
                tracing::error!(run, error = render(&error), "HQ does not take the report");
                return;
            }
        }
    }
    if let Some(context) = context {
        node.announce(context, verdict.status).await;
    }
}

/// Removes all that belongs to a run at the engine, by force if HQ has closed it.
pub async fn remove(node: &Node, context: &RunContext) {
    let id = context.run_id();
    let mut pause = patience();
    loop {
        match node
            .runtime
            .cleanup(&id, CleanupOptions::default().with_force(true))
            .await
        {
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(
                    run = context.run,
                    error = render(&error),
                    "the run could not be removed from the engine; trying again"
                );
                tokio::time::sleep(pause.pause()).await;
            }
        }
    }
    node.gateway.forget(&id);
    if let Some(session) = context.session
        && let Err(error) = node.sessions.forget_run(session, context.run).await
    {
        tracing::debug!(
            run = context.run,
            error = render(&error),
            "a mark of the merged run is left in the session's journal"
        );
    }
}
