//! Where a case works: a fresh runtime with an owner of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use v6_runtime::{
    CleanupOptions, Outcome, Owner, PullPolicy, RunId, RunPhase, RunSpec, RunStatus, Runtime,
    RuntimeExt,
};

use crate::case::{Failure, Stop, equal};
use crate::child::{Child, Task};
use crate::harness::{Fault, Harness, Injected, Planted, Registries, Stranger, Tagged};

/// A condition that does not come in this time does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that no watch tells of.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// So many runs are removed at once.
const AT_ONCE: usize = 8;
/// More than any case prints and reads whole.
const MUCH: u64 = 128 << 20;

static OWNERS: AtomicU32 = AtomicU32::new(0);

/// A runtime and what cases need around it. Clones share it.
#[derive(Clone)]
pub struct Bench {
    pub(crate) harness: Arc<dyn Harness>,
    pub(crate) runtime: Arc<dyn Runtime>,
    owner: Owner,
    /// Further owners of this case.
    others: Arc<Mutex<Vec<Owner>>>,
}

impl Bench {
    pub(crate) fn new_owner() -> Owner {
        let number = OWNERS.fetch_add(1, Ordering::Relaxed);
        Owner::new(format!("conformance-{}-{number}", std::process::id()))
            .expect("letters and numbers")
    }

    pub(crate) async fn new(harness: Arc<dyn Harness>) -> Result<Self, Failure> {
        Self::of(harness, Self::new_owner()).await
    }

    pub(crate) async fn of(harness: Arc<dyn Harness>, owner: Owner) -> Result<Self, Failure> {
        let runtime = harness.connect(&owner).await?;
        Ok(Self {
            harness,
            runtime,
            owner,
            others: Arc::default(),
        })
    }

    /// Another runtime value of the same owner: the process after a restart.
    pub(crate) async fn restarted(&self) -> Result<Self, Failure> {
        let runtime = self.harness.connect(&self.owner).await?;
        Ok(Self {
            runtime,
            ..self.clone()
        })
    }

    /// Another owner on the same engine.
    pub(crate) async fn stranger(&self) -> Result<Self, Failure> {
        self.stranger_named(Self::new_owner()).await
    }

    /// Another owner of this name.
    pub(crate) async fn stranger_named(&self, owner: Owner) -> Result<Self, Failure> {
        let mut stranger = Self::of(self.harness.clone(), owner).await?;
        stranger.others = self.others.clone();
        self.others().push(stranger.owner.clone());
        Ok(stranger)
    }

    fn others(&self) -> MutexGuard<'_, Vec<Owner>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What resolves the probe without its registry, where the runtime can.
    pub(crate) fn nearest(&self) -> PullPolicy {
        match self.runtime.capabilities().image_store {
            true => PullPolicy::Never,
            false => PullPolicy::IfNotPresent,
        }
    }

    /// A run of the probe with these words.
    pub(crate) async fn spec(&self, words: &str) -> Result<RunSpec, Failure> {
        let image = self
            .runtime
            .resolve(&self.harness.probe_image(), PullPolicy::IfNotPresent)
            .await?;
        Ok(RunSpec::new(image).with_args(words.split_whitespace()))
    }

    /// Runs a spec to its end.
    pub(crate) async fn finish(&self, id: &RunId, spec: &RunSpec) -> Result<RunStatus, Failure> {
        self.runtime.run(id, spec).await?;
        self.ended(id).await
    }

    /// Runs the probe to its end, and returns that.
    pub(crate) async fn outcome(&self, id: &str, words: &str) -> Result<Outcome, Failure> {
        let id = run_id(id);
        let spec = self.spec(words).await?;
        let status = self.finish(&id, &spec).await?;
        status
            .outcome()
            .cloned()
            .ok_or_else(|| "it has no outcome".into())
    }

    /// Waits until a run has ended, with this code.
    pub(crate) async fn ends_with(&self, id: &RunId, code: i32) -> Result<(), Stop> {
        let status = self.ended(id).await?;
        let outcome = status.outcome().cloned();
        Ok(equal("its end", outcome, Some(Outcome::Exited(code)))?)
    }

    /// Runs a spec to its end with code 0, and returns what it has printed.
    pub(crate) async fn done(&self, id: &RunId, spec: &RunSpec) -> Result<String, Failure> {
        let status = self.finish(id, spec).await?;
        let log = self.text(id).await?;
        let what = format!("the end of {id} ({log})");
        equal(&what, status.outcome(), Some(&Outcome::Exited(0)))?;
        Ok(log)
    }

    /// How much longer than elsewhere whatever a run does takes here.
    pub(crate) fn slowness(&self) -> Duration {
        self.harness.slowness()
    }

    /// How long what has to come may take.
    pub(crate) fn patience(&self) -> Duration {
        PATIENCE + self.slowness() * 10
    }

    /// A program that goes on for long, and ends as soon as it is asked to.
    pub(crate) fn endless(&self) -> &'static str {
        match self.runtime.capabilities().init {
            true => "sleep 60000",
            false => "trap-term exit 9 then sleep 60000",
        }
    }

    /// A time by which a run has started that is begun so long before.
    pub(crate) fn in_seconds(&self, seconds: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(seconds) + self.slowness()
    }

    pub(crate) async fn ended(&self, id: &RunId) -> Result<RunStatus, Failure> {
        match tokio::time::timeout(self.patience(), self.runtime.wait(id)).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => {
                let status = self.runtime.status(id).await;
                Err(format!("waiting for its end: {error}; its status is then {status:?}").into())
            }
            Err(_) => {
                let status = self.runtime.status(id).await?;
                Err(format!("run {id} has not ended; it is {:?}", status.phase).into())
            }
        }
    }

    /// Waits until a run has a record.
    pub(crate) async fn recorded(&self, id: &RunId) -> Result<(), Failure> {
        let recorded = async {
            while self.runtime.status(id).await.is_err() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(self.patience(), recorded)
            .await
            .map_err(|_| format!("run {id} has no record").into())
    }

    /// Waits until a run's program runs (or the run is over).
    pub(crate) async fn running(&self, id: &RunId) -> Result<RunStatus, Failure> {
        self.until(id, "it runs", |phase| phase.rank() > 0).await
    }

    pub(crate) async fn until(
        &self,
        id: &RunId,
        what: &str,
        holds: impl Fn(&RunPhase) -> bool,
    ) -> Result<RunStatus, Failure> {
        let waiting = async {
            let mut events = self.runtime.watch();
            loop {
                let status = self.runtime.status(id).await?;
                if holds(&status.phase) {
                    return Ok::<_, Failure>(status);
                }
                // Whatever happens is reason to look again.
                match events.try_next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err("the watch ended".into()),
                    Err(error) if error.is_retryable() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        };
        match tokio::time::timeout(self.patience(), waiting).await {
            Ok(status) => status,
            Err(_) => Err(format!("run {id}: waited in vain until {what}").into()),
        }
    }

    /// Waits until a run has printed this.
    pub(crate) async fn printed(&self, id: &RunId, text: &str) -> Result<(), Failure> {
        let follows = self.runtime.capabilities().logs.follow;
        let waiting = async {
            if !follows {
                while !self.text(id).await?.contains(text) {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                return Ok(());
            }
            let options = v6_runtime::LogOptions::default().with_follow(true);
            let mut chunks = self.runtime.logs(id, options);
            let mut all = Vec::new();
            while let Some(chunk) = chunks.try_next().await? {
                all.extend_from_slice(&chunk.bytes);
                if String::from_utf8_lossy(&all).contains(text) {
                    return Ok(());
                }
            }
            let all = String::from_utf8_lossy(&all).into_owned();
            Err(format!("the log ended without {text:?}: {all:?}").into())
        };
        match tokio::time::timeout(self.patience(), waiting).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("run {id} has not printed {text:?}").into()),
        }
    }

    /// All that a run has printed.
    pub(crate) async fn log(&self, id: &RunId) -> Result<Bytes, Failure> {
        Ok(self.runtime.logs_bytes(id, MUCH).await?)
    }

    /// All that a run has printed, as text.
    pub(crate) async fn text(&self, id: &RunId) -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(&self.log(id).await?).into_owned())
    }

    /// Removes a run that is over.
    pub(crate) async fn clean(&self, id: &RunId) -> Result<(), Failure> {
        let options = CleanupOptions::default();
        self.runtime.cleanup(id, options).await?;
        Ok(())
    }

    /// Ids of all runs that the runtime lists.
    pub(crate) async fn listed(&self) -> Result<Vec<String>, Failure> {
        let mut ids: Vec<String> = self
            .runtime
            .list()
            .map_ok(|run| run.id.to_string())
            .try_collect()
            .await?;
        ids.sort();
        Ok(ids)
    }

    /// Removes all that the case has left, whoever of its owners, and what the harness's hooks
    /// made for it; says what is there even so.
    pub(crate) async fn end(&self) -> Result<Vec<String>, Failure> {
        let others = std::mem::take(&mut *self.others());
        let mut left = self.end_one().await?;
        for owner in others {
            let other = Self::of(self.harness.clone(), owner).await?;
            left.extend(other.end_one().await?);
        }
        Ok(left)
    }

    async fn end_one(&self) -> Result<Vec<String>, Failure> {
        let tidied = self.tidy().await;
        self.harness.tidy(&self.owner).await?;
        tidied?;
        self.leftovers().await
    }

    /// Removes every run that is left, several at once.
    pub(crate) async fn tidy(&self) -> Result<(), Failure> {
        let left = stream::iter(self.listed().await?.into_iter().map(Ok));
        left.try_for_each_concurrent(AT_ONCE, |id| async move {
            let forced = CleanupOptions::default().with_force(true);
            self.runtime.cleanup(&run_id(&id), forced).await.map(drop)
        })
        .await
        .map_err(Failure::from)
    }

    pub(crate) async fn leftovers(&self) -> Result<Vec<String>, Failure> {
        Ok(self.harness.inventory(&self.owner).await?)
    }
}

/// The harness's hooks: a case that needs one that is not there is inconclusive.
impl Bench {
    pub(crate) async fn inject(&self, fault: Fault) -> Result<Injected, Stop> {
        let made = self.harness.inject(&self.owner, fault).await?;
        made.ok_or(Stop::NoHook(match fault {
            Fault::Cut => "inject(Cut)",
            Fault::WatchEnds => "inject(WatchEnds)",
            Fault::Away => "inject(Away)",
            Fault::Errors(_) => "inject(Errors)",
            Fault::Throttled(_) => "inject(Throttled)",
            Fault::ReplyLost => "inject(ReplyLost)",
            Fault::Slow(_) => "inject(Slow)",
            Fault::OddPieces => "inject(OddPieces)",
            Fault::Stuck => "inject(Stuck)",
        }))
    }

    /// The bytes of a large file.
    pub(crate) fn large(&self) -> usize {
        self.harness.large()
    }

    /// Whether there can be a [`child`](Self::child).
    pub(crate) fn outlives_us(&self) -> Result<(), Stop> {
        let outlives = self.harness.outlives_us();
        outlives.then_some(()).ok_or(Stop::NoHook("outlives_us"))
    }

    /// The suite's own program once more, at work on this.
    pub(crate) async fn child(&self, task: Task) -> Result<Child, Stop> {
        self.outlives_us()?;
        Ok(Child::start(&self.owner, task).await?)
    }

    pub(crate) fn calls(&self) -> Result<u64, Stop> {
        self.harness.calls(&self.owner).ok_or(Stop::NoHook("calls"))
    }

    pub(crate) async fn restart_engine(&self) -> Result<(), Stop> {
        let restarted = self.harness.restart_engine().await?;
        restarted.ok_or(Stop::NoHook("restart_engine"))
    }

    pub(crate) fn shared_folder(&self) -> Result<std::path::PathBuf, Stop> {
        self.harness
            .shared_folder()
            .ok_or(Stop::NoHook("shared_folder"))
    }

    pub(crate) async fn plant(&self, id: &RunId, place: Planted) -> Result<Stranger, Stop> {
        let planted = self.harness.plant(&self.owner, id, place).await?;
        planted.ok_or(Stop::NoHook("plant"))
    }

    pub(crate) async fn move_tag(&self, to: Tagged) -> Result<v6_runtime::ImageRef, Stop> {
        let moved = self.harness.move_tag(&self.owner, to).await?;
        moved.ok_or(Stop::NoHook("move_tag"))
    }

    pub(crate) async fn registries(&self) -> Result<Registries, Stop> {
        let registries = self.harness.registries().await?;
        registries.ok_or(Stop::NoHook("registries"))
    }

    pub(crate) async fn volume(&self) -> Result<String, Stop> {
        let volume = self.harness.volume(&self.owner).await?;
        volume.ok_or(Stop::NoHook("volume"))
    }
}

pub(crate) fn run_id(text: &str) -> RunId {
    RunId::new(text).expect("the suite's ids are names")
}

pub(crate) fn path(text: &str) -> v6_runtime::ContainerPath {
    v6_runtime::ContainerPath::new(text).expect("the suite's paths are paths")
}

pub(crate) fn part(text: &str) -> v6_runtime::VolumePath {
    v6_runtime::VolumePath::new(text).expect("the suite's paths are paths")
}

pub(crate) fn output(text: &str) -> v6_runtime::OutputName {
    v6_runtime::OutputName::new(text).expect("the suite's names are names")
}
