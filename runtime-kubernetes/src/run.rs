//! Accepting a run: its record, which is its pod, and its input, in a state that the next call can
//! always go on from.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use v6_runtime::{
    Accepted, Error as Public, ErrorKind, Gpu, InputStream, MountSource, Pending, RunId, RunPhase,
    RunSpec, SpecDigest,
};

use crate::claim;
use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::look::Look;
use crate::pod::{self, Parts};
use crate::record::{self, Driver, Record};
use crate::state::Shared;
use crate::tunnel::{Mode, Tunnel, read_line};

/// Between two tries to reach the helper in a new pod.
const PAUSE: Duration = Duration::from_millis(150);
/// How often a transfer that is cut is begun again where it ended.
const TRIES: u32 = 5;
/// A transfer may stand still for so long.
const STALLED: Duration = Duration::from_secs(60);
/// How many leftovers may be in the way before somebody else is to blame.
const LEFTOVERS: usize = 3;

impl Shared {
    /// Accepts a run, once. When nobody waits for the answer any more, input that is not there yet
    /// is not waited for either.
    pub(crate) async fn run(
        self: &Arc<Self>,
        id: &RunId,
        spec: &RunSpec,
        dropped: &CancellationToken,
    ) -> v6_runtime::Result<Accepted> {
        self.capabilities.admit(spec)?;
        if spec.resources.gpu == Some(Gpu::All) {
            let message = "all accelerators (the cluster wants a number)";
            return Err(Public::new(ErrorKind::Unsupported, message));
        }
        self.start_watching().await;
        let _lock = self.lock(id).await;
        // A cleanup that was called since then has said that there is nothing.
        if dropped.is_cancelled() {
            let message = "the call was dropped before it had begun";
            return Err(Public::new(ErrorKind::Unavailable, message));
        }
        // Until it is known what there is, the run may be under way.
        let unknown = |error| Public::from(error).with_may_have_started(true);
        let name = self.name(id);
        for _ in 0..LEFTOVERS {
            match self.cluster.pod(&name).await.map_err(unknown)? {
                None => {}
                Some(pod) => {
                    if record::identify(self.owner(), &pod).is_none() {
                        return Err(stranger(&name).into());
                    }
                    let look = self.judge(pod).map_err(unknown)?;
                    if let Some(accepted) = look.map_or(Ok(None), |look| adopt(&look, spec))? {
                        return Ok(accepted);
                    }
                    Box::pin(self.remove_all(id)).await?;
                }
            }
            Box::pin(self.see_denial()).await?;
            if let Some(accepted) = Box::pin(self.make(id, spec, dropped)).await? {
                return Ok(accepted);
            }
        }
        Err(stranger(&name).into())
    }

    /// Makes the run; `None` if something has its name by now.
    async fn make(
        self: &Arc<Self>,
        id: &RunId,
        spec: &RunSpec,
        dropped: &CancellationToken,
    ) -> v6_runtime::Result<Option<Accepted>> {
        let contents = Contents::new(spec, &self.config.credentials)?;
        let record = Record::new(id, spec, contents.len(), SystemTime::now());
        let parts = Parts {
            owner: self.owner(),
            record: &record,
            spec,
            config: &self.config,
            contents: &contents,
        };
        let mut body = pod::pod(&parts)?;
        let (name, value) = self.driver().annotation();
        let annotations = body.metadata.annotations.get_or_insert_default();
        annotations.insert(name, value);
        let claim = claim::is_wanted(spec, &self.config).then(|| claim::body(&parts));
        let driven = Driven::new(self, id);
        let Some(made) = self.make_pod(&record, &body).await? else {
            return Ok(None);
        };
        let claimed = tokio::select! {
            biased;
            // To its end: one that comes to be behind our back has no owner with which it would go.
            claimed = Box::pin(self.store_claim(claim)) => claimed,
            never = self.keep_saying_so(id) => match never {},
        };
        let store = async {
            claimed?;
            Box::pin(self.store(&record, spec, contents, &made)).await
        };
        let stored = tokio::select! {
            biased;
            stored = Box::pin(store) => stored,
            never = self.keep_saying_so(id) => match never {},
            () = dropped.cancelled() => {
                let message = "the call was dropped while its input was stored";
                Err(Public::new(ErrorKind::Unavailable, message).into())
            }
        };
        match stored {
            Ok(pod) => {
                // Before this returns, so that a watch that begins afterwards knows the run.
                drop(driven);
                if let Some(look) = self.judge(pod)? {
                    self.take(&look);
                }
                Ok(Some(Accepted::Created))
            }
            Err(error) => {
                if let Err(left) = Box::pin(self.remove_all(id)).await {
                    tracing::warn!(run = %id, error = %left, "parts of a run are left behind");
                }
                Err(error.into())
            }
        }
    }

    fn driver(&self) -> Driver {
        Driver {
            who: self.holder.clone(),
            at: SystemTime::now(),
        }
    }

    /// Tells other processes that somebody is at work on a run.
    async fn keep_saying_so(&self, id: &RunId) -> std::convert::Infallible {
        let name = self.name(id);
        loop {
            tokio::time::sleep(Driver::BEAT).await;
            // The next one is soon.
            if let Err(error) = self.cluster.patch_pod(&name, &self.driver().note()).await {
                tracing::debug!(run = %id, %error, "it could not be told that a run is worked on");
            }
        }
    }

    /// Makes the pod; `None` if something else has its name.
    async fn make_pod(&self, record: &Record, body: &Pod) -> Result<Option<Pod>> {
        let name = self.name(&record.id);
        let mut tries = 0;
        loop {
            let error = match self.cluster.create_pod(body).await {
                Ok(pod) => return Ok(Some(pod)),
                Err(error) => error,
            };
            tries += 1;
            if error.status() != Some(409) && !(error.is_unanswered() && tries < TRIES) {
                return Err(error);
            }
            // It may be ours: made by a call whose answer was lost.
            match self.cluster.pod(&name).await {
                Ok(Some(pod)) if record::attempt(&pod) == Some(&record.attempt) => {
                    return Ok(Some(pod));
                }
                Ok(Some(_)) => return Ok(None),
                Ok(None) if error.status() == Some(409) => return Ok(None),
                Ok(None) => {}
                Err(again) if again.is_unanswered() => {}
                Err(again) => return Err(again),
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }

    /// Stores all input, and lets the pod go.
    async fn store(
        self: &Arc<Self>,
        record: &Record,
        spec: &RunSpec,
        contents: Contents,
        pod: &Pod,
    ) -> Result<Pod> {
        let key = contents.key.clone();
        for secret in contents.secrets(self.owner(), record, pod) {
            self.store_once(|| self.cluster.create_secret(&secret))
                .await?;
        }
        let gone = || Error::Record {
            name: record.id.to_string(),
            why: "its pod was removed while it was made".into(),
        };
        let name = self.name(&record.id);
        if !record.streams {
            let released = self.patch(&name, &record::note_stored(true)).await?;
            return released.ok_or_else(gone);
        }
        self.patch(&name, &record::release())
            .await?
            .ok_or_else(gone)?;
        let tunnel = Box::pin(self.reach_receive(record, &key)).await?;
        let streams = spec.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Stream(stream) => Some(stream),
            _ => None,
        });
        let mut way = Way {
            shared: self,
            record,
            key: &key,
            tunnel,
        };
        for (index, stream) in streams.enumerate() {
            Box::pin(way.bring(index, stream)).await?;
        }
        // Noted before it is said: from here on whoever sees the run lets it go.
        let stored = self.patch(&name, &record::note_stored(false)).await?;
        let answer = way.tunnel.ask("GO").await;
        if let Err(error) = answer {
            tracing::debug!(run = %record.id, %error, "the helper will be told again");
        }
        stored.ok_or_else(gone)
    }

    async fn store_claim(&self, claim: Option<PersistentVolumeClaim>) -> Result<()> {
        match claim {
            Some(claim) => self.store_once(|| self.cluster.create_claim(&claim)).await,
            None => Ok(()),
        }
    }

    /// Makes something of a name of our own.
    async fn store_once<F>(&self, make: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let mut tries = 0;
        loop {
            match make().await {
                // Nobody else knows the name: an earlier call got through, and its answer did not.
                Err(error) if error.status() == Some(409) => return Ok(()),
                Err(error) if error.is_unanswered() && tries < TRIES => tries += 1,
                made => return made,
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }

    /// Changes a pod, again if the answer is lost: what is noted twice is noted once.
    pub(crate) async fn patch(
        &self,
        name: &str,
        change: &serde_json::Value,
    ) -> Result<Option<Pod>> {
        let mut tries = 0;
        loop {
            match self.cluster.patch_pod(name, change).await {
                Err(error) if error.is_unanswered() && tries < TRIES => tries += 1,
                done => return done,
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
    }

    /// The tunnel to the helper that waits for input, once a machine has the pod.
    async fn reach_receive(&self, record: &Record, key: &[u8]) -> Result<Tunnel> {
        let name = self.name(&record.id);
        let began = Instant::now();
        loop {
            let incoming = self.egress.incoming(&record.id, &[]);
            let opened = Tunnel::open(&self.cluster, &name, key, Mode::Receive, incoming).await;
            let error = match opened {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) => error,
            };
            let pod = self.cluster.pod(&name).await?;
            let look = match pod {
                Some(pod) => self.judge(pod)?,
                None => None,
            };
            let Some(look) = look else {
                return Err(error);
            };
            let phase = &look.status.phase;
            let hopeless = crate::obstacle::obstacle(&look.pod)
                .filter(|(_, patience)| *patience == crate::obstacle::Patience::None);
            if let Some((failure, _)) = hopeless {
                return Err(Public::new(ErrorKind::Unavailable, failure.message).into());
            }
            if phase.is_finished() || *phase == RunPhase::Pending(Pending::Abandoned) {
                let message = format!("the pod ended before its input was there: {phase:?}");
                return Err(Public::new(ErrorKind::Unavailable, message).into());
            }
            if began.elapsed() >= self.config.start_timeout {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Lets a run go whose input is there, for a process that is gone.
    pub(crate) async fn release(self: &Arc<Self>, id: &RunId) {
        let Ok(Some(look)) = self.look(id).await else {
            return;
        };
        let told = async {
            let key = self.key(&look.record).await?;
            let tunnel = Box::pin(self.reach_receive(&look.record, &key)).await?;
            let failed = |source| Error::Tunnel {
                step: "letting the program start",
                source,
            };
            tunnel.ask("GO").await.map_err(failed)
        };
        if let Err(error) = told.await {
            tracing::debug!(run = %id, %error, "the helper was not told to let a run go");
        }
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
    Err(Public::new(ErrorKind::Conflict, message).with_may_have_started(true))
}

fn stranger(name: &str) -> Error {
    Error::Stranger(format!("the pod {name} belongs to somebody else"))
}

/// The way by which input gets into a pod.
struct Way<'a> {
    shared: &'a Shared,
    record: &'a Record,
    key: &'a [u8],
    tunnel: Tunnel,
}

impl Way<'_> {
    /// Brings one stream, from where it was cut if it is.
    async fn bring(&mut self, index: usize, stream: &InputStream) -> Result<()> {
        let mut tries = 0;
        loop {
            let error = match Box::pin(self.send(index, stream)).await {
                Ok(()) => return Ok(()),
                Err(Cut::Source(error)) => return Err(error.into()),
                Err(Cut::Way(error)) => error,
            };
            tries += 1;
            if tries >= TRIES || !stream.is_reopenable() {
                return Err(Error::Tunnel {
                    step: "bringing input",
                    source: error,
                });
            }
            if self.tunnel.is_closed() || self.tunnel.ask("HAVE 0").await.is_err() {
                self.tunnel = Box::pin(self.shared.reach_receive(self.record, self.key)).await?;
            }
        }
    }

    async fn send(&self, index: usize, stream: &InputStream) -> Result<(), Cut> {
        let have = self.tunnel.ask(&format!("HAVE {index}")).await?;
        let have: u64 = number(&have)?;
        let mut source = stream.open().await.map_err(Cut::Source)?;
        skip(&mut source, have).await.map_err(Cut::Source)?;
        let mut to = self.tunnel.request(&format!("PUT {index} {have}")).await?;
        let mut left = stream.len().saturating_sub(have);
        let mut piece = vec![0; 64 << 10];
        loop {
            // One byte more than there may be, to see that there is none.
            let room = usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX);
            let room = room.min(piece.len());
            let read = source.read(&mut piece[..room]).await.map_err(unreadable)?;
            if read == 0 {
                break;
            }
            left = left
                .checked_sub(read as u64)
                .ok_or_else(|| wrong_length(stream, "more"))?;
            let sending = to.write_all(&piece[..read]);
            tokio::time::timeout(STALLED, sending)
                .await
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        }
        if left > 0 {
            return Err(wrong_length(stream, "fewer"));
        }
        to.shutdown().await?;
        let answer = tokio::time::timeout(STALLED, read_line(&mut to)).await;
        let answer = answer.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        if number(&answer)? == stream.len() {
            Ok(())
        } else {
            Err(Cut::Way(std::io::Error::other(answer)))
        }
    }
}

/// Why a stream did not arrive.
enum Cut {
    /// It can be tried again.
    Way(std::io::Error),
    /// What was to be sent is at fault.
    Source(Public),
}

impl From<std::io::Error> for Cut {
    fn from(error: std::io::Error) -> Self {
        Self::Way(error)
    }
}

fn number(answer: &str) -> Result<u64, Cut> {
    let number = answer
        .strip_prefix("OK ")
        .and_then(|text| text.parse().ok());
    number.ok_or_else(|| Cut::Way(std::io::Error::other(answer.to_owned())))
}

fn unreadable(error: std::io::Error) -> Cut {
    let message = "an input could not be read to its end";
    Cut::Source(Public::new(ErrorKind::Unexpected, message).with_source(error))
}

fn wrong_length(stream: &InputStream, how: &str) -> Cut {
    let message = format!(
        "an input has {how} than the {} bytes announced",
        stream.len()
    );
    Cut::Source(Public::new(ErrorKind::InvalidSpec, message))
}

async fn skip(source: &mut v6_runtime::InputReader, bytes: u64) -> v6_runtime::Result<()> {
    let mut skipped = source.take(bytes);
    let copied = tokio::io::copy(&mut skipped, &mut tokio::io::sink()).await;
    match copied {
        Ok(copied) if copied == bytes => Ok(()),
        Ok(_) => {
            let message = "an input is shorter than it was before";
            Err(Public::new(ErrorKind::InvalidSpec, message))
        }
        Err(error) => {
            let message = "an input could not be read";
            Err(Public::new(ErrorKind::Unexpected, message).with_source(error))
        }
    }
}

/// While it is there, somebody is bringing the input of a run.
struct Driven<'a> {
    shared: &'a Shared,
    id: &'a RunId,
}

impl<'a> Driven<'a> {
    fn new(shared: &'a Shared, id: &'a RunId) -> Self {
        shared.set_driven(id, true);
        Self { shared, id }
    }
}

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        self.shared.set_driven(self.id, false);
    }
}
