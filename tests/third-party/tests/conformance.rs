//! The suite on this runtime. V6_PROBE is the path of the program v6-probe.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use process_runtime::ProcessRuntime;
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, Result, Runtime};
use v6_runtime_conformance::Harness;

struct Processes {
    folder: PathBuf,
    probe: PathBuf,
}

#[async_trait::async_trait]
impl Harness for Processes {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let helper = env!("CARGO_BIN_EXE_process-runtime");
        let runtime = ProcessRuntime::new(&self.folder, owner, helper)?;
        Ok(Arc::new(
            runtime.with_image(self.probe_image(), &self.probe),
        ))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse("localhost/v6-probe:test").expect("a reference")
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let folder = self.folder.join(owner.as_str());
        let unreadable = |e| Error::new(ErrorKind::Unavailable, "no inventory").with_source(e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
            let run = entry.map_err(unreadable)?.path();
            let record = std::fs::read_to_string(run.join("state.json"));
            found.push(format!("{}: {}", run.display(), record.unwrap_or_default()));
        }
        for process in std::fs::read_dir("/proc").map_err(unreadable)?.flatten() {
            let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(&format!("{}/", folder.display())) {
                found.push(words);
            }
        }
        Ok(found)
    }

    fn outlives_us(&self) -> bool {
        true
    }
}

fn main() -> ExitCode {
    let Some(probe) = std::env::var_os("V6_PROBE") else {
        eprintln!("V6_PROBE is not set: it is the path of a static v6-probe");
        return ExitCode::from(2);
    };
    // The same in each process of a test run: the suite starts its own program again.
    let folder = PathBuf::from(concat!(env!("CARGO_TARGET_TMPDIR"), "/runs"));
    v6_runtime_conformance::main(Processes {
        folder,
        probe: probe.into(),
    })
}
