//! What can befall a cluster, brought about on a real one, and what is said of the runs in it.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "each says that it is done")]

#[path = "../common/mod.rs"]
mod common;
mod images;
mod limits;
mod machines;
mod watches;

use std::time::Instant;

use tokio::task::{JoinSet, LocalSet};

/// All at once, since most of their time is the cluster's: of tests on their own only as many run at once as there
/// are processors.
#[tokio::test]
async fn what_befalls_a_cluster() {
    let began = Instant::now();
    let mut all = JoinSet::new();
    let local = LocalSet::new();
    macro_rules! begin {
        ($($module:ident::$name:ident,)*) => {
            $(
                all.spawn_local_on(
                    async move {
                        let task = tokio::task::spawn_local($module::$name());
                        (stringify!($name), task.await)
                    },
                    &local,
                );
            )*
        };
    }
    begin! {
        images::a_machine_that_backs_off_from_a_registry_tries_again,
        limits::a_quota_that_is_full_refuses_and_leaves_nothing,
        limits::limits_of_a_namespace_are_told_and_kept,
        limits::what_no_machine_has_is_told_in_the_schedulers_words,
        machines::a_machine_that_is_drained_or_full_loses_what_is_there,
        machines::a_machine_that_is_lost_takes_its_runs_along_once_that_is_sure,
        watches::watches_that_end_each_second_lose_nothing,
        watches::a_version_that_the_cluster_has_forgotten_is_no_loss,
    }
    let mut failed = Vec::new();
    local
        .run_until(async {
            while let Some(done) = all.join_next().await {
                let (name, done) = done.unwrap();
                let after = began.elapsed().as_secs();
                println!(
                    "{name}: {} after {after} s",
                    if done.is_ok() { "ok" } else { "FAILED" }
                );
                failed.extend(done.is_err().then_some(name));
            }
        })
        .await;
    assert!(failed.is_empty(), "{failed:?}");
}
