//! What the steps print, and the pattern that bytes are made of.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::Value;

use crate::Failure;

/// Length of a line of the pattern, its line end included.
const LINE: u64 = 64;
const CHUNK: u64 = 64 * 1024;

/// One line of JSON on standard output.
pub(crate) fn report(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

pub(crate) fn error_line(text: &str) -> io::Result<()> {
    writeln!(io::stderr().lock(), "{text}")
}

pub(crate) fn variable(name: &str) -> Result<(), Failure> {
    let value = std::env::var_os(name)
        .ok_or_else(|| Failure::Wrong(format!("{name} is not in the environment")))?;
    let mut out = io::stdout().lock();
    out.write_all(std::os::unix::ffi::OsStrExt::as_bytes(value.as_os_str()))?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

pub(crate) fn tick(count: u64, apart: Duration) -> io::Result<()> {
    for i in 0..count {
        if i > 0 {
            std::thread::sleep(apart);
        }
        line(&format!("tick {i}"))?;
    }
    Ok(())
}

/// The bytes of the pattern from `start` to `end`: line k is k in 63 digits and a line end.
pub(crate) fn pattern_bytes(start: u64, end: u64) -> Vec<u8> {
    let first = start / LINE;
    let mut bytes = Vec::new();
    for line in first..end.div_ceil(LINE) {
        bytes.extend_from_slice(format!("{line:063}\n").as_bytes());
    }
    bytes.truncate(usize::try_from(end - first * LINE).unwrap_or(usize::MAX));
    bytes.drain(
        ..usize::try_from(start - first * LINE)
            .unwrap_or(0)
            .min(bytes.len()),
    );
    bytes
}

/// The first `length` bytes of the pattern, in pieces.
pub(crate) fn pattern(out: &mut dyn Write, length: u64) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let end = length.min(at + CHUNK);
        out.write_all(&pattern_bytes(at, end))?;
        at = end;
    }
    out.flush()
}

/// Bytes of all 256 values in turn on standard output, in pieces.
pub(crate) fn bytes(length: u64) -> io::Result<()> {
    let turn: Vec<u8> = (0..=u8::MAX).collect();
    let piece = turn.repeat(256);
    let mut out = io::stdout().lock();
    let mut left = length;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        out.write_all(&piece[..n])?;
        left -= n as u64;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_the_same_in_any_pieces() {
        let mut whole = Vec::new();
        assert!(pattern(&mut whole, 200_001).is_ok());
        assert_eq!(whole.len(), 200_001);
        assert_eq!(&whole[62..66], b"0\n00");
        assert_eq!(&whole[126..128], b"1\n");
        for (start, end) in [(0, 0), (0, 1), (63, 64), (64, 65), (100, 200_001)] {
            assert_eq!(
                pattern_bytes(start, end),
                whole[start as usize..end as usize]
            );
        }
    }
}
