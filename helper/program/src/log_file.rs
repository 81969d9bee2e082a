//! The log of a run: both streams in one file, bounded.
//!
//! A frame is one byte for the stream (1 or 2), three bytes of zero, the length as four bytes
//! (big-endian), and that many bytes as the program wrote them. When the file has no room left, the
//! rest is read and thrown away, so that the program never waits for it, and counted.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::run_folder::create;

const HEADER: usize = 8;
/// Read at once from one stream, before the other has its turn.
const CHUNK: usize = 16 * 1024;

/// The file, and how far it is written.
pub struct LogFile {
    file: File,
    end: u64,
    /// Bytes of the program's that still have room.
    room: u64,
    pub dropped: u64,
    buffer: Box<[u8; HEADER + CHUNK]>,
}

impl LogFile {
    pub fn create(path: &str, bytes: u64) -> io::Result<Self> {
        Ok(Self {
            file: create(path)?,
            end: 0,
            room: bytes,
            dropped: 0,
            buffer: Box::new([0; HEADER + CHUNK]),
        })
    }

    /// Takes what one stream has now, at most one chunk. Returns whether there may be more.
    pub fn take(&mut self, stream: u8, from: &mut impl Read) -> bool {
        let read = match from.read(&mut self.buffer[HEADER..]) {
            Ok(read) => read,
            Err(error) => return error.kind() == io::ErrorKind::Interrupted,
        };
        if read > 0 {
            self.add(stream, read);
        }
        read == CHUNK
    }

    fn add(&mut self, stream: u8, read: usize) {
        let kept = usize::try_from(self.room).map_or(read, |room| read.min(room));
        if kept > 0 && self.write(stream, kept).is_ok() {
            self.room -= kept as u64;
            self.dropped += (read - kept) as u64;
            return;
        }
        // No room, in the file or on the disk: what came after would have a gap before it.
        self.room = 0;
        self.dropped += read as u64;
    }

    fn write(&mut self, stream: u8, length: usize) -> io::Result<()> {
        let size = u32::try_from(length).unwrap_or_default().to_be_bytes();
        self.buffer[..HEADER]
            .copy_from_slice(&[stream, 0, 0, 0, size[0], size[1], size[2], size[3]]);
        let frame = &self.buffer[..HEADER + length];
        // At a place and not at the end: half a frame, of a full disk, is written over or cut off.
        let written = self.file.write_all_at(frame, self.end);
        match written {
            Ok(()) => self.end += frame.len() as u64,
            Err(_) => {
                let _ = self.file.set_len(self.end);
            }
        }
        written
    }
}
