//! The conformance suite on this runtime. It needs the program v6-probe, built statically:
//! `V6_PROBE` is its path.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use process_runtime::ProcessRuntime;
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, Result, Runtime};
use v6_runtime_conformance::Harness;

/// The same in every process of a test run: the suite starts this program again, to kill it.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/runs");

struct Processes {
    probe: PathBuf,
}

#[async_trait::async_trait]
impl Harness for Processes {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let helper = env!("CARGO_BIN_EXE_process-runtime");
        let runtime = ProcessRuntime::new(Path::new(FOLDER), owner, helper)?;
        Ok(Arc::new(
            runtime.with_image(self.probe_image(), &self.probe),
        ))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse("localhost/v6-probe:test").expect("a reference")
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let unseen = |e| Error::new(ErrorKind::Unavailable, "no inventory").with_source(e);
        let folder = format!("{FOLDER}/{owner}/");
        let mut found = Vec::new();
        for run in std::fs::read_dir(&folder).map_err(unseen)? {
            let run = run.map_err(unseen)?.path();
            let record = std::fs::read_to_string(run.join("state.json")).unwrap_or_default();
            found.push(format!("{} {record}", run.display()));
        }
        for process in std::fs::read_dir("/proc").map_err(unseen)?.flatten() {
            // Most of what is there is not ours to read, or no process.
            let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            found.extend(words.contains(&folder).then_some(words));
        }
        Ok(found)
    }

    fn outlives_us(&self) -> bool {
        true
    }
}

fn main() -> ExitCode {
    let Some(probe) = std::env::var_os("V6_PROBE") else {
        eprintln!(
            "V6_PROBE is not set. Get the probe, build it statically, and name it:\n\
             RUSTFLAGS='-C target-feature=+crt-static' cargo install v6-probe --target HOST\n\
             V6_PROBE=~/.cargo/bin/v6-probe cargo test"
        );
        return ExitCode::from(2);
    };
    let probe = PathBuf::from(probe);
    v6_runtime_conformance::main(Processes { probe })
}
