//! Listeners whose connections go elsewhere: from loopback addresses to unix sockets, inside a
//! container; from unix sockets into a tunnel, beside one.
//!
//! Whoever is at the other end may be away for a while; accepted connections wait for
//! it. Bytes pass through one shared buffer; a connection holds memory of its own only while
//! a side does not take what the other has sent, and then at most [`CHUNK`] each way.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::sys::{self, Poll};
use crate::tunnel::{Dial, Tunnel};

/// The tokens below this are not the proxy's.
pub const FIRST_TOKEN: u64 = 16;
const CONNECTION_TOKEN: u64 = 1 << 32;

const CHUNK: usize = 16 * 1024;
/// Reads from one connection, or connections accepted, before others have their turn.
const TURNS: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Between looks whether a tunnel is there.
const DIAL_PAUSE: Duration = Duration::from_millis(2);

const READ: u32 = libc::EPOLLIN as u32;
const WRITE: u32 = libc::EPOLLOUT as u32;

/// Where connections come from; it never waits.
pub enum Source {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Source {
    pub fn tcp(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    pub fn unix(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener))
    }

    fn accept(&self) -> io::Result<File> {
        let accepted: OwnedFd = match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                // Without it small answers could be late, but they would come.
                _ = stream.set_nodelay(true);
                stream.into()
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.into()
            }
        };
        Ok(accepted.into())
    }
}

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

/// Where they go.
pub enum Target {
    /// A unix socket, by its path.
    Socket(OsString),
    Tunnel(Tunnel),
}

struct Listener {
    source: Source,
    target: Target,
    open: usize,
    /// Accepting failed for want of memory or descriptors; not before this moment again.
    paused: Option<Instant>,
    interest: u32,
}

/// One way of a connection.
#[derive(Default)]
struct Way {
    /// Read from one side and not yet taken by the other.
    kept: Vec<u8>,
    /// The reading side has said that nothing more will come.
    ended: bool,
    /// The writing side has been told so.
    passed_on: bool,
}

enum Side {
    Reading,
    Writing,
}

impl Way {
    /// Copies what can be copied without waiting, up to a share that is fair to others; epoll
    /// reports again what is left. Errors say on which side they were.
    fn copy(
        &mut self,
        mut from: impl Read,
        mut to: impl Write,
        close: impl FnOnce() -> io::Result<()>,
        buffer: &mut [u8],
    ) -> Result<(), Side> {
        for _ in 0..TURNS {
            if !self.kept.is_empty() {
                let written = write_some(&mut to, &self.kept)?;
                self.kept.drain(..written);
                if !self.kept.is_empty() {
                    return Ok(());
                }
                self.kept = Vec::new();
            }
            if self.ended {
                break;
            }
            match from.read(buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    let written = write_some(&mut to, &buffer[..read])?;
                    self.kept.extend_from_slice(&buffer[written..read]);
                }
                Err(error) if is_transient(&error) => return Ok(()),
                Err(_) => return Err(Side::Reading),
            }
        }
        if self.ended && self.kept.is_empty() && !self.passed_on {
            self.passed_on = true;
            // A peer that has gone altogether has nothing left to be told.
            _ = close();
        }
        Ok(())
    }

    /// Nobody takes what comes this way any more.
    fn abandon(&mut self) {
        *self = Self {
            kept: Vec::new(),
            ended: true,
            passed_on: true,
        };
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn write_some(to: &mut impl Write, bytes: &[u8]) -> Result<usize, Side> {
    match to.write(bytes) {
        Ok(written) => Ok(written),
        Err(error) if is_transient(&error) => Ok(0),
        Err(_) => Err(Side::Writing),
    }
}

enum Upstream {
    /// Nobody has answered yet.
    Waiting {
        until: Instant,
        next: Instant,
        pause: Duration,
        dial: Option<Dial>,
    },
    Connected(File),
}

struct Connection {
    listener: usize,
    client: File,
    client_interest: u32,
    upstream: Upstream,
    upstream_interest: u32,
    out: Way,
    back: Way,
}

enum State {
    Open,
    Done,
    Broken,
}

impl Connection {
    fn next_try(&self) -> Option<Instant> {
        match self.upstream {
            Upstream::Waiting { next, .. } => Some(next),
            Upstream::Connected(_) => None,
        }
    }

    /// Tries to connect if it is time for that.
    fn connect(&mut self, target: &Target, now: Instant) -> State {
        let Upstream::Waiting {
            until,
            next,
            pause,
            dial,
        } = &mut self.upstream
        else {
            return State::Open;
        };
        if now < *next {
            return State::Open;
        }
        let connected = match target {
            Target::Socket(path) => sys::connect_unix(path),
            Target::Tunnel(tunnel) => match tunnel.try_connect(dial) {
                Some(connected) => connected,
                None => {
                    // Somebody is at it, and will be for some milliseconds.
                    *next = now + DIAL_PAUSE;
                    return State::Open;
                }
            },
        };
        match connected {
            Ok(fd) => self.upstream = Upstream::Connected(fd.into()),
            Err(_) if now >= *until => return State::Broken,
            Err(_) => {
                *next = (now + *pause).min(*until);
                *pause = (*pause * 2).min(LONGEST_PAUSE);
            }
        }
        State::Open
    }

    fn copy(&mut self, buffer: &mut [u8]) -> State {
        let Upstream::Connected(upstream) = &self.upstream else {
            return State::Open;
        };
        let client = &self.client;
        match self
            .out
            .copy(client, upstream, || sys::shut_down(upstream), buffer)
        {
            Ok(()) => {}
            // It may have answered before it closed: the answer still goes back.
            Err(Side::Writing) => self.out.abandon(),
            Err(Side::Reading) => return State::Broken,
        }
        match self
            .back
            .copy(upstream, client, || sys::shut_down(client), buffer)
        {
            Err(_) => State::Broken,
            Ok(()) if self.out.passed_on && self.back.passed_on => State::Done,
            Ok(()) => State::Open,
        }
    }

    fn watch(&mut self, poll: &Poll, token: u64) -> io::Result<()> {
        let Upstream::Connected(upstream) = &self.upstream else {
            return Ok(());
        };
        let wanted = |reading: &Way, writing: &Way| {
            let read = if reading.ended || !reading.kept.is_empty() {
                0
            } else {
                READ
            };
            let write = if writing.kept.is_empty() { 0 } else { WRITE };
            read | write
        };
        let (client, back) = (wanted(&self.out, &self.back), wanted(&self.back, &self.out));
        poll.change(&self.client, token, self.client_interest, client)?;
        self.client_interest = client;
        poll.change(upstream, token, self.upstream_interest, back)?;
        self.upstream_interest = back;
        Ok(())
    }
}

/// All listeners and their connections.
pub struct Proxy {
    listeners: Vec<Listener>,
    connections: BTreeMap<u64, Connection>,
    /// Those whose upstream has not answered yet.
    waiting: BTreeSet<u64>,
    next_token: u64,
    most: usize,
    wait: Duration,
    buffer: Vec<u8>,
}

impl Proxy {
    /// Takes connections from all these places: at most so many at once from each, of which each waits
    /// for so long until the other end answers.
    pub fn new(from: Vec<(Source, Target)>, most: usize, wait: Duration, poll: &Poll) -> Self {
        let listeners = from.into_iter().map(|(source, target)| Listener {
            source,
            target,
            open: 0,
            paused: None,
            interest: 0,
        });
        let listeners: Vec<_> = listeners.collect();
        let mut proxy = Self {
            buffer: vec![0; if listeners.is_empty() { 0 } else { CHUNK }],
            listeners,
            connections: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_token: CONNECTION_TOKEN,
            most,
            wait,
        };
        proxy.tend(poll, Instant::now());
        proxy
    }

    /// When [`Self::tend`] has to be called again, whatever happens.
    pub fn next_moment(&self) -> Option<Instant> {
        let tries = self
            .waiting
            .iter()
            .filter_map(|token| self.connections.get(token)?.next_try());
        tries
            .chain(self.listeners.iter().filter_map(|listener| listener.paused))
            .min()
    }

    /// Acts on an event of one of the proxy's descriptors.
    pub fn on_event(&mut self, poll: &Poll, token: u64, now: Instant) {
        if token >= CONNECTION_TOKEN {
            self.drive(poll, token, now);
        } else {
            self.accept(poll, (token - FIRST_TOKEN) as usize, now);
        }
    }

    /// Does what is due by now: tries waiting connections again, and resumes accepting.
    pub fn tend(&mut self, poll: &Poll, now: Instant) {
        let due = |token: &u64| {
            let next = self.connections.get(token).and_then(Connection::next_try);
            next.is_some_and(|next| next <= now)
        };
        let tokens: Vec<u64> = self.waiting.iter().copied().filter(due).collect();
        for token in tokens {
            self.drive(poll, token, now);
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if listener.paused.is_some_and(|until| until <= now) {
                listener.paused = None;
            }
            let free = listener.open < self.most && listener.paused.is_none();
            let interest = if free { READ } else { 0 };
            if poll
                .change(
                    &listener.source,
                    FIRST_TOKEN + index as u64,
                    listener.interest,
                    interest,
                )
                .is_ok()
            {
                listener.interest = interest;
            }
        }
    }

    fn accept(&mut self, poll: &Poll, index: usize, now: Instant) {
        for _ in 0..TURNS {
            let Some(listener) = self.listeners.get_mut(index) else {
                return;
            };
            if listener.open >= self.most {
                return;
            }
            let client = match listener.source.accept() {
                Ok(client) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    listener.paused = Some(now + LONGEST_PAUSE);
                    return;
                }
            };
            listener.open += 1;
            let token = self.next_token;
            self.next_token += 1;
            let upstream = Upstream::Waiting {
                until: now + self.wait,
                next: now,
                pause: FIRST_PAUSE,
                dial: None,
            };
            self.connections.insert(
                token,
                Connection {
                    listener: index,
                    client,
                    client_interest: 0,
                    upstream,
                    upstream_interest: 0,
                    out: Way::default(),
                    back: Way::default(),
                },
            );
            self.drive(poll, token, now);
        }
    }

    /// Takes one connection as far as it goes without waiting.
    fn drive(&mut self, poll: &Poll, token: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let Some(listener) = self.listeners.get_mut(connection.listener) else {
            return;
        };
        let mut state = connection.connect(&listener.target, now);
        if matches!(state, State::Open) {
            match connection.upstream {
                Upstream::Waiting { .. } => self.waiting.insert(token),
                Upstream::Connected(_) => self.waiting.remove(&token),
            };
            state = connection.copy(&mut self.buffer);
        }
        if matches!(state, State::Open) && connection.watch(poll, token).is_err() {
            state = State::Broken;
        }
        match state {
            State::Open => return,
            State::Done => {}
            State::Broken => sys::reset_on_close(&connection.client),
        }
        listener.open -= 1;
        // Closing the descriptors also takes them out of the epoll instance.
        self.connections.remove(&token);
        self.waiting.remove(&token);
    }
}
