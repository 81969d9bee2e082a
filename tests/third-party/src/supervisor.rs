//! The process that sees a run through: it outlives whoever called `run`, keeps the deadline,
//! carries out a cancel, and stores what came of the run.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::process::setsid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use v6_runtime::{Outcome, Pending, RunPhase, StartFailure, StartFailureCause, StopCause};

use crate::inside::{Report, UNSHARE};
use crate::record::{Folder, State, later};

/// More than `unshare` says when it is refused.
const WORDS: u64 = 1000;

/// Sees the run in this folder through. The folder itself, locked, is the standard input: no
/// other process can be at work on the run as long as this one lives.
pub async fn supervise(path: &Path) -> io::Result<()> {
    let handle = io::stdin().as_fd().try_clone_to_owned()?;
    let folder = Folder::of(path, handle.into());
    let state = folder.state()?;
    let mut run = Run {
        folder,
        state,
        stop: None,
    };
    // From here on, whatever goes wrong is the end of the run.
    let outcome = match run.carry_out().await {
        Ok(outcome) => outcome,
        Err(error) if run.state.started.is_some() => {
            Outcome::Evicted(format!("its supervisor failed: {error}"))
        }
        Err(error) => {
            let failure = StartFailure::new(StartFailureCause::Engine, error.to_string());
            Outcome::FailedToStart(failure)
        }
    };
    run.state.finished = Some(SystemTime::now());
    run.state.phase = RunPhase::Finished(outcome);
    run.folder.store(&run.state)
}

struct Run {
    folder: Folder,
    state: State,
    stop: Option<Stop>,
}

/// Why the run is being ended, and when by force.
#[derive(Clone, Copy)]
struct Stop {
    cause: StopCause,
    kill: SystemTime,
}

impl Run {
    async fn carry_out(&mut self) -> io::Result<Outcome> {
        // No signal to the caller's terminal or group is meant for us.
        setsid()?;
        self.enter(RunPhase::Pending(Pending::Starting))?;
        let order = self.folder.take_order()?;
        // Before the first look: no wish is overheard.
        let mut bell = self.folder.listen()?;
        self.look(SystemTime::now())?;
        if let Some(stop) = self.stop {
            return Ok(stop.outcome());
        }
        let (ours, theirs) = UnixStream::pair()?;
        let mut first = self.first_process(theirs)?;
        let logs = [
            self.keep(first.stdout.take(), "stdout")?,
            self.keep(first.stderr.take(), "stderr")?,
        ];
        let (reports, mut requests) = ours.into_split();
        let mut reports = BufReader::new(reports).lines();
        // If this fails it has ended already, which the reports tell by being at their end.
        let _ = requests.write_all(&order).await;
        let mut requests = Some(requests);
        let mut ended = None;
        loop {
            tokio::select! {
                biased;
                // One that was killed may leave an error instead of an end.
                line = reports.next_line() => match line.ok().flatten().map(report) {
                    Some(Ok(Report::Started)) => {
                        self.state.started = Some(SystemTime::now());
                        self.enter(RunPhase::Running)?;
                    }
                    Some(Ok(Report::Ended(outcome))) => {
                        ended = Some(outcome);
                        break;
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => break,
                },
                rung = bell.read_u8() => drop(rung?),
                () = tokio::time::sleep(self.rest()), if requests.is_some() => {}
            }
            let now = SystemTime::now();
            if self.look(now)?
                && let Some(requests) = &mut requests
            {
                let _ = requests.write_all(b"t").await;
            }
            if self.stop.is_some_and(|stop| stop.kill <= now) {
                // Ends the run's first process, and the kernel all others.
                requests = None;
            }
        }
        drop(requests);
        first.wait().await?;
        for log in logs {
            log.await??;
        }
        Ok(match (self.stop, ended) {
            (Some(stop), _) => stop.outcome(),
            (None, Some(outcome)) => outcome,
            (None, None) if self.state.started.is_some() => {
                Outcome::Evicted("its first process was killed".into())
            }
            (None, None) => {
                let mut words = String::new();
                let log = tokio::fs::File::from_std(self.folder.read("stderr")?);
                log.take(WORDS).read_to_string(&mut words).await?;
                let failure = StartFailure::new(StartFailureCause::NotIsolated, words.trim());
                Outcome::FailedToStart(failure)
            }
        })
    }

    /// Starts the run's first process, with its end of the socket as standard input.
    fn first_process(&self, socket: UnixStream) -> io::Result<Child> {
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Command::new("unshare")
            .args(UNSHARE)
            .arg(std::env::current_exe()?)
            .arg("inside")
            .arg(self.folder.path())
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    /// Keeps what comes out of a pipe. Whatever happens to the file, the pipe is read: a full one
    /// would stop the program.
    fn keep(
        &self,
        pipe: Option<impl AsyncRead + Unpin + Send + 'static>,
        name: &str,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let mut file = tokio::fs::File::from_std(self.folder.append(name)?);
        let mut pipe = pipe.ok_or_else(|| io::Error::other("a pipe is missing"))?;
        Ok(tokio::spawn(async move {
            if tokio::io::copy(&mut pipe, &mut file).await.is_err() {
                tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
            }
            file.flush().await
        }))
    }

    /// Looks whether the run is to end, and says whether that is new.
    fn look(&mut self, now: SystemTime) -> io::Result<bool> {
        let wish = self.folder.wished()?;
        if let Some(stop) = &mut self.stop {
            stop.kill = wish.map_or(stop.kill, |wish| wish.min(stop.kill));
            return Ok(false);
        }
        let late = self.state.deadline.is_some_and(|deadline| deadline <= now);
        self.stop = match wish {
            Some(kill) => Some(Stop {
                cause: StopCause::Cancel,
                kill,
            }),
            None if late => Some(Stop {
                cause: StopCause::Deadline,
                kill: later(now, self.state.grace),
            }),
            None => None,
        };
        let Some(stop) = self.stop else {
            return Ok(false);
        };
        self.enter(RunPhase::Stopping(stop.cause))?;
        Ok(true)
    }

    /// The phase never goes back, whatever comes first: a run can be stopped before it has begun.
    fn enter(&mut self, phase: RunPhase) -> io::Result<()> {
        if !matches!(self.state.phase, RunPhase::Stopping(_)) {
            self.state.phase = phase;
        }
        self.folder.store(&self.state)
    }

    /// How long nothing has to be done by the clock.
    fn rest(&self) -> Duration {
        let next = self.stop.map(|stop| stop.kill).or(self.state.deadline);
        next.map_or(Duration::MAX, |next| {
            next.duration_since(SystemTime::now()).unwrap_or_default()
        })
    }
}

fn report(line: String) -> serde_json::Result<Report> {
    serde_json::from_str(&line)
}

impl Stop {
    fn outcome(self) -> Outcome {
        match self.cause {
            StopCause::Deadline => Outcome::DeadlineExceeded,
            _ => Outcome::Cancelled,
        }
    }
}
