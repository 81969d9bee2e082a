//! The probe as a program of the in-memory runtime: the same words, the same reports.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;
use v6_runtime::memory::{Allocation, ExitStatus, Process, ProgramContext};

use crate::probe::{all_values, pattern};

/// As the real probe: a step could not be done.
const STEP_FAILED: u8 = 121;
/// As the real probe: a step was not understood.
const BAD_USAGE: u8 = 122;

/// What outlives a step.
#[derive(Default)]
struct State {
    _memory: Vec<Allocation>,
    _processes: Vec<Process>,
    /// With which code, and after how long, the request to end ends the program.
    ends: watch::Sender<Option<(u8, Duration)>>,
}

enum Stop {
    Failed(io::Error),
    Usage,
    Exit(ExitStatus),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Something that carries out some of the probe's steps in its own way.
#[async_trait]
pub trait Instead: Send + Sync {
    /// `None`: this step is left to the probe.
    async fn step(&self, ctx: &ProgramContext, step: &[&str]) -> Option<io::Result<()>>;
}

/// Leaves every step to the probe.
struct Nothing;

#[async_trait]
impl Instead for Nothing {
    async fn step(&self, _: &ProgramContext, _: &[&str]) -> Option<io::Result<()>> {
        None
    }
}

/// Carries out the steps that the arguments name.
pub async fn probe(ctx: ProgramContext) -> ExitStatus {
    probe_with(ctx, &Nothing).await
}

/// The same, but for the steps that something else carries out instead.
pub async fn probe_with(ctx: ProgramContext, instead: &dyn Instead) -> ExitStatus {
    let mut state = State::default();
    let mut ends = state.ends.subscribe();
    let asked_to_end = async {
        let how = ends.wait_for(Option::is_some).await.map(|how| *how);
        let Ok(Some((code, after))) = how else {
            return std::future::pending().await;
        };
        ctx.terminated().await;
        tokio::time::sleep(after).await;
        ExitStatus::Code(code)
    };
    tokio::select! {
        biased;
        status = steps(&ctx, &mut state, instead) => status,
        status = asked_to_end => status,
    }
}

async fn steps(ctx: &ProgramContext, state: &mut State, instead: &dyn Instead) -> ExitStatus {
    let words: Vec<String> = ctx.args().to_vec();
    for step in words.split(|word| word == "then") {
        let step: Vec<&str> = step.iter().map(String::as_str).collect();
        let (tolerant, step) = match step.as_slice() {
            ["try", rest @ ..] => (true, rest),
            all => (false, all),
        };
        let name = step.first().copied().unwrap_or("");
        let done = match instead.step(ctx, step).await {
            Some(done) => done.map_err(Stop::from),
            None => run(ctx, state, step).await,
        };
        match done {
            Ok(()) if tolerant => report(ctx, &json!({"step": "try", "of": name, "ok": true})),
            Ok(()) => {}
            Err(Stop::Exit(status)) => return status,
            Err(Stop::Failed(error)) if tolerant => {
                let report_of =
                    json!({"step": "try", "of": name, "ok": false, "error": error.to_string()});
                report(ctx, &report_of);
            }
            Err(Stop::Failed(error)) => {
                ctx.eprint(format!("probe: {name}: {error}\n"));
                return ExitStatus::Code(STEP_FAILED);
            }
            Err(Stop::Usage) => {
                ctx.eprint(format!("probe: {name}: not understood\n"));
                return ExitStatus::Code(BAD_USAGE);
            }
        }
    }
    ExitStatus::SUCCESS
}

fn report(ctx: &ProgramContext, value: &serde_json::Value) {
    ctx.print(format!("{value}\n"));
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, Stop> {
    word.parse().map_err(|_| Stop::Usage)
}

async fn run(ctx: &ProgramContext, state: &mut State, step: &[&str]) -> Result<(), Stop> {
    match *step {
        [] => return Err(Stop::Usage),
        ["exit", code] => return Err(Stop::Exit(ExitStatus::Code(number(code)?))),
        ["kill-self", signal] => return Err(Stop::Exit(ExitStatus::Signal(number(signal)?))),
        ["echo", ref words @ ..] => ctx.print(format!("{}\n", words.join(" "))),
        ["echo-err", ref words @ ..] => ctx.eprint(format!("{}\n", words.join(" "))),
        ["env", name] => {
            let value = ctx
                .var(name)
                .ok_or(io::ErrorKind::NotFound)
                .map_err(io::Error::from)?;
            ctx.print(format!("{value}\n"));
        }
        ["stdout", size] => print(ctx, number(size)?, false).await,
        ["stderr", size] => print(ctx, number(size)?, true).await,
        ["bytes", size] => ctx.print(all_values(number(size)?)),
        ["tick", count, pause] => {
            let pause = Duration::from_millis(number(pause)?);
            for at in 0..number::<u64>(count)? {
                ctx.print(format!("tick {at}\n"));
                tokio::time::sleep(pause).await;
            }
        }
        ["sleep", time] => tokio::time::sleep(Duration::from_millis(number(time)?)).await,
        ["trap-term", "ignore"] => ctx.trap_termination(),
        ["trap-term", "exit", code] => {
            ctx.trap_termination();
            state
                .ends
                .send_replace(Some((number(code)?, Duration::ZERO)));
        }
        ["write", file, size] => ctx.write(file, pattern(number(size)?))?,
        ["cat", "/dev/stdin"] => {}
        ["cat", file] => ctx.print(ctx.read(file)?),
        ["verify", file, size] => {
            if ctx.read(file)? != pattern(number(size)?) {
                return Err(io::Error::other("it has other bytes").into());
            }
        }
        ["symlink", target, path] => ctx.symlink(target, path)?,
        ["mkdir", path] => ctx.create_dir(path)?,
        ["mkfifo", path] => ctx.mkfifo(path)?,
        // As for a program without rights, and on a file system without links.
        ["mknod", _] => return Err(io::Error::from(io::ErrorKind::PermissionDenied).into()),
        ["link", ..] => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        ["sparse", file, size] => ctx.write(file, vec![0; number(size)?])?,
        ["remove", path] => ctx.remove(path)?,
        ["rename", from, to] => ctx.rename(from, to)?,
        ["allocate", mib] => {
            let bytes = number::<u64>(mib)? << 20;
            state._memory.push(ctx.allocate(bytes).await);
        }
        ["children", count, _] => {
            let mut error = None;
            let before = state._processes.len();
            for _ in 0..number::<u32>(count)? {
                match ctx.start_process() {
                    Ok(process) => state._processes.push(process),
                    Err(refused) => {
                        error = Some(refused.to_string());
                        break;
                    }
                }
            }
            let started = state._processes.len() - before;
            report(
                ctx,
                &json!({"step": "children", "started": started, "error": error}),
            );
        }
        ["identity"] => identity(ctx),
        ["processes"] => {
            let itself = json!({"pid": 1, "ppid": 0, "name": "probe"});
            report(ctx, &json!({"step": "processes", "processes": [itself]}));
        }
        ["resolve", host] => {
            let addresses = ctx.addresses(host)?;
            report(
                ctx,
                &json!({"step": "resolve", "host": host, "addresses": addresses}),
            );
        }
        ["connect", host, port, ref words @ ..] => connect(ctx, host, number(port)?, words).await?,
        ["exchange", host, port, size] => exchange(ctx, host, number(port)?, number(size)?).await?,
        _ => return Err(Stop::Usage),
    }
    Ok(())
}

fn identity(ctx: &ProgramContext) {
    let mount = |(point, writable): (String, bool)| {
        let options = [if writable { "rw" } else { "ro" }];
        json!({"point": point, "options": options, "type": "memory"})
    };
    let mounts: Vec<_> = ctx.mounts().into_iter().map(mount).collect();
    report(
        ctx,
        &json!({
            "step": "identity", "env": ctx.env(), "mounts": mounts,
            "network": {"interfaces": ["lo"], "routes": [], "ipv6_addresses": []},
        }),
    );
}

/// In pieces, so that others get their turn.
async fn print(ctx: &ProgramContext, size: usize, to_err: bool) {
    for piece in pattern(size).chunks(64 << 10) {
        if to_err {
            ctx.eprint(piece);
        } else {
            ctx.print(piece);
        }
        tokio::task::yield_now().await;
    }
}

async fn connect(ctx: &ProgramContext, host: &str, port: u16, words: &[&str]) -> io::Result<()> {
    let mut stream = BufReader::new(ctx.connect(host, port).await?);
    stream
        .write_all(format!("{}\n", words.join(" ")).as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    report(
        ctx,
        &json!({"step": "connect", "answer": answer.trim_end()}),
    );
    Ok(())
}

async fn exchange(ctx: &ProgramContext, host: &str, port: u16, size: usize) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(ctx.connect(host, port).await?);
    let sent = pattern(size);
    let sending = async {
        to.write_all(&sent).await?;
        to.shutdown().await
    };
    let mut back = Vec::with_capacity(size);
    let (sent_all, read) = tokio::join!(sending, from.read_to_end(&mut back));
    sent_all?;
    read?;
    if back == sent {
        Ok(())
    } else {
        Err(io::Error::other("other bytes came back"))
    }
}
