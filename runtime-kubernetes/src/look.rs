//! A fresh look at one run or all of them.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use v6_runtime::{ResultStream, RunId, RunStatus};

use crate::error::{Error, Result};
use crate::record::{self, Marks, Record};
use crate::state::Shared;
use crate::translate::{self, Seen};
use crate::tunnel::Tunnel;

/// What a look at one run has found.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) record: Record,
    pub(crate) marks: Marks,
    pub(crate) pod: Pod,
    pub(crate) status: RunStatus,
}

impl Look {
    /// The cluster's own name for this very pod.
    pub(crate) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

impl Shared {
    /// Looks at one run; `None` if there is none, or somebody else has its name.
    pub(crate) async fn look(&self, id: &RunId) -> Result<Option<Look>> {
        match self.cluster.pod(&self.name(id)).await? {
            Some(pod) => self.judge(pod),
            None => Ok(None),
        }
    }

    /// What a pod says about its run; `None` if it is nobody's, or going by our own hand.
    pub(crate) fn judge(&self, pod: Pod) -> Result<Option<Look>> {
        let Some(id) = record::identify(self.owner(), &pod) else {
            return Ok(None);
        };
        let marks = Marks::read(&pod);
        if marks.removing {
            return Ok(None);
        }
        let record = Record::read(id, &pod)?;
        let now = SystemTime::now();
        let driven = match &marks.driver {
            // Whether it is this value's work, nobody knows better.
            Some(driver) if driver.who == self.holder => self.is_driven(&record.id),
            Some(driver) => driver.is_live(now),
            None => false,
        };
        let status = translate::status(&Seen {
            record: &record,
            marks: &marks,
            pod: &pod,
            driven,
            now,
        });
        Ok(Some(Look {
            status,
            record,
            marks,
            pod,
        }))
    }

    /// Whether what is told of a run stays the same when somebody deletes its pod.
    pub(crate) fn outlives_deletion(&self, pod: &Pod) -> bool {
        let mut deleted = pod.clone();
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        let told = |pod: Pod| Some(self.judge(pod).ok()??.status.phase);
        let now = told(pod.clone());
        now.is_some() && now == told(deleted)
    }

    /// The looks at all runs of the owner, and the version at which they were so.
    pub(crate) async fn look_at_all(&self) -> Result<(Vec<Result<Look>>, String)> {
        let labels = record::of_owner(self.owner());
        let (pods, version) = self.cluster.list_pods(&labels).await?;
        let mut looks = Vec::with_capacity(pods.len());
        for pod in pods {
            looks.extend(self.judge(pod).transpose());
        }
        Ok((looks, version))
    }

    /// The key of a run's tunnel, from its Secret.
    pub(crate) async fn key(&self, record: &Record) -> Result<Vec<u8>> {
        let name = record.secret_name(self.owner(), 0);
        let secret = self.cluster.secret(&name).await?;
        let key = secret.and_then(|secret| secret.data?.remove("key"));
        key.map(|key| key.0).ok_or_else(|| Error::Record {
            name: record.id.to_string(),
            why: format!("the Secret {name} with its key is gone"),
        })
    }

    /// The tunnel into a run's sidecar.
    pub(crate) async fn tunnel(&self, look: &Look) -> Result<Tunnel> {
        let record = &look.record;
        let key = self.key(record).await?;
        let incoming = self.egress.incoming(&record.id, &record.egress);
        self.tunnels
            .sidecar(&self.cluster, &record.id, &look.pod, &key, incoming)
            .await
    }
}

/// Every run of the owner, as a stream.
pub(crate) fn list(shared: Arc<Shared>) -> ResultStream<RunStatus> {
    let looks = async move { shared.look_at_all().await };
    let statuses = stream::once(looks)
        .map_ok(|(looks, _)| stream::iter(looks).map_ok(|look| look.status))
        .try_flatten();
    Box::pin(statuses.map_err(|error| v6_runtime::Error::from(error).with_operation("list")))
}
