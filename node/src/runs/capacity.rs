//! How many runs may be in progress at once, and with how much of the machine.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// What one run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Thousandths of a processor.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// What all runs together may take. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Runs at once.
    pub runs: usize,
    /// Thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

/// Hands out room for runs, in the order in which they ask. Cheap to clone.
#[derive(Clone)]
pub struct Capacity(Arc<Mutex<State>>);

struct State {
    room: Room,
    runs: usize,
    used: Share,
    queue: VecDeque<(Share, oneshot::Sender<Permit>)>,
}

/// Room for one run, given back when it is dropped.
#[must_use = "the room is given back when this is dropped"]
pub struct Permit {
    capacity: Capacity,
    share: Share,
}

impl Capacity {
    /// All of this room, unused.
    #[must_use]
    pub fn new(room: Room) -> Self {
        let used = Share {
            cpu_milli: 0,
            memory_bytes: 0,
        };
        Self(Arc::new(Mutex::new(State {
            room,
            runs: 0,
            used,
            queue: VecDeque::new(),
        })))
    }

    /// Waits for room. A run that asks for more than there is in all gets it when nothing else
    /// runs, rather than never.
    ///
    /// Cancel-safe: a dropped wait loses its place and takes nothing.
    pub async fn acquire(&self, share: Share) -> Permit {
        let waiting = {
            let mut state = self.state();
            let (give, waiting) = oneshot::channel();
            state.queue.push_back((share, give));
            waiting
        };
        self.hand_out();
        match waiting.await {
            Ok(permit) => permit,
            // The sender lives in `self` until it has sent.
            Err(_) => self.take(share),
        }
    }

    /// Takes room without waiting, for a run that runs already.
    pub fn take(&self, share: Share) -> Permit {
        let mut state = self.state();
        state.add(share);
        Permit {
            capacity: self.clone(),
            share,
        }
    }

    /// How many runs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state()
            .queue
            .iter()
            .filter(|(_, give)| !give.is_closed())
            .count()
    }

    fn hand_out(&self) {
        loop {
            let (give, permit) = {
                let mut state = self.state();
                state.queue.retain(|(_, give)| !give.is_closed());
                let Some((share, _)) = state.queue.front() else {
                    return;
                };
                if !state.fits(*share) {
                    return;
                }
                let Some((share, give)) = state.queue.pop_front() else {
                    return;
                };
                state.add(share);
                (
                    give,
                    Permit {
                        capacity: self.clone(),
                        share,
                    },
                )
            };
            // If the receiver has gone, the permit is dropped here, with the lock free.
            drop(give.send(permit));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fits(&self, share: Share) -> bool {
        let within = |used: u64, more: u64, room: Option<u64>| {
            room.is_none_or(|room| used.saturating_add(more) <= room)
        };
        self.runs == 0
            || self.runs < self.room.runs
                && within(self.used.cpu_milli, share.cpu_milli, self.room.cpu_milli)
                && within(
                    self.used.memory_bytes,
                    share.memory_bytes,
                    self.room.memory_bytes,
                )
    }

    fn add(&mut self, share: Share) {
        self.runs += 1;
        self.used.cpu_milli += share.cpu_milli;
        self.used.memory_bytes += share.memory_bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.capacity.state();
            state.runs -= 1;
            state.used.cpu_milli -= self.share.cpu_milli;
            state.used.memory_bytes -= self.share.memory_bytes;
        }
        self.capacity.hand_out();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("share", &self.share)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Capacity")
            .field("runs", &state.runs)
            .field("used", &state.used)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn share(cpu_milli: u64) -> Share {
        Share {
            cpu_milli,
            memory_bytes: 1,
        }
    }

    fn capacity(runs: usize, cpu_milli: u64) -> Capacity {
        Capacity::new(Room {
            runs,
            cpu_milli: Some(cpu_milli),
            memory_bytes: None,
        })
    }

    #[tokio::test]
    async fn runs_wait_in_order_for_room() {
        let capacity = capacity(2, 1000);
        let one = capacity.acquire(share(800)).await;
        let mut large = Box::pin(capacity.acquire(share(500)));
        assert!((&mut large).now_or_never().is_none());
        // It would fit, and waits behind the one that came first.
        let mut small = Box::pin(capacity.acquire(share(100)));
        assert!((&mut small).now_or_never().is_none());
        assert_eq!(capacity.waiting(), 2);
        drop(one);
        let large = large.now_or_never().expect("room for it");
        let _small = small.now_or_never().expect("room for it too");
        drop(large);
    }

    #[tokio::test]
    async fn one_that_gave_up_holds_nobody_up() {
        let capacity = capacity(1, 1000);
        let one = capacity.acquire(share(1)).await;
        let mut gone = Box::pin(capacity.acquire(share(1)));
        assert!((&mut gone).now_or_never().is_none());
        let mut next = Box::pin(capacity.acquire(share(1)));
        assert!((&mut next).now_or_never().is_none());
        drop(gone);
        drop(one);
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn too_large_for_the_room_runs_alone() {
        let capacity = capacity(4, 1000);
        let alone = capacity
            .acquire(share(5000))
            .now_or_never()
            .expect("nothing else runs");
        assert!(capacity.acquire(share(1)).now_or_never().is_none());
        drop(alone);
        assert!(capacity.acquire(share(1)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn adopted_runs_count_without_waiting() {
        let capacity = capacity(1, 1000);
        let adopted = [capacity.take(share(900)), capacity.take(share(900))];
        assert!(capacity.acquire(share(1)).now_or_never().is_none());
        drop(adopted);
        assert!(capacity.acquire(share(1)).now_or_never().is_some());
    }
}
