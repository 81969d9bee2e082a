//! Stands between a client and an engine's HTTP API, and makes things go wrong on demand.
//!
//! A [`FaultProxy`] passes all on as it comes: bodies are streamed both ways with bounded memory,
//! and a reader that is slow slows the writer; a switch of protocols (`101`, as of WebSockets,
//! SPDY, or Docker's `attach`) makes it a pair of pipes. A [`Rule`] says what goes wrong with
//! which requests, as long as its [`RuleGuard`] is there. Besides, all connections can be
//! [cut](FaultProxy::cut), and the engine can be [away](FaultProxy::away).
//!
//! ```
//! use serde_json::json;
//! use v6_fault_proxy::{Address, Answer, Fault, FaultProxy, Requests, Rule};
//!
//! # fn main() -> std::io::Result<()> {
//! let engine: Address = "unix:///var/run/docker.sock".parse()?;
//! let proxy = FaultProxy::start("tcp://127.0.0.1:0".parse()?, engine)?;
//! println!("DOCKER_HOST={}", proxy.address());
//!
//! // The first container is made, and nobody hears of it.
//! let create = Requests::any().method("POST").path_ends_with("/containers/create");
//! let lost = proxy.add(Rule::new(create.clone(), Fault::LoseReply).times(1));
//! // All others come without what drops their rights.
//! let unsafe_one = proxy.add(Rule::new(create, Fault::rewrite(|container| {
//!     container["HostConfig"]["CapDrop"] = json!([]);
//! })));
//! // Looking at them is too much.
//! let answer = Answer::new(429).header("Retry-After", "1").json(&json!({"message": "later"}));
//! let busy = proxy.add(Rule::new(Requests::any().method("GET"), Fault::Answer(answer)));
//!
//! // … something that uses the engine …
//! assert_eq!(lost.fired(), 0);
//! drop(busy);
//! # drop(unsafe_one);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does not keep
//!
//! Requests and replies are read and written by hyper. So the borders of chunks can move; a reply
//! that ends with its connection is passed on in chunks; `100 Continue` is the proxy's own, sent
//! when the request may go on; a hijack without `Upgrade`, which Docker left behind with API 1.20,
//! works in one direction only. Only HTTP/1 without TLS is spoken.
//!
//! Each client's connection has one of its own to the engine. If the engine is not there, the
//! client's is accepted and closed without a reply.

mod address;
mod body;
mod connection;
mod engine;
mod listen;
mod proxy;
mod rule;
mod shape;
mod table;
mod tasks;
mod tunnel;
mod wire;

pub use address::Address;
pub use proxy::{Away, FaultProxy};
pub use rule::{Answer, Fault, Requests, Rewrite, Rule, Seen};
pub use table::RuleGuard;
