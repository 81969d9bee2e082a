//! A fresh look at one run or all of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use bollard::models::{ContainerInspectResponse, ContainerSummary, Volume};
use futures_util::{StreamExt, TryStreamExt, stream};
use v6_helper::{Claim, MAX_CLAIM};
use v6_runtime::{Pending, ResultStream, RunId, RunStatus};

use crate::container::CLAIM_COLLECTED;
use crate::error::{Error, Result};
use crate::lease;
use crate::record::{self, Marks, Part, Record};
use crate::state::Shared;
use crate::translate::{self, Seen};

/// How many containers are looked at at once.
const AT_ONCE: usize = 8;

/// What a look at one run has found.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) record: Record,
    pub(crate) marks: Marks,
    pub(crate) container: Option<ContainerInspectResponse>,
    /// The engine's path of the run's volume.
    pub(crate) volume: String,
    pub(crate) status: RunStatus,
}

/// What there is of a run whose container was not seen at first.
enum Trace {
    /// It was started just now.
    Started(Box<ContainerInspectResponse>),
    /// Its files are stored, or were to be: it was surely not started.
    Stored,
    /// Nothing: whatever it was, it is gone.
    None,
}

/// The volumes of one run.
struct Volumes {
    record: Record,
    marks: Marks,
    /// The engine's path of the record.
    volume: String,
}

/// How late the engine's news of an out-of-memory kill may be.
const LATE_NEWS: std::time::Duration = std::time::Duration::from_secs(5);
/// How long the engine may take from a run's record to its container for files.
const BEING_MADE: std::time::Duration = std::time::Duration::from_secs(5);
/// Between two looks at a container whose end is not explained yet.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(50);

impl Shared {
    /// Looks at one run; `None` if there is no record.
    pub(crate) async fn look(&self, id: &RunId) -> Result<Option<Look>> {
        Ok(self.look_at_place(id).await?.0)
    }

    /// The same, and any container that has the run's name without a record.
    pub(crate) async fn look_at_place(
        &self,
        id: &RunId,
    ) -> Result<(Option<Look>, Option<ContainerInspectResponse>)> {
        let name = self.name(id, Part::Run);
        // In this order: a mark is made before the stop that it explains.
        let container = self.engine.container(&name).await?;
        let Some(volumes) = self.sort(self.volumes_of(id).await?).pop() else {
            return Ok((None, container));
        };
        let look = Box::pin(self.judge(volumes?, container)).await?;
        Ok((look, None))
    }

    /// The volumes that have the names of a run's record and marks. Asked for one by one: a listing
    /// costs as much as there are volumes, and waits for each that is being made or removed.
    pub(crate) async fn volumes_of(&self, id: &RunId) -> Result<Vec<Volume>> {
        let volume = |part| {
            let name = self.name(id, part);
            // Boxed: four of them would make every caller's future large.
            Box::pin(async move { self.engine.volume(&name).await })
        };
        let [one, two, three] = Part::MARKS;
        let (record, one, two, three) = tokio::try_join!(
            volume(Part::Record),
            volume(one),
            volume(two),
            volume(three)
        )?;
        Ok([record, one, two, three].into_iter().flatten().collect())
    }

    /// The looks at all runs of the owner.
    pub(crate) async fn look_at_all(self: &Arc<Self>) -> Result<Vec<Result<Look>>> {
        let labels = record::of_owner(self.owner());
        let volumes = self.engine.volumes(labels.clone());
        let (volumes, containers) = tokio::try_join!(volumes, self.engine.containers(labels))?;
        self.remove_made_late(&volumes, &containers);
        let with_container: Vec<String> = containers
            .iter()
            .flat_map(|container| container.names.iter().flatten())
            .map(|name| name.trim_start_matches('/').to_owned())
            .collect();
        let looks = self.sort(volumes).into_iter().map(|volumes| async {
            let mut volumes = volumes?;
            let name = self.name(&volumes.record.id, Part::Run);
            let container = if with_container.contains(&name) {
                self.engine.container(&name).await?
            } else {
                None
            };
            if container.as_ref().is_some_and(translate::has_ended) {
                // What was marked since the listing may explain this end.
                let fresh = self.volumes_of(&volumes.record.id).await?;
                if let Some(fresh) = self.sort(fresh).pop() {
                    volumes = fresh?;
                }
            }
            Box::pin(self.judge(volumes, container)).await
        });
        Ok(stream::iter(looks)
            .buffer_unordered(AT_ONCE)
            .filter_map(|look| std::future::ready(look.transpose()))
            .collect()
            .await)
    }

    /// Sees to it that containers go whose run has no record, and so is told by nobody: they were
    /// made by a call that the engine carried out late, when the run that it was for had been
    /// removed. A record is made first and removed last.
    fn remove_made_late(self: &Arc<Self>, volumes: &[Volume], containers: &[ContainerSummary]) {
        let run_of = |name: &str, labels| Some(record::identify(self.owner(), name, labels)?.0);
        let recorded: HashSet<RunId> = volumes
            .iter()
            .filter_map(|volume| run_of(&volume.name, &volume.labels))
            .collect();
        let made: HashSet<RunId> = containers
            .iter()
            .filter_map(|container| Some((container.labels.as_ref()?, container.names.as_ref()?)))
            .flat_map(|(labels, names)| names.iter().filter_map(|name| run_of(name, labels)))
            .collect();
        for id in made.difference(&recorded) {
            let (shared, id) = (self.clone(), id.clone());
            self.spawn(async move {
                if let Err(error) = shared.remove_without_record(&id).await {
                    tracing::warn!(run = %id, %error, "what a late call has made is left behind");
                }
            });
        }
    }

    /// Puts records and marks together, by run. An unreadable record is an error in its place.
    fn sort(&self, volumes: Vec<Volume>) -> Vec<Result<Volumes>> {
        let mut records = Vec::new();
        let mut marks: HashMap<RunId, Vec<(Part, Volume)>> = HashMap::new();
        for volume in volumes {
            match record::identify(self.owner(), &volume.name, &volume.labels) {
                Some((id, Part::Record)) => records.push((id, volume)),
                Some((id, part)) => marks.entry(id).or_default().push((part, volume)),
                None => {}
            }
        }
        let put_together = |(id, volume): (RunId, Volume)| {
            let noted = marks.remove(&id).unwrap_or_default();
            let record = Record::read(id, &volume)?;
            let mut marks = Marks::default();
            for (part, mark) in noted {
                marks.add(part, &mark.labels, &record);
            }
            let volume = volume.mountpoint;
            Ok(Volumes {
                record,
                marks,
                volume,
            })
        };
        records.into_iter().map(put_together).collect()
    }

    /// Looks for what there is of a run whose container was not seen.
    async fn trace(&self, record: &Record) -> Result<Trace> {
        let since = tokio::time::Instant::now();
        loop {
            let files = self.name(&record.id, Part::Files);
            if self.engine.container(&files).await?.is_some() {
                return Ok(Trace::Stored);
            }
            // It may have been started between the two looks.
            let name = self.name(&record.id, Part::Run);
            if let Some(container) = self.engine.container(&name).await?
                && self.is_ours(&container, record)
            {
                return Ok(Trace::Started(Box::new(container)));
            }
            if self.was_cut_short(record).await? {
                return Ok(Trace::Stored);
            }
            // The engine makes the record a moment before the container for files, also for a
            // process that has been killed meanwhile.
            let young = record.created + BEING_MADE > SystemTime::now();
            let name = self.name(&record.id, Part::Record);
            if !young
                || since.elapsed() > BEING_MADE
                || self.is_removing(&record.id)
                || self.engine.volume(&name).await?.is_none()
            {
                return Ok(Trace::None);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Puts a run's parts together; `None` if it is gone, or going by our own hand.
    async fn judge(
        &self,
        volumes: Volumes,
        container: Option<ContainerInspectResponse>,
    ) -> Result<Option<Look>> {
        let Volumes {
            record,
            marks,
            volume,
        } = volumes;
        let container = container.filter(|container| self.is_ours(container, &record));
        let claim = match &container {
            Some(container) if translate::wants_claim(&record, container) => {
                self.claim(container, &record, &volume).await?
            }
            _ => None,
        };
        let asked = marks.cancelled.is_some() || marks.deadline.is_some();
        let explained = asked || claim.as_ref().is_some_and(|claim| claim.out_of_memory);
        let container = match container {
            Some(container) if !explained => Some(Box::pin(self.with_late_news(container)).await?),
            other => other,
        };
        let mut driven = self.pending(&record.id);
        let mut files = false;
        match &container {
            Some(_) => {}
            None if marks.failed.is_none() && driven.is_none() => {
                match Box::pin(self.trace(&record)).await? {
                    Trace::Started(container) => {
                        let volumes = Volumes {
                            record,
                            marks,
                            volume,
                        };
                        return Box::pin(self.judge(volumes, Some(*container))).await;
                    }
                    Trace::Stored => files = true,
                    Trace::None => {}
                }
            }
            None => {}
        }
        // A removal takes the parts one by one: while it goes on, what is missing tells nothing. The
        // record goes last, so that what was read holds if the record is there still, in this order.
        if self.is_removing(&record.id) {
            return Ok(None);
        }
        let live = container
            .as_ref()
            .and_then(|it| it.state.as_ref())
            .is_some_and(translate::is_live);
        if !live && driven.is_none() {
            let name = self.name(&record.id, Part::Record);
            let Some(volume) = self.engine.volume(&name).await? else {
                return Ok(None);
            };
            if record::attempt(&volume.labels) != Some(&record.attempt) {
                return Box::pin(self.look(&record.id)).await;
            }
        }
        let seen = |driven| Seen {
            record: &record,
            marks: &marks,
            container: container.as_ref(),
            files,
            claim: claim.as_ref(),
            driven,
            now: SystemTime::now(),
        };
        let mut status = translate::status(&seen(driven));
        let abandoned = v6_runtime::RunPhase::Pending(Pending::Abandoned);
        if status.phase == abandoned && lease::is_held_elsewhere(&self.lease) {
            driven = Some(Pending::Accepted);
            status = translate::status(&seen(driven));
        }
        Ok(Some(Look {
            status,
            record,
            marks,
            container,
            volume,
        }))
    }

    /// Whether a record without containers was left by a process that died before it had made the
    /// container for files.
    async fn was_cut_short(&self, record: &Record) -> Result<bool> {
        if !self.quirks().record_made_alone {
            return Ok(false);
        }
        let name = self.name(&record.id, Part::Stored);
        let mark = self.engine.volume(&name);
        let stored = mark
            .await?
            .is_some_and(|mark| record::attempt(&mark.labels) == Some(&record.attempt));
        Ok(!stored)
    }

    /// The engine hears of the kernel's out-of-memory kill by another way than of the end, and
    /// sometimes after it: seen with Docker 20.10, more than a second later on a machine that was
    /// compiling, or never, in one of some hundred runs. `init` mostly knows it; a kill that nothing
    /// explains yet, such as its own, is looked at again for a while.
    async fn with_late_news(
        &self,
        mut container: ContainerInspectResponse,
    ) -> Result<ContainerInspectResponse> {
        let Some(id) = container.id.clone() else {
            return Ok(container);
        };
        if self.quirks().out_of_memory_by_init {
            return Ok(container);
        }
        let since = tokio::time::Instant::now();
        while translate::may_be_out_of_memory(&container, SystemTime::now(), LATE_NEWS)
            // The engine's clock may be another one.
            && since.elapsed() < LATE_NEWS
        {
            tokio::time::sleep(LOOK_AGAIN).await;
            match self.engine.container(&id).await? {
                Some(fresh) => container = fresh,
                None => break,
            }
        }
        Ok(container)
    }

    /// Whether a container of the right name belongs to this attempt.
    fn is_ours(&self, container: &ContainerInspectResponse, record: &Record) -> bool {
        let labels = container.config.as_ref().and_then(|c| c.labels.as_ref());
        let name = container.name.as_deref().unwrap_or_default();
        labels.is_some_and(|labels| {
            record::identify(self.owner(), name, labels) == Some((record.id.clone(), Part::Run))
                && record::attempt(labels) == Some(&record.attempt)
        })
    }

    /// What `init` wrote about the end. It comes from inside the sandbox: what cannot be read is
    /// no claim, and no error.
    async fn claim(
        &self,
        container: &ContainerInspectResponse,
        record: &Record,
        volume: &str,
    ) -> Result<Option<Claim>> {
        let Some(id) = container.id.clone() else {
            return Ok(None);
        };
        let limit = MAX_CLAIM as u64;
        let bytes = self.collected(&id, record, volume, CLAIM_COLLECTED, limit);
        let bytes = bytes.try_fold(Vec::new(), |mut all, piece| async move {
            all.extend_from_slice(&piece);
            Ok(all)
        });
        match bytes.await {
            Ok(bytes) => Ok(Claim::parse(&bytes).ok()),
            Err(error) if error.is_retryable() => Err(Error::Contract(error)),
            Err(_) => Ok(None),
        }
    }
}

/// Every run of the owner, as a stream.
pub(crate) fn list(shared: std::sync::Arc<Shared>) -> ResultStream<RunStatus> {
    let looks = async move { shared.look_at_all().await };
    let statuses = stream::once(looks)
        .map_ok(|looks| stream::iter(looks).map_ok(|look| look.status))
        .try_flatten();
    Box::pin(statuses.map_err(|error| v6_runtime::Error::from(error).with_operation("list")))
}
