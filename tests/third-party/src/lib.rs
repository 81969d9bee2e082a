//! A whole backend of [`v6_runtime`], as a third party would write it: each run
//! is a program of this machine, in namespaces of its own, with one supervisor that outlives the
//! caller. An *image* is a static program under a name; its identity is the SHA-256 of the file.
//!
//! ```text
//! caller ──run──► supervisor ──► unshare ──► first process ──► program
//!    │               │ stores state.json        makes the root, ends with the program
//!    └── folder of the run: record, lock, inputs, outputs, logs ◄─┘
//! ```
//!
//! There is no daemon: the folder of a run is its record, and tells everything to everybody
//! (module `record`). It needs Linux with user namespaces and `unshare` of util-linux; it needs no
//! privileges, and gives none. What it cannot do it does not declare: limits of memory,
//! processors and processes, a system call filter, network access, folders as outputs.
//!
//! It is an example. Started by root, its runs belong to root outside of their namespaces.

mod ending;
mod images;
mod inside;
mod logs;
mod notices;
mod record;
mod runtime;
mod start;
mod supervisor;

pub use runtime::ProcessRuntime;

/// What the helper program does; see `main.rs`.
pub mod helper {
    use std::io;
    use std::path::Path;

    /// Sees the run in this folder through.
    ///
    /// # Errors
    /// A record that cannot be read or written.
    pub fn supervise(run: &Path) -> io::Result<()> {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        tokio.block_on(crate::supervisor::supervise(run))
    }

    pub use crate::inside::{check, inside};
}
