//! Streamed input that is not what it was said to be, made into what it was.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use v6_runtime::{InputReader, InputStream, MountSource, RunSpec};

/// The first bytes of a stream.
pub(super) fn shortened(stream: &InputStream, len: u64) -> InputStream {
    let source = stream.clone();
    InputStream::reopenable(len, move || {
        let source = source.clone();
        async move {
            let reader = source.open().await.map_err(io::Error::other)?;
            Ok(Box::pin(reader.take(len)) as InputReader)
        }
    })
}

/// Each stream gives as many bytes as it said, whatever its source gives.
pub(super) fn filled_up(mut spec: RunSpec) -> RunSpec {
    for mount in &mut spec.mounts {
        if let MountSource::Stream(stream) = &mut mount.source {
            let (source, len) = (stream.clone(), stream.len());
            *stream = InputStream::reopenable(len, move || {
                let source = source.clone();
                async move {
                    let given = source.open().await;
                    // The call before has read what can be read once.
                    let given: InputReader = match given {
                        Ok(given) => given,
                        Err(_) => Box::pin(tokio::io::empty()),
                    };
                    let filled = given.chain(tokio::io::repeat(b' ')).take(len);
                    Ok(Box::pin(filled) as InputReader)
                }
            });
        }
    }
    spec
}

/// As [`filled_up`], where a stream breaks: what it gave before is all that there is.
pub(super) fn mended(mut spec: RunSpec) -> RunSpec {
    for mount in &mut spec.mounts {
        if let MountSource::Stream(stream) = &mut mount.source {
            let (source, len) = (stream.clone(), stream.len());
            *stream = InputStream::reopenable(len, move || {
                let source = source.clone();
                async move {
                    let given = source.open().await.map_err(io::Error::other)?;
                    let tolerant = Tolerant {
                        reader: given,
                        left: len,
                        broken: false,
                    };
                    Ok(Box::pin(tolerant) as InputReader)
                }
            });
        }
    }
    spec
}

/// A reader that gives blanks once the one behind it has broken.
struct Tolerant {
    reader: InputReader,
    left: u64,
    broken: bool,
}

impl AsyncRead for Tolerant {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if !self.broken {
            let read = std::task::ready!(self.reader.as_mut().poll_read(context, buffer));
            self.broken = read.is_err();
        }
        if self.broken {
            let most = usize::try_from(self.left).unwrap_or(usize::MAX);
            let blanks = most.min(buffer.remaining());
            buffer.initialize_unfilled_to(blanks).fill(b' ');
            buffer.advance(blanks);
        }
        let given = (buffer.filled().len() - before) as u64;
        self.left = self.left.saturating_sub(given);
        Poll::Ready(Ok(()))
    }
}
