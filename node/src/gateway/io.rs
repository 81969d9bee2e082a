//! A byte stream that counts.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What has passed through one connection.
#[derive(Debug)]
pub(super) struct Meter {
    start: Instant,
    from_run: AtomicU64,
    to_run: AtomicU64,
    /// Milliseconds after `start` at which the last byte passed.
    last: AtomicU64,
}

impl Meter {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            from_run: AtomicU64::new(0),
            to_run: AtomicU64::new(0),
            last: AtomicU64::new(0),
        })
    }

    pub(super) fn received(&self) -> u64 {
        self.from_run.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> u64 {
        self.to_run.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self) -> Duration {
        self.start.elapsed()
    }

    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Returns once nothing has passed for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let last = self.last.load(Ordering::Relaxed);
            let due = self.start + Duration::from_millis(last) + limit;
            if Instant::now() >= due {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// A stream of a run: what is read comes from the run.
pub(super) struct Metered<T> {
    inner: T,
    meter: Arc<Meter>,
}

impl<T> Metered<T> {
    pub(super) fn new(inner: T, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let more = buffer.filled().len() - before;
        if more > 0 {
            self.meter
                .from_run
                .fetch_add(more as u64, Ordering::Relaxed);
            self.meter.touch();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.meter
                .to_run
                .fetch_add(*written as u64, Ordering::Relaxed);
            self.meter.touch();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
