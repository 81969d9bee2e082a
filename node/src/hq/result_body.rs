//! The body of a PATCH whose result is encoded while it is sent.
//!
//! HQ's field `result` is text inside JSON. A result of a GiB must never be in memory, so
//! the body is a stream: the other fields, then the result's text piece by piece, then the
//! closing characters. Its length is known beforehand, and must be: HQ's uWSGI takes no
//! chunked bodies.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::types::RunPatch;
use super::wire::WirePatch;
use crate::crypto::ResultEncoder;

/// Bytes of a result that can be read as often as it takes to send them.
#[async_trait]
pub trait ResultSource: Send + Sync {
    /// How many bytes there are. Reading must give exactly so many.
    fn length(&self) -> u64;

    /// The bytes from the beginning.
    async fn open(&self) -> io::Result<Pin<Box<dyn AsyncRead + Send>>>;
}

/// A result in memory.
#[derive(Debug, Clone)]
pub struct BytesSource(pub Bytes);

#[async_trait]
impl ResultSource for BytesSource {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    async fn open(&self) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        Ok(Box::pin(io::Cursor::new(self.0.clone())))
    }
}

/// A result in a file that nobody changes meanwhile.
#[derive(Debug, Clone)]
pub struct FileSource {
    path: PathBuf,
    length: u64,
}

impl FileSource {
    /// Looks the length up.
    ///
    /// # Errors
    /// If there is no such regular file.
    pub async fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let about = tokio::fs::symlink_metadata(&path).await?;
        if !about.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(Self {
            length: about.len(),
            path,
        })
    }
}

#[async_trait]
impl ResultSource for FileSource {
    fn length(&self) -> u64 {
        self.length
    }

    async fn open(&self) -> io::Result<Pin<Box<dyn AsyncRead + Send>>> {
        Ok(Box::pin(tokio::fs::File::open(&self.path).await?))
    }
}

/// Bytes read from the source for each piece of the body.
const PIECE: usize = 96 * 1024;

/// The JSON of `patch` without a result: everything up to the result's first character.
fn opening(patch: &RunPatch) -> serde_json::Result<String> {
    let mut json = serde_json::to_string(&WirePatch::from(patch))?;
    json.pop();
    if json.len() > 1 {
        json.push(',');
    }
    json.push_str("\"result\":\"");
    Ok(json)
}

const CLOSING: &str = "\"}";

/// Length of the body, and the body.
pub(super) fn body(
    patch: &RunPatch,
    encoder: ResultEncoder,
    length: u64,
    input: Pin<Box<dyn AsyncRead + Send>>,
) -> serde_json::Result<(u64, impl Stream<Item = io::Result<Bytes>> + Send + 'static)> {
    let opening = opening(patch)?;
    let total = opening.len() as u64 + encoder.encoded_len(length) + CLOSING.len() as u64;
    let state = State {
        text: opening,
        encoder: Some(encoder),
        input,
        left: length,
    };
    Ok((total, stream::try_unfold(state, |state| state.next())))
}

struct State {
    /// Sent before anything else is read.
    text: String,
    /// Gone when the end has been written.
    encoder: Option<ResultEncoder>,
    input: Pin<Box<dyn AsyncRead + Send>>,
    left: u64,
}

impl State {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let Some(mut encoder) = self.encoder.take() else {
            return Ok(None);
        };
        let mut text = std::mem::take(&mut self.text);
        // One byte past the end is asked for, to notice a source that is too long.
        let room = usize::try_from(self.left.saturating_add(1))
            .unwrap_or(PIECE)
            .min(PIECE);
        let mut piece = vec![0; room];
        let count = self.input.read(&mut piece).await?;
        if count as u64 > self.left {
            return Err(io::Error::other("the result has grown while it was sent"));
        }
        if count == 0 && self.left > 0 {
            let kind = io::ErrorKind::UnexpectedEof;
            return Err(io::Error::new(kind, "the result is shorter than it was"));
        }
        self.left -= count as u64;
        if count > 0 {
            encoder
                .push(&piece[..count], &mut text)
                .map_err(io::Error::other)?;
            self.encoder = Some(encoder);
        } else {
            encoder.finish(&mut text);
            text.push_str(CLOSING);
        }
        Ok(Some((text.into(), self)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::hq::RunStatus;
    use futures_util::TryStreamExt;
    use std::time::UNIX_EPOCH;

    async fn sent(patch: &RunPatch, bytes: Vec<u8>, length: u64) -> io::Result<String> {
        let source = BytesSource(bytes.into());
        let input = source.open().await?;
        let (total, body) = body(patch, ResultEncoder::plain(), length, input).unwrap();
        let text: Vec<u8> = body.map_ok(|piece| piece.to_vec()).try_concat().await?;
        assert_eq!(text.len() as u64, total);
        Ok(String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn streams_the_json_that_would_be_sent_whole() {
        let log = "a \"quoted\" line\n".to_owned();
        for size in [0, 1, 2, 3, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 2] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let text = crate::crypto::encode(&bytes);
            let mut whole = RunPatch::finished(RunStatus::Completed, UNIX_EPOCH, log.clone(), text);
            let want = serde_json::to_string(&WirePatch::from(&whole)).unwrap();
            whole.result = None;
            assert_eq!(sent(&whole, bytes, size as u64).await.unwrap(), want);
        }
    }

    #[tokio::test]
    async fn alone_in_the_body() {
        assert_eq!(
            sent(&RunPatch::default(), b"abc".to_vec(), 3)
                .await
                .unwrap(),
            r#"{"result":"YWJj"}"#
        );
    }

    #[tokio::test]
    async fn a_source_of_another_length_is_an_error() {
        assert!(
            sent(&RunPatch::default(), b"abc".to_vec(), 4)
                .await
                .is_err()
        );
        assert!(
            sent(&RunPatch::default(), b"abc".to_vec(), 2)
                .await
                .is_err()
        );
        assert!(
            sent(&RunPatch::default(), b"abc".to_vec(), 0)
                .await
                .is_err()
        );
    }
}
