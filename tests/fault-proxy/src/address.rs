//! Where an API is.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where an engine's API is, or where a proxy listens. Its text is that of `DOCKER_HOST`:
/// `unix:///run/docker.sock`, `tcp://127.0.0.1:2375`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// An IP address and a port; to listen at port 0 is to listen at any that is free.
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl FromStr for Address {
    type Err = io::Error;

    /// # Errors
    /// `InvalidInput`: neither `unix://` and an absolute path, nor `tcp://` and an IP address with
    /// a port. Names of hosts are not looked up.
    fn from_str(text: &str) -> io::Result<Self> {
        let address = match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Some(Self::Unix(path.into())),
            Some(("tcp", address)) => address.parse().ok().map(Self::Tcp),
            _ => None,
        };
        address.ok_or_else(|| {
            let message = format!("{text:?} is neither unix:///PATH nor tcp://IP:PORT");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_there_and_back() {
        for text in [
            "unix:///run/docker.sock",
            "tcp://127.0.0.1:2375",
            "tcp://[::1]:80",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "/run/docker.sock",
            "unix://relative",
            "tcp://localhost:1",
            "ssh://x",
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
