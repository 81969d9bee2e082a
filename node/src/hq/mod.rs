//! Client of an unmodified vantage6 HQ 5.0 (seen: 5.0.3).
//!
//! What other modules see is HQ's meaning in types of our own; how 5.0 writes it on the
//! wire is known to `wire` and `socketio` alone, so that the adapter of another server
//! generation can stand beside this one.
//!
//! - [`Http`]: one HTTP client for Keycloak, HQ and its socket: time-outs, proxy, extra
//!   certificate authorities;
//! - [`Tokens`]: sign-in at Keycloak, renewed ahead of expiry;
//! - [`Hq`]: the REST calls that a node makes (protocol 2), retried;
//! - [`Socket`]: the Socket.IO connection (protocol 3), which heals itself;
//! - [`RunPatch`], [`ResultSource`]: reports of runs, results of any size included.

mod address;
mod auth;
mod backoff;
mod connection;
mod engineio;
mod error;
mod event;
mod forward;
mod http;
mod proxy;
mod rest;
mod result_body;
mod retry;
mod socket;
mod socketio;
mod time;
mod types;
mod wire;

pub use address::HqAddress;
pub use auth::{Credentials, SignInError, Token, Tokens};
pub use backoff::Backoff;
pub use error::HqError;
pub use http::{Http, HttpSettings, HttpSetupError};
pub use proxy::address as proxy_address;
pub use rest::Hq;
pub use result_body::{BytesSource, FileSource, ResultSource};
pub use retry::{RawAnswer, Retry};
pub use socket::{Emit, EmitError, Event, Kill, NodeInfo, Socket, SocketEvents, SocketSettings};
pub use time::iso_utc;
pub use types::{
    Action, AlgorithmStore, Collaboration, Column, Identity, OpenRun, Organization, PatchOutcome,
    RunPatch, RunState, RunStatus, Task, TaskDatabase, TaskDataframe, UnknownWord,
};
