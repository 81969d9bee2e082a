//! Conveniences for callers.

use std::future::Future;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;

use crate::{
    Error, ErrorKind, LogOptions, OutputName, Result, RunId, RunStatus, Runtime, WatchEvent,
};

/// Built on [`Runtime`] alone and implemented for all of them; do not implement it.
pub trait RuntimeExt: Runtime {
    /// Waits until a run has finished, by a watch of its own. To wait for many runs at once use a
    /// [`Tracker`](crate::Tracker), which shares one.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// `NotFound` if there is no such run, or it was cleaned up meanwhile.
    fn wait(&self, id: &RunId) -> impl Future<Output = Result<RunStatus>> + Send {
        async move {
            let mut events = self.watch();
            loop {
                let event = match events.try_next().await {
                    Ok(Some(event)) => event,
                    Ok(None) => {
                        let message = "the watch ended";
                        return Err(Error::new(ErrorKind::Protocol, message).with_run(id));
                    }
                    Err(error) if error.is_retryable() => continue,
                    Err(error) => return Err(error),
                };
                match event {
                    WatchEvent::Snapshot(runs) => {
                        let status = runs.into_iter().find(|run| run.id == *id);
                        let status = status.ok_or_else(|| Error::no_such_run(id))?;
                        if status.phase.is_finished() {
                            return Ok(status);
                        }
                    }
                    WatchEvent::Changed(status)
                        if status.id == *id && status.phase.is_finished() =>
                    {
                        return Ok(*status);
                    }
                    WatchEvent::Removed(gone) if gone == *id => return Err(Error::no_such_run(id)),
                    _ => {}
                }
            }
        }
    }

    /// An output, whole in memory, of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Runtime::collect`]; `Quota` if it has more than `limit` bytes.
    fn collect_bytes(
        &self,
        id: &RunId,
        output: &OutputName,
        limit: usize,
    ) -> impl Future<Output = Result<Bytes>> + Send {
        async move {
            let mut chunks = self.collect(id, output);
            let mut all = BytesMut::new();
            while let Some(chunk) = chunks.try_next().await? {
                if all.len() + chunk.len() > limit {
                    let message = format!("output {output} has more than {limit} bytes");
                    return Err(Error::new(ErrorKind::Quota, message).with_run(id));
                }
                all.extend_from_slice(&chunk);
            }
            Ok(all.freeze())
        }
    }

    /// What a run has printed so far on both streams, at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Runtime::logs`].
    fn logs_bytes(&self, id: &RunId, limit: u64) -> impl Future<Output = Result<Bytes>> + Send {
        async move {
            let mut chunks = self.logs(id, LogOptions::default().with_limit_bytes(limit));
            let mut all = BytesMut::new();
            while let Some(chunk) = chunks.try_next().await? {
                all.extend_from_slice(&chunk.bytes);
            }
            Ok(all.freeze())
        }
    }
}

impl<R: Runtime + ?Sized> RuntimeExt for R {}
