//! The suite on the in-memory runtime under a clock that leaps over all waiting: no case depends on
//! how long something takes.

use std::sync::Arc;

use v6_runtime_conformance::{Harness, MemoryHarness, Verdict, cases};

#[test]
fn every_case_holds_when_time_leaps() {
    let mut failed = Vec::new();
    for case in cases() {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime needs nothing");
        let verdict = tokio.block_on(async {
            // An engine of its own: the clock is the runtime's.
            let harness: Arc<dyn Harness> =
                Arc::new(MemoryHarness::new().expect("a temporary folder"));
            case.check(harness).await
        });
        if let Verdict::Failed { evidence } = verdict {
            failed.push(format!("{}: {evidence}", case.id));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
