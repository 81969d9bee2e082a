//! Slurm's commands, and what their failures mean.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::config::SlurmConfig;
use super::states::{FORMAT, JobState, Over, Row, rows};
use crate::command::{self, Said};
use crate::engine::look_up;
use crate::error::{Error, Result};

/// The first version with all options that are used here.
const OLDEST: (u32, u32) = (21, 8);
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Where the commands are, and how they are called.
#[derive(Debug)]
pub(super) struct Commands {
    folder: Option<PathBuf>,
    conf: Option<PathBuf>,
    patience: Duration,
    pub(super) version: String,
}

impl Commands {
    pub(super) async fn find(config: &SlurmConfig) -> Result<Self> {
        let mut commands = Self {
            folder: config.commands.clone(),
            conf: config.conf.clone(),
            patience: config.call_timeout,
            version: String::new(),
        };
        let step = "asking for Slurm's version";
        let said = commands
            .run("sbatch", ["--version".into()], step)
            .await
            .map_err(|error| match error {
                Error::Host { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                    let why = "there is no sbatch: this has to be a submit host of Slurm, or say where \
                               its commands are";
                    Error::Config(why.into())
                }
                other => other,
            })?;
        // `slurm 24.11.5`, `slurm-wlm 22.05.8`.
        let version = said.out.split_whitespace().next_back().unwrap_or_default();
        let version = version.to_owned();
        let mut numbers = version.split(['.', '-']).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(year)), Some(Ok(month))) if (year, month) >= OLDEST => {}
            _ => {
                let (year, month) = OLDEST;
                let why = format!("Slurm {version:?} is not {year}.{month:02} or newer");
                return Err(Error::Config(why));
            }
        }
        commands.version = version;
        Ok(commands)
    }

    /// Runs a command to its end, with nothing of this process's environment.
    pub(super) async fn run(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = OsString>,
        step: &'static str,
    ) -> Result<Said> {
        let program = match &self.folder {
            Some(folder) => folder.join(name),
            None => look_up(name.as_ref()).unwrap_or_else(|| name.into()),
        };
        let mut line = Command::new(program);
        line.args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C")
            .current_dir("/");
        if let Some(conf) = self.conf() {
            line.env("SLURM_CONF", conf);
        }
        command::run(line, self.patience, step).await
    }

    /// As set, or else as in this process's environment.
    fn conf(&self) -> Option<OsString> {
        let set = self.conf.as_deref().map(Path::as_os_str);
        set.map_or_else(
            || std::env::var_os("SLURM_CONF"),
            |set| Some(set.to_owned()),
        )
    }

    /// What a command has printed; its failure as an error.
    async fn ask(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = OsString>,
        step: &'static str,
    ) -> Result<String> {
        let Said { status, out, err } = self.run(name, arguments, step).await?;
        if status.success() {
            return Ok(out);
        }
        let words = last_words(&err, name, status);
        Err(match is_away(&err) {
            true => Error::Unavailable { step, words },
            false => Error::Engine { step, words },
        })
    }

    /// Every job of this user that Slurm has not forgotten.
    pub(super) async fn queue(&self) -> Result<Vec<Row>> {
        let arguments = ["--me", "--states=all", "--noheader"].map(OsString::from);
        let format = OsString::from(format!("--format={FORMAT}"));
        let arguments = arguments.into_iter().chain([format]);
        let said = self.ask("squeue", arguments, "asking for the jobs").await?;
        Ok(rows(&said).collect())
    }

    /// How a job ended that the queue does not have any more.
    pub(super) async fn past(&self, id: u64, name: &str) -> Result<Past> {
        let arguments = [
            "--noheader",
            "--parsable2",
            "--allocations",
            "--format=State",
        ];
        // A number is given to another job some day.
        let which = [format!("--jobs={id}"), format!("--name={name}")];
        let arguments = arguments.into_iter().map(OsString::from);
        let arguments = arguments.chain(which.map(OsString::from));
        let said = match self.ask("sacct", arguments, "asking the accounting").await {
            // "Slurm accounting storage is disabled"; or there is no such command here.
            Err(Error::Engine { .. } | Error::Host { .. }) => return Ok(Past::NotKept),
            said => said?,
        };
        Ok(past(&said))
    }

    /// All that Slurm tells of its configuration.
    pub(super) async fn settings(&self) -> Result<String> {
        let arguments = ["show", "config"].map(OsString::from);
        self.ask("scontrol", arguments, "asking for the configuration")
            .await
    }

    /// `scancel` with these options, on a job that is this user's, of this number, and of this name.
    pub(super) async fn cancel(&self, id: u64, name: &str, options: &[&str]) -> Result<()> {
        let step = "cancelling a job";
        let mut arguments = vec![OsString::from("--me"), format!("--name={name}").into()];
        arguments.extend(options.iter().map(OsString::from));
        arguments.push(id.to_string().into());
        match self.ask("scancel", arguments, step).await {
            // It is over, or was never there: "Invalid job id specified",
            // "Job/step already completing or completed".
            Err(Error::Engine { words, .. })
                if words.contains("Invalid job id") || words.contains("already complet") =>
            {
                Ok(())
            }
            done => done.map(drop),
        }
    }
}

/// What the accounting knows of a job that the controller has forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    Over(Over),
    /// Not yet that it is over, or not yet that it was there: it is told of both some time later.
    NotYet,
    /// There is no accounting.
    NotKept,
}

/// Reads what `sacct` prints: the job's state, or nothing.
fn past(said: &str) -> Past {
    let state = said.lines().next_back().and_then(JobState::parse);
    state
        .and_then(JobState::over)
        .map_or(Past::NotYet, Past::Over)
}

/// What a command has said about its failure: the last lines of it, since the reason is not always in
/// the same.
pub(super) fn last_words(err: &str, name: &str, status: std::process::ExitStatus) -> String {
    const LINES: usize = 4;
    const PREFIXES: [&str; 4] = [
        "sbatch: error: ",
        "slurm_load_jobs error: ",
        "scancel: error: ",
        "sacct: error: ",
    ];
    let lines: Vec<&str> = err
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return format!("{name} ended with {status}");
    }
    let last = &lines[lines.len().saturating_sub(LINES)..];
    let told = last.iter().map(|line| {
        let mut plain = PREFIXES
            .iter()
            .filter_map(|prefix| line.strip_prefix(prefix));
        plain.next().unwrap_or(line)
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Whether a failure says that Slurm cannot be spoken to now, so that nothing is known.
pub(super) fn is_away(err: &str) -> bool {
    const WORDS: [&str; 10] = [
        "Unable to contact slurm controller",
        "Connection refused",
        "Connection timed out",
        "Socket timed out",
        "Zero Bytes were transmitted",
        "Unable to establish controller machine",
        "Unexpected missing socket error",
        "Problem talking to the database",
        "slurmctld: shutdown",
        "Insane message length",
    ];
    WORDS.iter().any(|words| err.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded by `tests/data/slurm/record` with Slurm 22.05.8.
    #[test]
    fn away_is_not_gone() {
        let said = include_str!("../../tests/data/slurm/22.05-refusals.txt");
        let away: Vec<&str> = said
            .lines()
            .filter_map(|line| line.split_once('|'))
            .filter(|(_, words)| is_away(&words.replace("\\n", "\n")))
            .map(|(why, _)| why)
            .collect();
        assert_eq!(
            away,
            [
                "no accounting",
                "no controller, submitting",
                "no controller, asking",
                "no controller, cancelling",
            ]
        );
    }

    /// Recorded by `tests/data/slurm/record` with Slurm 22.05.8.
    #[test]
    fn what_the_accounting_has_said_is_understood() {
        let said = include_str!("../../tests/data/slurm/22.05-sacct.txt");
        let told = |name: &str| {
            let mut lines = said.lines().filter_map(|line| line.split_once('|'));
            let (state, _) = lines.find(|(_, of)| *of == name)?;
            Some(past(&format!("{state}\n")))
        };
        for (name, over) in [
            ("boot", Over::BootFailed),
            ("deadline", Over::Deadline),
            ("cancelled", Over::Cancelled),
            ("completed", Over::Completed),
            ("failed", Over::Failed),
            ("memory", Over::OutOfMemory),
            ("preempted", Over::Preempted),
            ("lost", Over::NodeFailed),
            ("time limit", Over::TimeLimit),
        ] {
            assert_eq!(told(name), Some(Past::Over(over)), "{name}");
        }
        assert_eq!(past("RUNNING\n"), Past::NotYet);
        assert_eq!(past(""), Past::NotYet);
    }
}
