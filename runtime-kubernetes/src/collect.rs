//! What a program has left, through the tunnel from its sidecar, which keeps it, or from a pod that reads
//! its claim.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt, stream};
use tokio::io::AsyncReadExt;
use v6_runtime::{Error, ErrorKind, OutputName, Result, ResultStream, RunId};

use crate::look::Look;
use crate::record::StoredOutput;
use crate::state::Shared;
use crate::translate;
use crate::tunnel::{Stream, read_line};

/// A transfer may stand still for so long.
const STALLED: Duration = Duration::from_secs(60);
/// How often a file whose transfer is cut is asked for again from there.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(300);
/// The sidecar's pieces are never longer.
const PIECE: usize = 1 << 20;
/// Announces a line that says why there is no more.
const WHY: u32 = u32::MAX;

/// The bytes of one output.
pub(crate) fn collect(shared: Arc<Shared>, id: RunId, output: OutputName) -> ResultStream<Bytes> {
    let opening = async move {
        let told = |error: Error| error.with_operation("collect").with_run(&id);
        let look = shared.look(&id).await.map_err(|error| told(error.into()))?;
        let look = look.ok_or_else(|| told(Error::no_such_run(&id)))?;
        let claim = shared.claim_of(&id, &look.pod);
        let stored = check(&look, &output, claim.is_some())
            .map_err(told)?
            .clone();
        let reading = Reading {
            shared,
            look,
            claim,
            stored,
            stream: None,
            offset: 0,
            tries: 0,
        };
        let id = id.clone();
        let pieces = stream::try_unfold(reading, |mut reading| async move {
            let piece = Box::pin(reading.next()).await?;
            Ok(piece.map(|piece| (piece, reading)))
        });
        Ok::<_, Error>(
            pieces.map_err(move |error: Error| error.with_operation("collect").with_run(&id)),
        )
    };
    Box::pin(stream::once(opening).try_flatten())
}

fn check<'a>(look: &'a Look, output: &OutputName, claimed: bool) -> Result<&'a StoredOutput> {
    let Some(stored) = look.record.outputs.get(output) else {
        let message = format!("there is no output {output}");
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    if !look.status.phase.is_finished() {
        return Err(Error::new(ErrorKind::NotReady, "the run has not finished"));
    }
    if !translate::has_run(&look.pod) && look.marks.ended.is_none() {
        return Err(Error::new(ErrorKind::NotFound, "its program never ran"));
    }
    if !claimed && !translate::has_sidecar(&look.pod) {
        let message = "its outputs are gone: its pod was ended, and they were kept in it";
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    Ok(stored)
}

struct Reading {
    shared: Arc<Shared>,
    look: Look,
    /// What they are on, if it is not the pod itself.
    claim: Option<String>,
    stored: StoredOutput,
    stream: Option<Stream>,
    offset: u64,
    tries: u32,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let cut = match self.piece().await {
                Ok(piece) => {
                    self.offset += piece.as_ref().map_or(0, |piece| piece.len() as u64);
                    return Ok(piece);
                }
                Err(End::Why(error)) => return Err(error),
                Err(End::Cut(error)) => error,
            };
            self.stream = None;
            self.tries += 1;
            // A folder is packed anew each time: only what has not begun can be begun again.
            let again = !self.stored.folder || self.offset == 0;
            if !again || self.tries >= TRIES {
                let message = "the transfer of an output was cut";
                return Err(Error::new(ErrorKind::Unavailable, message).with_source(cut));
            }
            tokio::time::sleep(PAUSE * self.tries).await;
            // The pod may have gone meanwhile, which says more than a cut does.
            let fresh = self.shared.look(&self.look.record.id).await?;
            let gone = || Error::no_such_run(&self.look.record.id);
            let fresh = fresh.ok_or_else(gone)?;
            if self.claim.is_none() && !translate::has_sidecar(&fresh.pod) {
                let message = "its pod was ended while its outputs were read";
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            self.look = fresh;
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, End> {
        if self.stream.is_none() {
            self.stream = Some(Box::pin(self.ask()).await?);
        }
        let Some(stream) = &mut self.stream else {
            return Err(End::Cut(io::ErrorKind::NotConnected.into()));
        };
        let reading = async {
            let len = stream.read_u32().await?;
            if len == WHY {
                return Err(End::Why(why(&read_line(stream).await?)));
            }
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len > PIECE {
                return Err(End::Cut(io::ErrorKind::InvalidData.into()));
            }
            if len == 0 {
                return Ok(None);
            }
            let mut piece = BytesMut::zeroed(len);
            stream.read_exact(&mut piece).await?;
            Ok(Some(piece.freeze()))
        };
        match tokio::time::timeout(STALLED, reading).await {
            Ok(piece) => piece,
            Err(_) => Err(End::Cut(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn ask(&self) -> Result<Stream, End> {
        let tunnel = match &self.claim {
            // It has been waited for long enough.
            Some(claim) => {
                let tunnel = self.shared.reader(&self.look, claim).await;
                tunnel.map_err(|error| End::Why(error.into()))?
            }
            None => self.shared.tunnel(&self.look).await.map_err(|error| {
                let error = Error::from(error);
                if error.is_retryable() {
                    End::Cut(io::Error::other(error))
                } else {
                    End::Why(error)
                }
            })?,
        };
        let StoredOutput {
            index,
            folder,
            limit,
            skip,
        } = &self.stored;
        let line = if *folder {
            let mut line = format!("FOLDER {index} {limit}");
            for path in skip {
                line.push(' ');
                line.extend(path.bytes().map(|byte| format!("{byte:02x}")));
            }
            line
        } else {
            format!("FILE {index} {} {limit}", self.offset)
        };
        Ok(tunnel.request(&line).await?)
    }
}

/// Why there is no further piece.
enum End {
    /// The way broke.
    Cut(io::Error),
    /// There is a reason.
    Why(Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Cut(error)
    }
}

/// The sidecar's reasons.
fn why(line: &str) -> Error {
    let (kind, words) = line.split_once(' ').unwrap_or((line, ""));
    let kind = match kind {
        "quota" => ErrorKind::Quota,
        "kind" => ErrorKind::InvalidSpec,
        "absent" => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, words)
}
