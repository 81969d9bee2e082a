//! Removing all that belongs to a run, its record last.

use std::sync::Arc;
use std::time::Duration;

use v6_runtime::{CleanedUp, CleanupOptions, ErrorKind, RunId};

use crate::error::Result;
use crate::record::{self, Part};
use crate::state::Shared;

/// How often and after what pause a thing that is still in use is tried again.
const ATTEMPTS: u32 = 20;
/// How often everything of a run is looked for.
const SWEEPS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);

impl Shared {
    /// Removes a run that has finished, or any if forced.
    pub(crate) async fn cleanup(
        self: &Arc<Self>,
        id: &RunId,
        options: CleanupOptions,
    ) -> Result<CleanedUp> {
        let _lock = self.lock(id).await;
        let looked = self.look(id).await;
        let there = match looked {
            Ok(Some(look)) if !look.status.phase.is_finished() && !options.force => {
                let message = "the run has not finished";
                return Err(v6_runtime::Error::new(ErrorKind::NotReady, message).into());
            }
            Ok(look) => look.is_some(),
            // A record that cannot be read can still be removed.
            Err(crate::error::Error::Record { .. }) if options.force => true,
            Err(error) => return Err(error),
        };
        if there {
            self.remove_all(id).await?;
        } else {
            self.egress.remove(self.owner(), id)?;
        }
        self.hub.remove(id);
        self.forget(id);
        Ok(if there {
            CleanedUp::Removed
        } else {
            CleanedUp::Absent
        })
    }

    /// Removes what there is of a run that has no record.
    pub(crate) async fn remove_without_record(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let _lock = self.lock(id).await;
        match self.look(id).await? {
            Some(_) => Ok(()),
            None => self.remove_all(id).await,
        }
    }

    /// Removes every part of a run that carries its labels. Goes on past what cannot be removed,
    /// keeps the record then, and gives the first error.
    pub(crate) async fn remove_all(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let _removing = Removing::new(self, id);
        let mut swept = 0;
        loop {
            swept += 1;
            match self.sweep(id).await {
                // In use by a container that was not there yet: a call that was dropped may be
                // carried out late.
                Err(error) if error.status() == Some(409) && swept < SWEEPS => {}
                done => return done,
            }
        }
    }

    /// Removes what there is of a run at this moment.
    async fn sweep(self: &Arc<Self>, id: &RunId) -> Result<()> {
        self.stop_driver(id).await;
        self.settle(id);
        let labels = record::of_run(self.owner(), id);
        let mut first = self.egress.remove(self.owner(), id).err();
        let (containers, mut volumes) =
            tokio::try_join!(self.engine.containers(labels), self.volumes_of(id))?;
        if self.quirks().record_made_alone {
            volumes.extend(self.engine.volume(&self.name(id, Part::Stored)).await?);
        }
        for container in containers {
            let labels = container.labels.unwrap_or_default();
            let names = container.names.unwrap_or_default();
            for name in &names {
                if record::identify(self.owner(), name, &labels).is_none() {
                    continue;
                }
                let name = name.trim_start_matches('/');
                if let Err(error) = self.remove_container_wholly(name).await {
                    first.get_or_insert(error);
                }
            }
        }
        let mut record = None;
        for volume in volumes {
            match record::identify(self.owner(), &volume.name, &volume.labels) {
                Some((_, Part::Record)) => record = Some(volume.name),
                Some(_) => {
                    if let Err(error) = self.remove_unused_volume(&volume.name).await {
                        first.get_or_insert(error);
                    }
                }
                None => {}
            }
        }
        if let Some(error) = first {
            return Err(error);
        }
        if let Some(name) = record {
            self.remove_unused_volume(&name).await?;
        }
        Ok(())
    }

    async fn remove_container_wholly(&self, name: &str) -> Result<()> {
        let mut tried = 0;
        loop {
            let result = self.engine.remove_container(name).await;
            tried += 1;
            match result {
                Ok(true) => return Ok(()),
                // Somebody else is at it, perhaps an earlier call of ours.
                Ok(false) if self.engine.container(name).await?.is_none() => return Ok(()),
                Err(error) if tried >= ATTEMPTS => return Err(error),
                Err(error) if error.is_unanswered() => return Err(error),
                _ if tried >= ATTEMPTS => {
                    let message = format!("the container {name} is still being removed");
                    return Err(v6_runtime::Error::new(ErrorKind::Timeout, message).into());
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// The engine lets go of a volume a moment after it has removed the container.
    async fn remove_unused_volume(&self, name: &str) -> Result<()> {
        let mut tried = 0;
        loop {
            match self.engine.remove_volume(name).await {
                Ok(_) => return Ok(()),
                Err(error) if error.status() == Some(409) && tried < ATTEMPTS => tried += 1,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// While it is there, looks know who takes the parts of a run away.
struct Removing<'a> {
    shared: &'a Shared,
    id: &'a RunId,
}

impl<'a> Removing<'a> {
    fn new(shared: &'a Shared, id: &'a RunId) -> Self {
        shared.set_removing(id, true);
        Self { shared, id }
    }
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.shared.set_removing(self.id, false);
    }
}
