//! The harness of the in-memory runtime, with every hook that can be had in one process.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use v6_runtime::memory::{Disturbance, ExitStatus, MemoryEngine, MemoryImage, RegistryFault};
use v6_runtime::{Capabilities, ImageRef, Owner, Result, RunId, Runtime};

use crate::harness::{Fault, Harness, Injected, Planted, Registries, Stranger, Tagged, Untouched};
use crate::probe::pattern;
use crate::probe_memory;

const PROBE: &str = "localhost/v6-probe:test";
/// How the image ends that a name is moved to.
const OTHER: u8 = 99;

/// An engine in memory that has the probe, and the hooks into what surrounds it.
#[derive(Debug)]
pub struct MemoryHarness {
    engine: MemoryEngine,
    probe: MemoryImage,
    folder: tempfile::TempDir,
    names: AtomicU32,
    /// By the owner for whose cases they were made.
    planted: Mutex<HashMap<Owner, Vec<(Owner, RunId)>>>,
}

impl MemoryHarness {
    /// A new engine.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn new() -> std::io::Result<Self> {
        Self::of(MemoryEngine::new(), MemoryImage::new(probe_memory::probe))
    }

    /// This engine, with this image for the probe's.
    pub(crate) fn of(engine: MemoryEngine, probe: MemoryImage) -> std::io::Result<Self> {
        // The image has this folder, to try what can be written in it.
        let probe = probe.with_file("/srv/empty", "");
        engine
            .load(PROBE, probe.clone())
            .map_err(std::io::Error::other)?;
        Ok(Self {
            engine,
            probe,
            folder: tempfile::tempdir()?,
            names: AtomicU32::new(0),
            planted: Mutex::default(),
        })
    }

    /// A new engine that can do only this much.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_capabilities(capabilities: Capabilities) -> std::io::Result<Self> {
        let harness = Self::new()?;
        harness.engine.set_capabilities(capabilities);
        Ok(harness)
    }

    /// The engine behind it.
    #[must_use]
    pub fn engine(&self) -> &MemoryEngine {
        &self.engine
    }

    fn planted(&self) -> MutexGuard<'_, HashMap<Owner, Vec<(Owner, RunId)>>> {
        self.planted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name that nobody has used.
    fn fresh(&self, what: &str) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        format!("registry.example/{what}-{number}:1")
    }

    /// The probe in the registry, under a name of its own.
    fn probe_with(&self, what: &str, fault: Option<RegistryFault>) -> Result<ImageRef> {
        let name = self.fresh(what);
        self.engine.add(&name, self.probe.clone())?;
        self.engine.set_registry_fault(&name, fault)?;
        ImageRef::parse(&name)
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        Ok(Arc::new(self.engine.runtime(owner.clone())))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse(PROBE).expect("a reference")
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        Ok(self.engine.inventory(owner))
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        let engine = &self.engine;
        let disturb = |what| Some(Injected::new(engine.disturb(owner, what)));
        Ok(match fault {
            Fault::Cut => {
                // Gone for a moment breaks what is being read; the watch stays away for longer.
                drop(engine.disturb(owner, Disturbance::Away));
                engine.cut_watches_of(owner);
                Some(Injected::new(()))
            }
            Fault::WatchEnds => {
                engine.end_watches_of(owner);
                Some(Injected::new(()))
            }
            Fault::Away => disturb(Disturbance::Away),
            Fault::Errors(calls) => disturb(Disturbance::Errors(calls)),
            Fault::Throttled(calls) => disturb(Disturbance::Throttled(calls)),
            Fault::ReplyLost => disturb(Disturbance::ReplyLost),
            Fault::Slow(time) => disturb(Disturbance::Slow(time)),
            Fault::OddPieces => disturb(Disturbance::OddPieces),
            Fault::Stuck => disturb(Disturbance::Stuck),
        })
    }

    fn calls(&self, owner: &Owner) -> Option<u64> {
        Some(self.engine.calls(owner))
    }

    async fn restart_engine(&self) -> Result<Option<()>> {
        self.engine.restart();
        Ok(Some(()))
    }

    fn shared_folder(&self) -> Option<PathBuf> {
        Some(self.folder.path().to_owned())
    }

    async fn plant(&self, owner: &Owner, id: &RunId, place: Planted) -> Result<Option<Stranger>> {
        let planted = match place {
            Planted::InPlace => vec![(owner.clone(), id.clone())],
            Planted::Beside => vec![
                (owner.clone(), RunId::new(format!("{id}-1"))?),
                (owner.clone(), RunId::new(format!("x-{id}"))?),
                (Owner::new(format!("{owner}-{id}"))?, id.clone()),
            ],
        };
        for (owner, id) in &planted {
            self.engine.plant(owner, id);
        }
        let mut all = self.planted();
        all.entry(owner.clone())
            .or_default()
            .extend(planted.iter().cloned());
        Ok(Some(Box::new(Plants {
            engine: self.engine.clone(),
            planted,
        })))
    }

    async fn move_tag(&self, owner: &Owner, to: Tagged) -> Result<Option<ImageRef>> {
        let name = format!("localhost/moved/{owner}:1");
        let image = match to {
            Tagged::Probe => self.probe.clone(),
            Tagged::Other => MemoryImage::new(|_| async { ExitStatus::Code(OTHER) }),
        };
        self.engine.load(&name, image)?;
        Ok(Some(ImageRef::parse(&name)?))
    }

    async fn registries(&self) -> Result<Option<Registries>> {
        let fault = |what: fn(String) -> RegistryFault, words: &str| Some(what(words.into()));
        Ok(Some(Registries {
            open: self.probe_with("open", None)?,
            absent: ImageRef::parse(&self.fresh("absent"))?,
            private: self.probe_with("private", None)?,
            refused: self.probe_with(
                "refused",
                fault(RegistryFault::Denied, "unauthorized: access denied"),
            )?,
            unreachable: self.probe_with(
                "unreachable",
                fault(RegistryFault::Unreachable, "connection refused"),
            )?,
            stalled: self.probe_with("stalled", Some(RegistryFault::Stalled))?,
        }))
    }

    async fn volume(&self, owner: &Owner) -> Result<Option<String>> {
        let name = volume_of(owner);
        for path in ["data", "folder/data"] {
            self.engine.add_volume_file(&name, path, pattern(1000));
        }
        Ok(Some(name))
    }

    async fn tidy(&self, owner: &Owner) -> Result<()> {
        self.engine.remove_volume(&volume_of(owner));
        let planted = self.planted().remove(owner).unwrap_or_default();
        for (owner, id) in planted {
            self.engine.uproot(&owner, &id);
        }
        Ok(())
    }
}

fn volume_of(owner: &Owner) -> String {
    format!("{owner}-volume")
}

struct Plants {
    engine: MemoryEngine,
    planted: Vec<(Owner, RunId)>,
}

#[async_trait]
impl Untouched for Plants {
    async fn is_there(&self) -> Result<bool> {
        let mut planted = self.planted.iter();
        Ok(planted.all(|(owner, id)| self.engine.has_planted(owner, id)))
    }

    async fn remove(&self) -> Result<()> {
        for (owner, id) in &self.planted {
            self.engine.uproot(owner, id);
        }
        Ok(())
    }
}
