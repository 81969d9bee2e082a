//! Removing all that belongs to a run, its record last.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use v6_runtime::{CleanedUp, CleanupOptions, Error as Public, ErrorKind, RunId};

use crate::error::{Error, Result};
use crate::record::{self, FINALIZER, Record};
use crate::state::{Care, Shared};

/// How long a machine may take to let go of a pod.
const LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

impl Shared {
    /// Removes a run that has finished, or any if forced.
    pub(crate) async fn cleanup(
        self: &Arc<Self>,
        id: &RunId,
        options: CleanupOptions,
    ) -> Result<CleanedUp> {
        let _lock = self.lock(id).await;
        let pod = self.cluster.pod(&self.name(id)).await?;
        let pod = pod.filter(|pod| record::identify(self.owner(), pod).is_some());
        let there = pod.is_some();
        if let Some(pod) = pod {
            match self.judge(pod) {
                Ok(Some(look)) if !look.status.phase.is_finished() && !options.force => {
                    let message = "the run has not finished";
                    return Err(Public::new(ErrorKind::NotReady, message).into());
                }
                // One that is half removed, or cannot be read, can still be removed.
                Ok(_) => {}
                Err(Error::Record { .. }) if options.force => {}
                Err(error) => return Err(error),
            }
            Box::pin(self.remove_all(id)).await?;
        }
        self.hub.remove(id);
        self.forget(id);
        Ok(if there {
            CleanedUp::Removed
        } else {
            CleanedUp::Absent
        })
    }

    /// Removes every part of a run. Goes on past what cannot be removed, keeps the record then, and
    /// gives the first error.
    pub(crate) async fn remove_all(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let name = self.name(id);
        let Some(pod) = self.cluster.pod(&name).await? else {
            return Ok(());
        };
        if record::identify(self.owner(), &pod).is_none() {
            return Ok(());
        }
        self.settle(id);
        self.egress.close(id);
        self.tunnels.close(id);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let end = || self.cluster.delete_pod(&name, &uid, 1);
        // First of all, if nobody can take that for the run's end: a machine that hears of a change just before
        // ends the pod a whole second later (measured).
        let early = match self.outlives_deletion(&pod) {
            true => Some(end().await),
            false => None,
        };
        match self.patch(&name, &record::note_removing(&uid)).await {
            Ok(Some(_)) => {}
            // That pod is gone, and another may have its name.
            Ok(None) => return Ok(()),
            Err(error) if error.status() == Some(409) => return Ok(()),
            Err(error) => return Err(error),
        }
        // The object stays until its finalizer goes.
        let ended = match early {
            Some(ended) => ended,
            None => end().await,
        };
        let mut first = ended.err();
        if let Ok(record) = Record::read(id.clone(), &pod) {
            for index in 0..record.secrets {
                let secret = record.secret_name(self.owner(), index);
                if let Err(error) = self.cluster.delete_secret(&secret).await {
                    first.get_or_insert(error);
                }
            }
        }
        let reader = self.remove_reader_of(id, &pod).await;
        let reader = reader.unwrap_or_else(|error| {
            first.get_or_insert(error);
            None
        });
        // As long as a pod has it, this is only noted, and the cluster carries it out later.
        let claim = self.claim_of(id, &pod);
        if let Some(claim) = &claim
            && let Err(error) = self.remove_claim(claim).await
        {
            first.get_or_insert(error);
        }
        if let Some(error) = first {
            return Err(error);
        }
        // The cluster keeps the pod until its machine has let go of it.
        self.remove_finalizer(&name, &uid).await?;
        self.await_gone(&name, &uid).await?;
        if let Some((name, uid)) = reader {
            self.await_gone(&name, &uid).await?;
        }
        match claim {
            Some(claim) => self.await_claim_gone(&claim).await,
            None => Ok(()),
        }
    }

    /// Has the pod that reads a run's outputs removed; its name and uid, if there is one.
    async fn remove_reader_of(&self, id: &RunId, pod: &Pod) -> Result<Option<(String, String)>> {
        if self.claim_of(id, pod).is_none() {
            return Ok(None);
        }
        let attempt = record::attempt(pod).unwrap_or_default();
        let name = record::reader_name(self.owner(), id, attempt);
        let Some(reader) = self.cluster.pod(&name).await? else {
            return Ok(None);
        };
        if record::part_of(self.owner(), &reader.metadata).is_none() {
            return Ok(None);
        }
        self.remove_reader(&reader).await?;
        Ok(Some((name, reader.metadata.uid.unwrap_or_default())))
    }

    async fn remove_finalizer(&self, name: &str, uid: &str) -> Result<()> {
        let Some(pod) = self.cluster.pod(name).await? else {
            return Ok(());
        };
        if pod.metadata.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        // Only ours: what somebody else has put there is his to take away.
        let kept: Vec<&String> = pod
            .metadata
            .finalizers
            .iter()
            .flatten()
            .filter(|name| *name != FINALIZER)
            .collect();
        let change = serde_json::json!({ "metadata": { "uid": uid, "finalizers": kept } });
        match self.patch(name, &change).await {
            Err(error) if error.status() == Some(409) => Ok(()),
            done => done.map(drop),
        }
    }

    async fn await_gone(&self, name: &str, uid: &str) -> Result<()> {
        if self.cluster.goes_within(name, uid, LIMIT).await? {
            return Ok(());
        }
        let message = format!(
            "the pod {name} is still being ended by its machine; should that be gone for good, \
             delete the pod with --force"
        );
        Err(Public::new(ErrorKind::Timeout, message).into())
    }

    /// Ends a removal that somebody who is gone has begun.
    pub(crate) fn finish_removal(self: &Arc<Self>, id: &RunId) {
        let (shared, of) = (self.clone(), id.clone());
        self.care(id, Care::Removal, || {
            self.spawn(async move {
                loop {
                    // While somebody here is at it, this waits, and then finds nothing.
                    let lock = shared.lock(&of).await;
                    let left = shared.cluster.pod(&shared.name(&of)).await;
                    let done = match left {
                        Ok(Some(pod)) if record::Marks::read(&pod).removing => {
                            Box::pin(shared.remove_all(&of)).await
                        }
                        Ok(_) => return,
                        Err(error) => Err(error),
                    };
                    drop(lock);
                    match done {
                        Ok(()) => return,
                        Err(error) => {
                            tracing::warn!(run = %of, %error, "a run could not be removed wholly");
                        }
                    }
                    tokio::time::sleep(RETRY).await;
                }
            })
        });
    }
}
