//! Mode `init`: the first process of a container.
//!
//! One thread and one epoll instance for signals, the deadline and the listeners.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use std::path::Path;

use crate::args::Init;
use crate::claim::{Cause, Claim, ClaimFile, Verdict};
use crate::memory;
use crate::processes;
use crate::proxy::{FIRST_TOKEN, Proxy, Source, Target};
use crate::sys::{self, End, Events, Poll};

const SIGNALS: u64 = 0;
const DEADLINE: u64 = 1;
const GRACE: u64 = 2;
/// Signals or ended children dealt with before others have their turn, so that a flood of
/// them does not hold up the deadline.
const TURNS: usize = 64;
const READ: u32 = libc::EPOLLIN as u32;

/// Runs the command to its end and returns the exit code.
pub fn run(options: &Init) -> i32 {
    for (pipe, standard) in [(&options.stdout, 1), (&options.stderr, 2)] {
        let Some(pipe) = pipe else { continue };
        if let Err(error) = sys::print_into(pipe, standard) {
            eprintln!("v6-helper: cannot print into {pipe:?}: {error}");
            return 125;
        }
    }
    let file = match options.claim.as_deref().map(ClaimFile::open).transpose() {
        Ok(file) => file,
        Err(error) => {
            eprintln!("v6-helper: cannot open the claim file: {error}");
            return 125;
        }
    };
    let mut deadline = false;
    let mut terminated = false;
    let kills = memory::kills();
    let verdict = supervise(options, &mut deadline, &mut terminated)
        .unwrap_or_else(|(cause, error)| Verdict::NotStarted(cause, error));
    if let Verdict::NotStarted(_, error) = &verdict {
        eprintln!("v6-helper: {error}");
    }
    let killed = matches!(verdict, Verdict::Ended(End::Signaled(libc::SIGKILL)));
    let claim = Claim {
        verdict,
        deadline,
        terminated,
        out_of_memory: killed && kills.is_some() && memory::kills() > kills,
    };
    if let Some(Err(error)) = file.map(|file| file.write(&claim)) {
        eprintln!("v6-helper: cannot write the claim: {error}");
    }
    claim.exit_code()
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> (Cause, String) {
    move |error| (Cause::Other, format!("{what}: {error}"))
}

fn supervise(
    options: &Init,
    deadline_hit: &mut bool,
    terminated: &mut bool,
) -> Result<Verdict, (Cause, String)> {
    sys::forbid_tracing().map_err(failed("cannot forbid tracing"))?;
    if !processes::is_first() {
        sys::become_subreaper().map_err(failed("cannot become a subreaper"))?;
    }
    let signals = sys::take_signals().map_err(failed("cannot take signals"))?;
    let env = options
        .env_file
        .as_deref()
        .map_or(Ok(Vec::new()), processes::read_env_file);
    let env = env.map_err(|error| (Cause::Other, error))?;
    let words = processes::words(&options.command).map_err(|error| (Cause::Other, error))?;

    let poll = Poll::new().map_err(failed("cannot make an epoll instance"))?;
    let watch = |fd: &OwnedFd, token| {
        poll.change(fd, token, 0, READ)
            .map_err(failed("cannot watch"))
    };
    watch(&signals, SIGNALS)?;
    let listeners = options.listen.iter().map(|wanted| {
        let listener = TcpListener::bind(wanted.address).and_then(Source::tcp);
        let listener = listener.map_err(|error| {
            let told = format!("cannot listen on {}: {error}", wanted.address);
            (Cause::Other, told)
        })?;
        Ok((listener, Target::Socket(wanted.socket.clone())))
    });
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let mut proxy = Proxy::new(listeners, options.connections, options.wait, &poll);

    let deadline = sys::timer(true).map_err(failed("cannot make a timer"))?;
    let grace = sys::timer(false).map_err(failed("cannot make a timer"))?;
    if let Some(moment) = options.deadline {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if moment <= now {
            *deadline_hit = true;
            return Err((
                Cause::Other,
                "the deadline was over before the start".into(),
            ));
        }
        sys::set_timer(&deadline, moment, true).map_err(failed("cannot set a timer"))?;
        watch(&deadline, DEADLINE)?;
        watch(&grace, GRACE)?;
    }

    for limit in &options.limits {
        sys::lower_limit(limit.resource, limit.most).map_err(failed("cannot lower a limit"))?;
    }
    // Signals are taken already: who makes the file and then sends one is surely heard.
    if options
        .stop_file
        .as_deref()
        .is_some_and(|file| Path::new(file).exists())
    {
        *terminated = true;
        let told = "told to end before the start".to_owned();
        return Err((Cause::Other, told));
    }
    if let Some(folder) = options.workdir.as_deref() {
        std::env::set_current_dir(Path::new(folder)).map_err(|error| {
            let told = format!("cannot enter the working folder {folder:?}: {error}");
            (Cause::Other, told)
        })?;
    }
    let main = processes::start(&words, env, options.clear_env)?;
    sys::raise_descriptor_limit();

    let mut events = Events::new();
    let mut unreaped = false;
    loop {
        let now = Instant::now();
        let time = match proxy.next_moment() {
            _ if unreaped => Some(Duration::ZERO),
            next => next.map(|next| next.saturating_duration_since(now)),
        };
        if poll.wait(&mut events, time).is_err() {
            // The kernel gives no reason to expect this; the command must not outlive it.
            processes::signal_all(libc::SIGKILL);
        }
        let now = Instant::now();
        for (token, _) in events.iter() {
            match token {
                SIGNALS => unreaped |= pass_on_signals(&signals, main, terminated),
                DEADLINE if sys::expired(&deadline) => {
                    *deadline_hit = true;
                    processes::signal_all(libc::SIGTERM);
                    set_grace(&grace, options.grace);
                }
                GRACE if sys::expired(&grace) => {
                    processes::signal_all(libc::SIGKILL);
                    // Again, in case that something was starting just then.
                    set_grace(&grace, Duration::from_secs(1));
                }
                token if token >= FIRST_TOKEN => proxy.on_event(&poll, token, now),
                _ => {}
            }
        }
        if unreaped {
            match reap(main) {
                Reaped::Main(end) => return Ok(Verdict::Ended(end)),
                Reaped::All => unreaped = false,
                Reaped::Some => {}
            }
        }
        proxy.tend(&poll, now);
    }
}

fn set_grace(timer: &OwnedFd, time: Duration) {
    if sys::set_timer(timer, time, false).is_err() {
        processes::signal_all(libc::SIGKILL);
    }
}

/// Passes pending signals on to the command. Returns whether children may have ended.
fn pass_on_signals(signals: &OwnedFd, main: i32, terminated: &mut bool) -> bool {
    let mut ended = false;
    for _ in 0..TURNS {
        let Ok(Some(signal)) = sys::next_signal(signals) else {
            break;
        };
        match signal.number {
            libc::SIGCHLD => ended = true,
            // Of this process' own making, or about a terminal or descriptors of its own.
            libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU | libc::SIGURG | libc::SIGIO => {}
            number => {
                let outside = !processes::is_first() || signal.sender == 0;
                if outside && matches!(number, libc::SIGTERM | libc::SIGINT) {
                    *terminated = true;
                }
                sys::kill(main, number);
            }
        }
    }
    ended
}

enum Reaped {
    /// The command itself, which ended like this.
    Main(End),
    /// Nobody else has ended.
    All,
    /// There may be more.
    Some,
}

fn reap(main: i32) -> Reaped {
    for _ in 0..TURNS {
        let Some(pid) = sys::ended_child() else {
            return Reaped::All;
        };
        if pid == main && !processes::is_first() {
            // PID 1 takes all others with it when it ends. Here they are ended while the
            // command is not yet reaped, so that its number cannot be another's.
            sys::kill(-main, libc::SIGKILL);
            processes::signal_all(libc::SIGKILL);
        }
        let end = sys::reap(pid);
        if let Some(end) = end
            && pid == main
        {
            return Reaped::Main(end);
        }
    }
    Reaped::Some
}
