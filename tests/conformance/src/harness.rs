//! What a runtime's author provides: the runtime, and hooks into what surrounds it.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use v6_runtime::{ImageRef, Owner, Result, RunId, Runtime};

/// The runtime under test, and a way to its engine that does not lead through it.
///
/// Three methods are needed. The others are *hooks* into the surroundings: each that is left out
/// makes the cases that need it inconclusive, which the report shows. A hook says nothing about
/// the runtime; what that can do it declares in its
/// [`Capabilities`](v6_runtime::Capabilities).
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A new value of the runtime for this owner, as a restarted process would make it.
    ///
    /// # Errors
    /// Those of connecting to the engine.
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>>;

    /// The image that holds the probe (crate `v6-probe`) as its only program, which is also what
    /// it runs by itself. For a runtime without images, a name that it takes the probe by.
    fn probe_image(&self) -> ImageRef;

    /// What the engine holds of this owner, looked up without the runtime: one that has forgotten
    /// an object does not list it either. Everything that is known of each object, as text: the
    /// suite also looks for secrets in it.
    ///
    /// # Errors
    /// Whatever keeps it from looking.
    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>>;

    /// Whether runs outlive this process, so that the suite may start its own program once more,
    /// with the same arguments, and kill it. The program's `main` must then lead to
    /// [`main`](crate::main()), [`run`](crate::run) or [`act_as_child`](crate::act_as_child).
    fn outlives_us(&self) -> bool {
        false
    }

    /// How many bytes a file has that is large: cases show with it that size makes no difference.
    /// Less than 2 MiB, it shows nothing.
    fn large(&self) -> usize {
        64 << 20
    }

    /// How much later a run starts or ends here than at an engine of this machine, such as one that
    /// looks after its containers once a second. Cases that measure time allow so much more.
    fn slowness(&self) -> Duration {
        Duration::ZERO
    }

    /// Makes the way to the engine bad for this owner's runtime values, those to come included,
    /// until the result is dropped. `None`: this fault cannot be made here.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    async fn inject(&self, _owner: &Owner, _fault: Fault) -> Result<Option<Injected>> {
        Ok(None)
    }

    /// How many calls this owner's runtime values have made to the engine so far.
    fn calls(&self, _owner: &Owner) -> Option<u64> {
        None
    }

    /// Ends the engine without warning, starts it again, and returns when it answers. `None`:
    /// it cannot be done here.
    ///
    /// # Errors
    /// An engine that does not come back.
    async fn restart_engine(&self) -> Result<Option<()>> {
        Ok(None)
    }

    /// A folder that the suite can write and the machine that runs the containers has under the
    /// same path.
    fn shared_folder(&self) -> Option<PathBuf> {
        None
    }

    /// Makes an object that is not this owner's, as like one of its as can be made: under the very
    /// name that the runtime would give to this run, or beside it, under names
    /// that begin and end alike.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    async fn plant(
        &self,
        _owner: &Owner,
        _id: &RunId,
        _where: Planted,
    ) -> Result<Option<Stranger>> {
        Ok(None)
    }

    /// Points a name at the probe's image or at another one, which does nothing but exit with 99,
    /// and returns the name. The engine has both images.
    ///
    /// # Errors
    /// Whatever keeps it from being done.
    async fn move_tag(&self, _owner: &Owner, _to: Tagged) -> Result<Option<ImageRef>> {
        Ok(None)
    }

    /// Registries to fetch images from. None of the images is at the engine when a case begins.
    ///
    /// # Errors
    /// Whatever keeps them from being removed from the engine.
    async fn registries(&self) -> Result<Option<Registries>> {
        Ok(None)
    }

    /// Makes a named volume with the file `data` of 1,000 bytes of the probe's pattern in it, and
    /// returns its name. Where [`mounts.volume_part`](v6_runtime::MountKinds::volume_part) is
    /// declared, it has the same once more as `folder/data`.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    async fn volume(&self, _owner: &Owner) -> Result<Option<String>> {
        Ok(None)
    }

    /// Removes what the hooks above have made for this owner. Called after each case, whatever
    /// came of it, before the [`inventory`](Self::inventory) is asked what is left.
    ///
    /// # Errors
    /// Whatever keeps it from being removed.
    async fn tidy(&self, _owner: &Owner) -> Result<()> {
        Ok(())
    }
}

/// What can be wrong between a runtime and its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Every open connection breaks, once.
    Cut,
    /// Open streams of events end, as if the engine had nothing more to say, once.
    WatchEnds,
    /// Nothing answers.
    Away,
    /// The next so many calls are answered with an internal error of the engine.
    Errors(u32),
    /// The next so many calls are answered with the wish to be called later.
    Throttled(u32),
    /// The engine carries out the next call that makes something of a run, and the answer is lost.
    ReplyLost,
    /// Each answer comes this much later.
    Slow(Duration),
    /// Answers come in pieces that are cut anywhere.
    OddPieces,
    /// Part of a run's things cannot be removed.
    Stuck,
}

/// Something that lasts until this is dropped.
pub struct Injected(#[expect(dead_code, reason = "held for its Drop")] Box<dyn Any + Send>);

impl Injected {
    /// Lasts until this value, which ends it in its `Drop`, is dropped.
    pub fn new(guard: impl Any + Send) -> Self {
        Self(Box::new(guard))
    }
}

impl std::fmt::Debug for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Injected")
    }
}

/// Where [`Harness::plant`] puts a stranger's object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Planted {
    /// Under the very name that the run's own object would have.
    InPlace,
    /// Under names that begin and end like it, with labels that do.
    Beside,
}

/// An object at the engine that is nobody's that the suite knows.
#[async_trait]
pub trait Untouched: Send + Sync {
    /// Whether it is there still, as it was made.
    ///
    /// # Errors
    /// Whatever keeps it from looking.
    async fn is_there(&self) -> Result<bool>;

    /// Removes it.
    ///
    /// # Errors
    /// Whatever keeps it from being removed.
    async fn remove(&self) -> Result<()>;
}

/// An object that [`Harness::plant`] made.
pub type Stranger = Box<dyn Untouched>;

/// What [`Harness::move_tag`] points a name at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tagged {
    /// The probe's image.
    Probe,
    /// One that exits with 99 at once.
    Other,
}

/// Names in registries, by how fetching them goes.
#[derive(Debug, Clone)]
pub struct Registries {
    /// The probe's image, given to everyone.
    pub open: ImageRef,
    /// A name that the registry does not have.
    pub absent: ImageRef,
    /// The probe's image, given for credentials that the runtime has been configured with.
    pub private: ImageRef,
    /// The probe's image, given for credentials that the runtime does not have.
    pub refused: ImageRef,
    /// A name in a registry at which nobody answers.
    pub unreachable: ImageRef,
    /// The probe's image, in a registry that begins to give it and never gets on.
    pub stalled: ImageRef,
}
