//! What runs and HQ's events mean for the node's sessions.

use std::collections::{BTreeMap, HashSet};

use futures_util::TryStreamExt;
use tokio_util::io::StreamReader;
use v6_runtime::{Access, InputReader, InputStream, OutputName};

use super::context::RunContext;
use super::shared::Node;
use super::spec::{SESSION, SessionFile};
use super::verdict::Verdict;
use crate::cli::render;
use crate::hq::{Action, Column, Emit, NodeInfo, OpenRun, RunStatus};
use crate::session::{
    DataframeName, FileKind, Merge, PrivateFiles, SessionError, SnapshotFile, columns_of,
};

/// The files of its session that a step gets: the dataframes that it asks for and the log of steps
/// to read, and a copy of the algorithms' own files to change.
///
/// # Errors
/// The verdict, if a dataframe is not there or the session cannot be read.
pub async fn files_for(
    node: &Node,
    run: &OpenRun,
    action: Action,
    wanted: &[Vec<String>],
) -> Result<Vec<SessionFile>, Verdict> {
    if matches!(action, Action::DataExtraction | Action::Preprocessing) {
        let target = run.task.dataframe.as_ref().ok_or_else(|| {
            Verdict::new(
                RunStatus::Failed,
                "the step writes a dataframe, and the task does not name it",
            )
        })?;
        target
            .name
            .parse::<DataframeName>()
            .map_err(|error| Verdict::new(RunStatus::Failed, error.to_string()))?;
    }
    let Some(session) = run.task.session else {
        return if wanted.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Verdict::new(
                RunStatus::DataframeNotFound,
                "the session was deleted",
            ))
        };
    };
    let snapshot = node.sessions.snapshot(session).await.map_err(|error| {
        tracing::error!(
            run = run.id,
            session,
            error = render(&error),
            "the session cannot be read"
        );
        Verdict::new(RunStatus::Failed, "the node cannot read the session")
    })?;
    let wanted: HashSet<&str> = wanted.iter().flatten().map(String::as_str).collect();
    let missing = snapshot.missing(wanted.iter().copied());
    if !missing.is_empty() {
        let names = missing.join(", ");
        return Err(Verdict::new(
            RunStatus::DataframeNotFound,
            format!("this node has no such dataframe in the session: {names}"),
        ));
    }
    let given = snapshot.files.into_iter().filter_map(|file| {
        let access = match &file.kind {
            FileKind::Dataframe(name) if wanted.contains(name.as_str()) => Access::ReadOnly,
            FileKind::Dataframe(_) => return None,
            FileKind::State => Access::ReadOnly,
            FileKind::Private => Access::ReadWrite,
        };
        Some(SessionFile {
            path: file.path.clone(),
            content: stream(file),
            access,
        })
    });
    Ok(given.collect())
}

fn stream(file: SnapshotFile) -> InputStream {
    InputStream::reopenable(file.length, move || {
        let file = file.clone();
        async move { Ok(Box::pin(file.open().await?) as InputReader) }
    })
}

/// Why what a run left could not be taken over.
pub enum NotKept {
    /// The run is to be reported so.
    Verdict(Verdict),
    /// The engine did not give the folder.
    Engine(v6_runtime::Error),
}

/// Takes over what a successful run leaves in its session: its dataframe, if the file `result`
/// holds one, and its folder. All or nothing, once for each run. Returns the dataframe's columns.
///
/// # Errors
/// [`NotKept`]; the session is as it was.
pub async fn keep(
    node: &Node,
    context: &RunContext,
    action: Action,
    result: Option<&std::path::Path>,
) -> Result<Vec<Column>, NotKept> {
    let refused = |status, reason: String| NotKept::Verdict(Verdict::new(status, reason));
    let mut columns = Vec::new();
    let mut dataframe = None;
    if let Some(path) = result {
        columns = columns_of(path).await.map_err(|error| {
            refused(
                RunStatus::UnexpectedOutput,
                format!("the algorithm's output is not a dataframe: {error}"),
            )
        })?;
        let target = context
            .dataframe
            .as_ref()
            .map(|target| target.name.parse::<DataframeName>());
        match target {
            Some(Ok(name)) => dataframe = Some((name, path)),
            Some(Err(error)) => return Err(refused(RunStatus::Failed, error.to_string())),
            None => {
                return Err(refused(
                    RunStatus::Failed,
                    "the task names no dataframe to write".into(),
                ));
            }
        }
    }
    let Some(session) = context.session else {
        return Ok(columns);
    };
    let folder = OutputName::new(SESSION).map_err(NotKept::Engine)?;
    let chunks = node
        .runtime
        .collect(&context.run_id(), &folder)
        .map_err(std::io::Error::other);
    let private = PrivateFiles {
        tar: Box::pin(StreamReader::new(chunks)),
        strip: 0,
    };
    let merge = Merge {
        run: context.run,
        action,
        dataframe,
        private: Some(private),
    };
    match node.sessions.merge(session, merge).await {
        Ok(merged) => {
            for (path, why) in merged.skipped {
                tracing::warn!(
                    run = context.run,
                    path,
                    why,
                    "a file in the session folder is not kept"
                );
            }
            Ok(columns)
        }
        Err(SessionError::Tar(error)) => Err(sort_tar(error)),
        Err(error @ (SessionError::Quota { .. } | SessionError::TooManyFiles { .. })) => {
            Err(refused(RunStatus::Failed, error.to_string()))
        }
        Err(error) => {
            tracing::error!(
                run = context.run,
                session,
                error = render(&error),
                "the session cannot be written"
            );
            Err(refused(
                RunStatus::Failed,
                "the node could not store what the step has left in the session".into(),
            ))
        }
    }
}

/// The engine's own error, if that is what broke the stream.
fn sort_tar(error: std::io::Error) -> NotKept {
    match error.downcast::<v6_runtime::Error>() {
        Ok(error) => NotKept::Engine(error),
        Err(error) => NotKept::Verdict(Verdict::new(
            RunStatus::UnexpectedOutput,
            format!("the algorithm's session folder could not be read: {error}"),
        )),
    }
}

/// Tells HQ what this node allows, if it may know.
pub async fn introduce(node: &Node) {
    let config = &node.config;
    if !config.share_config {
        return;
    }
    let policies = &config.policies;
    let databases: BTreeMap<String, String> = config
        .databases
        .iter()
        .map(|db| (db.label.clone(), db.kind.clone()))
        .collect();
    let info = NodeInfo {
        encryption: node.codec.is_encrypted(),
        allowed_algorithms: policies
            .allowed_algorithms
            .iter()
            .map(|entry| entry.as_str().to_owned())
            .collect(),
        allowed_users: policies.allowed_users.clone(),
        allowed_organizations: policies.allowed_organizations.clone(),
        databases,
    };
    if let Err(error) = node.socket.emit(Emit::NodeInfo(info)).await {
        tracing::warn!(%error, "HQ was not told what this node allows");
    }
}

/// Removes what HQ has deleted while the node could not hear of it (protocol 4.7): HQ does not
/// repeat such events to the node that missed them, and tells nobody of deleted sessions.
pub async fn reconcile(node: &Node) {
    let sessions = match node.sessions.list().await {
        Ok(sessions) => sessions,
        Err(error) => {
            tracing::error!(error = render(&error), "the sessions cannot be listed");
            return;
        }
    };
    for session in sessions {
        match node.hq.session_dataframes(session).await {
            Ok(Some(at_hq)) => {
                let here = node.sessions.dataframes(session).await.unwrap_or_default();
                for name in here
                    .into_iter()
                    .filter(|name| !at_hq.iter().any(|n| n == name.as_str()))
                {
                    delete_dataframe(node, session, name.as_str()).await;
                }
            }
            Ok(None) => match node.sessions.purge(session).await {
                Ok(()) => {
                    tracing::info!(session, "HQ has deleted the session; its files are removed")
                }
                Err(error) => tracing::error!(
                    session,
                    error = render(&error),
                    "the session cannot be removed"
                ),
            },
            Err(error) => {
                tracing::warn!(
                    session,
                    error = render(&error),
                    "HQ could not be asked about a session"
                );
            }
        }
    }
}

/// Deletes a dataframe, and tells HQ that it is gone, also if it was not here.
pub async fn delete_dataframe(node: &Node, session: i64, name: &str) {
    let parsed = match name.parse::<DataframeName>() {
        Ok(parsed) => parsed,
        Err(error) => {
            tracing::error!(session, %error, "HQ wants a dataframe deleted that cannot be one");
            return;
        }
    };
    match node.sessions.delete_dataframe(session, &parsed).await {
        Ok(there) => tracing::info!(session, name, there, "the dataframe is deleted"),
        Err(error) => {
            tracing::error!(
                session,
                name,
                error = render(&error),
                "the dataframe cannot be deleted"
            );
            return;
        }
    }
    let event = Emit::DataframeDeleted {
        session,
        name: name.to_owned(),
    };
    if let Err(error) = node.socket.emit(event).await {
        tracing::warn!(session, name, %error, "HQ was not told that the dataframe is gone");
    }
}
