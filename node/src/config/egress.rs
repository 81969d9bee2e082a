//! Addresses that a run may be granted.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use url::Url;

use super::reader::{Fault, fault};

/// A host (name or IP address) and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// A DNS name in lower case, or an IP address; IPv6 without brackets.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        const EXAMPLE: &str =
            "write host:port, for example db.example.org:5432 or [2001:db8::7]:5432";
        if text.contains("://") {
            return fault(format!("\"{text}\" is an address with a scheme"), EXAMPLE);
        }
        if text.contains('*') {
            return fault(
                format!("\"{text}\" has a wildcard"),
                "name each host; a run reaches only hosts that are named",
            );
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return fault(format!("\"{text}\" has no port"), EXAMPLE);
        };
        let port = match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return fault(format!("\"{port}\" is not a port"), EXAMPLE),
        };
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => inner.to_owned(),
            Some(_) => return fault(format!("\"{host}\" is not an IPv6 address"), EXAMPLE),
            None if host.parse::<Ipv4Addr>().is_ok() || is_dns_name(host) => {
                host.to_ascii_lowercase()
            }
            None => return fault(format!("\"{host}\" is not a host name"), EXAMPLE),
        };
        Ok(Self { host, port })
    }

    /// The first host and port in a database's address, if it names one.
    pub fn of_uri(uri: &str) -> Option<Self> {
        // A driver part (`postgresql+psycopg2://`) is no valid scheme for every parser,
        // and `jdbc:` stands before the scheme proper.
        let (scheme, rest) = uri.strip_prefix("jdbc:").unwrap_or(uri).split_once("://")?;
        let scheme = scheme.split('+').next()?;
        let authority = rest.split(['/', '?', ';', '#']).next()?;
        // A neutral scheme: that of the address would hide its default port.
        let url = Url::parse(&format!("v6db://{authority}")).ok()?;
        let host = url
            .host_str()?
            .trim_matches(['[', ']'])
            .to_ascii_lowercase();
        let port = url.port().or_else(|| default_port(scheme))?;
        (!host.is_empty()).then_some(Self { host, port })
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    Some(match scheme {
        "postgresql" | "postgres" => 5432,
        "mysql" | "mariadb" => 3306,
        "mssql" | "sqlserver" => 1433,
        "oracle" => 1521,
        "mongodb" => 27017,
        "http" => 80,
        "https" => 443,
        _ => return None,
    })
}

/// RFC 1123, with the underscore that container networks use.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last part of digits is how a mistyped IP address looks.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !numeric
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_endpoint() {
        for (text, shown) in [
            ("DB.example.org:5432", "db.example.org:5432"),
            ("10.0.0.7:80", "10.0.0.7:80"),
            ("[2001:db8::7]:443", "[2001:db8::7]:443"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "db",
            "db:0",
            "db:70000",
            "*.example.org:1",
            "a b:1",
            "-x:1",
            "10.0.0.300:1",
            "2001:db8::7:443",
            "http://x:1",
            ":1",
            "[x]:1",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_endpoint_of_a_database_address() {
        for (uri, shown) in [
            (
                "postgresql://user:p%40ss@DB.example:6543/omop",
                "db.example:6543",
            ),
            ("postgresql+psycopg2://db/omop", "db:5432"),
            ("jdbc:sqlserver://db:1444;databaseName=x", "db:1444"),
            ("https://sparql.example/q", "sparql.example:443"),
            ("mysql://[::1]/x", "[::1]:3306"),
        ] {
            assert_eq!(
                Endpoint::of_uri(uri)
                    .map(|endpoint| endpoint.to_string())
                    .as_deref(),
                Some(shown),
                "{uri}"
            );
        }
        for uri in [
            "sqlite:///data.db",
            "file.csv",
            "odd://db/x",
            "Server=db;Database=x",
        ] {
            assert_eq!(Endpoint::of_uri(uri), None, "{uri}");
        }
    }
}
