//! Growing pauses with jitter.

use std::time::Duration;

use rand::Rng;

/// Pauses that double from `first` to `cap`, each taken at random between half and the
/// whole of its length so that many nodes do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first` and never exceeds `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            next: first.min(cap),
        }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.cap);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_starts_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 5);
        for whole in [1, 2, 4, 5, 5] {
            let pause = backoff.pause();
            assert!(
                pause >= second * whole / 2 && pause <= second * whole,
                "{pause:?} of {whole}"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= second);
    }
}
