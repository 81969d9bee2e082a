use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use v6_runtime::memory::{ExitStatus, MemoryEngine, ProgramContext};
use v6_runtime::{CleanupOptions, ErrorKind, Outcome, Owner, RunPhase, RunSpec, Runtime, Tracker};

use crate::id;

struct Bed {
    engine: MemoryEngine,
    runtime: Arc<dyn Runtime>,
    tracker: Tracker,
    spec: RunSpec,
}

/// A program that sleeps as many milliseconds as its first argument says, and ends with the code
/// that its second one says.
fn bed() -> Bed {
    let engine = MemoryEngine::new();
    let program = |ctx: ProgramContext| async move {
        let number = |n: usize| ctx.args()[n].parse::<u64>().unwrap();
        tokio::time::sleep(Duration::from_millis(number(0))).await;
        ExitStatus::Code(number(1).try_into().unwrap())
    };
    let image = engine.add_image("sleep", program).unwrap();
    let runtime: Arc<dyn Runtime> = Arc::new(engine.runtime(Owner::new("owner").unwrap()));
    Bed {
        tracker: Tracker::new(runtime.clone()),
        engine,
        runtime,
        spec: RunSpec::new(image),
    }
}

#[tokio::test(start_paused = true)]
async fn many_waiters_for_many_runs() {
    let bed = bed();
    for n in 0..50 {
        let spec = bed
            .spec
            .clone()
            .with_args([(n % 7).to_string(), n.to_string()]);
        bed.runtime.run(&id(&format!("r{n}")), &spec).await.unwrap();
    }
    let waits = (0..500).map(|n| {
        let tracker = bed.tracker.clone();
        async move {
            let status = tracker.wait(&id(&format!("r{}", n % 50))).await.unwrap();
            assert_eq!(status.outcome(), Some(&Outcome::Exited(n % 50)));
        }
    });
    join_all(waits).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_made_after_the_snapshot() {
    let bed = bed();
    bed.runtime
        .run(&id("first"), &bed.spec.clone().with_args(["0", "1"]))
        .await
        .unwrap();
    bed.tracker.wait(&id("first")).await.unwrap();
    bed.runtime
        .run(&id("second"), &bed.spec.clone().with_args(["5", "2"]))
        .await
        .unwrap();
    let second = id("second");
    let running = bed.tracker.wait_until(&second, |run| run.phase.rank() >= 1);
    assert_eq!(running.await.unwrap().phase, RunPhase::Running);
    let status = bed.tracker.wait(&id("second")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(2)));
    assert_eq!(bed.tracker.last_known(&id("second")), Some(status));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_removed_meanwhile() {
    let bed = bed();
    bed.runtime
        .run(&id("a"), &bed.spec.clone().with_args(["3600000", "0"]))
        .await
        .unwrap();
    // It is known, so what comes is its removal and nothing else.
    bed.tracker
        .wait_until(&id("a"), |run| run.phase.rank() >= 1)
        .await
        .unwrap();
    let removed = async {
        // Polled after the waiter, which waits by then.
        tokio::task::yield_now().await;
        let forced = CleanupOptions::default().with_force(true);
        bed.runtime.cleanup(&id("a"), forced).await.unwrap();
    };
    let a = id("a");
    let never = bed.tracker.wait_until(&a, |_| false);
    let (answer, ()) = futures_util::join!(never, removed);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(bed.tracker.last_known(&id("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_changes_nothing_for_others() {
    let bed = bed();
    bed.runtime
        .run(&id("a"), &bed.spec.clone().with_args(["1000", "9"]))
        .await
        .unwrap();
    let a = id("a");
    for _ in 0..10 {
        let short = tokio::time::timeout(Duration::from_millis(1), bed.tracker.wait(&a));
        assert!(short.await.is_err());
    }
    let status = bed.tracker.wait(&id("a")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(9)));
}

#[tokio::test(start_paused = true)]
async fn a_broken_watch_is_no_verdict() {
    let bed = bed();
    bed.runtime
        .run(&id("a"), &bed.spec.clone().with_args(["1000", "4"]))
        .await
        .unwrap();
    bed.tracker
        .wait_until(&id("a"), |run| run.phase.rank() >= 1)
        .await
        .unwrap();
    let meanwhile = async {
        bed.engine.cut_watches();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // It ends while nobody hears of it.
        bed.engine.go_away();
        tokio::time::sleep(Duration::from_secs(10)).await;
        bed.engine.come_back();
    };
    let a = id("a");
    let (status, ()) = futures_util::join!(bed.tracker.wait(&a), meanwhile);
    assert_eq!(status.unwrap().outcome(), Some(&Outcome::Exited(4)));
}

#[tokio::test]
async fn the_watch_ends_with_the_last_clone() {
    let Bed {
        tracker, runtime, ..
    } = bed();
    let kept = Arc::downgrade(&runtime);
    let clone = tracker.clone();
    drop((runtime, tracker));
    assert!(kept.upgrade().is_some());
    drop(clone);
    let gone = async {
        while kept.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
}
