//! Images: programs with a name, kept by what is in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use v6_runtime::{Digest, ImageRef};

use crate::record::aside;

/// Names, and the folder with a copy of each program that a name was ever resolved to: a run uses
/// just the one that was resolved, whatever has become of the file since. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    names: Arc<BTreeMap<ImageRef, PathBuf>>,
    store: PathBuf,
}

impl Images {
    pub(crate) fn new(store: PathBuf) -> Self {
        let names = Arc::default();
        Self { names, store }
    }

    pub(crate) fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.store)
    }

    pub(crate) fn add(&mut self, name: ImageRef, program: PathBuf) {
        Arc::make_mut(&mut self.names).insert(name, program);
    }

    /// The program that has this name.
    pub(crate) fn program(&self, name: &ImageRef) -> Option<PathBuf> {
        self.names.get(name).cloned()
    }

    /// Where a program is kept.
    pub(crate) fn at(&self, digest: &Digest) -> PathBuf {
        self.store.join(digest.as_str())
    }

    /// Keeps a program, and returns its digest.
    pub(crate) fn keep(&self, program: &Path) -> io::Result<Digest> {
        let digest = digest_of(program)?;
        if self.at(&digest).exists() {
            return Ok(digest);
        }
        let copy = aside(&self.store);
        fs::copy(program, &copy)?;
        // Of the copy: the program may have been replaced meanwhile.
        let digest = digest_of(&copy)?;
        fs::rename(copy, self.at(&digest))?;
        Ok(digest)
    }
}

fn digest_of(program: &Path) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(program)?, &mut hash)?;
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Digest::new(format!("sha256:{hex}")).map_err(io::Error::other)
}
