//! A connection's socket, of either kind, that can be told what to do once all is sent.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

use crate::address::Address;

#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(crate) async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            Address::Tcp(address) => Self::tcp(TcpStream::connect(address).await?),
        }
    }

    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Small pieces are to arrive as such.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_read_ready(cx),
            Self::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(stream) => stream.poll_write_ready(cx),
            Self::Tcp(stream) => stream.poll_write_ready(cx),
        }
    }

    fn try_read(&self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read_buf(buffer),
            Self::Tcp(stream) => stream.try_read_buf(buffer),
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write_vectored(slices),
            Self::Tcp(stream) => stream.try_write_vectored(slices),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Unix(stream) => stream.ready(interest).await,
            Self::Tcp(stream) => stream.ready(interest).await,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

const GO_ON: u8 = 0;
const HALF_CLOSE: u8 = 1;
const CUT: u8 = 2;

/// A socket that HTTP is spoken on, as others than its connection see it.
#[derive(Debug)]
pub(crate) struct Line {
    socket: Socket,
    once_flushed: AtomicU8,
}

impl Line {
    pub(crate) fn new(socket: Socket) -> Arc<Self> {
        Arc::new(Self {
            socket,
            once_flushed: AtomicU8::new(GO_ON),
        })
    }

    /// Ends the connection at the next flush, which comes after all that was written.
    pub(crate) fn cut_once_flushed(&self) {
        self.once_flushed.store(CUT, Ordering::Release);
    }

    /// Lets the peer know, at the next flush, that nothing more will come.
    pub(crate) fn half_close_once_flushed(&self) {
        self.once_flushed.store(HALF_CLOSE, Ordering::Release);
    }

    pub(crate) fn is_half_closed(&self) -> bool {
        self.once_flushed.load(Ordering::Acquire) != GO_ON
    }

    /// Waits until the peer has said that it sends no more; what it sent need not be read yet.
    pub(crate) async fn peer_closed(&self) {
        // Of all interests only this one is also that in a close and not in what can be read.
        while let Ok(ready) = self.socket.ready(Interest::PRIORITY).await {
            if ready.is_read_closed() {
                return;
            }
        }
    }
}

/// A [`Line`] as its connection sees it.
#[derive(Debug)]
pub(crate) struct Wire(pub(crate) Arc<Line>);

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &self.0.socket;
        loop {
            ready!(socket.poll_read_ready(cx))?;
            match socket.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = &self.0.socket;
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_write(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = match self.0.once_flushed.load(Ordering::Acquire) {
            CUT => {
                let _ = shutdown(&self.0.socket, Shutdown::Both);
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            HALF_CLOSE => close_write(&self.0.socket),
            _ => Ok(()),
        };
        Poll::Ready(end)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(close_write(&self.0.socket))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Others can hold the line for a moment longer.
        let _ = shutdown(&self.0.socket, Shutdown::Both);
    }
}

fn close_write(socket: &Socket) -> io::Result<()> {
    match shutdown(socket, Shutdown::Write) {
        // The peer was faster.
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
