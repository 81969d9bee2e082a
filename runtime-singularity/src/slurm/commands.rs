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

    /// How a job ended that the queue does not have any more; `None` without accounting.
    pub(super) async fn ended(&self, id: u64) -> Result<Option<Over>> {
        let arguments = [
            "--noheader",
            "--parsable2",
            "--allocations",
            "--format=State",
        ];
        let job = OsString::from(format!("--jobs={id}"));
        let arguments = arguments.into_iter().map(OsString::from).chain([job]);
        let said = match self.ask("sacct", arguments, "asking the accounting").await {
            // "Slurm accounting storage is disabled"; or there is no such command here.
            Err(Error::Engine { .. } | Error::Host { .. }) => return Ok(None),
            said => said?,
        };
        let state = said.lines().next_back().and_then(JobState::parse);
        Ok(state.and_then(JobState::over))
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

/// What a command has said about its failure.
pub(super) fn last_words(err: &str, name: &str, status: std::process::ExitStatus) -> String {
    match err.trim() {
        "" => format!("{name} ended with {status}"),
        words => words
            .lines()
            .next_back()
            .unwrap_or_default()
            .trim_start_matches("sbatch: error: ")
            .trim_start_matches("slurm_load_jobs error: ")
            .trim_start_matches("scancel: error: ")
            .to_owned(),
    }
}

/// Whether a failure says that Slurm cannot be spoken to now, so that nothing is known.
pub(super) fn is_away(err: &str) -> bool {
    const WORDS: [&str; 9] = [
        "Unable to contact slurm controller",
        "Connection refused",
        "Connection timed out",
        "Socket timed out",
        "Zero Bytes were transmitted",
        "Unable to establish controller machine",
        "Unexpected missing socket error",
        "slurmctld: shutdown",
        "Insane message length",
    ];
    WORDS.iter().any(|words| err.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn away_is_not_gone() {
        // As Slurm 22.05 says it.
        let away = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)";
        assert!(is_away(away));
        assert!(!is_away("slurm_load_jobs error: Invalid job id specified"));
        assert!(!is_away(
            "sbatch: error: invalid partition specified: nowhere\n\
             sbatch: error: Batch job submission failed: Invalid partition name specified"
        ));
    }
}
