//! Files into and out of containers, as tar streams of the engine's API, in constant memory.

mod get;
mod put;

pub(crate) use get::{get_file, get_folder};
pub(crate) use put::{Content, Entry, put};

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_tar::{EntryType, Header};

const BLOCK: usize = 512;
/// How much is read at once.
const PIECE: usize = 64 << 10;
/// No byte for so long, in either direction, is the end of a transfer.
const STALLED: Duration = Duration::from_secs(120);
/// For the client's own limit, which would be on a whole transfer.
const UNLIMITED: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How an archive ends.
const END: Bytes = Bytes::from_static(&[0; 2 * BLOCK]);

/// What stands before a file's bytes.
struct Head<'a> {
    /// Relative, without `..`.
    name: &'a [u8],
    folder: bool,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
}

impl Head<'_> {
    /// # Errors
    /// For a name that is no plain relative path.
    fn encode(&self) -> io::Result<Bytes> {
        let mut header = Header::new_gnu();
        header.set_entry_type(if self.folder {
            EntryType::Directory
        } else {
            EntryType::Regular
        });
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_size(self.size);
        header.set_mtime(0);
        let mut bytes = BytesMut::new();
        if !is_plain(self.name) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.name.len() < 100 {
            header.set_path(Path::new(OsStr::from_bytes(self.name)))?;
        } else {
            // A longer name goes before, in an entry of its own.
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongName);
            long.set_path("././@LongLink")?;
            long.set_size(self.name.len() as u64 + 1);
            long.set_cksum();
            bytes.put_slice(long.as_bytes());
            bytes.put_slice(self.name);
            bytes.put_bytes(
                0,
                (self.name.len() + 1).next_multiple_of(BLOCK) - self.name.len(),
            );
            header.set_path("long-name")?;
        }
        header.set_cksum();
        bytes.put_slice(header.as_bytes());
        Ok(bytes.freeze())
    }
}

/// A relative path that stays where it is put.
fn is_plain(name: &[u8]) -> bool {
    let part = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    name.split(|byte| *byte == b'/').all(part)
}

/// What fills the last block of so many bytes.
fn padding(size: u64) -> Bytes {
    let over = (size % BLOCK as u64) as usize;
    END.slice(..(BLOCK - over) % BLOCK)
}
