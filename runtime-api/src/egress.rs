//! The only network that a run has: named connections, handed to the caller.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Error, GrantName, Result, RunId};

/// Permission to open connections to one name and port.
///
/// Inside the run, `host` resolves to a loopback address of its own on which `port` is listened
/// to; each connection made there appears at
/// [`Runtime::connections`](crate::Runtime::connections). Where it then goes is the caller's
/// decision: the run has no other network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EgressGrant {
    /// The caller's name for the destination.
    pub name: GrantName,
    /// The host name that the run uses; not an address, not a wildcard.
    pub host: String,
    /// The TCP port that the run uses.
    pub port: u16,
}

impl EgressGrant {
    /// The most grants of one run: each host takes one address of 127.0.1.0/24.
    pub const MAX: usize = 200;

    /// A grant for this host and port.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec) if `host` is not a host name (an
    /// address or a wildcard is not) or the port is 0.
    pub fn new(name: GrantName, host: impl Into<String>, port: u16) -> Result<Self> {
        let host = host.into();
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let named = host.len() <= 253
            && host.split('.').all(label)
            && !host
                .rsplit('.')
                .next()
                .is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()))
            && !host.eq_ignore_ascii_case("localhost");
        if !named {
            return Err(Error::invalid(
                "egress",
                format!("{host:?} is not a host name"),
            ));
        }
        if port == 0 {
            return Err(Error::invalid("egress", format!("{host}: port 0")));
        }
        Ok(Self {
            name,
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    pub(crate) fn validate_all(grants: &[Self]) -> Result<()> {
        if grants.len() > Self::MAX {
            return Err(Error::invalid(
                "egress",
                format!("more than {} grants", Self::MAX),
            ));
        }
        let (mut names, mut targets) = (HashSet::new(), HashSet::new());
        for grant in grants {
            if !names.insert(&grant.name) {
                return Err(Error::invalid(
                    "egress",
                    format!("{} is granted twice", grant.name),
                ));
            }
            if !targets.insert((&grant.host, grant.port)) {
                return Err(Error::invalid(
                    "egress",
                    format!("{}:{} is granted twice", grant.host, grant.port),
                ));
            }
        }
        Ok(())
    }
}

/// A byte stream in both directions, with half-close.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that a run has opened to one of its grants.
///
/// Dropping it closes it, nothing else.
#[non_exhaustive]
pub struct Connection {
    /// Which run opened it. Certain: it does not rest on anything the run says.
    pub run: RunId,
    /// To which of its grants.
    pub grant: EgressGrant,
    /// The bytes.
    pub io: Box<dyn Io>,
}

impl Connection {
    /// Puts a connection together; for backends.
    pub fn new(run: RunId, grant: EgressGrant, io: impl Io + 'static) -> Self {
        Self {
            run,
            grant,
            io: Box::new(io),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("run", &self.run)
            .field("grant", &self.grant)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::EgressGrant;
    use crate::GrantName;

    #[test]
    fn names_only() {
        let grant = |host: &str| EgressGrant::new(GrantName::new("g").expect("name"), host, 443);
        for bad in [
            "",
            "*",
            "*.example.org",
            "10.0.0.1",
            "::1",
            "a..b",
            "-a",
            "localhost",
            "a b",
        ] {
            assert!(grant(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            grant("DB.Example.org").expect("a host").host,
            "db.example.org"
        );
    }
}
