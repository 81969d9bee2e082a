//! The harness of a runtime with a fault.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use v6_runtime::memory::{MemoryEngine, MemoryImage, RegistryFault};
use v6_runtime::{Capabilities, Floor, ImageRef, Owner, Result, RunId, Runtime};

use super::Seed;
use super::program::Pretended;
use super::runtime::Seeded;
use super::world::World;
use crate::harness::{Fault, Harness, Injected, Planted, Registries, Stranger, Tagged};
use crate::memory::MemoryHarness;
use crate::probe_memory::probe_with;

/// More than the faults of size let through, and no more: every case runs with every fault.
const LARGE: usize = (3 << 20) + 1;

/// A harness for the in-memory runtime with one fault in it, or with none.
///
/// The runtime declares more than memory has: the whole isolation floor, limits of processor time,
/// graphics processors and usage. A program
/// there is a closure and has no kernel around it, so what it says of one is pretended. That
/// shows nothing about isolation, and all about the cases that look for it: they are green as long
/// as the pretence is good, and each has to be red when a fault spoils it.
#[derive(Debug)]
pub struct SeededHarness {
    seed: Option<Seed>,
    world: Arc<World>,
    memory: MemoryHarness,
}

impl SeededHarness {
    /// The in-memory runtime with this fault.
    ///
    /// # Errors
    /// If no temporary folder can be made.
    pub fn new(seed: Seed) -> std::io::Result<Self> {
        Self::with(Some(seed))
    }

    /// The same without a fault: what the seeded ones are compared with.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn honest() -> std::io::Result<Self> {
        Self::with(None)
    }

    /// The same, declaring nothing beyond the core: for the cases about what is not declared.
    #[must_use]
    pub fn declaring_nothing(self) -> Self {
        self.world.engine.set_capabilities(Capabilities::none());
        self
    }

    fn with(seed: Option<Seed>) -> std::io::Result<Self> {
        let engine = MemoryEngine::new();
        let mut capabilities = MemoryEngine::all_capabilities();
        capabilities.floor = Floor::all();
        capabilities.resources.cpu = true;
        capabilities.resources.gpu = true;
        capabilities.usage = true;
        engine.set_capabilities(capabilities);
        let world = Arc::new(World::new(engine));
        let program = Arc::new(Pretended {
            seed,
            // The engine holds the image: a strong reference would be a cycle.
            world: Arc::downgrade(&world),
        });
        let image = MemoryImage::new(move |ctx| {
            let program = program.clone();
            async move { probe_with(ctx, &*program).await }
        });
        let memory = MemoryHarness::of(world.engine.clone(), image)?;
        Ok(Self {
            seed,
            world,
            memory,
        })
    }
}

#[async_trait]
impl Harness for SeededHarness {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let inner = Arc::new(self.world.engine.runtime(owner.clone()));
        Ok(Arc::new(Seeded::new(inner, self.seed, self.world.clone())))
    }

    fn probe_image(&self) -> ImageRef {
        self.memory.probe_image()
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let mut found = self.memory.inventory(owner).await?;
        let notes = self.world.notes();
        let left = notes.left_behind.iter().filter(|(whose, _)| whose == owner);
        found.extend(left.map(|(_, what)| what.clone()));
        Ok(found)
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        self.memory.inject(owner, fault).await
    }

    fn calls(&self, owner: &Owner) -> Option<u64> {
        self.memory.calls(owner)
    }

    async fn restart_engine(&self) -> Result<Option<()>> {
        self.memory.restart_engine().await
    }

    fn large(&self) -> usize {
        LARGE
    }

    fn shared_folder(&self) -> Option<PathBuf> {
        self.memory.shared_folder()
    }

    async fn plant(&self, owner: &Owner, id: &RunId, place: Planted) -> Result<Option<Stranger>> {
        self.memory.plant(owner, id, place).await
    }

    async fn move_tag(&self, owner: &Owner, to: Tagged) -> Result<Option<ImageRef>> {
        self.memory.move_tag(owner, to).await
    }

    async fn registries(&self) -> Result<Option<Registries>> {
        let registries = self.memory.registries().await?;
        if let Some(registries) = &registries
            && self.seed == Some(Seed::CredentialsAreNotUsed)
        {
            let denied = RegistryFault::Denied("unauthorized: authentication required".into());
            let name = registries.private.to_string();
            self.world.engine.set_registry_fault(&name, Some(denied))?;
        }
        Ok(registries)
    }

    async fn volume(&self, owner: &Owner) -> Result<Option<String>> {
        self.memory.volume(owner).await
    }

    async fn tidy(&self, owner: &Owner) -> Result<()> {
        self.memory.tidy(owner).await
    }
}
