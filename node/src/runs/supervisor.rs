//! All runs of the node: what HQ offers is compared with what the engine has, and each run gets a
//! task of its own, so that a slow one delays nobody.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use v6_runtime::{CleanupOptions, Result, RunId};

use super::capacity::Permit;
use super::context::{RunContext, run_id};
use super::deliver;
use super::follow::{follow, in_hand};
use super::sessions;
use super::shared::Node;
use super::start::{NotStarted, start};
use super::verdict::Verdict;
use crate::cli::render;
use crate::hq::{Event, HqError, Kill, OpenRun, RunStatus, SocketEvents};

/// Everything is asked anew this often at the most after an error, so that a broken HQ is not
/// flooded.
const AFTER_ERROR: Duration = Duration::from_secs(10);

/// Drives all runs. Dropping it stops the driving, not the runs: they stay with the engine, and
/// the next one takes them up.
pub struct Supervisor {
    node: Arc<Node>,
    runs: HashMap<i64, Entry>,
    /// Records of runs whose start was cut off, until HQ has said whether it still wants them.
    abandoned: HashSet<i64>,
    tasks: JoinSet<Done>,
    /// A look at all of HQ's open runs is under way, and whether another is wanted after it.
    listing: Listing,
}

struct Entry {
    kill: CancellationToken,
    /// Since before which look at HQ's open runs it is there.
    since: u64,
}

#[derive(Default)]
struct Listing {
    number: u64,
    under_way: bool,
    again: bool,
}

/// What a task has come to.
enum Done {
    Run(i64),
    Fetched {
        task: Option<i64>,
        number: u64,
        runs: std::result::Result<Vec<OpenRun>, HqError>,
    },
    Aside,
}

impl Supervisor {
    /// Takes up every run that the engine has of this node.
    ///
    /// # Errors
    /// If the engine does not say what it has.
    pub async fn take_up(node: Arc<Node>) -> Result<Self> {
        let mut supervisor = Self {
            node,
            runs: HashMap::new(),
            abandoned: HashSet::new(),
            tasks: JoinSet::new(),
            listing: Listing::default(),
        };
        let mut there = supervisor.node.runtime.list();
        while let Some(status) = there.try_next().await? {
            match RunContext::from_annotations(&status.annotations) {
                Ok(context) if in_hand(&status) => {
                    tracing::info!(run = context.run, phase = ?status.phase, "taking up a run of before");
                    supervisor.adopt(context);
                }
                Ok(context) => {
                    supervisor.abandoned.insert(context.run);
                }
                Err(error) => {
                    tracing::error!(run = %status.id, error = render(&error), "a run at the engine is left alone");
                }
            }
        }
        Ok(supervisor)
    }

    /// Serves until `stop`; the runs go on without the node.
    pub async fn serve(mut self, mut events: SocketEvents, stop: CancellationToken) {
        let every = self.node.config.runtime.poll_interval;
        let mut tick = interval_at(Instant::now() + every, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = self.tasks.join_next() => self.settle(done),
                event = events.next() => match event {
                    Some(event) => self.hear(event),
                    None => return,
                },
                _ = tick.tick() => self.look(None),
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Sync => {
                tracing::info!("HQ knows this node");
                self.look(None);
                let node = self.node.clone();
                self.tasks.spawn(async move {
                    sessions::introduce(&node).await;
                    sessions::reconcile(&node).await;
                    Done::Aside
                });
            }
            Event::NewTask { task } => {
                tracing::debug!(task, "HQ announced a task");
                self.look(Some(task));
            }
            Event::Kill(Kill::Runs(runs)) => {
                for run in runs {
                    match self.runs.get(&run) {
                        Some(entry) => entry.kill.cancel(),
                        None => tracing::debug!(run, "told to kill a run that is not here"),
                    }
                }
            }
            Event::Kill(Kill::Node) => {
                tracing::warn!(
                    runs = self.runs.len(),
                    "told to kill every run of this node"
                );
                self.runs.values().for_each(|entry| entry.kill.cancel());
            }
            Event::DeleteDataframe { session, name } => {
                let node = self.node.clone();
                self.tasks.spawn(async move {
                    sessions::delete_dataframe(&node, session, &name).await;
                    Done::Aside
                });
            }
            Event::Disconnected { reason } => {
                tracing::warn!(reason, "the connection to HQ is lost; it is being restored")
            }
            _ => {}
        }
    }

    /// Asks HQ for its open runs, of one task or of all. Only one look at all is under way.
    fn look(&mut self, task: Option<i64>) {
        if task.is_none() {
            if self.listing.under_way {
                self.listing.again = true;
                return;
            }
            self.listing.under_way = true;
            self.listing.number += 1;
        }
        let (node, number) = (self.node.clone(), self.listing.number);
        self.tasks.spawn(async move {
            let runs = node.hq.open_runs(node.us.node, task).await;
            if runs.is_err() && task.is_none() {
                tokio::time::sleep(AFTER_ERROR).await;
            }
            Done::Fetched { task, number, runs }
        });
    }

    fn settle(&mut self, done: std::result::Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Run(run)) => {
                self.runs.remove(&run);
            }
            Ok(Done::Fetched { task, number, runs }) => self.compare(task, number, runs),
            Ok(Done::Aside) => {}
            Err(error) => {
                // The run's entry stays, so nothing runs twice; the next start takes it up.
                tracing::error!(%error, "a task of the node broke; this is a mistake in v6-node, please report it");
            }
        }
    }

    fn compare(
        &mut self,
        task: Option<i64>,
        number: u64,
        runs: std::result::Result<Vec<OpenRun>, HqError>,
    ) {
        if task.is_none() {
            self.listing.under_way = false;
            if std::mem::take(&mut self.listing.again) {
                self.look(None);
            }
        }
        let open = match runs {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(error = render(&error), "HQ's open runs could not be read");
                if task.is_none() {
                    self.look(None);
                }
                return;
            }
        };
        if task.is_none() {
            self.end_closed(number, &open);
        }
        for run in open {
            self.abandoned.remove(&run.id);
            if !self.runs.contains_key(&run.id) {
                self.begin(run);
            }
        }
    }

    /// What the engine has and HQ does not list any more was perhaps closed there while the node
    /// was away: HQ is asked about each, and only its answer ends a run.
    fn end_closed(&mut self, number: u64, open: &[OpenRun]) {
        let open: HashSet<i64> = open.iter().map(|run| run.id).collect();
        for (run, entry) in &self.runs {
            if open.contains(run) || entry.since >= number {
                continue;
            }
            let (node, run, kill) = (self.node.clone(), *run, entry.kill.clone());
            self.tasks.spawn(async move {
                if closed(&node, run).await {
                    kill.cancel();
                }
                Done::Aside
            });
        }
        for run in self.abandoned.drain().filter(|run| !open.contains(run)) {
            let node = self.node.clone();
            self.tasks.spawn(async move {
                if closed(&node, run).await {
                    tracing::info!(
                        run,
                        "HQ has closed a run whose start was cut off; it is removed"
                    );
                    discard(&node, &run_id(run)).await;
                }
                Done::Aside
            });
        }
    }

    fn begin(&mut self, run: OpenRun) {
        let kill = self.enter(run.id);
        let node = self.node.clone();
        self.tasks.spawn(async move {
            let id = run.id;
            carry_out(&node, run, &kill).await;
            Done::Run(id)
        });
    }

    fn adopt(&mut self, context: RunContext) {
        let kill = self.enter(context.run);
        let node = self.node.clone();
        let share = node.share(context.action().ok(), &context.image);
        let permit = node.capacity.take(share);
        self.tasks.spawn(async move {
            let run = context.run;
            node.gateway.admit(context.clone());
            see_through(&node, context, &kill, permit).await;
            Done::Run(run)
        });
    }

    fn enter(&mut self, run: i64) -> CancellationToken {
        let kill = CancellationToken::new();
        self.runs.insert(
            run,
            Entry {
                kill: kill.clone(),
                since: self.listing.number,
            },
        );
        kill
    }
}

async fn see_through(
    node: &Arc<Node>,
    context: RunContext,
    kill: &CancellationToken,
    permit: Permit,
) {
    follow(node, context, kill).await;
    drop(permit);
}

/// One run from HQ's offer to its end.
async fn carry_out(node: &Arc<Node>, run: OpenRun, kill: &CancellationToken) {
    let share = node.share(run.task.action().ok(), &run.task.image);
    let started = match kill.run_until_cancelled(node.capacity.acquire(share)).await {
        Some(permit) => start(node, &run, kill)
            .await
            .map(|context| (context, permit)),
        None => Err(NotStarted::Killed),
    };
    let verdict = match started {
        Ok((context, permit)) => return see_through(node, context, kill, permit).await,
        Err(NotStarted::Report(verdict)) => verdict,
        Err(NotStarted::Killed) => Verdict::new(
            RunStatus::Killed,
            "the run was killed before the algorithm started",
        ),
        Err(NotStarted::Closed) => {
            tracing::info!(run = run.id, "HQ has closed the run; it is not started");
            return discard(node, &run_id(run.id)).await;
        }
        Err(NotStarted::Later(error)) => {
            tracing::warn!(
                run = run.id,
                error = render(&error),
                "HQ is away; the run is started when it is back"
            );
            return;
        }
    };
    let context = RunContext::of(&run, node.config.share_algorithm_logs, 0).ok();
    deliver::refuse(node, context.as_ref(), run.id, verdict).await;
    // A start that was cut off may have left a record.
    discard(node, &run_id(run.id)).await;
}

/// Whether HQ has closed a run or does not know it. No answer is no verdict.
async fn closed(node: &Node, run: i64) -> bool {
    match node.hq.run(run).await {
        Ok(Some(state)) => state.finished_at.is_some(),
        Ok(None) => true,
        Err(error) => {
            tracing::warn!(
                run,
                error = render(&error),
                "HQ could not be asked about a run"
            );
            false
        }
    }
}

async fn discard(node: &Node, id: &RunId) {
    if let Err(error) = node
        .runtime
        .cleanup(id, CleanupOptions::default().with_force(true))
        .await
    {
        tracing::warn!(run = %id, error = render(&error), "what is left of a run could not be removed");
    }
    node.gateway.forget(id);
}
