//! Creating subtasks, each once, whatever connection breaks or process dies on the way.
//!
//! The algorithm's client repeats a request for ever when its connection breaks, and HQ makes a
//! new task of each `POST /task` that it sees. So the requests of a run go one at a time, each is
//! noted before it is sent, and one whose answer was lost is looked for among the subtasks at HQ
//! before anything is sent again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::journal::{End, Entry, Journal};
use super::reply::{JSON, Reply};
use super::rewrite::Directory;
use super::upstream::{CallError, Upstream, is_away};
use crate::crypto::Codec;
use crate::hq::{Backoff, Identity, RawAnswer};
use crate::runs::RunContext;

/// The journal of a run, once read, and the run's end.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    /// Held from before a request is sent until its answer has been written to the algorithm.
    journal: Arc<Mutex<Option<Journal>>>,
    pub(super) end: End,
}

type Guard = OwnedMutexGuard<Option<Journal>>;

/// An answer that is noted as delivered once it has been; dropped, the same request gets it
/// again.
#[derive(Debug)]
pub(super) struct Delivery {
    guard: Guard,
    body: String,
}

impl Delivery {
    pub(super) async fn acknowledge(self) {
        let Self { guard, body } = self;
        if on_file(guard, move |journal| journal.delivered(&body))
            .await
            .is_err()
        {
            tracing::error!("a subtask's answer was delivered, which could not be noted");
        }
    }
}

/// Creates subtasks for the runs of a node.
#[derive(Debug)]
pub(super) struct Subtasks {
    pub(super) upstream: Upstream,
    pub(super) directory: Directory,
    pub(super) codec: Codec,
    pub(super) identity: Identity,
    /// Where the journals are.
    pub(super) folder: PathBuf,
    /// How long HQ may still be at a request whose connection broke.
    pub(super) settle: Duration,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Value>,
}

impl Subtasks {
    /// Where the journal of a run is.
    pub(super) fn journal(&self, run: &v6_runtime::RunId) -> PathBuf {
        self.folder.join(format!("{run}.json"))
    }

    /// Answers a `POST /task`. To be run to its end even if the algorithm goes away: the answer
    /// then waits for it in the journal.
    pub(super) async fn post(
        self: Arc<Self>,
        slot: Slot,
        context: Arc<RunContext>,
        body: Bytes,
        deadline: Instant,
    ) -> Reply {
        self.try_post(slot, &context, body, deadline)
            .await
            .unwrap_or_else(|reply| reply)
    }

    async fn try_post(
        &self,
        slot: Slot,
        context: &RunContext,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Reply, Reply> {
        let mut value: Value = serde_json::from_slice(&body)
            .map_err(|_| Reply::message(400, "the body of POST /task is not JSON"))?;
        let mut entry = Entry {
            body: hex(&Sha256::digest(&body)),
            name: text(&value, "name"),
            method: text(&value, "method"),
            organizations: value
                .get("organizations")
                .and_then(Value::as_array)
                .map_or(0, Vec::len),
            task: None,
        };
        if entry.organizations == 0 {
            return Err(Reply::message(
                400,
                "'organizations' is missing or empty: name each organization that is to run the subtask",
            ));
        }

        let mut guard = slot.journal.lock_owned().await;
        if guard.is_none() {
            let path = self.journal(&context.run_id());
            *guard = Some(read_journal(path, slot.end).await?);
        }
        let (mut guard, is_new) = with(guard, |journal| journal.is_new())?;
        if is_new {
            let seen = self.newest(context, deadline).await?;
            guard = with(guard, |journal| journal.begin(seen))?.0;
        }
        let (guard, undelivered) =
            with(guard, |journal| journal.undelivered(&entry.body).cloned())?;
        if let Some(task) = undelivered {
            tracing::info!(run = context.run, task = ?task.get("id"), "a subtask's answer is given again");
            return Ok(created(Reply::json(201, &task), guard, entry.body));
        }
        let (mut guard, open) = with(guard, |journal| {
            (journal.open_entry().cloned(), journal.seen())
        })?;
        if let (Some(open), seen) = open {
            let found = self
                .find(context, &open, seen, self.settle, deadline)
                .await?;
            guard = noted(guard, found.clone()).await?;
            if let (Some(task), true) = (found, open.body == entry.body) {
                return Ok(created(Reply::json(201, &task), guard, entry.body));
            }
        }

        self.directory
            .seal_arguments(&mut value, &self.codec)
            .await?;
        let sent = if self.codec.is_encrypted() {
            Bytes::from(value.to_string())
        } else {
            body
        };
        drop(value);
        let kept = entry.clone();
        let (guard, seen) = on_file(guard, move |journal| {
            journal.sending(kept).map(|()| journal.seen())
        })
        .await?;
        let (reply, task) = self.send(context, sent, &entry, seen, deadline).await?;
        let guard = noted(guard, task.clone()).await?;
        Ok(match task {
            Some(_) => created(reply, guard, std::mem::take(&mut entry.body)),
            None => reply,
        })
    }

    /// Sends until it is known what became of it: the answer, and the task if there is one.
    /// An error means that this is not known yet.
    async fn send(
        &self,
        context: &RunContext,
        body: Bytes,
        entry: &Entry,
        seen: i64,
        deadline: Instant,
    ) -> Result<(Reply, Option<Value>), Reply> {
        loop {
            let body = Some((JSON, body.clone()));
            let called = self
                .upstream
                .call(context, Method::POST, "task", body, deadline)
                .await;
            let (fault, settle): (Reply, Duration) = match called {
                Ok(RawAnswer {
                    status: 200..=299,
                    body,
                    ..
                }) => match serde_json::from_slice::<Value>(&body) {
                    Ok(task) => return Ok((Reply::new(201, JSON, body), Some(task))),
                    Err(_) => (CallError::Answer.into(), Duration::ZERO),
                },
                Ok(answer) if answer.status < 500 || answer.status == 501 => {
                    return Ok((answer.into(), None));
                }
                Ok(answer) => {
                    // HQ's own 500 is its last word; from something before it, it is not.
                    let settle = if is_away(answer.status) {
                        self.settle
                    } else {
                        Duration::ZERO
                    };
                    (answer.into(), settle)
                }
                Err(error) if error.perhaps_done() => (error.into(), self.settle),
                Err(error) => return Ok((error.into(), None)),
            };
            tracing::warn!(
                run = context.run,
                status = fault.status,
                "no answer to a subtask's creation; looking for it at HQ"
            );
            match self.find(context, entry, seen, settle, deadline).await? {
                Some(task) => return Ok((Reply::json(201, &task), Some(task))),
                None if is_away(fault.status) && !settle.is_zero() && Instant::now() < deadline => {
                }
                None => return Ok((fault, None)),
            }
        }
    }

    /// The task that HQ made of an entry, if it did: one of this run's that is above all seen so
    /// far, with all its runs. HQ writes a task in several steps, and may be at it still.
    async fn find(
        &self,
        context: &RunContext,
        entry: &Entry,
        seen: i64,
        settle: Duration,
        deadline: Instant,
    ) -> Result<Option<Value>, Reply> {
        let until = Instant::now() + settle;
        let deadline = deadline.max(until + Duration::from_secs(5));
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        loop {
            let path = format!("task?parent_id={}&per_page=250", context.task);
            let page: Page = self.upstream.get(context, &path, deadline).await?;
            let mut ours: Vec<(i64, Value)> = page
                .data
                .into_iter()
                .filter(|task| {
                    let init_org = task.pointer("/init_org/id").and_then(Value::as_i64);
                    init_org == Some(self.identity.organization)
                        && text(task, "name") == entry.name
                        && text(task, "method") == entry.method
                })
                .filter_map(|task| Some((task.get("id")?.as_i64()?, task)))
                .filter(|(id, _)| *id > seen)
                .collect();
            ours.sort_by_key(|(id, _)| *id);
            for (id, task) in ours {
                let last = format!(
                    "result?task_id={id}&per_page=1&page={}",
                    entry.organizations
                );
                let last: Page = self.upstream.get(context, &last, deadline).await?;
                if !last.data.is_empty() {
                    return Ok(Some(task));
                }
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            tokio::time::sleep_until((now + backoff.pause()).min(until)).await;
        }
    }

    /// The highest id among the subtasks of the run's task; 0 if there are none.
    async fn newest(&self, context: &RunContext, deadline: Instant) -> Result<i64, Reply> {
        let path = format!("task?parent_id={}&per_page=1", context.task);
        let page: Page = self.upstream.get(context, &path, deadline).await?;
        Ok(page
            .data
            .first()
            .and_then(|task| task.get("id")?.as_i64())
            .unwrap_or(0))
    }
}

fn created(mut reply: Reply, guard: Guard, body: String) -> Reply {
    reply.delivery = Some(Delivery { guard, body });
    reply
}

fn text(of: &Value, key: &str) -> String {
    of.get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn broken(error: &dyn std::fmt::Display) -> Reply {
    tracing::error!(%error, "the journal of subtasks cannot be used");
    Reply::message(
        500,
        "the node cannot use its journal of subtasks, so it creates none; its operator finds the cause in the node's log",
    )
}

async fn read_journal(path: PathBuf, end: End) -> Result<Journal, Reply> {
    match tokio::task::spawn_blocking(|| Journal::open(path, end)).await {
        Ok(Ok(journal)) => Ok(journal),
        Ok(Err(error)) => Err(broken(&error)),
        Err(error) => Err(broken(&error)),
    }
}

/// Looks at or changes the journal in memory.
fn with<T>(mut guard: Guard, look: impl FnOnce(&mut Journal) -> T) -> Result<(Guard, T), Reply> {
    let journal = guard.as_mut().ok_or_else(|| broken(&"it is not open"))?;
    let seen = look(journal);
    Ok((guard, seen))
}

/// Changes the journal and its file, on a thread that may wait for the disk.
async fn on_file<T: Send + 'static>(
    guard: Guard,
    change: impl FnOnce(&mut Journal) -> std::io::Result<T> + Send + 'static,
) -> Result<(Guard, T), Reply> {
    match tokio::task::spawn_blocking(move || with(guard, change)).await {
        Ok(Ok((guard, Ok(value)))) => Ok((guard, value)),
        Ok(Ok((_, Err(error)))) => Err(broken(&error)),
        Ok(Err(reply)) => Err(reply),
        Err(error) => Err(broken(&error)),
    }
}

async fn noted(guard: Guard, task: Option<Value>) -> Result<Guard, Reply> {
    Ok(on_file(guard, move |journal| journal.resolved(task))
        .await?
        .0)
}
