//! From a job to whoever answers for its run's connections, on another host: one TCP connection for
//! each of the run's, dialled from here.
//!
//! Where to, is in a file that is read for each: whoever answers may come back elsewhere. Both ends
//! prove that they have the run's key, which is in the run's folder, before a byte passes. What
//! passes is as open as the shared file system is.
//!
//! ```text
//! job  -> node   HELLO, length of the run's name (1 byte), the name, number of the grant
//!                (2 bytes, big-endian), 32 random bytes
//! node -> job    32 random bytes, HMAC-SHA256(key, "node" and all of the above)
//! job  -> node   HMAC-SHA256(key, "job" and all of the above but the node's code)
//! node -> job    a zero byte, once the connection is taken
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use hmac_sha256::HMAC;

use crate::sys;

const HELLO: &[u8] = b"v6-tunnel-1\n";
const NONCE: usize = 32;
const CODE: usize = 32;
/// The most attempts at once; others wait for their turn.
const DIALS: usize = 16;
/// The longest wait for the other end to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest wait for it to take the connection, which it may not want yet.
const TAKEN: Duration = Duration::from_secs(300);
const STACK: usize = 64 << 10;

/// The way for one grant.
pub struct Tunnel {
    pub way: Arc<Way>,
    pub grant: u16,
}

/// What all grants of a run have in common.
pub struct Way {
    /// The file with the other end's address.
    pub address: PathBuf,
    pub run: Vec<u8>,
    pub key: Vec<u8>,
    dials: AtomicUsize,
}

impl Way {
    pub fn new(address: PathBuf, run: Vec<u8>, key: Vec<u8>) -> Arc<Self> {
        let dials = AtomicUsize::new(0);
        Arc::new(Self {
            address,
            run,
            key,
            dials,
        })
    }
}

/// An attempt that is under way.
pub struct Dial(Receiver<io::Result<OwnedFd>>);

impl Tunnel {
    /// Begins an attempt, or looks what has become of it; `None` while nothing has.
    pub fn try_connect(&self, dial: &mut Option<Dial>) -> Option<io::Result<OwnedFd>> {
        let Some(Dial(news)) = dial else {
            return match self.begin() {
                Ok(begun) => {
                    *dial = begun;
                    None
                }
                Err(error) => Some(Err(error)),
            };
        };
        let done = match news.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
            Ok(done) => done,
        };
        *dial = None;
        Some(done)
    }

    fn begin(&self) -> io::Result<Option<Dial>> {
        let (way, grant) = (self.way.clone(), self.grant);
        if way.dials.fetch_add(1, Ordering::Relaxed) >= DIALS {
            way.dials.fetch_sub(1, Ordering::Relaxed);
            return Ok(None);
        }
        let (tell, news) = sync_channel(1);
        let at_work = way.clone();
        let begun = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                let done = at_work.connect(grant);
                at_work.dials.fetch_sub(1, Ordering::Relaxed);
                // Nobody waits for it any more: it is closed.
                _ = tell.send(done);
            });
        if let Err(error) = begun {
            way.dials.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(Some(Dial(news)))
    }
}

impl Way {
    fn connect(&self, grant: u16) -> io::Result<OwnedFd> {
        let mut text = String::new();
        File::open(&self.address)?
            .take(128)
            .read_to_string(&mut text)?;
        let address: SocketAddr = text.trim().parse().map_err(io::Error::other)?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut said = HELLO.to_vec();
        said.push(u8::try_from(self.run.len()).map_err(io::Error::other)?);
        said.extend(&self.run);
        said.extend(grant.to_be_bytes());
        said.extend(sys::random()?);
        stream.write_all(&said)?;
        let mut answer = [0; NONCE + CODE];
        stream.read_exact(&mut answer)?;
        said.extend(&answer[..NONCE]);
        if !HMAC::verify([b"node", &said[..]].concat(), &self.key, code(&answer)) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        stream.write_all(&HMAC::mac([b"job", &said[..]].concat(), &self.key))?;
        stream.set_read_timeout(Some(TAKEN))?;
        let mut taken = [1];
        stream.read_exact(&mut taken)?;
        stream.set_nonblocking(true)?;
        Ok(stream.into())
    }
}

fn code(answer: &[u8; NONCE + CODE]) -> &[u8; CODE] {
    let (_, code) = answer.split_at(NONCE);
    code.first_chunk().unwrap_or(&[0; CODE])
}
