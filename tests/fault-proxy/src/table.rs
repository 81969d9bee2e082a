//! The rules in force, and what they have done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::rule::{Fault, Requests, Rule, Seen};

/// How many requests the log holds.
pub(crate) const LOG: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Table(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    rules: Vec<Arc<Active>>,
    log: VecDeque<Seen>,
    requests: u64,
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    /// How many requests it was asked about, those that it spared included.
    asked: AtomicU32,
    fired: watch::Sender<u32>,
    released: CancellationToken,
}

/// A fault that befalls a request.
pub(crate) struct Due {
    pub(crate) fault: Fault,
    /// Its rule's guard is gone.
    pub(crate) released: CancellationToken,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(self: &Arc<Self>, rule: Rule) -> RuleGuard {
        let active = Arc::new(Active {
            rule,
            asked: AtomicU32::new(0),
            fired: watch::Sender::new(0),
            released: CancellationToken::new(),
        });
        self.lock().rules.push(active.clone());
        RuleGuard {
            active,
            table: Arc::downgrade(self),
        }
    }

    /// Notes a request, and says what befalls it, in this order.
    pub(crate) fn see(&self, request: Seen) -> Vec<Due> {
        let mut state = self.lock();
        let mut due = Vec::new();
        for active in &state.rules {
            if !active.fires(&request) {
                continue;
            }
            let fault = active.rule.fault.clone();
            let last = matches!(fault, Fault::Refuse | Fault::Answer(_));
            let released = active.released.clone();
            due.push(Due { fault, released });
            if last {
                break;
            }
        }
        state.requests += 1;
        if state.log.len() == LOG {
            state.log.pop_front();
        }
        state.log.push_back(request);
        due
    }

    pub(crate) fn requests(&self) -> u64 {
        self.lock().requests
    }

    pub(crate) fn log(&self, requests: &Requests) -> Vec<Seen> {
        let state = self.lock();
        let log = state.log.iter().filter(|seen| requests.include(seen));
        log.cloned().collect()
    }
}

impl Active {
    fn fires(&self, request: &Seen) -> bool {
        if !self.rule.requests.include(request) {
            return false;
        }
        // Only one request at a time is asked about: the table is locked.
        let asked = self.asked.load(Ordering::Relaxed);
        self.asked.store(asked.saturating_add(1), Ordering::Relaxed);
        let used_up = |times: u32| *self.fired.borrow() >= times;
        if asked < self.rule.skip || self.rule.times.is_some_and(used_up) {
            return false;
        }
        self.fired.send_modify(|fired| *fired += 1);
        true
    }
}

/// A rule in force. It ends when this is dropped; what it has begun goes on.
#[derive(Debug)]
#[must_use = "a rule is in force as long as its guard"]
pub struct RuleGuard {
    active: Arc<Active>,
    table: Weak<Table>,
}

impl RuleGuard {
    /// How many requests the rule has befallen. One is counted when it has arrived, before
    /// anything is done to it.
    #[must_use]
    pub fn fired(&self) -> u32 {
        *self.active.fired.borrow()
    }

    /// Waits until the rule has befallen so many requests, in any Tokio runtime or none. Dropping
    /// the future is harmless.
    pub async fn until_fired(&self, times: u32) {
        let mut fired = self.active.fired.subscribe();
        // It cannot be closed while we hold the sender.
        let _ = fired.wait_for(|fired| *fired >= times).await;
    }
}

impl Drop for RuleGuard {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            let mut state = table.lock();
            state.rules.retain(|rule| !Arc::ptr_eq(rule, &self.active));
        }
        self.active.released.cancel();
    }
}
