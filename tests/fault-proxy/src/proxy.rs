//! The proxy, and the thread that it lives in.

use std::fmt;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::address::Address;
use crate::connection::Connection;
use crate::listen::{Listener, Place};
use crate::rule::{Requests, Rule, Seen};
use crate::table::{RuleGuard, Table};
use crate::tasks::Tasks;

/// Before another attempt to accept a connection when there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Stands between clients and an engine's HTTP API.
///
/// A handle: its clones are the same proxy, which ends with the last of them, and with it its
/// connections, its socket file and its thread. It does not depend on the Tokio runtime in which
/// it was made, and needs none. Starting one and ending it takes less than a millisecond, so each
/// test, or each part of it that has faults of its own, can have one.
///
/// [`cut`](Self::cut), [`away`](Self::away) and the end of the proxy wait for its thread, which is
/// never busy for long; they cannot be called by a rule's function, that runs in it.
#[derive(Clone)]
pub struct FaultProxy(Arc<Handle>);

struct Handle {
    address: Address,
    table: Arc<Table>,
    /// Locked until the answer is there, so one place is enough.
    commands: Mutex<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Cut(SyncSender<usize>),
    Leave(SyncSender<()>),
    Return(SyncSender<io::Result<()>>),
    End,
}

impl FaultProxy {
    /// Listens, and passes requests on to the engine, which need not be there yet. Nothing goes
    /// wrong until a rule is [added](Self::add).
    ///
    /// The file of a unix socket where nobody listens any more is replaced.
    ///
    /// # Errors
    /// It cannot listen there, or have a thread.
    pub fn start(listen: Address, engine: Address) -> io::Result<Self> {
        let table = Arc::<Table>::default();
        let (commands, orders) = mpsc::channel(1);
        let (started, outcome) = sync_channel(1);
        let front = Front {
            table: table.clone(),
            engine,
        };
        let thread = std::thread::Builder::new().name("v6-fault-proxy".into());
        let thread = thread.spawn(move || front.live(&listen, orders, &started))?;
        let gone = || io::Error::other("the proxy's thread is gone");
        let address = match outcome.recv().map_err(|_| gone()).flatten() {
            Ok(address) => address,
            Err(error) => {
                let _ = thread.join();
                return Err(error);
            }
        };
        Ok(Self(Arc::new(Handle {
            address,
            table,
            commands: Mutex::new(commands),
            thread: Some(thread),
        })))
    }

    /// Where it listens, with the port that it really has.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Puts a rule in force, for all requests whose head arrives from now on.
    ///
    /// Rules are asked in the order in which they were added, and all that apply befall a request,
    /// until one of them keeps it from the engine. Of faults that end a reply the earliest end
    /// counts, of two splits the later rule's.
    pub fn add(&self, rule: Rule) -> RuleGuard {
        self.0.table.add(rule)
    }

    /// Closes all open connections, to the clients and to the engine, and returns how many clients
    /// there were. New ones are welcome.
    pub fn cut(&self) -> usize {
        self.0.ask(Command::Cut).unwrap_or_default()
    }

    /// Closes all connections, and has new ones refused (a unix socket stays as a file that nobody
    /// listens at) until the last such guard is dropped.
    pub fn away(&self) -> Away {
        self.0.ask(Command::Leave);
        Away(Some(self.clone()))
    }

    /// How many requests came since the start.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.0.table.requests()
    }

    /// These of the last 4096 requests, the oldest first. To count more add a rule of
    /// [`Fault::Nothing`](crate::Fault::Nothing).
    #[must_use]
    pub fn log(&self, requests: &Requests) -> Vec<Seen> {
        self.0.table.log(requests)
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("FaultProxy");
        debug.field("address", &self.0.address);
        debug.finish_non_exhaustive()
    }
}

/// The engine cannot be connected to, as long as this is there.
#[derive(Debug)]
#[must_use = "the engine is away as long as the guard is there"]
pub struct Away(Option<FaultProxy>);

impl Away {
    /// Ends it, as dropping does, and tells whether the proxy listens again.
    ///
    /// # Errors
    /// Somebody else has taken its place.
    pub fn end(mut self) -> io::Result<()> {
        self.0.take().map_or(Ok(()), |proxy| proxy.0.come_back())
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Some(proxy) = self.0.take() {
            let _ = proxy.0.come_back();
        }
    }
}

impl Handle {
    /// Has the thread do something, and waits until it is done.
    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        assert!(
            !self.is_own_thread(),
            "a rule's function must not call the proxy: it would wait for itself"
        );
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, answer) = sync_channel(1);
        commands.try_send(command(done)).ok()?;
        answer.recv().ok()
    }

    fn come_back(&self) -> io::Result<()> {
        self.ask(Command::Return).unwrap_or(Ok(()))
    }

    fn is_own_thread(&self) -> bool {
        let own = self.thread.as_ref().map(|thread| thread.thread().id());
        own == Some(std::thread::current().id())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let commands = self
            .commands
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let _ = commands.try_send(Command::End);
        if !self.is_own_thread()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Front {
    table: Arc<Table>,
    engine: Address,
}

impl Front {
    fn live(
        self,
        listen: &Address,
        orders: mpsc::Receiver<Command>,
        started: &SyncSender<io::Result<Address>>,
    ) {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let tokio = match tokio {
            Ok(tokio) => tokio,
            Err(error) => return drop(started.send(Err(error))),
        };
        tokio.block_on(async {
            match Place::take(listen) {
                Ok((place, listener)) => {
                    let _ = started.send(Ok(place.address().clone()));
                    self.serve(&place, listener, orders).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
    }

    async fn serve(self, place: &Place, listener: Listener, mut orders: mpsc::Receiver<Command>) {
        let mut tasks = Tasks::default();
        let mut listener = Some(listener);
        let mut absences = 0;
        loop {
            let accept = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            // Who came before a cut is cut too.
            tokio::select! {
                biased;
                accepted = accept => match accepted {
                    Ok(client) => self.welcome(client, &tasks),
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                order = orders.recv() => match order {
                    Some(Command::Cut(done)) => {
                        let _ = done.send(std::mem::take(&mut tasks).end().await);
                    }
                    Some(Command::Leave(done)) => {
                        absences += 1;
                        listener = None;
                        std::mem::take(&mut tasks).end().await;
                        let _ = done.send(());
                    }
                    Some(Command::Return(done)) => {
                        absences -= 1;
                        let mut outcome = Ok(());
                        if absences == 0 {
                            match place.listen() {
                                Ok(back) => listener = Some(back),
                                Err(error) => outcome = Err(error),
                            }
                        }
                        let _ = done.send(outcome);
                    }
                    Some(Command::End) | None => break,
                },
            }
        }
        tasks.end().await;
    }

    fn welcome(&self, client: crate::wire::Socket, tasks: &Tasks) {
        let (engine, table) = (self.engine.clone(), self.table.clone());
        let connection = Connection::new(client, engine, table, tasks.clone());
        tasks.spawn(connection.serve());
    }
}
