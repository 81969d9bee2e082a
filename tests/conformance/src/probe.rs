//! What the probe does, as far as the suite has to know it.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// A line of the probe's pattern, its line end included.
const LINE: usize = 64;

/// The first `length` bytes of the pattern that the probe writes and verifies: lines of 63 digits
/// with the line's number, from 0.
#[must_use]
pub fn pattern(length: usize) -> Bytes {
    // Cases ask for many MiB of it, again and again: each line is made once.
    static MADE: Mutex<Bytes> = Mutex::new(Bytes::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if made.len() < length {
        let mut bytes = BytesMut::with_capacity(length + LINE);
        bytes.extend_from_slice(&made);
        // What is there are whole lines, since only such are added.
        while bytes.len() < length {
            let number = bytes.len() / LINE;
            bytes.extend_from_slice(format!("{number:063}\n").as_bytes());
        }
        *made = bytes.freeze();
    }
    made.slice(..length)
}
