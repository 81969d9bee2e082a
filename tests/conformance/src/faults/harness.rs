//! The harness of a runtime with a fault.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use v6_runtime::memory::{MemoryEngine, MemoryImage};
use v6_runtime::{Floor, ImageRef, Owner, Result, Runtime};

use super::Seed;
use super::program::Pretended;
use super::runtime::Seeded;
use super::world::World;
use crate::harness::{Fault, Harness, Injected};
use crate::probe_memory::probe_with;

const PROBE: &str = "localhost/v6-probe:seeded";

/// A harness for the in-memory runtime with one fault in it, or with none.
///
/// The runtime declares more than memory has: the whole isolation floor, and usage. A program
/// there is a closure and has no kernel around it, so what it says of one is pretended. That
/// shows nothing about isolation, and all about the cases that look for it: they are green as long
/// as the pretence is good, and each has to be red when a fault spoils it.
#[derive(Debug)]
pub struct SeededHarness {
    seed: Option<Seed>,
    world: Arc<World>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.engine.fmt(f)
    }
}

impl SeededHarness {
    /// The in-memory runtime with this fault.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self::with(Some(seed))
    }

    /// The same without a fault: what the seeded ones are compared with.
    #[must_use]
    pub fn honest() -> Self {
        Self::with(None)
    }

    fn with(seed: Option<Seed>) -> Self {
        let engine = MemoryEngine::new();
        let mut capabilities = MemoryEngine::all_capabilities();
        capabilities.floor = Floor::all();
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
        let added = world.engine.add(PROBE, image);
        added.expect("the name is an image's");
        Self { seed, world }
    }
}

#[async_trait]
impl Harness for SeededHarness {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let inner = Arc::new(self.world.engine.runtime(owner.clone()));
        Ok(Arc::new(Seeded::new(inner, self.seed, self.world.clone())))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse(PROBE).expect("a reference")
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let mut found = self.world.engine.inventory(owner);
        let notes = self.world.notes();
        let left = notes.left_behind.iter().filter(|(whose, _)| whose == owner);
        found.extend(left.map(|(_, what)| what.clone()));
        Ok(found)
    }

    fn shared_folder(&self) -> Option<PathBuf> {
        Some(std::env::temp_dir())
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        Ok((fault == Fault::Cut).then(|| {
            self.world.engine.cut_watches_of(owner);
            Injected::new(())
        }))
    }
}
