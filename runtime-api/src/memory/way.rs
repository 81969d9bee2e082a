//! The way from an owner's runtime values to the engine, and what can be wrong with it.

use std::time::Duration;

use tokio::sync::watch;

use super::engine::{MemoryEngine, State};
use crate::{Error, ErrorKind, Owner, Result, Retry};

/// How long a watch takes to come back after it was cut.
const RECONNECT: Duration = Duration::from_millis(20);
/// When an engine that has too much to do wants to be asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// One thing that is wrong between an owner's runtime values and the engine; see
/// [`MemoryEngine::disturb`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disturbance {
    /// Every call fails as `Unavailable`, and streams break off. Programs go on.
    Away,
    /// The next so many calls fail as `Unavailable` and change nothing.
    Errors(u32),
    /// The same, with the engine's wish to be asked again later.
    Throttled(u32),
    /// The next `run` that makes a run fails as `Timeout` all the same.
    ReplyLost,
    /// Each call takes this much longer.
    Slow(Duration),
    /// Logs and outputs come in pieces of a few bytes.
    OddPieces,
    /// `cleanup` removes what a run has left, and fails at its record.
    Stuck,
}

/// Whether calls get through.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reach {
    pub away: bool,
    /// How often the engine went away.
    pub absences: u64,
}

#[derive(Default)]
pub(super) struct Way {
    reach: watch::Sender<Reach>,
    /// How often it was made so that the engine is away, and not yet undone.
    aways: usize,
    calls: u64,
    errors: u32,
    throttled: u32,
    reply_lost: bool,
    slow: Duration,
    odd_pieces: bool,
    stuck: bool,
}

/// Lasts until it is dropped; see [`MemoryEngine::disturb`].
#[derive(Debug)]
#[must_use = "the disturbance ends when this is dropped"]
pub struct Disturbed {
    engine: MemoryEngine,
    owner: Owner,
    what: Disturbance,
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        let mut state = self.engine.state();
        let way = state.way(&self.owner);
        match self.what {
            Disturbance::Away => state.comes_back_to(&self.owner),
            Disturbance::Errors(_) => way.errors = 0,
            Disturbance::Throttled(_) => way.throttled = 0,
            Disturbance::ReplyLost => way.reply_lost = false,
            Disturbance::Slow(_) => way.slow = Duration::ZERO,
            Disturbance::OddPieces => way.odd_pieces = false,
            Disturbance::Stuck => way.stuck = false,
        }
    }
}

impl MemoryEngine {
    /// Makes the way to the engine bad for one owner's runtime values, those to come included,
    /// until the result is dropped.
    pub fn disturb(&self, owner: &Owner, what: Disturbance) -> Disturbed {
        let mut state = self.state();
        let way = state.way(owner);
        match what {
            Disturbance::Away => state.goes_away_from(owner),
            Disturbance::Errors(calls) => way.errors = calls,
            Disturbance::Throttled(calls) => way.throttled = calls,
            Disturbance::ReplyLost => way.reply_lost = true,
            Disturbance::Slow(time) => way.slow = time,
            Disturbance::OddPieces => way.odd_pieces = true,
            Disturbance::Stuck => way.stuck = true,
        }
        Disturbed {
            engine: self.clone(),
            owner: owner.clone(),
            what,
        }
    }

    /// How many calls an owner's runtime values have made.
    #[must_use]
    pub fn calls(&self, owner: &Owner) -> u64 {
        self.state().way(owner).calls
    }

    /// Breaks every watch. It comes back by itself soon after, and what happened in between is
    /// known only from the snapshot that follows.
    pub fn cut_watches(&self) {
        self.cut(|_| true, Some("the watch was cut"));
    }

    /// The same, of one owner only.
    pub fn cut_watches_of(&self, owner: &Owner) {
        self.cut(|whose| whose == owner, Some("the watch was cut"));
    }

    /// The same, and no error tells of it: the engine's stream of events just ends.
    pub fn end_watches_of(&self, owner: &Owner) {
        self.cut(|whose| whose == owner, None);
    }

    fn cut(&self, of: impl Fn(&Owner) -> bool, why: Option<&str>) {
        let mut state = self.state();
        let values = state.values.iter();
        let cut: Vec<u64> = values
            .filter(|(_, value)| of(&value.owner))
            .map(|(id, _)| *id)
            .collect();
        for value in &cut {
            state.disconnect(*value, why);
        }
        drop(state);
        let engine = self.clone();
        let come_back = move || {
            let mut state = engine.state();
            cut.into_iter().for_each(|value| state.connect(value));
        };
        match tokio::runtime::Handle::try_current() {
            Ok(handle) => drop(handle.spawn(async move {
                tokio::time::sleep(RECONNECT).await;
                come_back();
            })),
            Err(_) => come_back(),
        }
    }

    /// From now on every call fails as `Unavailable`, and streams break off. Programs go on.
    pub fn go_away(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.away, true) {
            for owner in state.owners() {
                state.goes_away_from(&owner);
            }
        }
    }

    /// Ends what [`go_away`](Self::go_away) began.
    pub fn come_back(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.away) {
            for owner in state.owners() {
                state.comes_back_to(&owner);
            }
        }
    }

    pub(super) fn reach(&self, owner: &Owner) -> Reach {
        *self.state().way(owner).reach.borrow()
    }

    pub(super) fn reach_changes(&self, owner: &Owner) -> watch::Receiver<Reach> {
        self.state().way(owner).reach.subscribe()
    }

    /// The beginning of each call. Until it returns, the call has done nothing.
    ///
    /// # Errors
    /// Those that [`disturb`](Self::disturb) has made.
    pub(super) async fn call(&self, owner: &Owner, operation: &'static str) -> Result<()> {
        let slow = {
            let mut state = self.state();
            let way = state.way(owner);
            way.calls += 1;
            way.slow
        };
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let mut state = self.state();
        let way = state.way(owner);
        let failed =
            |words: &str| Err(Error::new(ErrorKind::Unavailable, words).with_operation(operation));
        if way.errors > 0 {
            way.errors -= 1;
            return failed("the engine has failed at it");
        }
        if way.throttled > 0 {
            way.throttled -= 1;
            return failed("the engine has too much to do")
                .map_err(|error| error.with_retry(Retry::After(Some(ASK_AGAIN))));
        }
        Ok(())
    }

    /// The most bytes of the piece that begins at this position, of so many.
    pub(super) fn piece(&self, owner: &Owner, position: u64, most: u64) -> u64 {
        const ODD: [u64; 7] = [1, 3, 2, 13, 64, 5, 1021];
        match self.state().way(owner).odd_pieces {
            true => most.min(ODD[(position % 7) as usize]),
            false => most,
        }
    }
}

impl State {
    pub(super) fn way(&mut self, owner: &Owner) -> &mut Way {
        let away = self.away;
        self.ways.entry(owner.clone()).or_insert_with(|| {
            let way = Way {
                aways: usize::from(away),
                ..Way::default()
            };
            let absences = u64::from(away);
            way.reach.send_replace(Reach { away, absences });
            way
        })
    }

    fn owners(&self) -> Vec<Owner> {
        self.ways.keys().cloned().collect()
    }

    fn goes_away_from(&mut self, owner: &Owner) {
        let way = self.way(owner);
        way.aways += 1;
        way.reach.send_modify(|reach| {
            reach.absences += u64::from(!reach.away);
            reach.away = true;
        });
        for value in self.values_of(owner) {
            self.disconnect(value, Some("the engine is away"));
        }
    }

    fn comes_back_to(&mut self, owner: &Owner) {
        let way = self.way(owner);
        way.aways = way.aways.saturating_sub(1);
        if way.aways == 0 {
            way.reach.send_modify(|reach| reach.away = false);
            for value in self.values_of(owner) {
                self.connect(value);
            }
        }
    }

    fn values_of(&self, owner: &Owner) -> Vec<u64> {
        let values = self.values.iter();
        values
            .filter(|(_, value)| value.owner == *owner)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn is_away_from(&mut self, owner: &Owner) -> bool {
        self.way(owner).reach.borrow().away
    }

    /// Whether the answer to a call that has made something is lost; it is once.
    pub(super) fn loses_reply(&mut self, owner: &Owner) -> bool {
        std::mem::take(&mut self.way(owner).reply_lost)
    }

    pub(super) fn is_stuck(&mut self, owner: &Owner) -> bool {
        self.way(owner).stuck
    }
}

pub(super) fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "the engine is away")
}
