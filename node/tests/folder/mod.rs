//! A folder of a test whose gateway may still write to it when the test ends: what it notes on
//! the blocking threads of its runtime goes on after the test's function has returned.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Gone with all that is in it when dropped, also if a file is made meanwhile.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap().keep())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match std::fs::remove_dir_all(&self.0) {
                Err(error)
                    if error.kind() == ErrorKind::DirectoryNotEmpty
                        && Instant::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                Err(error) => return eprintln!("{} stays: {error}", self.0.display()),
                Ok(()) => return,
            }
        }
    }
}
