//! One owner, one live process.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// Holds the owner's lease; dropping it gives it back.
///
/// A lease ends with its process, also by `SIGKILL` or loss of power.
#[must_use = "the lease is given back when this is dropped"]
pub struct Lease {
    held: Box<dyn Held>,
}

/// A backend's way of holding a lease. Dropping it gives the lease back.
pub trait Held: Send + Sync + 'static {
    /// Becomes ready when the lease is lost although it was not given back. Backends whose lease
    /// cannot be lost return a future that never is.
    fn lost(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>>;

    /// Gives the lease back, and is ready when the next holder can have it. For backends that have to tell
    /// somebody else: a drop only begins that.
    fn given_back(self: Box<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        drop(self);
        Box::pin(std::future::ready(()))
    }
}

impl Lease {
    /// Wraps a backend's way of holding it.
    pub fn new(held: impl Held) -> Self {
        Self {
            held: Box::new(held),
        }
    }

    /// Waits until the lease is lost, and says why. The holder must then stop at once.
    ///
    /// Cancel-safe.
    pub async fn lost(&self) -> String {
        self.held.lost().await
    }

    /// Gives the lease back and waits until the next holder can have it; for a process that is about to
    /// end, which would take along what a drop has only begun.
    ///
    /// Cancel-safe: it is given back all the same, if the process lasts.
    pub async fn give_back(self) {
        self.held.given_back().await;
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease(..)")
    }
}
