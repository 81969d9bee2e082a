//! What the probe does, as far as the suite has to know it.

use bytes::Bytes;

/// A line of the probe's pattern, its line end included.
const LINE: usize = 64;

/// The first `length` bytes of the pattern that the probe writes and verifies: lines of 63 digits
/// with the line's number, from 0.
#[must_use]
pub fn pattern(length: usize) -> Bytes {
    let mut pattern = Pattern::new();
    let mut bytes = vec![0; length];
    pattern.fill(&mut bytes);
    bytes.into()
}

/// The pattern from its start, piece by piece: what is too large to be held is compared with it.
#[derive(Debug, Clone)]
pub struct Pattern {
    line: [u8; LINE],
    /// How much of the line has been given.
    given: usize,
}

impl Pattern {
    /// At its start.
    #[must_use]
    pub fn new() -> Self {
        let mut line = [b'0'; LINE];
        line[LINE - 1] = b'\n';
        Self { line, given: 0 }
    }

    /// The next bytes.
    pub fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let n = bytes.len().min(LINE - self.given);
            let (piece, rest) = bytes.split_at_mut(n);
            piece.copy_from_slice(&self.line[self.given..self.given + n]);
            self.go_on(n);
            bytes = rest;
        }
    }

    /// Whether these are the next bytes.
    #[must_use]
    pub fn is_next(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let n = bytes.len().min(LINE - self.given);
            let (piece, rest) = bytes.split_at(n);
            if *piece != self.line[self.given..self.given + n] {
                return false;
            }
            self.go_on(n);
            bytes = rest;
        }
        true
    }

    fn go_on(&mut self, n: usize) {
        self.given += n;
        if self.given == LINE {
            self.given = 0;
            for digit in self.line[..LINE - 1].iter_mut().rev() {
                if *digit < b'9' {
                    *digit += 1;
                    break;
                }
                *digit = b'0';
            }
        }
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self::new()
    }
}

/// The first `length` of the bytes that the probe's step `bytes` prints: all 256 values in turn.
#[must_use]
pub fn all_values(length: usize) -> Bytes {
    let values: Vec<u8> = (0..=u8::MAX).collect();
    let mut all = values.repeat(length.div_ceil(values.len()));
    all.truncate(length);
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_lines_with_their_numbers() {
        let length = 64 * 1234 + 5;
        let mut wanted: String = (0..1235).map(|n| format!("{n:063}\n")).collect();
        wanted.truncate(length);
        assert_eq!(pattern(length), wanted.as_bytes());
        for piece in [1, 63, 64, 65, 4097] {
            let mut pattern = Pattern::new();
            assert!(
                wanted
                    .as_bytes()
                    .chunks(piece)
                    .all(|bytes| pattern.is_next(bytes)),
                "in pieces of {piece}"
            );
            assert!(!pattern.is_next(b"x"));
        }
    }
}
