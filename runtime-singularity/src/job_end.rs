//! What the end of a job means for its run.

use std::fs::File;
use std::io::Read;

use v6_runtime::{Outcome, StartFailure, StartFailureCause};

use crate::record::Place;
use crate::slurm::{Job, JobState, Over};

const PUT_BACK: &str = "its job was put back into the queue at Slurm, by somebody else";
const PREEMPTED: &str = "it was preempted by a job of a higher priority";
const TIME_LIMIT: &str = "its job's time limit was over";
/// The most that is read of what Slurm has said.
const MAX_WORDS: u64 = 64 << 10;

/// What a monitor's word means, with what Slurm says about its job.
pub(crate) fn explained(job: JobState, outcome: Outcome) -> Outcome {
    let told = |why: &str| Outcome::Evicted(why.into());
    match (job.over(), &outcome) {
        // It is also said where only a child of the program was killed.
        (Some(Over::OutOfMemory), Outcome::Signaled(9) | Outcome::Evicted(_)) => {
            Outcome::OutOfMemory
        }
        (Some(Over::TimeLimit), Outcome::Evicted(_)) => told(TIME_LIMIT),
        (Some(Over::Preempted), Outcome::Evicted(_)) => told(PREEMPTED),
        (Some(Over::Cancelled), Outcome::Evicted(_)) => {
            told("its job was cancelled at Slurm, by somebody else")
        }
        (Some(Over::PutBack), Outcome::Evicted(_)) => told(PUT_BACK),
        _ => outcome,
    }
}

/// How a run ended whose job is over without a word of its monitor's.
pub(crate) fn without_a_word(job: &Job, begun: bool, place: &Place) -> Outcome {
    let reason = match job.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let over = match job.state {
        JobState::Over(over) => over,
        other => return Outcome::Lost(format!("not understood: {other:?}")),
    };
    let failed = |message: String| {
        Outcome::FailedToStart(StartFailure::new(StartFailureCause::Engine, message))
    };
    match over {
        Over::Cancelled => Outcome::Evicted(format!(
            "its job {} was cancelled at Slurm, by somebody else{reason}",
            job.id
        )),
        Over::Preempted => Outcome::Evicted(PREEMPTED.into()),
        Over::TimeLimit => Outcome::Evicted(TIME_LIMIT.into()),
        Over::PutBack => Outcome::Evicted(PUT_BACK.into()),
        Over::OutOfMemory => Outcome::OutOfMemory,
        // Not the run's own, which its monitor keeps: one that somebody gave the job at Slurm.
        Over::Deadline => Outcome::FailedToStart(StartFailure::new(
            StartFailureCause::Unschedulable,
            format!(
                "Slurm has removed its job {}, which could not be done before the deadline that it has \
                 there{reason}",
                job.id
            ),
        )),
        Over::NodeFailed => Outcome::NodeLost(format!("the compute node has failed{reason}")),
        Over::BootFailed => failed(format!("the compute node did not start{reason}")),
        Over::Completed | Over::Failed if !begun => failed(format!(
            "its job {} ended before it could begin{reason}: is {} the same folder on the compute \
             nodes?{}",
            job.id,
            place.path().display(),
            slurm_words(place),
        )),
        Over::Completed | Over::Failed => Outcome::Lost(format!(
            "its job {} ended without a word{reason}{}",
            job.id,
            slurm_words(place)
        )),
        Over::Revoked => Outcome::Lost(format!("another cluster has taken its job{reason}")),
        Over::Forgotten => Outcome::Lost(format!(
            "Slurm has forgotten its job {}, which has left no word",
            job.id
        )),
    }
}

/// What Slurm has said in the job's own log, as far as it is there: for people.
fn slurm_words(place: &Place) -> String {
    let mut said = Vec::new();
    if let Ok(file) = File::open(place.file("job.log")) {
        let _ = file.take(MAX_WORDS).read_to_end(&mut said);
    }
    let words = crate::image::last_lines(&String::from_utf8_lossy(&said));
    match words.trim() {
        "" => String::new(),
        words => format!(": {words}"),
    }
}
