//! The suite's own program, started once more: a caller of the runtime that can be killed.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use v6_runtime::{InputStream, Mount, MountSource, Owner, RunSpec, Runtime};

use crate::bench::{Bench, LOOK_AGAIN, output, path, run_id};
use crate::case::{Failure, Stop};
use crate::harness::Harness;

/// Names the child's task, in JSON.
const VARIABLE: &str = "V6_CONFORMANCE_CHILD";
/// What the child says when its task is done; it then stays, to be killed.
const DONE: &str = "v6-conformance-child: ";
/// For its task; less than a case may take.
const PATIENCE: Duration = Duration::from_secs(150);

/// What a child does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Starts a run of the probe with these words and waits until it runs.
    Run {
        id: String,
        words: String,
        /// From now, in milliseconds.
        deadline: Option<u64>,
        /// Whether it has the output `result`, the file `/out/result`.
        collects: bool,
    },
    /// Starts a run that verifies a streamed file, and tells by how many bytes giving it made this
    /// process larger at most.
    Give { id: String, size: usize },
    /// Starts a run whose input comes in part, and waits for its record and for that part to be
    /// read.
    HalfMake { id: String },
    /// Cancels a run.
    Cancel { id: String },
    /// Takes the owner's lease.
    Lease,
    /// Collects the output `result`, and tells by how many bytes that made it larger at most.
    Collect { id: String },
    /// Reads a log to its end, and tells the same and how many bytes it has.
    ReadLogs { id: String },
}

#[derive(Serialize, Deserialize)]
struct Order {
    owner: String,
    task: Task,
}

/// A child at work. Killed when it is dropped, at once and without notice.
pub(crate) struct Child {
    process: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The child ends when this is closed, should this process be killed itself.
    _stdin: Option<ChildStdin>,
}

impl Child {
    /// Starts it. The arguments are this program's own, so that it has the same harness.
    pub(crate) async fn start(owner: &Owner, task: Task) -> Result<Self, Failure> {
        let order = Order {
            owner: owner.to_string(),
            task,
        };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::from(format!(
                "the suite's program cannot be started again: {error}"
            ))
        };
        let order = serde_json::to_string(&order).map_err(|error| failed(&error))?;
        // Not by the program's path, which this user may not be able to reach.
        let mut process = Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, order)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&error))?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().ok_or("the child has no output")?;
        Ok(Self {
            process,
            lines: BufReader::new(stdout).lines(),
            _stdin: stdin,
        })
    }

    /// Waits until it has done its task, and returns what it says of it.
    pub(crate) async fn done(&mut self) -> Result<String, Failure> {
        let reading = async {
            while let Some(line) = self.lines.next_line().await.map_err(|e| e.to_string())? {
                if let Some(answer) = line.strip_prefix(DONE) {
                    return serde_json::from_str::<Result<String, String>>(answer)
                        .map_err(|error| error.to_string())?;
                }
            }
            Err("it ended without a word".to_owned())
        };
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("in another process: {error}").into()),
            Err(_) => Err("another process did not do its task in time".into()),
        }
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    pub(crate) async fn kill(mut self) -> Result<(), Failure> {
        let killed = self.process.kill().await;
        killed.map_err(|error| format!("the child cannot be killed: {error}").into())
    }
}

/// The process that the suite was started as: this one, or, in a child of it, its parent. For what
/// a harness has to find under the same name in both.
#[must_use]
pub fn suite_process() -> u32 {
    match std::env::var_os(VARIABLE) {
        Some(_) => std::os::unix::process::parent_id(),
        None => std::process::id(),
    }
}

/// Whether this process is such a child; if so, it does its task. A program that has a `main` of
/// its own calls this first, and ends if the answer is `true`.
pub fn act_as_child(harness: Arc<dyn Harness>) -> bool {
    let Ok(order) = std::env::var(VARIABLE) else {
        return false;
    };
    let done = tokio::runtime::Runtime::new()
        .map_err(|error| error.to_string())
        .and_then(|tokio| {
            let done = tokio.block_on(work(harness, &order));
            // What is at work in the background goes on until somebody kills this process.
            std::mem::forget(tokio);
            done
        });
    let answer = serde_json::to_string(&done).unwrap_or_default();
    let mut stdout = std::io::stdout();
    let told = writeln!(stdout, "{DONE}{answer}").and_then(|()| stdout.flush());
    if told.is_ok() {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    }
    true
}

async fn work(harness: Arc<dyn Harness>, order: &str) -> Result<String, String> {
    let order: Order = serde_json::from_str(order).map_err(|error| error.to_string())?;
    let owner = Owner::new(order.owner).map_err(|error| error.to_string())?;
    let did = async {
        let bench = Bench::of(harness, owner).await?;
        carry_out(&bench, order.task).await
    };
    did.await.map_err(|stop| match stop {
        Stop::Failed(failure) => failure.to_string(),
        other => format!("{other:?}"),
    })
}

async fn carry_out(bench: &Bench, task: Task) -> Result<String, Stop> {
    match task {
        Task::Run {
            id,
            words,
            deadline,
            collects,
        } => {
            let mut spec = bench.spec(&words).await?;
            if collects {
                spec = crate::cases::with_result(spec, 1 << 20)?;
            }
            if let Some(after) = deadline {
                let deadline = std::time::SystemTime::now() + Duration::from_millis(after);
                spec = spec.with_deadline(deadline);
            }
            bench.runtime.run(&run_id(&id), &spec).await?;
            bench.running(&run_id(&id)).await?;
        }
        Task::HalfMake { id } => {
            const ROOM: usize = 64;
            let (reader, mut writer) = tokio::io::duplex(ROOM);
            let spec = half_made(bench.spec("exit 1").await?, reader);
            let (runtime, id) = (bench.runtime.clone(), run_id(&id));
            let starting = {
                let id = id.clone();
                tokio::spawn(async move { runtime.run(&id, &spec).await })
            };
            bench.recorded(&id).await?;
            // Done once some of it was read: from here on the run is being given its input.
            let given = writer.write_all(&[0; ROOM + 1]).await;
            given.map_err(|error| format!("the input is not read: {error}"))?;
            if starting.is_finished() {
                return Err("run returned without its input".into());
            }
            // Dropped, it would tell that no more comes.
            std::mem::forget(writer);
        }
        Task::Cancel { id } => {
            let options = v6_runtime::CancelOptions::default();
            bench.runtime.cancel(&run_id(&id), options).await?;
        }
        Task::Lease => std::mem::forget(bench.runtime.acquire().await?),
        Task::Give { id, size } => {
            let stream = MountSource::Stream(crate::cases::patterned(size));
            let spec = bench.spec(&format!("verify /in/file {size}")).await?;
            let spec = spec.with_mount(Mount::new(stream, path("/in/file")));
            let mut growth = Growth::start()?;
            let id = run_id(&id);
            let mut call = bench.runtime.run(&id, &spec);
            let mut looks = tokio::time::interval(LOOK_AGAIN);
            loop {
                tokio::select! {
                    accepted = &mut call => {
                        accepted?;
                        break;
                    }
                    _ = looks.tick() => growth.look()?,
                }
            }
            // What this process was about to start ends with it.
            bench.running(&id).await?;
            return Ok(growth.bytes().to_string());
        }
        Task::Collect { id } => {
            let mut growth = Growth::start()?;
            let mut chunks = bench.runtime.collect(&run_id(&id), &output("result"));
            while let Some(chunk) = chunks.try_next().await? {
                growth.look()?;
                drop(chunk);
            }
            return Ok(growth.bytes().to_string());
        }
        Task::ReadLogs { id } => {
            let (mut growth, mut read) = (Growth::start()?, 0);
            let options = v6_runtime::LogOptions::default().with_follow(true);
            let mut chunks = bench.runtime.logs(&run_id(&id), options);
            while let Some(chunk) = chunks.try_next().await? {
                growth.look()?;
                read += chunk.bytes.len();
            }
            return Ok(format!("{} {read}", growth.bytes()));
        }
    }
    Ok(String::new())
}

/// A spec with an input of 1,000 bytes that this reader does not give.
pub(crate) fn half_made(spec: RunSpec, reader: tokio::io::DuplexStream) -> RunSpec {
    let stream = MountSource::Stream(InputStream::once(1000, reader));
    spec.with_mount(Mount::new(stream, path("/in/file")))
}

/// Whether this machine tells how large a process is.
pub(crate) fn can_measure() -> Result<(), Stop> {
    let told = anonymous_memory().map(drop);
    told.map_err(|failure| Stop::Environment(failure.to_string()))
}

/// How much larger this process has become at most.
struct Growth {
    before: u64,
    peak: u64,
    /// To look takes longer than what comes between two pieces of a log.
    next: Instant,
}

impl Growth {
    fn start() -> Result<Self, Failure> {
        let before = anonymous_memory()?;
        Ok(Self {
            before,
            peak: before,
            next: Instant::now(),
        })
    }

    /// Looks, the first time and then now and again.
    fn look(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if now >= self.next {
            self.peak = self.peak.max(anonymous_memory()?);
            self.next = now + LOOK_AGAIN;
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.peak - self.before
    }
}

/// Bytes of memory of this process that no file stands behind.
fn anonymous_memory() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    let kib: u64 = number
        .and_then(|number| number.parse().ok())
        .ok_or("/proc/self/status does not tell RssAnon")?;
    Ok(kib << 10)
}
