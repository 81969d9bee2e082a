//! From a run that HQ offers to one that the engine has: policy, image, claim, arguments, spec.

use std::future::Future;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use v6_runtime::{Digest, Error, ErrorKind, ImageRef, PullPolicy, ResolvedImage};

use super::context::RunContext;
use super::sessions;
use super::shared::{EngineTries, Node, patience};
use super::spec::{Gathered, Prepared, Unfit, needed_group, prepare, source, take_along};
use super::verdict::Verdict;
use crate::cli::render;
use crate::config::Located;
use crate::hq::{Action, HqError, OpenRun, PatchOutcome, RunPatch, RunStatus};
use crate::policy::{Decision, Sender, Store};
use crate::readable::{Obstacle, Reader};

/// How often a registry that does not answer is asked before the run is given up.
const REGISTRY_TRIES: u32 = 4;

/// Why a run was not started.
#[derive(Debug)]
pub enum NotStarted {
    /// HQ is to be told so.
    Report(Verdict),
    /// HQ has closed it or does not know it any more.
    Closed,
    /// It was killed before it started.
    Killed,
    /// HQ cannot be asked now; the run stays open there and comes back.
    Later(HqError),
}

impl From<Verdict> for NotStarted {
    fn from(verdict: Verdict) -> Self {
        Self::Report(verdict)
    }
}

impl From<HqError> for NotStarted {
    fn from(error: HqError) -> Self {
        if error.is_retryable() {
            return Self::Later(error);
        }
        let reason = format!(
            "HQ did not answer what the node needed to know: {}",
            render(&error)
        );
        Verdict::new(RunStatus::Failed, reason).into()
    }
}

/// Starts a run. Safe to repeat after a crash at any point: nothing is created before HQ has
/// taken the claim, and the engine's record decides whether there is a run already.
///
/// # Errors
/// [`NotStarted`].
pub async fn start(
    node: &Node,
    run: &OpenRun,
    kill: &CancellationToken,
) -> Result<RunContext, NotStarted> {
    let action = run.task.action().map_err(|word| {
        Verdict::new(
            RunStatus::Failed,
            format!("this node does not know the action {word}"),
        )
    })?;
    if action == Action::Postprocessing {
        return Err(Verdict::new(RunStatus::Failed, "this node does not do postprocessing").into());
    }
    decide_sender(node, run).await?;
    tracing::debug!(
        run = run.id,
        task = run.task.id,
        "asking the engine for the image"
    );
    let image = unless(kill, resolve(node, &run.task.image)).await??;
    decide_image(node, run, &image).await?;
    claim(node, run).await?;
    let arguments = arguments(node, run)?;
    let dataframes = dataframes(run, action)?;
    if action == Action::DataExtraction {
        readable(node, run).await?;
    }
    let session_files = sessions::files_for(node, run, action, &dataframes).await?;
    let context = RunContext::of(run, node.config.share_algorithm_logs, 0)
        .map_err(|word| Verdict::new(RunStatus::Failed, word.to_string()))?;
    let token = match action {
        Action::CentralCompute => Some(node.gateway.issue_token(&context).await.map_err(no_token)?),
        _ => None,
    };
    let gathered = Gathered {
        run,
        action,
        image,
        arguments,
        token,
        dataframes,
        session_files,
    };
    let unfit = |unfit: Unfit| {
        node.gateway.forget(&context.run_id());
        unfit.into_verdict()
    };
    let Prepared {
        mut spec,
        context,
        warnings,
    } = prepare(&node.config, &node.us, gathered).map_err(unfit)?;
    let can = node.runtime.capabilities();
    let taken = take_along(&mut spec, can).await;
    taken.map_err(|error| unfit(error.into()))?;
    for warning in warnings {
        tracing::warn!(run = run.id, "{warning}");
    }
    let id = context.run_id();
    node.gateway.admit(context.clone());
    let (mut pause, mut tries) = (patience(), EngineTries::default());
    loop {
        let error = match unless(kill, node.runtime.run(&id, &spec)).await? {
            Ok(accepted) => {
                tracing::info!(run = run.id, task = run.task.id, %action, image = %spec.image.reference,
                    digest = %spec.image.identity.digest(), ?accepted, "the run is at the engine");
                return Ok(context);
            }
            Err(error) => error,
        };
        if !tries.again(&error) {
            node.gateway.forget(&id);
            let status = match error.kind() {
                ErrorKind::InvalidSpec | ErrorKind::Unsupported => RunStatus::Failed,
                _ => RunStatus::StartFailed,
            };
            return Err(Verdict::new(
                status,
                format!("the run could not be started: {}", render(&error)),
            )
            .into());
        }
        tracing::warn!(
            run = run.id,
            error = render(&error),
            "the engine did not take the run; trying again"
        );
        unless(kill, tokio::time::sleep(pause.pause())).await?;
    }
}

/// Waits for something unless the run is killed meanwhile.
async fn unless<T>(
    kill: &CancellationToken,
    what: impl Future<Output = T>,
) -> Result<T, NotStarted> {
    kill.run_until_cancelled(what)
        .await
        .ok_or(NotStarted::Killed)
}

async fn decide_sender(node: &Node, run: &OpenRun) -> Result<(), NotStarted> {
    let policies = &node.config.policies;
    let name = match run.task.init_org {
        Some(id) if policies.needs_organization_name() => {
            Some(node.hq.organization(id).await?.name)
        }
        _ => None,
    };
    let sender = Sender {
        user: run.task.init_user,
        organization: run.task.init_org,
        organization_name: name.as_deref(),
    };
    obey(run, policies.decide_sender(sender))
}

async fn decide_image(node: &Node, run: &OpenRun, image: &ResolvedImage) -> Result<(), NotStarted> {
    let policies = &node.config.policies;
    let store = match run.task.algorithm_store {
        Some(id) if policies.needs_store() => Some(node.hq.algorithm_store(id).await?),
        _ => None,
    };
    let confirms = match &store {
        // The node's token is shown to a store only if the operator lists that store.
        Some(store) if policies.lists_store(&store.url) => {
            node.hq.store_approves(store, &run.task.image).await?
        }
        _ => false,
    };
    let mut digests: Vec<(ImageRef, Digest)> = Vec::new();
    for entry in policies.entries_to_resolve(&image.reference) {
        match resolve(node, &entry.to_string()).await {
            Ok(resolved) => digests.push((entry.clone(), resolved.identity.digest().clone())),
            Err(_) => {
                tracing::warn!(%entry, "an entry of allowed_algorithms could not be resolved and allows nothing")
            }
        }
    }
    let digest_of = |entry: &ImageRef| {
        digests
            .iter()
            .find(|(e, _)| e == entry)
            .map(|(_, d)| d.clone())
    };
    let store = store.as_ref().map(|store| Store {
        url: &store.url,
        confirms,
    });
    obey(
        run,
        policies.decide_image(&run.task.image, image, store, digest_of),
    )
}

fn obey(run: &OpenRun, decision: Decision) -> Result<(), NotStarted> {
    match decision {
        Decision::Allowed(why) => {
            tracing::debug!(run = run.id, why, "allowed");
            Ok(())
        }
        Decision::Denied(why) => {
            tracing::warn!(run = run.id, image = run.task.image, why, "not allowed");
            Err(Verdict::new(RunStatus::NotAllowed, why).into())
        }
    }
}

/// Settles what an image name stands for. A registry that does not answer is asked a few times;
/// an engine that does not answer is waited for.
async fn resolve(node: &Node, image: &str) -> Result<ResolvedImage, NotStarted> {
    let no_image = |error: &Error| {
        Verdict::new(
            RunStatus::NoImage,
            format!("the image {image} cannot be had: {}", render(error)),
        )
    };
    let reference = ImageRef::parse(image).map_err(|error| no_image(&error))?;
    let policy = match node.config.policies.require_pull {
        true => PullPolicy::Always,
        false => PullPolicy::IfNotPresent,
    };
    let mut pause = patience();
    let mut refused = 0;
    loop {
        let error = match node.runtime.resolve(&reference, policy).await {
            Ok(resolved) => return Ok(resolved),
            Err(error) => error,
        };
        if node.runtime.ping().await.is_ok() {
            refused += 1;
            if !error.is_retryable() || refused >= REGISTRY_TRIES {
                return Err(no_image(&error).into());
            }
        }
        tracing::warn!(
            image,
            error = render(&error),
            "the image could not be resolved; trying again"
        );
        tokio::time::sleep(pause.pause()).await;
    }
}

async fn claim(node: &Node, run: &OpenRun) -> Result<(), NotStarted> {
    match node
        .hq
        .patch_run(run.id, &RunPatch::claim(std::time::SystemTime::now()))
        .await?
    {
        PatchOutcome::Accepted => Ok(()),
        PatchOutcome::AlreadyFinished | PatchOutcome::Gone => Err(NotStarted::Closed),
    }
}

fn arguments(node: &Node, run: &OpenRun) -> Result<Bytes, Verdict> {
    if run.arguments_in_blob {
        let reason = "the arguments are in HQ's blob store, which HQ 5.0 cannot hand out";
        return Err(Verdict::new(RunStatus::Failed, reason));
    }
    // An empty file stops algorithms made with vantage6's tools; `{}` means no arguments.
    let Some(text) = run.arguments.as_deref() else {
        return Ok(Bytes::from_static(b"{}"));
    };
    let decoded = node.codec.decode(text).map_err(|error| {
        tracing::error!(run = run.id, %error, "the arguments cannot be read");
        let advice = if node.codec.is_encrypted() {
            "was the public key of this organization changed at HQ after the task was made?"
        } else {
            "does the client use encryption although the collaboration does not?"
        };
        Verdict::new(
            RunStatus::Failed,
            format!("the arguments cannot be decrypted: {error}; {advice}"),
        )
    })?;
    Ok(if decoded.is_empty() {
        Bytes::from_static(b"{}")
    } else {
        decoded.into()
    })
}

fn dataframes(run: &OpenRun, action: Action) -> Result<Vec<Vec<String>>, Verdict> {
    if action == Action::DataExtraction {
        return Ok(Vec::new());
    }
    run.task.dataframe_groups().ok_or_else(|| {
        Verdict::new(
            RunStatus::Failed,
            "the step may only work on dataframes, and the task names something else",
        )
    })
}

/// Whether the data that an extraction asks for is there and open to the user that runs have: said
/// here it is a sentence, found out inside the container it is a traceback.
async fn readable(node: &Node, run: &OpenRun) -> Result<(), Verdict> {
    let database = source(&node.config, run)
        .map_err(Unfit::into_verdict)?
        .clone();
    let label = database.label.clone();
    let looked = tokio::task::spawn_blocking(move || match database.locate() {
        Located::File(path) | Located::Folder(path) => {
            let group = database.group.or_else(|| needed_group(&path));
            Reader::of_runs(group).can_read(&path)
        }
        Located::Missing(path) => Err(Obstacle::Unseen(path, std::io::ErrorKind::NotFound.into())),
        Located::Volume(_) | Located::Service(_) => Ok(()),
    });
    let trouble = match looked.await {
        // What is above the data does not matter to an engine that mounts it as root.
        Ok(Ok(()) | Err(Obstacle::Closed(_))) => return Ok(()),
        Ok(Err(Obstacle::Unreadable(path, _))) => {
            tracing::error!(run = run.id, database = label, path = %path.display(), "algorithms may not read the data; v6-node check says what to do");
            "may not be read by algorithms"
        }
        Ok(Err(Obstacle::Unseen(path, error))) => {
            tracing::error!(run = run.id, database = label, path = %path.display(), %error, "the data is not there");
            "is not there"
        }
        Err(_) => "could not be looked at",
    };
    let reason = format!("the data of database \"{label}\" at this node {trouble}");
    Err(Verdict::new(RunStatus::Failed, reason))
}

fn no_token(error: HqError) -> NotStarted {
    match error.status() {
        Some(400 | 401 | 403) => Verdict::new(
            RunStatus::Failed,
            format!("HQ gave no token for the algorithm: {}", render(&error)),
        )
        .into(),
        _ => error.into(),
    }
}
