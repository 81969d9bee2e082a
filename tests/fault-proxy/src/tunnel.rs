//! After a switch of protocols: bytes both ways.

use std::io;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};

use crate::shape::{Next, Shape};

const BUFFER: usize = 16 * 1024;

/// Passes all on until both sides have ended, or one is broken.
///
/// # Errors
/// One is broken, or the shape says so.
pub(crate) async fn pass(client: Upgraded, engine: Upgraded, shape: Shape) -> io::Result<()> {
    let (mut from_client, to_client) = split(TokioIo::new(client));
    let (from_engine, mut to_engine) = split(TokioIo::new(engine));
    let up = async {
        copy(&mut from_client, &mut to_engine).await?;
        to_engine.shutdown().await
    };
    tokio::try_join!(up, down(from_engine, to_client, shape))?;
    Ok(())
}

async fn down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut shape: Shape,
) -> io::Result<()> {
    let release = shape.release().cloned();
    let released = async {
        match release {
            Some(release) => release.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(released);
    let mut buffer = vec![0; BUFFER];
    let mut there = 0..0;
    loop {
        match shape.next() {
            Next::More => {}
            Next::End => break,
            Next::Cut => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        if there.is_empty() {
            let size = tokio::select! {
                size = from.read(&mut buffer) => size?,
                () = &mut released => continue,
            };
            if size == 0 {
                break;
            }
            there = 0..size;
        }
        let piece = there.start..there.start + shape.take(there.len());
        there.start = piece.end;
        to.write_all(&buffer[piece]).await?;
        to.flush().await?;
        if shape.is_split() {
            // So that a reader in this very thread can take the piece by itself.
            tokio::task::yield_now().await;
        }
    }
    to.shutdown().await
}
