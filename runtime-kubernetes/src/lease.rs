//! One owner, one live process: a Lease object of the namespace, renewed while it is held.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use v6_runtime::{ErrorKind, Held, Lease, Owner};

use crate::error::{Error, Result};
use crate::record;
use crate::state::Shared;

/// After so many seconds without a sign of life somebody else may take it.
const LENGTH: i32 = 15;
/// Between two signs, and the longest that one may take.
const RENEW: Duration = Duration::from_secs(3);
/// After so long without one that was taken, the lease is given up. The next sign is tried before, so
/// that this is noticed well within the length.
const GIVE_UP: Duration = Duration::from_secs(8);

fn name(owner: &Owner) -> String {
    format!("v6-{owner}")
}

/// What this process has of one lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    No,
    Yes,
    /// It was given back, and the cluster is being told.
    NotForLong,
}

/// Where whoever wants one lease in this process comes in turn: the cluster alone would tell a lease that
/// was just given back from one that is held only when it has been told so.
struct Desk {
    turn: Arc<tokio::sync::Mutex<()>>,
    ours: watch::Sender<Ours>,
}

impl Desk {
    fn of(place: &str, name: &str) -> Arc<Self> {
        static DESKS: LazyLock<Mutex<HashMap<String, Arc<Desk>>>> = LazyLock::new(Mutex::default);
        let mut all = DESKS.lock().unwrap_or_else(PoisonError::into_inner);
        // One that nobody uses any more says nothing.
        all.retain(|_, desk| Arc::strong_count(desk) > 1);
        let desk = all.entry(format!("{place} {name}")).or_insert_with(|| {
            Arc::new(Self {
                turn: Arc::default(),
                ours: watch::Sender::new(Ours::No),
            })
        });
        desk.clone()
    }

    /// Comes in turn, with no lease that is just going.
    async fn turn(&self) -> OwnedMutexGuard<()> {
        loop {
            let turn = self.turn.clone().lock_owned().await;
            if *self.ours.borrow() != Ours::NotForLong {
                return turn;
            }
            drop(turn);
            // It fails only when the desk is gone, which `self` holds.
            let mut ours = self.ours.subscribe();
            let _ = ours.wait_for(|ours| *ours != Ours::NotForLong).await;
        }
    }
}

/// The lease is this process's until this is dropped.
struct AtDesk(Arc<Desk>);

impl Drop for AtDesk {
    fn drop(&mut self) {
        self.0.ours.send_replace(Ours::No);
    }
}

impl Shared {
    /// Takes the lease. If nobody waits for it any more, it is given back.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Lease> {
        let shared = self.clone();
        let taking = tokio::spawn(async move { shared.take_in_turn().await });
        match taking.await {
            // The turn lasts until here, so that the next one finds either a holder or none.
            Ok(taken) => taken.map(|(lease, _turn)| lease),
            Err(broken) => {
                let message = "taking the lease broke off";
                let error = v6_runtime::Error::new(ErrorKind::Unexpected, message);
                Err(error.with_source(broken).into())
            }
        }
    }

    async fn take_in_turn(self: &Arc<Self>) -> Result<(Lease, OwnedMutexGuard<()>)> {
        let desk = Desk::of(&self.cluster.place, &name(self.owner()));
        let turn = desk.turn().await;
        if *desk.ours.borrow() == Ours::Yes {
            return Err(taken(format!(
                "this very process is at work for owner {}",
                self.owner()
            )));
        }
        let object = self.take_lease().await?;
        desk.ours.send_replace(Ours::Yes);
        let (tell, lost) = watch::channel(None);
        let stop = CancellationToken::new();
        let held = Kept {
            lost,
            desk: desk.clone(),
            _stop: stop.clone().drop_guard(),
        };
        let (shared, at_desk) = (self.clone(), AtDesk(desk));
        tokio::spawn(async move {
            shared.keep_lease(object, &tell, &stop).await;
            drop(at_desk);
        });
        Ok((Lease::new(held), turn))
    }

    async fn take_lease(&self) -> Result<Object> {
        let name = name(self.owner());
        let now = Timestamp::now();
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
                        return Err(taken("another process has just taken the lease".into()));
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
        // Ours without our knowing: of a call whose answer was lost.
        let other = live_holder(&found, now).filter(|holder| *holder != self.holder_name());
        if let Some(holder) = other {
            let why = format!("{holder} is at work for owner {}", self.owner());
            return Err(taken(why));
        }
        let mut object = found;
        object.spec = Some(self.spec(now));
        match self.cluster.replace_lease(&name, &object).await {
            Err(error) if error.status() == Some(409) => {
                Err(taken("another process has just taken the lease".into()))
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

    /// Gives signs of life until the lease is to be given back, which is then done, or is lost, which is
    /// then told.
    async fn keep_lease(
        &self,
        mut object: Object,
        tell: &watch::Sender<Option<String>>,
        stop: &CancellationToken,
    ) {
        let mut renewed = Instant::now();
        while stop
            .run_until_cancelled(tokio::time::sleep(RENEW))
            .await
            .is_some()
        {
            let now = Instant::now();
            let why = match self.renew(&mut object).await {
                Ok(()) => {
                    renewed = now;
                    continue;
                }
                Err(Lost::Perhaps(why)) if renewed.elapsed() < GIVE_UP => {
                    tracing::warn!(why, "the lease could not be renewed yet");
                    continue;
                }
                Err(Lost::Perhaps(why) | Lost::Certainly(why)) => why,
            };
            tell.send_replace(Some(why));
            stop.cancelled().await;
            return;
        }
        let version = object.metadata.resource_version.clone();
        let name = name(self.owner());
        if let Err(error) = self.cluster.delete_lease(&name, version).await {
            tracing::warn!(%error, "the lease will end by itself");
        }
    }

    /// One sign of life.
    async fn renew(&self, object: &mut Object) -> Result<(), Lost> {
        let name = name(self.owner());
        if let Some(spec) = &mut object.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        let late = |_| Lost::Perhaps("the API server does not answer".to_owned());
        let renewing = self.cluster.replace_lease(&name, object);
        let error = match tokio::time::timeout(RENEW, renewing).await.map_err(late)? {
            Ok(fresh) => {
                *object = fresh;
                return Ok(());
            }
            Err(error) => error,
        };
        if !matches!(error.status(), Some(404 | 409)) {
            return Err(Lost::Perhaps(error.to_string()));
        }
        let looking = self.cluster.lease(&name);
        match tokio::time::timeout(RENEW, looking).await.map_err(late)? {
            // It is ours, of a call whose answer was lost.
            Ok(Some(found)) if self.is_ours(&found) => {
                *object = found;
                Ok(())
            }
            Ok(_) => Err(Lost::Certainly(
                "somebody else has taken the lease".to_owned(),
            )),
            Err(error) => Err(Lost::Perhaps(error.to_string())),
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

/// Why a lease was not renewed.
enum Lost {
    /// It may be ours still.
    Perhaps(String),
    Certainly(String),
}

fn taken(why: String) -> Error {
    v6_runtime::Error::new(ErrorKind::Conflict, why).into()
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
    desk: Arc<Desk>,
    _stop: DropGuard,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The task that keeps it is at work until it has told the cluster, or is ended with all others.
        let of_keeper = |ours: &mut Ours| {
            let held = *ours == Ours::Yes;
            if held {
                *ours = Ours::NotForLong;
            }
            held
        };
        self.desk.ours.send_if_modified(of_keeper);
    }
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

    fn given_back(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let desk = self.desk.clone();
        drop(self);
        Box::pin(async move {
            let mut ours = desk.ours.subscribe();
            // It fails only when the desk is gone, which is held here.
            let _ = ours.wait_for(|ours| *ours != Ours::NotForLong).await;
        })
    }
}
