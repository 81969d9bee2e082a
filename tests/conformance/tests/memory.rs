//! The suite on the in-memory runtime.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use v6_runtime::memory::{MemoryEngine, MemoryImage};
use v6_runtime::{ImageRef, Owner, Result, Runtime};
use v6_runtime_conformance::{Fault, Harness, Injected, main as run, probe_memory};

const PROBE: &str = "localhost/v6-probe:test";

struct Memory(MemoryEngine, tempfile::TempDir);

#[async_trait]
impl Harness for Memory {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        Ok(Arc::new(self.0.runtime(owner.clone())))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse(PROBE).expect("a reference")
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        Ok(self.0.inventory(owner))
    }

    fn shared_folder(&self) -> Option<PathBuf> {
        Some(self.1.path().to_owned())
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        Ok((fault == Fault::Cut).then(|| {
            self.0.cut_watches_of(owner);
            Injected::new(())
        }))
    }
}

fn main() -> ExitCode {
    let engine = MemoryEngine::new();
    engine
        .add(PROBE, MemoryImage::new(probe_memory::probe))
        .expect("the name is an image's");
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(Memory(engine, folder))
}
