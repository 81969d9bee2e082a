//! Normal paths: absolute ones inside a container, and relative ones inside a volume.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::Error;

/// An absolute path inside a container: UTF-8, no `.`, `..`, empty or NUL component, not the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ContainerPath(Box<str>);

impl ContainerPath {
    /// Parses a path.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec) if it is not absolute and normal.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, Error> {
        let text = text.into();
        if text.strip_prefix('/').is_some_and(is_normal) {
            Ok(Self(text))
        } else {
            Err(Error::invalid(
                "path",
                format!("{text:?} is not an absolute, normal path"),
            ))
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this path lies below `folder` (and is not `folder` itself).
    #[must_use]
    pub fn is_below(&self, folder: &Self) -> bool {
        self.0
            .strip_prefix(&*folder.0)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// The path below `folder`, without a leading slash.
    #[must_use]
    pub fn relative_to(&self, folder: &Self) -> Option<&str> {
        self.0.strip_prefix(&*folder.0)?.strip_prefix('/')
    }

    /// A path below this one.
    ///
    /// # Errors
    /// As [`new`](Self::new), if `below` is not a normal relative path.
    pub fn join(&self, below: &str) -> Result<Self, Error> {
        Self::new(format!("{}/{below}", self.0))
    }
}

impl fmt::Display for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for ContainerPath {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

/// A path inside a volume, from its root: UTF-8, no `.`, `..`, empty or NUL component.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VolumePath(Box<str>);

impl VolumePath {
    /// Parses a path.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec) if it is not relative and normal.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, Error> {
        let text = text.into();
        if is_normal(&text) {
            Ok(Self(text))
        } else {
            Err(Error::invalid(
                "path",
                format!("{text:?} is not a relative, normal path"),
            ))
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for VolumePath {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

/// Whether a path without its leading slash is one that nobody reads differently.
fn is_normal(rest: &str) -> bool {
    rest.len() < 4000
        && rest
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::{ContainerPath, VolumePath};

    #[test]
    fn only_absolute_normal_paths() {
        for bad in [
            "", "/", "a", "/a/", "//a", "/a//b", "/./a", "/a/..", "/a\0b",
        ] {
            assert!(ContainerPath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["/a", "/a/b", "/a b/\n\"'$", "/..a"] {
            assert!(ContainerPath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn only_relative_normal_paths() {
        for bad in ["", "/", "/a", "a/", "a//b", "./a", "a/..", "..", "a\0b"] {
            assert!(VolumePath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b", "a b/\n\"'$", "..a"] {
            assert!(VolumePath::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn below_is_by_component() {
        let path = |text| ContainerPath::new(text).expect("a path");
        assert!(path("/a/b").is_below(&path("/a")));
        assert!(!path("/ab").is_below(&path("/a")));
        assert!(!path("/a").is_below(&path("/a")));
        assert_eq!(path("/a/b/c").relative_to(&path("/a")), Some("b/c"));
    }
}
