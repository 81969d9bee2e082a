//! One owner, one live process: a Lease object of the namespace, renewed while it is held.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use v6_runtime::{ErrorKind, Held, Lease, Owner};

use crate::error::{Error, Result};
use crate::record;
use crate::state::Shared;

/// After so many seconds without a sign of life somebody else may take it.
const LENGTH: i32 = 15;
const RENEW: Duration = Duration::from_secs(4);
/// Within the length, with room for a clock that runs otherwise.
const GIVE_UP: Duration = Duration::from_secs(12);

fn name(owner: &Owner) -> String {
    format!("v6-{owner}")
}

impl Shared {
    /// Takes the lease.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Lease> {
        let object = self.take_lease().await?;
        let (tell, lost) = watch::channel(None);
        let stop = CancellationToken::new();
        let held = Kept {
            lost,
            _stop: stop.clone().drop_guard(),
        };
        let shared = self.clone();
        tokio::spawn(async move { shared.keep_lease(object, tell, stop).await });
        Ok(Lease::new(held))
    }

    async fn take_lease(&self) -> Result<Object> {
        let name = name(self.owner());
        let now = Timestamp::now();
        let taken = |why: String| {
            let error = v6_runtime::Error::new(ErrorKind::Conflict, why);
            Err(Error::from(error))
        };
        let found = match self.cluster.lease(&name).await? {
            Some(found) => found,
            None => {
                let object = Object {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        labels: Some(BTreeMap::from([(
                            record::OWNER.to_owned(),
                            self.owner().to_string(),
                        )])),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.spec(now)),
                };
                match self.cluster.create_lease(&object).await {
                    Err(error) if error.status() == Some(409) => {
                        return taken("another process has just taken the lease".into());
                    }
                    made => return made,
                }
            }
        };
        let owner = found
            .metadata
            .labels
            .as_ref()
            .and_then(|all| all.get(record::OWNER));
        if owner.map(String::as_str) != Some(self.owner().as_str()) {
            let why = format!("the lease {name} belongs to somebody else");
            return Err(Error::Stranger(why));
        }
        if let Some(holder) = live_holder(&found, now) {
            let why = format!("{holder} is at work for owner {}", self.owner());
            return taken(why);
        }
        let mut object = found;
        object.spec = Some(self.spec(now));
        match self.cluster.replace_lease(&name, &object).await {
            Err(error) if error.status() == Some(409) => {
                taken("another process has just taken the lease".into())
            }
            done => done,
        }
    }

    fn spec(&self, now: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.holder_name()),
            lease_duration_seconds: Some(LENGTH),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }
    }

    fn holder_name(&self) -> String {
        format!("process {} ({})", std::process::id(), self.holder)
    }

    /// Whether another process is at work for this owner.
    pub(crate) async fn is_leased_elsewhere(&self) -> Result<bool> {
        let found = self.cluster.lease(&name(self.owner())).await?;
        let holder = found.and_then(|found| live_holder(&found, Timestamp::now()));
        Ok(holder.is_some_and(|holder| holder != self.holder_name()))
    }

    async fn keep_lease(
        &self,
        mut object: Object,
        tell: watch::Sender<Option<String>>,
        stop: CancellationToken,
    ) {
        let name = name(self.owner());
        let mut renewed = Instant::now();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(RENEW) => false,
            };
            if ended {
                let version = object.metadata.resource_version.clone();
                if let Err(error) = self.cluster.delete_lease(&name, version).await {
                    tracing::warn!(%error, "the lease will end by itself");
                }
                return;
            }
            if let Some(spec) = &mut object.spec {
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            let why = match self.cluster.replace_lease(&name, &object).await {
                Ok(fresh) => {
                    (object, renewed) = (fresh, Instant::now());
                    continue;
                }
                Err(error) if matches!(error.status(), Some(404 | 409)) => {
                    match self.cluster.lease(&name).await {
                        // It is ours, of a call whose answer was lost.
                        Ok(Some(found)) if self.is_ours(&found) => {
                            (object, renewed) = (found, Instant::now());
                            continue;
                        }
                        Ok(_) => "somebody else has taken the lease".to_owned(),
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if renewed.elapsed() >= GIVE_UP || why.starts_with("somebody") {
                tell.send_replace(Some(why));
                return;
            }
            tracing::warn!(why, "the lease could not be renewed yet");
        }
    }

    fn is_ours(&self, object: &Object) -> bool {
        let holder = object
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_ref());
        holder == Some(&self.holder_name())
    }
}

/// Who holds a lease now.
fn live_holder(object: &Object, now: Timestamp) -> Option<String> {
    let spec = object.spec.as_ref()?;
    let holder = spec
        .holder_identity
        .clone()
        .filter(|holder| !holder.is_empty())?;
    let renewed = spec.renew_time.as_ref()?.0;
    let length = i64::from(spec.lease_duration_seconds.unwrap_or(LENGTH));
    (now.as_second() - renewed.as_second() <= length).then_some(holder)
}

struct Kept {
    lost: watch::Receiver<Option<String>>,
    _stop: tokio_util::sync::DropGuard,
}

impl Held for Kept {
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        let mut lost = self.lost.clone();
        Box::pin(async move {
            let why = match lost.wait_for(Option::is_some).await {
                Ok(why) => why.clone(),
                Err(_) => None,
            };
            match why {
                Some(why) => why,
                // It was given back.
                None => std::future::pending().await,
            }
        })
    }
}
