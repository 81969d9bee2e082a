//! Names that are parsed once and then trusted: runs, owners, outputs, grants.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, ErrorKind};

/// The longest name, in bytes. The tightest engine leaves this much of a DNS label (63 bytes) once
/// a prefix and a suffix of the backend's own are added.
pub const NAME_MAX: usize = 40;

fn check(what: &str, text: &str) -> Result<(), Error> {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ok = (1..=NAME_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric);
    if ok {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidSpec,
        format!(
            "{what} {text:?}: wanted a DNS label (a-z, 0-9 and inner '-') of 1 to {NAME_MAX} bytes"
        ),
    ))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(Box<str>);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidSpec`] unless it is a DNS label of at most [`NAME_MAX`] bytes.
            pub fn new(text: impl Into<Box<str>>) -> Result<Self, Error> {
                let text = text.into();
                check($what, &text)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(from)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// The caller's name for one run, and its idempotency key: one id is one attempt, and a retry
    /// is a new id.
    RunId, "run id"
}
name! {
    /// Whose runs these are. Everything that a backend makes carries it, and nothing that lacks it
    /// is ever touched. One owner has one live process (see [`Runtime::acquire`](crate::Runtime::acquire)).
    Owner, "owner"
}
name! {
    /// The name of an output that a spec declares.
    OutputName, "output name"
}
name! {
    /// The name of an egress grant, by which the caller knows where a connection is to go.
    GrantName, "grant name"
}

#[cfg(test)]
mod tests {
    use super::{NAME_MAX, RunId};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dns_labels_and_nothing_else(text in "\\PC{0,50}") {
            let wanted = !text.is_empty() && text.len() <= NAME_MAX
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                && !text.starts_with('-') && !text.ends_with('-');
            prop_assert_eq!(RunId::new(text).is_ok(), wanted);
        }

        #[test]
        fn labels_parse_back(text in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?") {
            let id: RunId = text.parse().expect("a DNS label");
            prop_assert_eq!(id.to_string(), text);
        }
    }
}
