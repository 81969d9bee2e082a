//! The Socket.IO connection to HQ (protocol 3): one at a time, made anew with a fresh token
//! whenever it ends, events in order.
//!
//! HQ replays nothing. So whatever is lost, by a broken connection or a slow reader, is
//! made up for by [`Event::Sync`]: read HQ's open runs then.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::auth::Token;
use super::backoff::Backoff;
use super::connection::causes;
use super::engineio::{Frame, Link, LinkError, Open};
use super::event::{self, Received};
use super::rest::Hq;
use super::socketio::{self, Packet};
use super::types::Identity;

pub use super::event::{Emit, EmitError, Event, Kill, NodeInfo};

/// How the connection is kept.
#[derive(Debug, Clone)]
pub struct SocketSettings {
    /// HQ takes a socket without a valid token and stays silent. If it has not said `sync`
    /// so long after the namespace was joined, the token is renewed and the connection made
    /// anew.
    pub sync_within: Duration,
    /// The node's own `ping` event; HQ takes a node that was silent for 65 s as offline.
    pub ping_every: Duration,
    /// The first one, after the namespace was joined.
    pub first_ping: Duration,
    /// First pause before a new attempt.
    pub first_pause: Duration,
    /// Longest pause before a new attempt.
    pub longest_pause: Duration,
    /// Events that wait for a slow reader, and emitted ones that wait for a connection.
    pub capacity: usize,
}

impl Default for SocketSettings {
    fn default() -> Self {
        Self {
            sync_within: Duration::from_secs(15),
            ping_every: Duration::from_secs(60),
            first_ping: Duration::from_secs(5),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            capacity: 1024,
        }
    }
}

/// The sending side, and the connection's life: dropping it ends the connection.
#[derive(Debug)]
pub struct Socket {
    outgoing: mpsc::Sender<Emit>,
    online: watch::Receiver<bool>,
    /// Gone once the connection was closed.
    driver: Mutex<Option<(oneshot::Sender<()>, AbortOnDropHandle<()>)>>,
}

/// The receiving side.
#[derive(Debug)]
pub struct SocketEvents(mpsc::Receiver<Event>);

impl SocketEvents {
    /// The next event; `None` once the [`Socket`] is closed or dropped. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

impl Socket {
    /// Begins to connect, and goes on for ever. Must be called within a Tokio runtime.
    /// Returns at once; [`Event::Sync`] says that HQ knows the node.
    pub fn start(hq: &Hq, identity: Identity, settings: SocketSettings) -> (Self, SocketEvents) {
        let (events, received) = mpsc::channel(settings.capacity.max(1));
        let (outgoing, queue) = mpsc::channel(settings.capacity.max(1));
        let (set_online, online) = watch::channel(false);
        let (close, closing) = oneshot::channel();
        let driver = Driver {
            hq: hq.clone(),
            identity,
            settings,
            events,
            owed: Vec::new(),
            queue,
            unsent: VecDeque::new(),
            online: set_online,
        };
        let driver = AbortOnDropHandle::new(tokio::spawn(driver.run(closing)));
        (
            Self {
                outgoing,
                online,
                driver: Mutex::new(Some((close, driver))),
            },
            SocketEvents(received),
        )
    }

    /// Queues an event for HQ. It is sent once, or once more if the connection broke while it
    /// was sent; while there is no connection it waits. Waits itself while the queue is full;
    /// cancel-safe.
    ///
    /// # Errors
    /// [`EmitError::TooLarge`] if it cannot be sent in frames that HQ takes.
    pub async fn emit(&self, event: Emit) -> Result<(), EmitError> {
        event.check()?;
        self.outgoing
            .send(event)
            .await
            .map_err(|_| EmitError::Closed)
    }

    /// The same without waiting, for what may be lost, such as lines of a log.
    ///
    /// # Errors
    /// [`EmitError::Full`] if the queue is full, and those of [`Socket::emit`].
    pub fn try_emit(&self, event: Emit) -> Result<(), EmitError> {
        event.check()?;
        self.outgoing.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => EmitError::Full,
            mpsc::error::TrySendError::Closed(_) => EmitError::Closed,
        })
    }

    /// Whether HQ has said `sync` on the present connection.
    pub fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    /// Follows [`is_online`](Self::is_online).
    pub fn online(&self) -> watch::Receiver<bool> {
        self.online.clone()
    }

    /// Sends what is queued, takes leave of HQ, and ends; at most 2 s. A second call does nothing.
    pub async fn close(&self) {
        let taken = self
            .driver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((close, driver)) = taken {
            let _ = close.send(());
            let _ = timeout(Duration::from_secs(2), driver).await;
        }
    }
}

/// Why a connection is over.
enum End {
    /// The node wants no other.
    Closed,
    /// HQ does not take the token.
    Token(&'static str),
    Lost(LinkError),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}

struct Driver {
    hq: Hq,
    identity: Identity,
    settings: SocketSettings,
    events: mpsc::Sender<Event>,
    /// What the reader must hear as soon as there is room.
    owed: Vec<Event>,
    queue: mpsc::Receiver<Emit>,
    /// Packets taken from the queue and not sent yet.
    unsent: VecDeque<String>,
    online: watch::Sender<bool>,
}

impl Driver {
    async fn run(mut self, mut closing: oneshot::Receiver<()>) {
        let mut backoff = Backoff::new(self.settings.first_pause, self.settings.longest_pause);
        loop {
            let token = tokio::select! {
                token = async { self.hq.tokens().current().await } => token,
                _ = &mut closing => return,
            };
            let end = self.connection(&token, &mut closing).await;
            if self.online.send_replace(false) {
                backoff.reset();
            }
            let reason = match end {
                End::Closed => return,
                End::Token(reason) => {
                    tokio::select! {
                        _ = async { self.hq.tokens().renewed(&token).await } => {}
                        _ = &mut closing => return,
                    }
                    reason.to_owned()
                }
                End::Lost(error) => match causes(&error) {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                },
            };
            let pause = backoff.pause();
            tracing::info!(reason, ?pause, "no connection to HQ's socket, trying again");
            let _ = self.events.try_send(Event::Disconnected { reason });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.events.closed() => return,
                _ = &mut closing => return,
            }
        }
    }

    async fn connection(&mut self, token: &Token, closing: &mut oneshot::Receiver<()>) -> End {
        let http = self.hq.http().clone();
        let address = self.hq.address().clone();
        let (mut link, open) = tokio::select! {
            opened = Link::open(&http, &address, token.secret()) => match opened {
                Ok(opened) => opened,
                Err(error) => return error.into(),
            },
            _ = &mut *closing => return End::Closed,
        };
        match self.converse(&mut link, &open, closing).await {
            Err(End::Closed) => {
                let _ = timeout(Duration::from_secs(1), self.flush(&mut link)).await;
                let _ = timeout(Duration::from_millis(500), link.close()).await;
                End::Closed
            }
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn converse(
        &mut self,
        link: &mut Link,
        open: &Open,
        closing: &mut oneshot::Receiver<()>,
    ) -> Result<std::convert::Infallible, End> {
        link.send_message(&socketio::connect()).await?;
        let mut silent_until = Instant::now() + open.silence();
        let mut sync_until = Instant::now() + open.silence();
        let mut next_ping: Option<Instant> = None;
        let events = self.events.clone();
        loop {
            let online = *self.online.borrow();
            while online && let Some(packet) = self.unsent.front() {
                link.send_message(packet).await?;
                self.unsent.pop_front();
            }
            tokio::select! {
                frame = link.receive() => {
                    silent_until = Instant::now() + open.silence();
                    match frame? {
                        Frame::Ping => link.send_pong().await?,
                        Frame::Other => {}
                        Frame::Message(text) => match socketio::read(&text) {
                            Some(Packet::Connect) => {
                                let now = Instant::now();
                                sync_until = now + self.settings.sync_within;
                                next_ping = Some(now + self.settings.first_ping);
                            }
                            Some(Packet::Event(name, argument)) => {
                                self.event(&name, &argument, link.kind())?;
                            }
                            Some(Packet::Disconnect) => return Err(LinkError::Closed.into()),
                            Some(Packet::ConnectError(reason)) => {
                                tracing::warn!(reason, "HQ refuses the namespace");
                                return Err(End::Token("HQ refuses the namespace"));
                            }
                            Some(Packet::Other) => {}
                            None => tracing::debug!("a packet from HQ could not be understood"),
                        },
                    }
                }
                permit = events.reserve(), if !self.owed.is_empty() => match permit {
                    Ok(permit) => permit.send(self.owed.remove(0)),
                    Err(_) => return Err(End::Closed),
                },
                emit = self.queue.recv(), if online => match emit {
                    Some(emit) => self.unsent.extend(emit.packets(&self.identity)),
                    None => return Err(End::Closed),
                },
                () = sleep_until(next_ping.unwrap_or(silent_until)), if next_ping.is_some() => {
                    link.send_message(&socketio::event("ping", &Value::Null)).await?;
                    next_ping = Some(Instant::now() + self.settings.ping_every);
                }
                () = sleep_until(sync_until), if !online => {
                    return Err(End::Token("HQ did not say 'sync', so it does not know the token"));
                }
                () = sleep_until(silent_until) => return Err(LinkError::Timeout.into()),
                () = events.closed() => return Err(End::Closed),
                _ = &mut *closing => return Err(End::Closed),
            }
        }
    }

    fn event(&mut self, name: &str, argument: &Value, transport: &str) -> Result<(), End> {
        match event::read(name, argument, &self.identity) {
            Received::Event(event) => {
                if event == Event::Sync && !self.online.send_replace(true) {
                    tracing::info!(transport, "connected to HQ's socket");
                }
                self.deliver(event);
            }
            Received::TokenRefused => return Err(End::Token("HQ refuses the token")),
            Received::Said(text) => tracing::debug!(text, "HQ says"),
            Received::Ignored => {}
            Received::Broken => {
                tracing::warn!(event = name, "an event from HQ could not be understood");
            }
        }
        Ok(())
    }

    /// Hands an event over; with a full channel notes what makes up for it.
    fn deliver(&mut self, event: Event) {
        let event = match self.owed.is_empty() {
            true => match self.events.try_send(event) {
                Err(mpsc::error::TrySendError::Full(event)) => event,
                _ => return,
            },
            // What is owed goes first.
            false => event,
        };
        let instead = match event {
            Event::Kill(Kill::Node) => event,
            _ => Event::Sync,
        };
        if !self.owed.contains(&instead) {
            tracing::warn!("events from HQ wait for the node, which will catch up by a sync");
            self.owed.push(instead);
        }
    }

    async fn flush(&mut self, link: &mut Link) -> Result<(), LinkError> {
        while let Ok(emit) = self.queue.try_recv() {
            self.unsent.extend(emit.packets(&self.identity));
        }
        while let Some(packet) = self.unsent.pop_front() {
            link.send_message(&packet).await?;
        }
        Ok(())
    }
}
