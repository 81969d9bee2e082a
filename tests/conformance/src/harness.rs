//! What a runtime's author provides, and the run of all cases.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use v6_runtime::{ImageRef, Owner, Result, Runtime};

use crate::bench::Bench;
use crate::case::{Case, Failure, Verdict};

/// No case takes longer; one that does has failed.
const CASE_LIMIT: Duration = Duration::from_secs(180);

/// The runtime under test, and a way to look at its engine without it.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// A new value of the runtime for this owner, as a restarted process would make it.
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>>;

    /// The image that holds the probe as its only program, at `/probe`.
    fn probe_image(&self) -> ImageRef;

    /// What the engine holds of this owner, looked up without the runtime; a runtime that has
    /// forgotten an object does not list it either.
    async fn leftovers(&self, owner: &Owner) -> Result<Vec<String>>;

    /// Breaks the connection to the engine of this owner's runtime values once, so that they have
    /// to come back by themselves. `false`: this harness cannot; the cases that need it are
    /// skipped.
    async fn cut_connection(&self, _owner: &Owner) -> bool {
        false
    }

    /// A folder that the suite can write and the machine that runs the containers has under the
    /// same path. `None`: there is none; the cases that need it are skipped.
    fn shared_folder(&self) -> Option<PathBuf> {
        None
    }
}

/// All cases for this harness, as trials of libtest-mimic.
///
/// # Errors
/// If the runtime cannot be connected to.
pub fn cases(harness: Arc<dyn Harness>) -> Result<Vec<Trial>> {
    let tokio = tokio_runtime();
    let owner = Bench::new_owner();
    let capabilities = tokio.block_on(async {
        let runtime = harness.connect(&owner).await?;
        Ok::<_, v6_runtime::Error>(runtime.capabilities().clone())
    })?;
    let trials = crate::cases::all().into_iter().map(|case| {
        let harness = harness.clone();
        let undeclared = (case.needs)(&capabilities).err();
        Trial::ignorable_test(case.id, move || match undeclared {
            Some(what) => Ok(Completion::ignored_with(format!("{what} is not declared"))),
            None => run(&case, harness),
        })
    });
    Ok(trials.collect())
}

fn run(case: &Case, harness: Arc<dyn Harness>) -> Result<Completion, Failed> {
    let tokio = tokio_runtime();
    let outcome: Result<Verdict, Failure> = tokio.block_on(async {
        let bench = Bench::new(harness).await?;
        let work = tokio::time::timeout(CASE_LIMIT, (case.run)(bench.clone())).await;
        let work = work.unwrap_or_else(|_| Err("it did not end in time".into()));
        bench.tidy().await?;
        let left = bench.leftovers().await?;
        let verdict = work?;
        if !left.is_empty() {
            return Err(format!("left behind: {}", left.join(", ")).into());
        }
        Ok(verdict)
    });
    match outcome {
        Ok(Verdict::Passed) => Ok(Completion::Completed),
        Ok(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
        Err(failure) => Err(Failed::from(format!(
            "clause: {}\nevidence: {failure}",
            case.clause
        ))),
    }
}

fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime needs threads and nothing else")
}

/// Runs all cases, with the filters of the command line; for a test target with
/// `harness = false`. Cases share an engine, so few run at once. Running none is a failure.
#[must_use]
pub fn main(harness: impl Harness) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    match cases(Arc::new(harness)) {
        Ok(trials) => {
            let listing = arguments.list;
            let conclusion = libtest_mimic::run(&arguments, trials);
            let none = !listing && conclusion.num_passed + conclusion.num_failed == 0;
            if none {
                eprintln!("no case was run");
            }
            if none || conclusion.has_failed() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            eprintln!("the runtime cannot be connected to: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Lists every case as skipped, for this reason: there is nothing to run them on.
#[must_use]
pub fn skip(reason: &str) -> ExitCode {
    let trials = crate::cases::all().into_iter().map(|case| {
        let reason = reason.to_owned();
        Trial::ignorable_test(case.id, move || Ok(Completion::ignored_with(reason)))
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.collect());
    conclusion.exit_code()
}
