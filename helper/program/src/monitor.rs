//! Mode `monitor`: holds one run on a host, and outlives whoever started it.
//!
//! It makes the run's name spaces, takes what the run prints, keeps its deadline, ends it when it is
//! told to, and writes down how it ended. It listens on nothing: the folder's file `stop` tells it to
//! end the run, and a byte in the pipe `bell` to look there. The lock on the folder, which it got as
//! its standard input, is free as soon as it and its run are gone.
//!
//! As a job of a batch system it is started by that, maybe on another host and more than once. There
//! it has no lock: the first begins the run, and whether it is alive, the batch system knows. A pipe
//! does not cross hosts either: it looks whether it is to end each second, and when it gets SIGUSR1.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup;
use crate::guard::{self, Guard, Program};
use crate::log_file::LogFile;
use crate::monitor_args::{Monitor, TunnelArgs};
use crate::processes;
use crate::proxy::{FIRST_TOKEN, Proxy, Source, Target};
use crate::run_folder::{self as folder, Cause, Phase, State, Stop, Verdict, now};
use crate::sys::{self, End, Events, Poll};
use crate::tunnel::{Tunnel, Way};

const SIGNALS: u64 = 0;
const BELL: u64 = 1;
const DEADLINE: u64 = 2;
const KILL: u64 = 3;
const WORDS: u64 = 4;
const STDOUT: u64 = 5;
const STDERR: u64 = 6;
const READ: u32 = libc::EPOLLIN as u32;
/// The most that is kept of what the command itself says.
const WORDS_BYTES: u64 = 64 << 10;
/// Chunks taken from a stream before others have their turn.
const TURNS: usize = 8;
/// How often, and after what pause, it is tried to write down how the run ended.
const RECORD_TRIES: u32 = 600;
const RECORD_PAUSE: Duration = Duration::from_secs(1);

/// As for `init`: connections at once for each grant, and how long each waits.
const CONNECTIONS: usize = 256;
const WAIT: Duration = Duration::from_secs(600);
/// How often a job looks whether it is to end.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Starts a monitor in a session of its own. Returns when the run has been started, or has been
/// found not to be. As a job, it stays, and returns when the run is over.
pub fn run(options: &Monitor) -> i32 {
    let held = if options.job.is_some() {
        hold(options, None)
    } else {
        match detach() {
            Ok(Side::Starter(code)) => return code,
            Ok(Side::Monitor(starter)) => hold(options, Some(starter)),
            Err(error) => Err(format!("cannot leave the starter: {error}")),
        }
    };
    held.unwrap_or_else(|error| {
        eprintln!("v6-helper: {error}");
        125
    })
}

enum Side {
    /// In the process that was started, once the monitor has said a byte or has ended.
    Starter(i32),
    Monitor(Starter),
}

/// Who has started this process, and waits for a byte.
struct Starter {
    lock: OwnedFd,
    tell: File,
}

impl Starter {
    fn tell(starter: &mut Option<Self>) -> io::Result<()> {
        starter
            .as_mut()
            .map_or(Ok(()), |it| it.tell.write_all(b"!"))
    }
}

fn detach() -> io::Result<Side> {
    let lock = sys::standard_input()?;
    let (told, tell) = sys::pipe()?;
    if sys::fork()? != 0 {
        drop((tell, lock));
        let mut byte = [0];
        let told = File::from(told).read(&mut byte)? == 1;
        return Ok(Side::Starter(if told { 0 } else { 125 }));
    }
    sys::new_session()?;
    let tell = File::from(tell);
    Ok(Side::Monitor(Starter { lock, tell }))
}

/// What the monitor has open.
struct Held {
    state: State,
    guard: Guard,
    log: LogFile,
    words: LogWords,
    bell: File,
    stdout: File,
    stderr: File,
    deadline: OwnedFd,
    kill: OwnedFd,
    stop: Option<Stop>,
    poll: Poll,
    proxy: Proxy,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Returns the exit code.
fn hold(options: &Monitor, mut starter: Option<Starter>) -> Result<i32, String> {
    std::env::set_current_dir(Path::new(&options.folder))
        .map_err(failed("cannot enter the run's folder"))?;
    let program = program(options)?;
    if let Some(attempt) = &options.job {
        folder::begin(attempt)?;
    }
    let signals = sys::take_signals().map_err(failed("cannot take signals"))?;
    let mut state = State {
        boot: folder::boot().map_err(failed("cannot tell this boot"))?,
        ..State::default()
    };
    let mut stop = Stop::read().map_err(failed("cannot read the decision"))?;
    if stop.is_none() && options.deadline.is_some_and(|deadline| deadline <= now()) {
        stop = Some(decide(Cause::Deadline, now())?);
    }
    if let Some(stop) = stop {
        state.finished = Some(now());
        return end(&state, &Verdict::NotBegun, stop.cause, starter);
    }
    let pipes = ["bell", "box/stdout", "box/stderr"].map(open_pipe);
    let [bell, stdout, stderr] = pipes;
    let (bell, stdout, stderr) = (bell?, stdout?, stderr?);
    let poll = Poll::new().map_err(failed("cannot make an epoll instance"))?;
    let ways = options.tunnel.as_ref().map_or(Ok(Vec::new()), tunnels);
    // Before anything else can ask for a connection.
    let proxy = Proxy::new(ways?, CONNECTIONS, WAIT, &poll);
    let log = LogFile::create("log", options.log_bytes).map_err(failed("cannot make the log"))?;
    let (words, words_end) = sys::pipe().map_err(failed("cannot make a pipe"))?;
    sys::never_wait(&words).map_err(failed("cannot use a pipe"))?;
    state
        .write(&Phase::Starting)
        .map_err(failed("cannot write the state"))?;
    state.started = Some(now());
    let guard = match guard::start(options, &program, &words_end) {
        Ok(guard) => guard,
        Err(error) => {
            state.started = None;
            state.finished = Some(now());
            let verdict = Verdict::Failed(error);
            let cause = decide(Cause::End, now())?.cause;
            return end(&state, &verdict, cause, starter);
        }
    };
    drop(words_end);
    state.process = processes::start_time(guard.pid).map(|start| (guard.pid, start));
    let timer = || sys::timer(true).map_err(failed("cannot make a timer"));
    let held = Held {
        state,
        guard,
        log,
        words: LogWords::create(words)?,
        bell,
        stdout,
        stderr,
        deadline: timer()?,
        kill: timer()?,
        stop: None,
        poll,
        proxy,
    };
    let written = held.state.write(&Phase::Running);
    written.map_err(failed("cannot write the state"))?;
    Starter::tell(&mut starter).map_err(failed("the starter is gone"))?;
    let lock = starter.map(|starter| starter.lock);
    // From here on nobody reads what this process says.
    sys::silence().map_err(failed("cannot open /dev/null"))?;
    let done = held.keep(options, &signals);
    drop(lock);
    done
}

/// A run that has never begun is over.
fn end(
    state: &State,
    verdict: &Verdict,
    cause: Cause,
    mut starter: Option<Starter>,
) -> Result<i32, String> {
    let written = state.write(&Phase::Ended(verdict, cause));
    written.map_err(failed("cannot write the state"))?;
    let _ = Starter::tell(&mut starter);
    Ok(verdict.exit_code())
}

fn program(options: &Monitor) -> Result<Program, String> {
    let environment = options.env_file.as_deref().map(processes::read_env_file);
    Ok(Program {
        words: processes::words(&options.command)?,
        environment: environment.transpose()?,
    })
}

impl Held {
    fn keep(mut self, options: &Monitor, signals: &OwnedFd) -> Result<i32, String> {
        let watched = [
            (signals.as_fd(), SIGNALS),
            (self.bell.as_fd(), BELL),
            (self.deadline.as_fd(), DEADLINE),
            (self.kill.as_fd(), KILL),
            (self.words.pipe.as_fd(), WORDS),
            (self.stdout.as_fd(), STDOUT),
            (self.stderr.as_fd(), STDERR),
        ];
        for (fd, token) in watched {
            let watched = self.poll.change(&fd.as_raw_fd(), token, 0, READ);
            watched.map_err(failed("cannot watch"))?;
        }
        if let Some(deadline) = options.deadline {
            let set = sys::set_timer(&self.deadline, deadline, true);
            set.map_err(failed("cannot set a timer"))?;
        }
        // What was decided before there was a bell.
        self.look();
        let pause = options.job.as_ref().map(|_| LOOK_PAUSE);
        let mut looked = Instant::now();
        let mut events = Events::new();
        let end = loop {
            let next = self.proxy.next_moment();
            let next = next.map(|next| next.saturating_duration_since(Instant::now()));
            self.poll
                .wait(&mut events, pause.into_iter().chain(next).min())
                .map_err(failed("cannot wait"))?;
            if pause.is_some_and(|pause| looked.elapsed() >= pause) {
                self.look();
                looked = Instant::now();
            }
            let mut ended = None;
            for (token, _) in events.iter() {
                match token {
                    SIGNALS => ended = self.take_signals(signals, options.grace),
                    BELL => {
                        drain(&mut self.bell);
                        self.look();
                    }
                    DEADLINE if sys::expired(&self.deadline) => {
                        self.decide(Cause::Deadline, options.grace);
                    }
                    KILL if sys::expired(&self.kill) => {
                        sys::kill(self.guard.pid, libc::SIGKILL);
                    }
                    WORDS => {
                        if matches!(self.words.take(), Words::Ended) {
                            let _ = self.poll.change(&self.words.pipe, WORDS, READ, 0);
                        }
                    }
                    STDOUT => take(&mut self.log, 1, &mut self.stdout, TURNS),
                    STDERR => take(&mut self.log, 2, &mut self.stderr, TURNS),
                    token if token >= FIRST_TOKEN => {
                        self.proxy.on_event(&self.poll, token, Instant::now());
                    }
                    _ => {}
                }
            }
            self.proxy.tend(&self.poll, Instant::now());
            if let Some(end) = ended {
                break end;
            }
        };
        self.finish(options, end)
    }

    /// All processes of the run are gone: what they have left in the pipes is all there is.
    fn finish(mut self, options: &Monitor, end: End) -> Result<i32, String> {
        take(&mut self.log, 1, &mut self.stdout, usize::MAX);
        take(&mut self.log, 2, &mut self.stderr, usize::MAX);
        while matches!(self.words.take(), Words::Some) {}
        self.state.finished = Some(now());
        self.state.dropped = self.log.dropped;
        if let Some(group) = &options.cgroup {
            self.state.out_of_memory = cgroup::ran_out_of_memory(group);
            // Whoever made it removes it if this fails.
            let _ = fs::remove_dir(group);
        }
        let verdict = Verdict::Ended(end);
        let mut tries = 0;
        loop {
            let written = decide(Cause::End, now()).and_then(|stop| {
                let ended = self.state.write(&Phase::Ended(&verdict, stop.cause));
                ended.map_err(failed("cannot write the state"))?;
                Ok(verdict.exit_code())
            });
            tries += 1;
            match written {
                // Somebody may make room on a full disk.
                Err(_) if tries < RECORD_TRIES => std::thread::sleep(RECORD_PAUSE),
                done => return done,
            }
        }
    }

    /// Returns how the guard ended, if it has.
    fn take_signals(&mut self, signals: &OwnedFd, grace: Duration) -> Option<End> {
        let mut ended = None;
        while let Ok(Some(signal)) = sys::next_signal(signals) {
            match signal.number {
                libc::SIGCHLD => ended = ended.or_else(|| sys::reap(self.guard.pid)),
                libc::SIGTERM | libc::SIGINT => self.decide(Cause::Signal, grace),
                libc::SIGUSR1 => self.look(),
                _ => {}
            }
        }
        ended
    }

    fn decide(&mut self, cause: Cause, grace: Duration) {
        match decide(cause, now().saturating_add(grace)) {
            Ok(stop) => self.follow(stop),
            // A disk that takes nothing: the run must end nevertheless.
            Err(_) => self.follow(Stop {
                cause,
                kill_at: now().saturating_add(grace),
            }),
        }
    }

    fn look(&mut self) {
        if let Ok(Some(stop)) = Stop::read() {
            self.follow(stop);
        }
    }

    /// Asks the run to end, the first time, and kills it when it is time.
    fn follow(&mut self, stop: Stop) {
        if stop.cause == Cause::End {
            return;
        }
        let first = self.stop.is_none();
        let sooner = self.stop.is_none_or(|known| stop.kill_at < known.kill_at);
        if sooner {
            self.stop = Some(stop);
            if stop.kill_at <= now() || sys::set_timer(&self.kill, stop.kill_at, true).is_err() {
                sys::kill(self.guard.pid, libc::SIGKILL);
            }
        }
        if first {
            // In this order: what has not begun sees the file, what has gets the signal.
            let _ = folder::stop_inside();
            processes::signal_inside(self.guard.pid, libc::SIGTERM);
            let _ = self.state.write(&Phase::Stopping(stop.cause));
        }
    }
}

/// A listener for each grant, where the run looks for it.
fn tunnels(wanted: &TunnelArgs) -> Result<Vec<(Source, Target)>, String> {
    let key = fs::read("key").map_err(failed("cannot read the key"))?;
    let way = Way::new(
        wanted.address.clone().into(),
        wanted.run.clone().into(),
        key,
    );
    let listen = |grant| {
        let name = format!("box/egress/{grant}.sock");
        let listener = UnixListener::bind(&name).and_then(Source::unix);
        let listener = listener.map_err(|error| format!("cannot listen on {name}: {error}"))?;
        let way = way.clone();
        Ok((listener, Target::Tunnel(Tunnel { way, grant })))
    };
    (0..wanted.grants).map(listen).collect()
}

fn decide(cause: Cause, kill_at: Duration) -> Result<Stop, String> {
    Stop::decide(cause, kill_at).map_err(failed("cannot write the decision"))
}

fn take(log: &mut LogFile, stream: u8, from: &mut File, turns: usize) {
    for _ in 0..turns {
        if !log.take(stream, from) {
            break;
        }
    }
}

fn drain(pipe: &mut File) {
    let mut buffer = [0; 64];
    while pipe.read(&mut buffer).is_ok_and(|read| read > 0) {}
}

/// A named pipe in the folder, open at both ends: it neither ends nor waits.
fn open_pipe(name: &str) -> Result<File, String> {
    let failed = |error: io::Error| format!("cannot make the pipe {name}: {error}");
    match fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    sys::make_pipe(name).map_err(failed)
}

/// What the command itself says, as far as there is room.
struct LogWords {
    pipe: File,
    file: File,
    room: u64,
}

impl LogWords {
    fn create(pipe: OwnedFd) -> Result<Self, String> {
        Ok(Self {
            pipe: File::from(pipe),
            file: folder::create("engine.log").map_err(failed("cannot make engine.log"))?,
            room: WORDS_BYTES,
        })
    }

    fn take(&mut self) -> Words {
        let mut buffer = [0; 4096];
        match self.pipe.read(&mut buffer) {
            Ok(0) => Words::Ended,
            Ok(read) => {
                let kept = usize::try_from(self.room).map_or(read, |room| read.min(room));
                self.room -= kept as u64;
                // Words for people; a full disk has room for none.
                let _ = self.file.write_all(&buffer[..kept]);
                Words::Some
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Words::Some,
            Err(_) => Words::None,
        }
    }
}

/// What was in the pipe.
enum Words {
    Some,
    None,
    /// Nobody can write to it any more.
    Ended,
}
