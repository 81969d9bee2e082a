//! Faults of granted connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{TryStreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use v6_runtime::{Connection, EgressGrant, Io, ResultStream, RunId, Runtime};

use super::Seed;
use super::runtime::Seeded;

/// After this many bytes a connection loses one.
const LOST_AT: u64 = 1 << 20;

pub(super) fn connections(it: &Seeded) -> ResultStream<Connection> {
    it.world.notes().connections_read = true;
    let all = it.inner.connections();
    let value = it.clone();
    match it.seed {
        Some(Seed::ConnectionsOfOwnRunsOnly) => Box::pin(all.try_filter(move |connection| {
            future::ready(value.own().started.contains(&connection.run))
        })),
        Some(Seed::ConnectionsAreOfAnotherRun) => each(all, |connection| {
            connection.run = RunId::new("another").expect("a name");
        }),
        Some(Seed::GrantsAreToldByPort) => each(all, move |connection| {
            let port = connection.grant.port;
            value.take_first(connection, |grant| grant.port == port);
        }),
        Some(Seed::GrantsAreToldByHost) => each(all, move |connection| {
            let host = connection.grant.host.clone();
            value.take_first(connection, |grant| grant.host == host);
        }),
        Some(seed @ (Seed::BytesAreLost | Seed::HalfCloseIsNotTold | Seed::AnswersAreLost)) => {
            each(all, move |connection| {
                let io = std::mem::replace(&mut connection.io, Box::new(tokio::io::empty()));
                connection.io = Box::new(Unsound {
                    io,
                    seed,
                    passed: 0,
                });
            })
        }
        _ => all,
    }
}

fn each(
    all: ResultStream<Connection>,
    mut change: impl FnMut(&mut Connection) + Send + 'static,
) -> ResultStream<Connection> {
    Box::pin(all.map_ok(move |mut connection| {
        change(&mut connection);
        connection
    }))
}

impl Seeded {
    /// Takes a connection for one to the first such grant of its run.
    fn take_first(&self, connection: &mut Connection, such: impl Fn(&EgressGrant) -> bool) {
        let notes = self.world.notes();
        let asked = notes.asked.get(&self.key(&connection.run));
        if let Some(grant) =
            asked.and_then(|asked| asked.spec.egress.iter().find(|grant| such(grant)))
        {
            connection.grant = grant.clone();
        }
    }
}

/// A connection that does not carry what it should.
struct Unsound {
    io: Box<dyn Io>,
    seed: Seed,
    passed: u64,
}

impl AsyncRead for Unsound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let came = (buffer.filled().len() - before) as u64;
        if came == 0 && self.seed == Seed::HalfCloseIsNotTold {
            return Poll::Pending;
        }
        let passed = self.passed + came;
        if self.seed == Seed::BytesAreLost && (self.passed..passed).contains(&LOST_AT) {
            let last = buffer.filled().len() - 1;
            buffer.set_filled(last);
        }
        self.passed = passed;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Unsound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.seed == Seed::AnswersAreLost {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
