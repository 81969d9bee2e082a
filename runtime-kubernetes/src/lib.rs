//! The v6-runtime contract on Kubernetes, in one namespace of a cluster, through the API server
//! alone.
//!
//! ```no_run
//! use v6_runtime::{ImageRef, Owner, PullPolicy, RunId, RunSpec, Runtime, RuntimeExt};
//! use v6_runtime_kubernetes::{KubernetesConfig, KubernetesRuntime};
//!
//! # async fn example() -> v6_runtime::Result<()> {
//! let helper = ImageRef::parse("registry.example.org/v6-helper:1")?;
//! let config = KubernetesConfig::new(Owner::new("hospital-a")?, helper);
//! let cluster = KubernetesRuntime::connect(config).await?;
//! let image = ImageRef::parse("registry.example.org/average:1")?;
//! let image = cluster.resolve(&image, PullPolicy::Always).await?;
//! let id = RunId::new("run-1")?;
//! cluster.run(&id, &RunSpec::new(image)).await?;
//! assert!(cluster.wait(&id).await?.phase.is_finished());
//! cluster.cleanup(&id, Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a run is in the cluster
//!
//! | object | name | from, to |
//! |---|---|---|
//! | pod with a finalizer, which is the record: its labels and annotations say all | `v6-OWNER.RUN` | first, last |
//! | Secrets with the tunnel's key, small inputs, a login for the image; owned by the pod | `v6-OWNER.RUN.ATTEMPT.N` | until the cleanup |
//! | with [`Outputs::Claim`]: the claim with its outputs | `v6-OWNER.RUN.ATTEMPT.out` | until the cleanup |
//! | with it: a pod that reads them, owned by the run's | `v6-OWNER.RUN.ATTEMPT.read` | when they are collected, until then or a while after |
//!
//! In the pod, the helper (`v6-helper`) runs before the program, sees that the network is denied and
//! puts input in its place, and beside it, where it keeps the outputs and carries granted connections
//! through one port that the API server forwards. Nothing is shared with the cluster but that server.
//!
//! All objects carry labels `v6-runtime.*`; what lacks them is not touched. The names of objects,
//! labels and annotations are not an interface.

/// Setters of public fields, by value.
macro_rules! setters {
    ($of:ident: $($set:ident $field:ident: $type:ty,)*) => {
        impl $of {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $set(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

mod access;
mod api;
mod canary;
mod claim;
mod cleanup;
mod client;
mod clock;
mod collect;
mod config;
mod connect;
mod contents;
mod egress;
mod error;
mod examine;
mod forward;
mod image;
mod isolate;
mod lease;
mod logs;
mod look;
mod obstacle;
mod oidc;
mod placement;
mod pod;
#[cfg(test)]
mod pod_tests;
mod reader;
mod record;
mod registry;
mod rights;
mod run;
mod runtime;
mod sign_in;
mod state;
mod stop;
mod time;
mod translate;
#[cfg(test)]
mod translate_tests;
mod tunnel;
mod volumes;
mod watch;

pub use config::{Gate, KubernetesConfig, Outputs};
pub use image::{ImageFile, helper_image, image};
pub use placement::{Placement, affinity, tolerations};
pub use rights::{RbacOptions, rbac};
pub use runtime::KubernetesRuntime;
