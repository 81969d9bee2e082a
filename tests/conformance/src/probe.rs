//! What the probe does, as far as the suite has to know it.

use bytes::Bytes;

/// A line of the probe's pattern, its line end included.
const LINE: usize = 64;

/// The first `length` bytes of the pattern that the probe writes and verifies: lines of 63 digits
/// with the line's number, from 0.
#[must_use]
pub fn pattern(length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + LINE);
    let mut number = 0_u64;
    while bytes.len() < length {
        bytes.extend_from_slice(format!("{number:063}\n").as_bytes());
        number += 1;
    }
    bytes.truncate(length);
    bytes.into()
}
