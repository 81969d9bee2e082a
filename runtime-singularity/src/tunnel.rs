//! Granted connections of jobs, which are on other hosts: one TCP connection for each, from the job's
//! monitor to here. Both ends prove that they have the run's key before a byte passes; so which run it
//! is, and that it is one of ours, is certain. `helper/program/src/tunnel.rs` has what passes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hmac_sha256::HMAC;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use v6_runtime::{Connection, EgressGrant, RunId};

use crate::error::{Error, Result, blocking};
use crate::record::{There, write_new};
use crate::slurm::SlurmListen;
use crate::state::Shared;

const HELLO: &[u8] = b"v6-tunnel-1\n";
const NONCE: usize = 32;
const CODE: usize = 32;
/// How many may be proving who they are at once; further ones wait in the kernel.
const AT_ONCE: usize = 64;
/// The longest that this may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest wait for somebody who wants the connection; the other end waits for longer.
const TAKEN: Duration = Duration::from_secs(240);
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LAST_DELAY: Duration = Duration::from_secs(10);

/// The file in which monitors look for us.
pub(crate) fn address_file(shared: &Shared) -> PathBuf {
    shared.runs.path().with_file_name("address")
}

/// Listens, for as long as the runtime lives.
pub(crate) async fn serve(shared: Arc<Shared>, listen: SlurmListen) {
    let mut delay = FIRST_DELAY;
    loop {
        let Err(error) = session(&shared, &listen).await;
        tracing::warn!(%error, "connections of jobs are not answered");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

async fn session(shared: &Arc<Shared>, listen: &SlurmListen) -> Result<std::convert::Infallible> {
    let (listener, address) = bind(listen).await?;
    tell(shared, address).await?;
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else {
            unreachable!("this semaphore is never closed");
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let at_work = shared.clone();
                shared.spawn(async move {
                    // Who cannot prove anything, learns nothing.
                    if let Err(error) = answer(&at_work, stream, turn).await {
                        tracing::debug!(%error, "a connection was turned away");
                    }
                });
            }
            // One that is gone already, or no descriptor for it just now.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(FIRST_DELAY).await;
            }
        }
    }
}

async fn bind(listen: &SlurmListen) -> Result<(TcpListener, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in listen.ports.clone() {
        match TcpListener::bind((listen.address, port)).await {
            Ok(listener) => {
                let address = listener.local_addr();
                let failed = Error::host("an address cannot be told");
                return Ok((listener, address.map_err(failed)?));
            }
            Err(error) => last = error,
        }
    }
    let (first, end) = (listen.ports.start(), listen.ports.end());
    let what = format!("{} has no free port of {first} to {end}", listen.address);
    Err(Error::host(what)(last))
}

/// Writes down where we are.
async fn tell(shared: &Arc<Shared>, address: SocketAddr) -> Result<()> {
    let path = address_file(shared);
    blocking(move || {
        let new = path.with_extension(format!("{:016x}", rand::random::<u64>()));
        write_new(&new, address.to_string().as_bytes(), 0o600)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(Error::host(format!("{} cannot be made", path.display())))
    })
    .await
}

/// Hears what a monitor says, and hands its connection over.
async fn answer(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    turn: OwnedSemaphorePermit,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let proven = tokio::time::timeout(PATIENCE, prove(shared, &mut stream)).await;
    let (run, grant) = proven.map_err(|_| io::ErrorKind::TimedOut)??;
    drop(turn);
    let room = tokio::time::timeout(TAKEN, shared.egress.room()).await;
    let room = room.map_err(|_| io::ErrorKind::TimedOut)?;
    stream.write_all(&[0]).await?;
    room.send(Ok(Connection::new(run, grant, stream)));
    Ok(())
}

/// Which run it is, and which of its grants.
async fn prove(shared: &Arc<Shared>, stream: &mut TcpStream) -> io::Result<(RunId, EgressGrant)> {
    let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
    let mut said = vec![0; HELLO.len() + 1];
    stream.read_exact(&mut said).await?;
    let Some(length) = said.strip_prefix(HELLO).and_then(|rest| rest.first()) else {
        return Err(denied());
    };
    let mut rest = vec![0; usize::from(*length) + 2 + NONCE];
    stream.read_exact(&mut rest).await?;
    let (name, rest_of_it) = rest.split_at(usize::from(*length));
    let grant = usize::from(u16::from_be_bytes([rest_of_it[0], rest_of_it[1]]));
    let name = str::from_utf8(name).map_err(|_| denied())?;
    let id = RunId::new(name).map_err(|_| denied())?;
    said.extend(&rest);
    let (key, grant) = grant_of(shared, &id, grant).await.ok_or_else(denied)?;
    let nonce: [u8; NONCE] = rand::random();
    said.extend(nonce);
    let code = HMAC::mac([b"node", &said[..]].concat(), &key);
    stream.write_all(&[nonce, code].concat()).await?;
    let mut code = [0; CODE];
    stream.read_exact(&mut code).await?;
    if !HMAC::verify([b"job", &said[..]].concat(), &key, &code) {
        return Err(denied());
    }
    Ok((id, grant))
}

/// The key of a run that is not over, and one of its grants.
async fn grant_of(
    shared: &Arc<Shared>,
    id: &RunId,
    grant: usize,
) -> Option<(Vec<u8>, EgressGrant)> {
    let (runs, run) = (shared.runs.clone(), id.clone());
    let found = blocking(move || {
        let There::Run(record) = runs.read(&run)? else {
            return Ok(None);
        };
        let key = std::fs::read(runs.place(&run).file("key"));
        Ok(key.ok().zip(record.egress.into_iter().nth(grant)))
    });
    let (key, grant) = found.await.ok()??;
    // A key that is not whole proves nothing.
    (key.len() == 32).then_some((key, grant))
}
