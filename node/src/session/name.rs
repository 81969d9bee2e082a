//! Names of dataframes, which become names of files.

use std::fmt;
use std::str::FromStr;

/// Without `.parquet`: the file that tells what was done.
pub(super) const STATE: &str = "session_state";
/// How the file of a dataframe ends.
pub(super) const SUFFIX: &str = ".parquet";
/// A file name may have 255 bytes.
const LONGEST: usize = 200;

/// A name as HQ allows it (`^[a-zA-Z0-9-_]+$`, not `session_state`), checked again
/// because HQ is not trusted with names of files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataframeName(String);

/// Not a name of a dataframe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a dataframe: 1 to {LONGEST} letters, digits, '-' and '_', and not 'session_state'"
)]
pub struct WrongName(String);

impl DataframeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its file's name in the session's folder.
    pub fn file_name(&self) -> String {
        format!("{}{SUFFIX}", self.0)
    }
}

impl FromStr for DataframeName {
    type Err = WrongName;

    fn from_str(name: &str) -> Result<Self, WrongName> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if (1..=LONGEST).contains(&name.len()) && name.bytes().all(fits) && name != STATE {
            Ok(Self(name.to_owned()))
        } else {
            Err(WrongName(name.chars().take(LONGEST).collect()))
        }
    }
}

impl fmt::Display for DataframeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_hq_allows() {
        for yes in ["eager_brattain", "A-1", "-", "_"] {
            assert!(yes.parse::<DataframeName>().is_ok(), "{yes}");
        }
        let long = "a".repeat(201);
        for no in [
            "",
            "session_state",
            ".",
            "..",
            "a/b",
            "a.b",
            "a b",
            "a\n",
            "é",
            "a\0",
            &long,
        ] {
            assert!(no.parse::<DataframeName>().is_err(), "{no:?}");
        }
    }
}
