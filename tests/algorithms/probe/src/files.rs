//! Steps on files.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};

use crate::{Failure, output};

pub(crate) fn write_pattern(path: &str, length: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    output::pattern(&mut file, length)
}

pub(crate) fn cat(path: &str) -> io::Result<()> {
    io::copy(&mut File::open(path)?, &mut io::stdout().lock()).map(|_| ())
}

pub(crate) fn copy(from: &str, to: &str) -> io::Result<()> {
    // Into what is there: `fs::copy` would also want to set the file's mode, which only
    // its owner may.
    io::copy(&mut File::open(from)?, &mut File::create(to)?).map(|_| ())
}

pub(crate) fn verify(path: &str, length: u64) -> Result<(), Failure> {
    let mut file = BufReader::new(File::open(path)?);
    let mut at = 0;
    let mut piece = vec![0; 64 * 1024];
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            break;
        }
        if piece[..n] != output::pattern_bytes(at, at + n as u64) {
            return Err(Failure::Wrong(format!("not the pattern after byte {at}")));
        }
        at += n as u64;
    }
    if at == length {
        Ok(())
    } else {
        Err(Failure::Wrong(format!("{at} bytes, not {length}")))
    }
}

pub(crate) fn mkfifo(path: &str) -> Result<(), Failure> {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?;
    Ok(())
}

pub(crate) fn mknod(path: &str) -> Result<(), Failure> {
    let null = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, null)?;
    Ok(())
}

pub(crate) fn remove(path: &str) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

pub(crate) fn wait_for(path: &str, limit: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    while fs::symlink_metadata(path).is_err() {
        if began.elapsed() > limit {
            return Err(Failure::Wrong(format!("{path} is not there")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn describe(path: &Path) -> io::Result<Value> {
    let found = fs::symlink_metadata(path)?;
    let kind = found.file_type();
    let name = match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "folder",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () => "device",
    };
    Ok(json!({
        "kind": name, "size": found.len(), "mode": format!("{:04o}", found.mode() & 0o7777),
        "uid": found.uid(), "gid": found.gid(), "links": found.nlink(),
        "target": fs::read_link(path).ok(),
    }))
}

pub(crate) fn stat(path: &str) -> io::Result<Value> {
    let mut report = describe(Path::new(path))?;
    report["step"] = json!("stat");
    report["path"] = json!(path);
    Ok(report)
}

pub(crate) fn list(path: &str) -> io::Result<Value> {
    let mut entries = serde_json::Map::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        entries.insert(
            entry.file_name().to_string_lossy().into_owned(),
            describe(&entry.path())?,
        );
    }
    Ok(json!({"step": "list", "path": path, "entries": entries}))
}
