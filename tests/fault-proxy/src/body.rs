//! The bodies on their way: passed on piece by piece, never gathered.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::watch;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::shape::{Next, Shape};
use crate::wire::Line;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;
type Inner = Either<Incoming, Full<Bytes>>;
type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// A request's body, which tells when all of it is written, or nobody wants the rest.
pub(crate) struct RequestBody {
    inner: Inner,
    sending: watch::Sender<bool>,
}

impl RequestBody {
    pub(crate) fn new(inner: Inner, sending: watch::Sender<bool>) -> Self {
        sending.send_replace(true);
        Self { inner, sending }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.sending.send_replace(false);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A reply's body.
pub(crate) struct ReplyBody {
    /// `None` after an end that is not the engine's, which has to hear that nobody listens.
    inner: Option<Inner>,
    shaped: Option<Shaped>,
}

struct Shaped {
    shape: Shape,
    /// Came from the engine, and was not passed on yet.
    held: Bytes,
    /// Whether what came before is written.
    written: bool,
    release: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    client: Arc<Line>,
}

impl ReplyBody {
    pub(crate) fn fixed(body: Bytes) -> Self {
        Self {
            inner: Some(Either::Right(Full::new(body))),
            shaped: None,
        }
    }

    pub(crate) fn passed(body: Incoming) -> Self {
        Self {
            inner: Some(Either::Left(body)),
            shaped: None,
        }
    }

    /// A body for the client at the end of this line.
    pub(crate) fn shaped(body: Incoming, shape: Shape, client: Arc<Line>) -> Self {
        let release = shape.release().cloned();
        let shaped = Shaped {
            shape,
            held: Bytes::new(),
            written: false,
            release: release.map(|release| Box::pin(release.cancelled_owned())),
            client,
        };
        Self {
            inner: Some(Either::Left(body)),
            shaped: Some(shaped),
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let Some(shaped) = &mut this.shaped else {
            return Pin::new(inner).poll_frame(cx);
        };
        if let Some(release) = &mut shaped.release {
            // Only to be woken: the shape knows what it means.
            let _ = release.as_mut().poll(cx);
        }
        loop {
            match shaped.shape.next() {
                Next::More => {}
                Next::End => {
                    this.inner = None;
                    return Poll::Ready(None);
                }
                Next::Cut => {
                    // An error from here would lose what is not flushed.
                    shaped.client.cut_once_flushed();
                    return Poll::Pending;
                }
            }
            if !shaped.held.is_empty() {
                // After a pause all that was given is flushed.
                if shaped.shape.is_split() && !std::mem::replace(&mut shaped.written, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                shaped.written = false;
                let size = shaped.shape.take(shaped.held.len());
                let piece = shaped.held.split_to(size);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match ready!(Pin::new(&mut *inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => shaped.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match (&self.inner, &self.shaped) {
            (Some(inner), None) => inner.is_end_stream(),
            (Some(_), Some(_)) => false,
            (None, _) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.inner, &self.shaped) {
            (Some(inner), None) => inner.size_hint(),
            _ => SizeHint::default(),
        }
    }
}
