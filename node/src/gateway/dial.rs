//! Connections to the addresses that the operator allows.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Opens a connection to what the operator wrote, and to nothing else.
///
/// A name is looked up once, and exactly the addresses of that answer are tried. An answer that
/// turns a public name into this machine or into a link-local service (metadata of a cloud) is
/// refused: whoever controls a name must not choose among the node's own services. An operator
/// who means these writes the address or `localhost`.
pub(super) async fn dial(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let out_of_time = |what: &str| io::Error::new(io::ErrorKind::TimedOut, what.to_owned());
    let found: Vec<SocketAddr> = tokio::time::timeout(limit, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| out_of_time("the name was not resolved in time"))??
        .collect();
    let named = host.parse::<IpAddr>().is_err() && host != "localhost";
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in found {
        if named && is_near(address.ip()) {
            last = io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{host} resolves to {}, an address of this machine or link; write that address instead of the name if it is meant",
                    address.ip()
                ),
            );
            continue;
        }
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = out_of_time("no connection in time"),
        }
    }
    Err(last)
}

fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
        }
    }
}

/// Copies both ways until both sides have ended; the end of one side is passed on while the
/// other goes on.
pub(super) async fn copy(
    mut run: impl AsyncRead + AsyncWrite + Unpin,
    mut there: TcpStream,
) -> io::Result<()> {
    tokio::io::copy_bidirectional(&mut run, &mut there)
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn what_is_near() {
        for near in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        for far in ["10.0.0.1", "192.168.1.1", "2001:db8::1", "8.8.8.8"] {
            assert!(!is_near(far.parse().unwrap()), "{far}");
        }
    }
}
