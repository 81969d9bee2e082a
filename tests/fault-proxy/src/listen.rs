//! The place where a proxy listens, which stays its own while nothing listens there.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::address::Address;
use crate::wire::Socket;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A place to listen at. Its socket file goes with it.
#[derive(Debug)]
pub(crate) struct Place {
    /// With the port that was found.
    address: Address,
    /// Bound and deaf: whoever connects is refused, and nobody else gets the port.
    _reserved: Option<TcpSocket>,
}

pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Place {
    /// Takes the place, and listens there. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Somebody listens there already; no right to; no such folder.
    pub(crate) fn take(listen: &Address) -> io::Result<(Self, Listener)> {
        match listen {
            Address::Unix(path) => {
                let listener = Listener::Unix(bind(path)?);
                let place = Self {
                    address: listen.clone(),
                    _reserved: None,
                };
                Ok((place, listener))
            }
            Address::Tcp(address) => {
                // Sockets that share a port, as ours will, would not notice another listener.
                if address.port() != 0 {
                    drop(std::net::TcpListener::bind(address)?);
                }
                let reserved = shared_socket(*address)?;
                let place = Self {
                    address: Address::Tcp(reserved.local_addr()?),
                    _reserved: Some(reserved),
                };
                let listener = place.listen()?;
                Ok((place, listener))
            }
        }
    }

    /// Listens again, after the last listener was dropped. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Somebody has taken the path meanwhile.
    pub(crate) fn listen(&self) -> io::Result<Listener> {
        Ok(match &self.address {
            Address::Unix(path) => Listener::Unix(bind(path)?),
            Address::Tcp(address) => Listener::Tcp(shared_socket(*address)?.listen(BACKLOG)?),
        })
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(listener) => Ok(Socket::Unix(listener.accept().await?.0)),
            Self::Tcp(listener) => Socket::tcp(listener.accept().await?.0),
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_deserted(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

/// Whether there is the socket of somebody who does not listen any more.
fn is_deserted(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn shared_socket(address: std::net::SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // The first lets connections of before linger, the second lets the deaf socket be there too.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}
