//! Accepting a run: its record and its files, in a state that the next call can always go on from.

use std::sync::Arc;
use std::time::SystemTime;

use bollard::models::Volume;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use v6_runtime::{
    Accepted, ErrorKind, MountSource, Pending, RunId, RunPhase, RunSpec, Secret, SpecDigest,
};

use crate::container::{self, STORE};
use crate::driver::Job;
use crate::error::{Error, Result};
use crate::look::Look;
use crate::record::{self, Part, Record};
use crate::state::Shared;
use crate::{archive, files_image, translate};

/// How many dropped calls may come in late before somebody else is to blame.
const LATE_CALLS: usize = 5;

impl Shared {
    /// Accepts a run, once. When nobody waits for the answer any more, input that is not there yet
    /// is not waited for either: it may never come, and others wait for the run's lock.
    pub(crate) async fn run(
        self: &Arc<Self>,
        id: &RunId,
        spec: &RunSpec,
        dropped: &CancellationToken,
    ) -> v6_runtime::Result<Accepted> {
        self.capabilities.admit(spec)?;
        self.start_watching().await;
        let _lock = self.lock(id).await;
        // A cleanup that was called since then has said that there is nothing.
        if dropped.is_cancelled() {
            let message = "the call was dropped before it had begun";
            return Err(v6_runtime::Error::new(ErrorKind::Unavailable, message));
        }
        // Until it is known what there is, the run may be under way.
        let unknown = |error| v6_runtime::Error::from(error).with_may_have_started(true);
        let (look, container) = self.look_at_place(id).await.map_err(unknown)?;
        if let Some(look) = look {
            if let Some(accepted) = adopt(&look, spec)? {
                return Ok(accepted);
            }
            self.remove_all(id).await?;
        } else if let Some(container) = container {
            let labels = container.config.and_then(|config| config.labels);
            let name = container.name.unwrap_or_default();
            let ours = labels.and_then(|labels| record::identify(self.owner(), &name, &labels));
            if ours.is_none() {
                return Err(stranger("container", name.trim_start_matches('/')).into());
            }
            self.remove_all(id).await?;
        }
        let record = Record::new(id, spec, SystemTime::now());
        let undriven = Undriven { shared: self, id };
        self.set_pending(id, Some(Pending::Accepted));
        let volume = match self.store(&record, spec, dropped).await {
            Ok(volume) => volume,
            Err(error) => {
                // What is in the way of others is left as it is; what is ours goes.
                if let Err(left) = self.remove_all(id).await {
                    tracing::warn!(run = %id, error = %left, "parts of a run are left behind");
                }
                return Err(error.into());
            }
        };
        std::mem::forget(undriven);
        // Before this returns, so that a watch that begins afterwards knows the run.
        let accepted = RunPhase::Pending(Pending::Accepted);
        self.hub.update(translate::status_at(&record, accepted));
        let job = Job {
            record,
            spec: without_content(spec),
            volume: volume.mountpoint,
        };
        self.set_driver(id, |stop| crate::driver::drive(self.clone(), job, stop));
        Ok(Accepted::Created)
    }

    /// Makes the record and puts the files.
    async fn store(
        self: &Arc<Self>,
        record: &Record,
        spec: &RunSpec,
        dropped: &CancellationToken,
    ) -> Result<Volume> {
        let files = self.name(&record.id, Part::Files);
        let volume = self.make_record(record, &files).await?;
        let entries = container::files(&record.attempt, spec, &self.config, self.quirks());
        let putting = async {
            archive::put(&self.engine, &files, STORE, entries).await?;
            self.note_stored(record).await
        };
        tokio::select! {
            biased;
            put = putting => put?,
            () = dropped.cancelled() => {
                let message = "the call was dropped while its input was read";
                return Err(v6_runtime::Error::new(ErrorKind::Unavailable, message).into());
            }
        }
        Ok(volume)
    }

    /// Where the record was made before the container for files: notes that both have been there,
    /// so that a record without any container means the same as everywhere.
    async fn note_stored(&self, record: &Record) -> Result<()> {
        if !self.quirks().record_made_alone {
            return Ok(());
        }
        let labels = record.labels_of(self.owner(), Part::Stored);
        self.note(Part::Stored, record, labels).await
    }

    /// Makes the container for files, and with it the volume that is the record.
    ///
    /// A call that was dropped may be carried out late, after it was seen that there is nothing:
    /// what it has made is ours, and in the way.
    async fn make_record(self: &Arc<Self>, record: &Record, files: &str) -> Result<Volume> {
        let name = self.name(&record.id, Part::Record);
        let labels = record.labels(self.owner())?;
        let body =
            container::files_container(self.owner(), record, files_image::NAME, labels.clone());
        for _ in 0..LATE_CALLS {
            if self.quirks().record_made_alone {
                // What has the name already stays as it is, and is looked at below.
                self.engine.create_volume(&name, labels.clone()).await?;
            }
            match files_image::create(&self.engine, files, body.clone()).await {
                Err(error) if error.status() == Some(409) => {
                    let Some(found) = self.engine.container(files).await? else {
                        continue;
                    };
                    let labels = found
                        .config
                        .and_then(|config| config.labels)
                        .unwrap_or_default();
                    if record::identify(self.owner(), files, &labels).is_none() {
                        return Err(stranger("container", files));
                    }
                }
                made => {
                    made?;
                    let volume = self.engine.volume(&name).await?;
                    let volume = volume.ok_or_else(|| Error::Record {
                        name: name.clone(),
                        why: "it was removed while it was made".into(),
                    })?;
                    if record::attempt(&volume.labels) == Some(&record.attempt) {
                        return Ok(volume);
                    }
                    if record::identify(self.owner(), &name, &volume.labels).is_none() {
                        return Err(stranger("volume", &name));
                    }
                }
            }
            self.remove_all(&record.id).await?;
            // That has settled what was pending, too.
            self.set_pending(&record.id, Some(Pending::Accepted));
        }
        Err(stranger("container", files))
    }
}

/// What a second call for a run that has a record comes to; `None` if it is to be made anew.
fn adopt(look: &Look, spec: &RunSpec) -> v6_runtime::Result<Option<Accepted>> {
    if look.status.phase == RunPhase::Pending(Pending::Abandoned) {
        return Ok(None);
    }
    if look.record.spec == SpecDigest::of(spec) {
        return Ok(Some(Accepted::Adopted));
    }
    let message = "there is a run of this id with another spec";
    Err(v6_runtime::Error::new(ErrorKind::Conflict, message).with_may_have_started(true))
}

fn stranger(what: &str, name: &str) -> Error {
    Error::Stranger(format!("the {what} {name} belongs to somebody else"))
}

/// A spec as far as it is needed after the files are stored.
fn without_content(spec: &RunSpec) -> RunSpec {
    let mut spec = spec.clone();
    for mount in &mut spec.mounts {
        match &mut mount.source {
            MountSource::Secret(secret) => *secret = Secret::new(""),
            source if mount_is_file(source) => *source = MountSource::Inline(Bytes::new()),
            _ => {}
        }
    }
    spec
}

fn mount_is_file(source: &MountSource) -> bool {
    matches!(source, MountSource::Inline(_) | MountSource::Stream(_))
}

/// Until a driver has taken over, a call that is dropped leaves nobody at work.
struct Undriven<'a> {
    shared: &'a Shared,
    id: &'a RunId,
}

impl Drop for Undriven<'_> {
    fn drop(&mut self) {
        self.shared.set_pending(self.id, None);
    }
}
