//! One contract for running containers to their end: run, watch, collect, cleanup.
mod annotations;
mod capabilities;
mod digest;
mod egress;
mod error;
mod ext;
mod hub;
mod image;
mod input;
mod lease;
mod logs;
mod name;
mod path;
mod runtime;
mod secret;
mod spec;
mod status;
mod tracker;
mod watch;

pub use annotations::Annotations;
pub use capabilities::{
    Capabilities, Floor, LogFeatures, MountKinds, OutcomeKinds, OutputKinds, ResourceKinds,
};
pub use digest::SpecDigest;
pub use egress::{Connection, EgressGrant, Io};
pub use error::{Error, ErrorKind, Result, Retry};
pub use ext::RuntimeExt;
pub use hub::{ListingStart, WatchHub};
pub use image::{Digest, ImageIdentity, ImageRef, PullPolicy, RegistryCredentials, ResolvedImage};
pub use input::{InputReader, InputStream};
pub use lease::{Held, Lease};
pub use logs::{LogChunk, LogOptions, LogPosition, LogStream};
pub use name::{GrantName, NAME_MAX, OutputName, Owner, RunId};
pub use path::ContainerPath;
pub use runtime::{
    Accepted, CancelOptions, Cancelled, CleanedUp, CleanupOptions, EngineInfo, Observation,
    ResultStream, Runtime,
};
pub use secret::Secret;
pub use spec::{
    Access, DEFAULT_GRACE, EnvValue, Gpu, INLINE_MAX, Mount, MountSource, Output, OutputKind,
    Resources, RunSpec, Trust,
};
pub use status::{
    Outcome, Pending, RunPhase, RunStatus, StartFailure, StartFailureCause, StopCause, Usage,
};
pub use tracker::Tracker;
pub use watch::WatchEvent;
