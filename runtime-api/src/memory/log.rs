//! What a program in memory has printed.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{Error, LogChunk, LogPosition, LogStream, Result};

/// The most bytes of one chunk.
const CHUNK: usize = 64 << 10;

/// The last bytes that were printed, in their order, up to a limit.
#[derive(Debug)]
pub(super) struct Log {
    chunks: VecDeque<Printed>,
    /// How much was printed in all.
    end: u64,
    kept: u64,
    limit: u64,
}

#[derive(Debug)]
struct Printed {
    begin: u64,
    stream: LogStream,
    bytes: Bytes,
}

impl Log {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            end: 0,
            kept: 0,
            limit,
        }
    }

    pub(super) fn append(&mut self, stream: LogStream, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK) {
            self.chunks.push_back(Printed {
                begin: self.end,
                stream,
                bytes: Bytes::copy_from_slice(piece),
            });
            self.end += piece.len() as u64;
            self.kept += piece.len() as u64;
        }
        while self.kept > self.limit {
            let Some(oldest) = self.chunks.pop_front() else {
                break;
            };
            self.kept -= oldest.bytes.len() as u64;
        }
    }

    /// What follows a position, at most so many bytes of it, and the position after that.
    pub(super) fn after(&self, position: u64, most: u64) -> Option<(LogChunk, u64)> {
        let next = self
            .chunks
            .partition_point(|chunk| chunk.begin + chunk.bytes.len() as u64 <= position);
        let chunk = self.chunks.get(next)?;
        // What was before it may have been dropped.
        let skipped = position.saturating_sub(chunk.begin);
        let end = (chunk.bytes.len() as u64).min(skipped.saturating_add(most));
        let piece = chunk.bytes.slice(skipped as usize..end as usize);
        let position = chunk.begin + end;
        Some((
            LogChunk::new(chunk.stream, piece, LogPosition::new(position.to_string())),
            position,
        ))
    }
}

pub(super) fn parse(position: &LogPosition) -> Result<u64> {
    position.as_str().parse().map_err(|_| {
        Error::invalid(
            "since",
            format!("{position:?} is not a position of this runtime"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(log: &Log, mut position: u64, most: u64) -> Vec<u8> {
        let mut found = Vec::new();
        while let Some((chunk, next)) = log.after(position, most) {
            assert!(next > position);
            found.extend_from_slice(&chunk.bytes);
            position = next;
        }
        found
    }

    #[test]
    fn reads_on_from_any_byte() {
        let mut log = Log::new(1 << 20);
        let printed: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        for piece in printed.chunks(70_000) {
            log.append(LogStream::Stdout, piece);
        }
        for start in [0, 1, 69_999, 70_000, 70_001, 199_999, 200_000, 300_000] {
            let wanted = printed.get(start as usize..).unwrap_or(&[]);
            assert_eq!(all(&log, start, 1000), wanted, "from {start}");
        }
    }

    #[test]
    fn keeps_the_last() {
        let mut log = Log::new(100);
        for n in 0..100_u8 {
            log.append(LogStream::Stderr, &[n; 10]);
        }
        let kept = all(&log, 0, u64::MAX);
        assert_eq!(kept.len(), 100);
        assert_eq!((kept.first(), kept.last()), (Some(&90), Some(&99)));
    }
}
