//! What a program in memory is, and what it can do.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::io::{AsyncWrite, DuplexStream};
use tokio::sync::watch;

use super::engine::{Control, Key, MemoryEngine};
use super::files::{FileKind, Node, View};
use crate::{Connection, EgressGrant, LogStream, RunSpec};

/// The bytes of a connection that are on their way, each way.
const CONNECTION_BUFFER: usize = 64 << 10;

/// How a program in memory ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this code.
    Code(u8),
    /// By this signal, as if somebody had sent it.
    Signal(i32),
}

impl ExitStatus {
    /// With code 0.
    pub const SUCCESS: Self = Self::Code(0);
    /// With code 1.
    pub const FAILURE: Self = Self::Code(1);
}

pub(super) type Running = Pin<Box<dyn Future<Output = ExitStatus> + Send>>;
pub(super) type Program = Arc<dyn Fn(ProgramContext) -> Running + Send + Sync>;

/// All that a program in memory can see and do: its arguments, environment, files, output,
/// connections, and the request to end. Cheap to clone.
///
/// Paths are those of the container; relative ones start at the working directory. What the
/// spec does not allow fails as it would in a container: writing a read-only file, connecting to
/// what was not granted, starting one process too many.
#[derive(Clone)]
pub struct ProgramContext {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub engine: MemoryEngine,
    pub key: Key,
    pub attempt: u64,
    pub words: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: String,
    pub egress: Vec<EgressGrant>,
    pub deadline: Option<SystemTime>,
    pub view: View,
    pub control: watch::Receiver<Control>,
    /// Whether the program deals with the request to end itself.
    pub traps: watch::Sender<bool>,
}

impl ProgramContext {
    pub(super) fn new(
        engine: MemoryEngine,
        (key, attempt): (Key, u64),
        spec: &RunSpec,
        words: Vec<String>,
        image_env: &BTreeMap<String, String>,
        view: View,
        control: watch::Receiver<Control>,
    ) -> Self {
        let mut env = image_env.clone();
        for name in ["HOME", "TMPDIR"] {
            env.insert(name.to_owned(), super::TMPDIR.to_owned());
        }
        for (name, value) in &spec.env {
            let value = match value {
                crate::EnvValue::Plain(text) => text.clone(),
                crate::EnvValue::Secret(secret) => secret.expose().to_owned(),
            };
            env.insert(name.clone(), value);
        }
        let workdir = spec
            .workdir
            .as_ref()
            .map_or_else(|| "/".to_owned(), ToString::to_string);
        Self {
            inner: Arc::new(Inner {
                engine,
                key,
                attempt,
                words,
                env,
                workdir,
                egress: spec.egress.clone(),
                deadline: spec.deadline,
                view,
                control,
                traps: watch::Sender::new(false),
            }),
        }
    }

    /// The command that was started.
    #[must_use]
    pub fn command(&self) -> &str {
        self.inner.words.first().map_or("", String::as_str)
    }

    /// Its arguments, without the command itself.
    #[must_use]
    pub fn args(&self) -> &[String] {
        self.inner.words.get(1..).unwrap_or(&[])
    }

    /// The whole environment.
    #[must_use]
    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.inner.env
    }

    /// One environment variable.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.inner.env.get(name).map(String::as_str)
    }

    /// The working directory.
    #[must_use]
    pub fn workdir(&self) -> &str {
        &self.inner.workdir
    }

    /// The wall-clock time at which the run is ended, if it has a deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<SystemTime> {
        self.inner.deadline
    }

    fn path(&self, path: &str) -> String {
        match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("{}/{path}", self.inner.workdir),
        }
    }

    /// A file's content.
    ///
    /// # Errors
    /// As of the system call: there is no such file, it is a folder.
    pub fn read(&self, path: &str) -> io::Result<Bytes> {
        self.inner.view.read(&self.path(path))
    }

    /// Makes a file with this content, or replaces the content of one that is there.
    ///
    /// # Errors
    /// As of the system call: read-only file system, no such folder, no space left.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.inner
            .view
            .write(&self.path(path), content.as_ref(), false)
    }

    /// Adds to a file's end; makes it if there is none.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn append(&self, path: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.inner
            .view
            .write(&self.path(path), content.as_ref(), true)
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// As [`write`](Self::write); `AlreadyExists`.
    pub fn create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.view.create(&self.path(path), Node::Folder)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`create_dir`](Self::create_dir).
    pub fn symlink(&self, target: &str, path: &str) -> io::Result<()> {
        let node = Node::Symlink(target.to_owned());
        self.inner.view.create(&self.path(path), node)
    }

    /// Makes a named pipe; it carries nothing here.
    ///
    /// # Errors
    /// As [`create_dir`](Self::create_dir).
    pub fn mkfifo(&self, path: &str) -> io::Result<()> {
        self.inner.view.create(&self.path(path), Node::Fifo)
    }

    /// Removes a file, or a folder with all that is in it.
    ///
    /// # Errors
    /// As of the system call; `ResourceBusy` for what is mounted, declared outputs included.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.view.remove(&self.path(path))
    }

    /// Moves a file or folder.
    ///
    /// # Errors
    /// As [`remove`](Self::remove); `CrossesDevices` from one mount to another.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.view.rename(&self.path(from), &self.path(to))
    }

    /// Kind and size in bytes of what is there; a link is not followed.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn metadata(&self, path: &str) -> io::Result<(FileKind, u64)> {
        self.inner.view.look(&self.path(path))
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if it is no link.
    pub fn read_link(&self, path: &str) -> io::Result<String> {
        self.inner.view.link_target(&self.path(path))
    }

    /// The names in a folder, in order.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`.
    pub fn read_dir(&self, path: &str) -> io::Result<Vec<String>> {
        Ok(self
            .inner
            .view
            .list(&self.path(path))?
            .into_iter()
            .collect())
    }

    /// Where something is mounted, and whether it can be written there.
    #[must_use]
    pub fn mounts(&self) -> Vec<(String, bool)> {
        self.inner.view.mounts()
    }

    /// Prints to standard output. Never waits for a reader.
    pub fn print(&self, bytes: impl AsRef<[u8]>) {
        self.log(LogStream::Stdout, bytes.as_ref());
    }

    /// Prints to standard error. Never waits for a reader.
    pub fn eprint(&self, bytes: impl AsRef<[u8]>) {
        self.log(LogStream::Stderr, bytes.as_ref());
    }

    /// Standard output as a writer.
    #[must_use]
    pub fn stdout(&self) -> LogWriter {
        self.writer(LogStream::Stdout)
    }

    /// Standard error as a writer.
    #[must_use]
    pub fn stderr(&self) -> LogWriter {
        self.writer(LogStream::Stderr)
    }

    fn writer(&self, stream: LogStream) -> LogWriter {
        LogWriter {
            context: self.clone(),
            stream,
        }
    }

    fn log(&self, stream: LogStream, bytes: &[u8]) {
        let inner = &self.inner;
        inner
            .engine
            .with_run(&inner.key, inner.attempt, |run| run.print(stream, bytes));
    }

    /// From now on the request to end (cancel, deadline) does not end the program: it has to wait
    /// for [`terminated`](Self::terminated) and end itself, or is killed after the grace.
    pub fn trap_termination(&self) {
        self.inner.traps.send_replace(true);
    }

    /// Waits until the run is asked to end. Call [`trap_termination`](Self::trap_termination)
    /// first, or there will be nobody left to wait.
    pub async fn terminated(&self) {
        let mut control = self.inner.control.clone();
        if control
            .wait_for(|control| control.stop.is_some())
            .await
            .is_err()
        {
            // The run is gone, and this program will be dropped.
            std::future::pending::<()>().await;
        }
    }

    /// The addresses that a host name has here: one of its own for each granted host.
    ///
    /// # Errors
    /// `NotFound` for any other name.
    pub fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if host == "localhost" {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let mut hosts: Vec<&str> = Vec::new();
        for grant in &self.inner.egress {
            if !hosts.contains(&grant.host.as_str()) {
                hosts.push(&grant.host);
            }
        }
        let place = hosts
            .iter()
            .position(|known| known.eq_ignore_ascii_case(host))
            .and_then(|place| u8::try_from(place + 1).ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such host"))?;
        Ok(vec![Ipv4Addr::new(127, 0, 1, place).into()])
    }

    /// Opens a connection. To one of the run's grants it appears at
    /// [`Runtime::connections`](crate::Runtime::connections), and waits there; there is no other
    /// network.
    ///
    /// # Errors
    /// `NotFound` for a name that was not granted, `ConnectionRefused` for another port of one
    /// that was and while too many connections wait, `NetworkUnreachable` for an address.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<DuplexStream> {
        if host.parse::<IpAddr>().is_ok() {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        self.addresses(host)?;
        let inner = &self.inner;
        let grant = inner
            .egress
            .iter()
            .find(|grant| grant.host.eq_ignore_ascii_case(host) && grant.port == port)
            .ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = tokio::io::duplex(CONNECTION_BUFFER);
        let connection = Connection::new(inner.key.1.clone(), grant.clone(), theirs);
        inner.engine.offer(&inner.key, connection)?;
        Ok(ours)
    }

    /// Takes memory. If that is more than the run's limit it never returns: the run ends as
    /// [`OutOfMemory`](crate::Outcome::OutOfMemory).
    pub async fn allocate(&self, bytes: u64) -> Allocation {
        let inner = &self.inner;
        let within = inner
            .engine
            .with_run(&inner.key, inner.attempt, |run| run.take_memory(bytes))
            .unwrap_or(false);
        if !within {
            std::future::pending::<()>().await;
        }
        Allocation {
            context: self.clone(),
            bytes,
        }
    }

    /// Counts as one more process until it is dropped.
    ///
    /// # Errors
    /// `WouldBlock` (EAGAIN) at the run's limit.
    pub fn start_process(&self) -> io::Result<Process> {
        let inner = &self.inner;
        let started = inner
            .engine
            .with_run(&inner.key, inner.attempt, |run| run.take_process())
            .unwrap_or(false);
        match started {
            true => Ok(Process {
                context: self.clone(),
            }),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl std::fmt::Debug for ProgramContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgramContext")
            .field("run", &self.inner.key.1)
            .finish_non_exhaustive()
    }
}

/// Memory that a program has taken; dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping it gives the memory back"]
pub struct Allocation {
    context: ProgramContext,
    bytes: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let inner = &self.context.inner;
        let bytes = self.bytes;
        inner
            .engine
            .with_run(&inner.key, inner.attempt, |run| run.memory -= bytes);
    }
}

/// A process that a program has started; dropping it ends it.
#[derive(Debug)]
#[must_use = "dropping it ends the process"]
pub struct Process {
    context: ProgramContext,
}

impl Drop for Process {
    fn drop(&mut self) {
        let inner = &self.context.inner;
        inner
            .engine
            .with_run(&inner.key, inner.attempt, |run| run.processes -= 1);
    }
}

/// Writes to a run's log, and never waits.
#[derive(Debug, Clone)]
pub struct LogWriter {
    context: ProgramContext,
    stream: LogStream,
}

impl AsyncWrite for LogWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.context.log(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
