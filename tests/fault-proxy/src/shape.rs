//! How many of the bytes that an engine sends are passed on at once, and when they end.

use tokio_util::sync::CancellationToken;

/// What the faults of one request make of its reply's bytes.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pieces: Vec<usize>,
    turn: usize,
    end: Option<u64>,
    cut: Option<u64>,
    /// Ends the bytes when it is cancelled.
    release: Option<CancellationToken>,
}

/// How it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// With more bytes.
    More,
    /// The end, as if there were no more.
    End,
    /// The connection breaks.
    Cut,
}

impl Shape {
    pub(crate) fn split(&mut self, pieces: &[usize]) {
        self.pieces = pieces.iter().map(|size| (*size).max(1)).collect();
        if self.pieces.is_empty() {
            self.pieces.push(1);
        }
    }

    pub(crate) fn end_after(&mut self, bytes: u64) {
        self.end = Some(self.end.map_or(bytes, |end| end.min(bytes)));
    }

    pub(crate) fn cut_after(&mut self, bytes: u64) {
        self.cut = Some(self.cut.map_or(bytes, |cut| cut.min(bytes)));
    }

    pub(crate) fn end_at(&mut self, release: CancellationToken) {
        self.release = Some(release);
    }

    pub(crate) fn release(&self) -> Option<&CancellationToken> {
        self.release.as_ref()
    }

    /// Whether all bytes pass as they come.
    pub(crate) fn is_plain(&self) -> bool {
        self.pieces.is_empty() && self.cut.is_none() && !self.may_end()
    }

    pub(crate) fn is_split(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Whether there can be an end before the engine's.
    pub(crate) fn may_end(&self) -> bool {
        self.end.is_some() || self.release.is_some()
    }

    pub(crate) fn next(&self) -> Next {
        if self.cut == Some(0) {
            Next::Cut
        } else if self.end == Some(0) || self.release.as_ref().is_some_and(|r| r.is_cancelled()) {
            Next::End
        } else {
            Next::More
        }
    }

    /// How many of the bytes that are there are the next piece, which is passed on then.
    pub(crate) fn take(&mut self, there: usize) -> usize {
        let mut size = there;
        if let Some(piece) = self.pieces.get(self.turn) {
            size = size.min(*piece);
            self.turn = (self.turn + 1) % self.pieces.len();
        }
        for left in [&mut self.end, &mut self.cut].into_iter().flatten() {
            size = size.min(usize::try_from(*left).unwrap_or(usize::MAX));
        }
        for left in [&mut self.end, &mut self.cut].into_iter().flatten() {
            *left -= size as u64;
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_taken_in_turn() {
        let mut shape = Shape::default();
        assert!(shape.is_plain());
        assert_eq!(shape.take(9), 9);
        shape.split(&[1, 0, 3]);
        let sizes: Vec<_> = (0..5).map(|_| shape.take(9)).collect();
        assert_eq!(sizes, [1, 1, 3, 1, 1]);
        assert_eq!(shape.take(2), 2);
        shape.split(&[]);
        assert_eq!(shape.take(9), 1);
    }

    #[test]
    fn the_first_end_counts() {
        let mut shape = Shape::default();
        shape.end_after(7);
        shape.end_after(5);
        shape.cut_after(6);
        assert_eq!(shape.take(4), 4);
        assert_eq!(shape.next(), Next::More);
        assert_eq!(shape.take(4), 1);
        assert_eq!(shape.next(), Next::End);

        let token = CancellationToken::new();
        let mut shape = Shape::default();
        shape.end_at(token.clone());
        assert_eq!(shape.next(), Next::More);
        token.cancel();
        assert_eq!(shape.next(), Next::End);
    }
}
