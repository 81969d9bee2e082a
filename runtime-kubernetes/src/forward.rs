//! One port of a pod, which the API server forwards through a WebSocket.
//!
//! `kube` forwards ports, too, and reads what is to be sent in pieces of 4 KiB, each of them a message: that halves what
//! gets through (docs/measurements.md). This sends what it is given.
//!
//! The protocol (`v4.channel.k8s.io`, which no specification describes; `kubelet/cri/streaming/portforward` of Kubernetes is
//! its source): binary messages that begin with the number of their channel. Channel 0 carries bytes either way, channel 1 the words of whoever
//! could not reach the port. The first message of each has the port, two bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

const DATA: u8 = 0;
const REFUSAL: u8 = 1;
/// How many bytes the first message of a channel begins with that say which port it is about.
const GREETING: usize = 2;
/// What goes into one message, at most: the size with which 85 to 175 MiB/s were measured.
pub(crate) const PIECE: usize = 64 << 10;

/// The connection to the port. Dropping it ends it.
pub(crate) struct Forward<S> {
    socket: WebSocketStream<S>,
    /// What has come of a message, and was not read yet.
    unread: Bytes,
    /// Whether each channel has had its first message.
    greeted: [bool; 2],
}

impl<S> Forward<S> {
    pub(crate) fn new(socket: WebSocketStream<S>) -> Self {
        Self {
            socket,
            unread: Bytes::new(),
            greeted: [false; 2],
        }
    }

    /// Takes one message; its bytes are what is unread then.
    fn take(&mut self, mut message: Bytes) -> io::Result<()> {
        let strange = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it is no port that is forwarded",
            )
        };
        let channel = message.try_get_u8().map_err(|_| strange())?;
        let greeted = self.greeted.get_mut(usize::from(channel));
        if !std::mem::replace(greeted.ok_or_else(strange)?, true) {
            if message.len() < GREETING {
                return Err(strange());
            }
            message.advance(GREETING);
        }
        if channel == REFUSAL && !message.is_empty() {
            let words = String::from_utf8_lossy(&message);
            return Err(io::Error::other(words.trim().to_owned()));
        }
        if channel == DATA {
            self.unread = message;
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Forward<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.socket.poll_next_unpin(context)) {
                Some(Ok(Message::Binary(message))) => self.take(message)?,
                // What keeps the connection alive is answered where it is read.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let len = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Forward<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.socket.poll_ready_unpin(context)).map_err(broken)?;
        let bytes = &bytes[..bytes.len().min(PIECE)];
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(DATA);
        message.extend_from_slice(bytes);
        let message = Message::binary(message);
        self.socket.start_send_unpin(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush_unpin(context).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_close_unpin(context).map_err(broken)
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    /// Both ends: ours, and the API server's.
    async fn pair() -> (Forward<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let ours = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let theirs = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        (Forward::new(ours), theirs)
    }

    async fn send(socket: &mut WebSocketStream<DuplexStream>, messages: &[&[u8]]) {
        for message in messages {
            let message = Message::binary(message.to_vec());
            socket.send(message).await.expect("the other end is there");
        }
    }

    #[tokio::test]
    async fn bytes_are_what_comes_after_the_greeting() {
        let (mut ours, mut theirs) = pair().await;
        let ping = Message::Ping(Bytes::new());
        send(&mut theirs, &[b"\0\xd5\xf0", b"\x01\xd5\xf0", b"\0hel"]).await;
        theirs.send(ping).await.expect("the other end is there");
        send(&mut theirs, &[b"\0", b"\0lo"]).await;
        theirs.close(None).await.expect("it closes");
        let mut read = String::new();
        ours.read_to_string(&mut read).await.expect("it is read");
        assert_eq!(read, "hello");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_its_words() {
        let (mut ours, mut theirs) = pair().await;
        let words = b"\x01connection refused\n";
        send(&mut theirs, &[b"\0\xd5\xf0", b"\x01\xd5\xf0", words]).await;
        let error = ours.read_u8().await.expect_err("a refusal");
        assert_eq!(error.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn what_is_no_forwarding_is_an_error() {
        for strange in [&b""[..], b"\x02ab", b"\0a", b"\xff"] {
            let (mut ours, mut theirs) = pair().await;
            send(&mut theirs, &[strange]).await;
            let error = ours.read_u8().await.expect_err("an error");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{strange:?}");
        }
        let (mut ours, mut theirs) = pair().await;
        let text = Message::text("no");
        theirs.send(text).await.expect("the other end is there");
        assert!(ours.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn what_is_written_goes_in_pieces() {
        let (mut ours, mut theirs) = pair().await;
        let bytes = vec![7; PIECE + 3];
        ours.write_all(&bytes).await.expect("it is written");
        ours.flush().await.expect("it is flushed");
        for wanted in [PIECE, 3] {
            let message = theirs.next().await.expect("a message").expect("a message");
            let Message::Binary(message) = message else {
                panic!("{message:?}");
            };
            assert_eq!((message[0], message.len()), (DATA, wanted + 1));
        }
    }
}
