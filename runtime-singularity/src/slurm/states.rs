//! The states of jobs, in Slurm's words (`squeue(1)`, JOB STATE CODES; `sacct(1)`). Pure.

/// A job as Slurm tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) state: JobState,
    /// Why it waits or ended, in Slurm's words; may be empty.
    pub(crate) reason: String,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobState {
    /// It has no processes yet.
    Waiting,
    /// It has, or may have.
    Running,
    Over(Over),
}

/// How a job came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Completed,
    Failed,
    Cancelled,
    TimeLimit,
    OutOfMemory,
    NodeFailed,
    BootFailed,
    Preempted,
    Deadline,
    Revoked,
    /// Not as Slurm sees it: it was put back into the queue after it had begun, where it can do nothing
    /// any more.
    PutBack,
    /// Slurm does not know the job any more.
    Forgotten,
}

impl JobState {
    /// Reads a state, in long form; of what may follow it (`CANCELLED by 1000`) nothing is wanted.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let word = text.split_whitespace().next()?.trim_end_matches('+');
        Some(match word {
            "PENDING" | "CONFIGURING" | "REQUEUED" | "REQUEUE_FED" | "REQUEUE_HOLD"
            | "RESV_DEL_HOLD" | "SPECIAL_EXIT" | "POWER_UP_NODE" => Self::Waiting,
            "RUNNING" | "COMPLETING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "STAGE_OUT"
            | "RESIZING" | "UPDATE_DB" => Self::Running,
            "COMPLETED" => Self::Over(Over::Completed),
            "FAILED" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => Self::Over(Over::Failed),
            "CANCELLED" => Self::Over(Over::Cancelled),
            "TIMEOUT" => Self::Over(Over::TimeLimit),
            "OUT_OF_MEMORY" => Self::Over(Over::OutOfMemory),
            "NODE_FAIL" => Self::Over(Over::NodeFailed),
            "BOOT_FAIL" => Self::Over(Over::BootFailed),
            "PREEMPTED" => Self::Over(Over::Preempted),
            "DEADLINE" => Self::Over(Over::Deadline),
            "REVOKED" => Self::Over(Over::Revoked),
            _ => return None,
        })
    }

    pub(crate) const fn over(self) -> Option<Over> {
        match self {
            Self::Over(over) => Some(over),
            Self::Waiting | Self::Running => None,
        }
    }
}

/// One job, and its name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) job: Job,
    pub(crate) name: String,
}

/// How [`rows`] has to be asked for: `squeue --format`. The name is last, since other people's names
/// can have anything in them.
pub(crate) const FORMAT: &str = "%i|%T|%r|%j";

/// Reads what `squeue` prints. Lines that are none of ours are passed over: parts of a name that has
/// line ends in it, jobs of arrays, states of a later Slurm that we would never see on our jobs.
pub(crate) fn rows(text: &str) -> impl Iterator<Item = Row> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(4, '|');
        let id = fields.next()?.parse().ok()?;
        let state = JobState::parse(fields.next()?)?;
        let reason = match fields.next()? {
            "None" => String::new(),
            reason => reason.to_owned(),
        };
        let name = fields.next()?.to_owned();
        let job = Job { id, state, reason };
        Some(Row { job, name })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_state_has_its_meaning() {
        // All that squeue(1) of 22.05 and 24.11 list.
        let known = [
            ("BOOT_FAIL", Some(Over::BootFailed)),
            ("CANCELLED", Some(Over::Cancelled)),
            ("CANCELLED by 1000", Some(Over::Cancelled)),
            ("CANCELLED+", Some(Over::Cancelled)),
            ("COMPLETED", Some(Over::Completed)),
            ("CONFIGURING", None),
            ("COMPLETING", None),
            ("DEADLINE", Some(Over::Deadline)),
            ("FAILED", Some(Over::Failed)),
            ("NODE_FAIL", Some(Over::NodeFailed)),
            ("OUT_OF_MEMORY", Some(Over::OutOfMemory)),
            ("PENDING", None),
            ("PREEMPTED", Some(Over::Preempted)),
            ("RUNNING", None),
            ("RESV_DEL_HOLD", None),
            ("REQUEUE_FED", None),
            ("REQUEUE_HOLD", None),
            ("REQUEUED", None),
            ("RESIZING", None),
            ("REVOKED", Some(Over::Revoked)),
            ("SIGNALING", None),
            ("SPECIAL_EXIT", None),
            ("STAGE_OUT", None),
            ("STOPPED", None),
            ("SUSPENDED", None),
            ("TIMEOUT", Some(Over::TimeLimit)),
        ];
        for (text, over) in known {
            let state = JobState::parse(text).unwrap_or_else(|| panic!("{text} is a state"));
            assert_eq!(state.over(), over, "{text}");
        }
        assert_eq!(JobState::parse("WHATEVER"), None);
        assert_eq!(JobState::parse(""), None);
    }

    #[test]
    fn a_name_can_have_anything_in_it() {
        let text = "12|RUNNING|None|v6.o.r.1\n13|PENDING|Priority|a|b\nx|RUNNING|\n\
                    14_2|RUNNING|None|array\n15|CANCELLED|None|c\n";
        let found: Vec<Row> = rows(text).collect();
        let named = |id, state, reason: &str, name: &str| Row {
            job: Job {
                id,
                state,
                reason: reason.into(),
            },
            name: name.into(),
        };
        assert_eq!(
            found,
            [
                named(12, JobState::Running, "", "v6.o.r.1"),
                named(13, JobState::Waiting, "Priority", "a|b"),
                named(15, JobState::Over(Over::Cancelled), "", "c"),
            ]
        );
    }

    /// Recorded by `tests/data/slurm/record` with Slurm 22.05.8. REVOKED could not be brought about.
    #[test]
    fn what_slurm_has_said_is_understood() {
        let text = include_str!("../../tests/data/slurm/22.05.txt");
        let said: Vec<_> = rows(text)
            .map(|Row { job, name }| (name, job.state, job.reason))
            .collect();
        let over = JobState::Over;
        let wanted = [
            ("boot", over(Over::BootFailed), "JobLaunchFailure"),
            ("deadline", over(Over::Deadline), "DeadLine"),
            ("cancelled", JobState::Running, ""),
            ("suspended", JobState::Running, ""),
            ("cancelled", over(Over::Cancelled), ""),
            ("completed", over(Over::Completed), ""),
            ("failed", over(Over::Failed), "NonZeroExitCode"),
            ("killed", over(Over::Failed), "JobLaunchFailure"),
            ("a|b", over(Over::Completed), ""),
            ("memory", over(Over::OutOfMemory), "OutOfMemory"),
            ("held", JobState::Waiting, "JobHeldUser"),
            ("later", JobState::Waiting, "BeginTime"),
            ("too long", JobState::Waiting, "PartitionTimeLimit"),
            ("used up", JobState::Waiting, "AssocGrpCPUMinutesLimit"),
            ("requeued", JobState::Waiting, "job requeued in held state"),
            ("preempted", over(Over::Preempted), ""),
            ("lost", over(Over::NodeFailed), "NodeDown"),
            ("time limit", over(Over::TimeLimit), "TimeLimit"),
        ];
        let wanted = wanted.map(|(name, state, reason)| (name.into(), state, reason.into()));
        assert_eq!(said, wanted);
    }

    proptest! {
        #[test]
        fn anything_can_be_printed(text in ".{0,200}") {
            let _ = rows(&text).count();
        }
    }
}
