//! The small static program that runs beside or inside a container, embedded as bytes.
//!
//! [`PROGRAM`] is a whole Linux executable without any need of libraries, for the architecture
//! that this crate was built for ([`ARCHITECTURE`]). A backend writes it to where a container
//! can execute it, and starts it with the command line that [`InitOptions`] spells. Nothing of
//! it has to be found at run time.
//!
//! ```
//! use v6_helper::{InitOptions, Listener};
//!
//! let options = InitOptions::new()
//!     .with_listener(Listener::new("127.0.1.1:443".parse()?, "/run/egress/db.socket"))
//!     .with_claim("/run/claim/end.json");
//! let line = options.command_line("/v6-helper", &["python".into(), "-c".into(), "pass".into()])?;
//! assert_eq!(line[..2], ["/v6-helper", "init"]);
//! assert_eq!(line[line.len() - 3..], ["python", "-c", "pass"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod claim;
mod init;
mod job;
mod monitor;
mod monitor_state;
mod pod;

pub use claim::{Claim, ClaimError, End, MAX_CLAIM, NotStarted};
pub use init::{InitOptions, InvalidOption, Listener};
pub use job::TunnelOptions;
pub use monitor::{LaunchError, MonitorOptions, RunFolder, RunLock, Sight, Stop, StopCause};
pub use monitor_state::{Ended, LogFrame, Verdict};
pub use pod::{
    ALIVE_PORT, EXIT_LATE, EXIT_NO_INPUT, EXIT_NO_PART, EXIT_NOT_ISOLATED, PodOptions,
    StreamedInput, TUNNEL_PORT,
};

/// The program: a statically linked ELF executable.
pub static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/v6-helper"));

/// The SHA-256 of [`PROGRAM`], in lower-case hexadecimal.
pub const SHA256: &str = env!("V6_HELPER_SHA256");

/// The architecture that [`PROGRAM`] runs on, in the words of OCI images (`amd64`, `arm64`).
pub const ARCHITECTURE: &str = env!("V6_HELPER_ARCHITECTURE");

/// The exit code of a program that failed itself, before or instead of its command.
pub const EXIT_FAILED: i32 = 125;
/// The exit code when the command cannot be executed.
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// The exit code when the command was not found.
pub const EXIT_NOT_FOUND: i32 = 127;
