//! What the suite cannot do to a runtime that it does not know: its supervisor is killed, and
//! somebody else's folder is where a run's would be. `V6_PROBE` is the path of v6-probe.

use std::path::{Path, PathBuf};
use std::time::Duration;

use process_runtime::ProcessRuntime;
use rustix::process::{Pid, Signal, kill_process};
use v6_runtime::{
    CancelOptions, CleanedUp, CleanupOptions, ErrorKind, ImageRef, Outcome, Owner, PullPolicy,
    RunId, RunSpec, Runtime, RuntimeExt,
};

type Tested = Result<(), Box<dyn std::error::Error>>;

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> std::io::Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn sleeper(folder: &Folder) -> Result<(ProcessRuntime, RunSpec), Box<dyn std::error::Error>> {
    let probe = std::env::var_os("V6_PROBE").ok_or("V6_PROBE is not set")?;
    let name = ImageRef::parse("localhost/v6-probe:test")?;
    let helper = env!("CARGO_BIN_EXE_process-runtime");
    let runtime = ProcessRuntime::new(&folder.0, &Owner::new("tester")?, helper)?;
    let runtime = runtime.with_image(name.clone(), probe);
    let image = runtime.resolve(&name, PullPolicy::Never).await?;
    let spec = RunSpec::new(image).with_args("echo ready then sleep 60000".split(' '));
    Ok((runtime, spec))
}

/// Processes that name this folder, with their arguments.
fn processes(folder: &Folder) -> Vec<(Pid, String)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        words.contains(folder.0.to_str()?).then_some((pid, words))
    })
    .collect()
}

#[tokio::test]
async fn a_killed_supervisor_is_the_end_of_its_run() -> Tested {
    let folder = Folder::new("killed")?;
    let (runtime, spec) = sleeper(&folder).await?;
    let id = RunId::new("watched")?;
    runtime.run(&id, &spec).await?;
    let follow = v6_runtime::LogOptions::default().with_limit_bytes(6);
    let mut log = runtime.logs(&id, follow.with_follow(true));
    let first = futures_util::TryStreamExt::try_next(&mut log).await?;
    assert_eq!(first.ok_or("no log")?.bytes, "ready\n");

    let supervisor = processes(&folder)
        .into_iter()
        .find(|(_, words)| words.contains(" supervise "));
    kill_process(supervisor.ok_or("no supervisor")?.0, Signal::KILL)?;

    let ended = runtime.wait(&id).await?;
    assert!(
        matches!(ended.outcome(), Some(Outcome::Lost(_))),
        "{ended:?}"
    );
    let removed = runtime.cleanup(&id, CleanupOptions::default()).await?;
    assert_eq!(removed, CleanedUp::Removed);
    assert_eq!(processes(&folder), []);
    Ok(())
}

#[tokio::test]
async fn a_strangers_folder_is_spared() -> Tested {
    let folder = Folder::new("taken")?;
    let (runtime, spec) = sleeper(&folder).await?;
    let id = RunId::new("taken")?;
    let theirs = folder.0.join("tester/taken");
    std::fs::create_dir(&theirs)?;
    std::fs::write(theirs.join("letter"), "dear")?;

    let taken = runtime.run(&id, &spec).await.err().ok_or("it was run")?;
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    let unknown = runtime.status(&id).await.err().ok_or("it has a status")?;
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let forced = CleanupOptions::default().with_force(true);
    assert_eq!(runtime.cleanup(&id, forced).await?, CleanedUp::Absent);
    assert_eq!(std::fs::read_to_string(theirs.join("letter"))?, "dear");
    Ok(())
}

/// As many processes would: whoever comes second may look just when the first takes away what it
/// looks at.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_can_be_removed_by_many_at_once() -> Tested {
    const ROUNDS: usize = 40;
    let folder = Folder::new("many")?;
    let mut runtimes = Vec::new();
    for _ in 0..4 {
        runtimes.push(sleeper(&folder).await?);
    }
    for round in 0..ROUNDS {
        let id = RunId::new(format!("many{round}"))?;
        let (first, spec) = &runtimes[0];
        first.run(&id, spec).await?;
        let forced = CleanupOptions::default().with_force(true);
        let (id, forced) = (&id, &forced);
        let removals = runtimes.iter().map(|(runtime, _)| async move {
            tokio::try_join!(runtime.cleanup(id, forced.clone()), async {
                // Until it is gone.
                loop {
                    let asked = match runtime.cancel(id, CancelOptions::default()).await {
                        Ok(_) => runtime.status(id).await.map(drop),
                        Err(error) => Err(error),
                    };
                    match asked {
                        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                        asked => asked?,
                    }
                }
            })
        });
        futures_util::future::try_join_all(removals).await?;
        // A supervisor gives up the run just before it ends itself.
        let ending = async {
            while !processes(&folder).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ending).await?;
    }
    Ok(())
}
