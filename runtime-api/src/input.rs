//! Large input, given as a stream instead of bytes in memory.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::io::AsyncRead;

use crate::{Error, ErrorKind, Result};

/// A reader of one input.
pub type InputReader = Pin<Box<dyn AsyncRead + Send>>;

type Opening = Pin<Box<dyn Future<Output = io::Result<InputReader>> + Send>>;
type Opener = dyn Fn() -> Opening + Send + Sync;

/// A file's content that is read when the backend stores it, in constant memory.
///
/// Its length is part of the contract: a backend stores exactly `len` bytes, and a source that
/// ends early or goes on fails the `run` call.
#[derive(Clone)]
pub struct InputStream {
    len: u64,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Reopenable(Arc<Opener>),
    Once(Arc<Mutex<Option<InputReader>>>),
}

impl InputStream {
    /// A source that can be opened again from its start, so that a backend may repeat a transfer
    /// that was cut.
    pub fn reopenable<F, Fut>(len: u64, open: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<InputReader>> + Send + 'static,
    {
        Self {
            len,
            source: Source::Reopenable(Arc::new(move || Box::pin(open()))),
        }
    }

    /// A source that can be read once. A transfer that is cut cannot be repeated: the caller has
    /// to call `run` again with a new one.
    pub fn once(len: u64, reader: impl AsyncRead + Send + 'static) -> Self {
        Self {
            len,
            source: Source::Once(Arc::new(Mutex::new(Some(Box::pin(reader))))),
        }
    }

    /// A file of this machine, opened when it is needed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] if it cannot be looked at or is not a regular file.
    pub async fn file(path: impl Into<std::path::PathBuf>) -> Result<Self> {
        let path = path.into();
        let shown = path.display().to_string();
        let bad = |why: String| Error::invalid("mounts", format!("{shown}: {why}"));
        let meta = tokio::fs::metadata(&path)
            .await
            .map_err(|e| bad(e.to_string()))?;
        if !meta.is_file() {
            return Err(bad("not a regular file".into()));
        }
        Ok(Self::reopenable(meta.len(), move || {
            let path = path.clone();
            async move { Ok(Box::pin(tokio::fs::File::open(path).await?) as InputReader) }
        }))
    }

    /// How many bytes it gives.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it gives no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it can be opened more than once.
    #[must_use]
    pub fn is_reopenable(&self) -> bool {
        matches!(self.source, Source::Reopenable(_))
    }

    /// Opens it at its start; for backends.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] if it cannot be opened, [`ErrorKind::Conflict`] if it can be read
    /// only once and has been.
    pub async fn open(&self) -> Result<InputReader> {
        match &self.source {
            Source::Reopenable(open) => open().await.map_err(|e| {
                Error::new(ErrorKind::Unexpected, "an input could not be opened").with_source(e)
            }),
            Source::Once(reader) => {
                let taken = match reader.lock() {
                    Ok(mut reader) => reader.take(),
                    Err(poisoned) => poisoned.into_inner().take(),
                };
                taken.ok_or_else(|| {
                    Error::new(
                        ErrorKind::Conflict,
                        "an input that can be read once was read before",
                    )
                })
            }
        }
    }
}

impl fmt::Debug for InputStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InputStream")
            .field("len", &self.len)
            .field("reopenable", &self.is_reopenable())
            .finish()
    }
}
