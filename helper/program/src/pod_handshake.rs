//! Both ends of a tunnel show that they have the run's key before anything else is said.
//!
//! The program of the run is in the same network namespace and can reach the listener, and could
//! listen in its place: neither end takes the other for what it seems.

use std::io;

use hmac_sha256::HMAC;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
};

/// The version of the tunnel. An end that speaks another is refused.
const VERSION: &str = "v6-tunnel/1";
/// The longest line of the handshake.
const LINE: u64 = 256;

/// What both ends know and nobody else.
#[derive(Clone)]
pub struct Key(Vec<u8>);

impl Key {
    /// At least 32 bytes.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() >= 32).then_some(Self(bytes))
    }

    fn proof(&self, words: &[&str]) -> String {
        hex(&HMAC::mac(said(words), &self.0))
    }

    fn is_proof(&self, words: &[&str], proof: &str) -> bool {
        let proof = unhex(proof).and_then(|proof| <[u8; 32]>::try_from(proof).ok());
        // In constant time.
        proof.is_some_and(|proof| HMAC::verify(said(words), &self.0, &proof))
    }
}

/// What a proof is of.
fn said(words: &[&str]) -> Vec<u8> {
    let lines = words.iter().flat_map(|word| [word.as_bytes(), b"\n"]);
    lines.flatten().copied().collect()
}

/// Answers the other end. `mode` is which program of the pod this is.
///
/// ```text
/// client  v6-tunnel/1 NONCE
/// server  v6-tunnel/1 MODE NONCE PROOF        of "server", mode and both nonces
/// client  PROOF                               of "client", mode and both nonces
/// server  ok
/// ```
///
/// # Errors
///
/// Another version, a wrong proof, or an end of the connection.
pub async fn accept<S>(stream: &mut S, key: &Key, mode: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let refused = |what: &str| io::Error::new(io::ErrorKind::PermissionDenied, what.to_owned());
    let hello = line(stream).await?;
    let theirs = match hello.split_once(' ') {
        Some((VERSION, nonce)) if nonce.len() == 64 => nonce,
        _ => return Err(refused("another version of the tunnel")),
    };
    let ours = nonce()?;
    let proof = key.proof(&["server", mode, theirs, &ours]);
    let answer = format!("{VERSION} {mode} {ours} {proof}\n");
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    let proof = line(stream).await?;
    if !key.is_proof(&["client", mode, theirs, &ours], &proof) {
        return Err(refused("a wrong proof"));
    }
    stream.write_all(b"ok\n").await?;
    stream.flush().await
}

/// Reads one line byte by byte: what follows it belongs to somebody else.
pub async fn line<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut one = tokio::io::BufReader::with_capacity(1, stream).take(LINE);
    let mut text = String::new();
    one.read_line(&mut text).await?;
    match text.strip_suffix('\n') {
        Some(text) => Ok(text.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn nonce() -> io::Result<String> {
    let mut bytes = [0; 32];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}
