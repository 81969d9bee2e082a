//! Submitting a job.

use std::ffi::{OsStr, OsString};
use std::num::{NonZeroU32, NonZeroU64};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::commands::{Commands, is_away, last_words};
use super::config::SlurmOptions;
use crate::error::Error;

/// What a job is to be.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) name: String,
    /// For people who look at the queue.
    pub(crate) comment: String,
    /// The run's folder, in which the script is.
    pub(crate) folder: PathBuf,
    pub(crate) script: PathBuf,
    /// What Slurm itself says of the job.
    pub(crate) log: PathBuf,
    pub(crate) ask: SlurmOptions,
    pub(crate) memory: Option<NonZeroU64>,
    pub(crate) gpus: Option<NonZeroU32>,
    /// How long it may take.
    pub(crate) time: Option<Duration>,
}

/// Why there is no number of a job.
#[derive(Debug)]
pub(crate) enum NotSubmitted {
    /// Slurm did not answer, or not in time: there may be a job nevertheless.
    Unknown(String),
    /// The site allows no more jobs, or no more of this one's size, for now.
    Full(String),
    /// Slurm will not have such a job.
    Refused(String),
    /// The command could not be executed.
    Failed(Error),
}

/// What the job executes: it becomes this command.
pub(crate) fn script(line: &[OsString]) -> Vec<u8> {
    let mut script = b"#!/bin/sh\nexec".to_vec();
    for word in line {
        script.push(b' ');
        script.extend(quote(word));
    }
    script.push(b'\n');
    script
}

/// A word as a shell reads it: in single quotes nothing has a meaning but the quote itself.
fn quote(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// In a file's name `sbatch` reads `%` as the beginning of a pattern.
fn literal(path: &OsStr) -> OsString {
    let mut bytes = Vec::new();
    for byte in path.as_bytes() {
        bytes.extend(std::iter::repeat_n(*byte, 1 + usize::from(*byte == b'%')));
    }
    OsString::from_vec(bytes)
}

fn arguments(request: &Request) -> Vec<OsString> {
    let mut words: Vec<OsString> = [
        "--parsable",
        // A run is executed once: neither after a lost node, nor for others' sake, nor by hand.
        "--no-requeue",
        // Nothing of our environment but what the job's file has.
        "--export=NIL",
        "--ntasks=1",
        "--input=/dev/null",
    ]
    .map(OsString::from)
    .into();
    words.extend(request.ask.words().map(OsString::from));
    // The last of two is taken.
    if let Some(count) = request.gpus {
        let own = request.ask.gres.as_deref();
        words.push(format!("--gres={}", crate::gpu::gres(own, count.get())).into());
    }
    let mut option = |name: &str, value: &OsStr| {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value);
        words.push(word);
    };
    option("--job-name", OsStr::new(&request.name));
    option("--comment", OsStr::new(&request.comment));
    option("--chdir", request.folder.as_os_str());
    option("--output", &literal(request.log.as_os_str()));
    if let Some(memory) = request.memory {
        option(
            "--mem",
            format!("{}K", memory.get().div_ceil(1024)).as_ref(),
        );
    }
    if let Some(time) = request.time {
        let minutes = time.as_secs().div_ceil(60).max(1);
        option("--time", minutes.to_string().as_ref());
    }
    words.push(request.script.clone().into());
    words
}

pub(super) async fn submit(commands: &Commands, request: &Request) -> Result<u64, NotSubmitted> {
    let arguments = arguments(request);
    let said = match commands.run("sbatch", arguments, "submitting a job").await {
        Ok(said) => said,
        Err(error @ Error::Timeout { .. }) => return Err(NotSubmitted::Unknown(error.to_string())),
        Err(error) => return Err(NotSubmitted::Failed(error)),
    };
    if said.status.success() {
        // `ID`, or `ID;CLUSTER`.
        let id = said.out.trim().split(';').next().map(str::parse);
        return match id {
            Some(Ok(id)) => Ok(id),
            _ => Err(NotSubmitted::Unknown(format!(
                "sbatch has said {:?} instead of a job's number",
                said.out
            ))),
        };
    }
    let words = last_words(&said.err, "sbatch", said.status);
    Err(understand(&said.err, words))
}

fn understand(err: &str, words: String) -> NotSubmitted {
    // Limits on how many there may be at once, and a controller that has no room.
    const FULL: [&str; 6] = [
        "MaxSubmitJob",
        "job submit limit",
        "MaxJobCount",
        "Slurm temporarily unable to accept job",
        "Resource temporarily unavailable",
        "Job submission is temporarily",
    ];
    if is_away(err) {
        NotSubmitted::Unknown(words)
    } else if FULL.iter().any(|full| err.contains(full)) {
        NotSubmitted::Full(words)
    } else {
        NotSubmitted::Refused(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            name: "v6.o.r.1".into(),
            comment: "v6 owner=o run=r".into(),
            folder: "/runs/r".into(),
            script: "/runs/r/job.sh".into(),
            log: "/runs/100%/r/job.log".into(),
            ask: SlurmOptions::default()
                .with_partition(Some("main".into()))
                .with_gres(Some("gpu:a100".into()))
                .with_arguments(vec!["--nice=5".into()]),
            memory: NonZeroU64::new((64 << 20) + 1),
            gpus: NonZeroU32::new(2),
            time: Some(Duration::from_secs(61)),
        }
    }

    #[test]
    fn a_job_is_asked_for() {
        let words = arguments(&request());
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words.join("\n"),
            "--parsable\n--no-requeue\n--export=NIL\n--ntasks=1\n--input=/dev/null\n\
             --partition=main\n--gres=gpu:a100\n--nice=5\n--gres=gpu:a100:2\n--job-name=v6.o.r.1\n--comment=v6 owner=o run=r\n\
             --chdir=/runs/r\n--output=/runs/100%%/r/job.log\n--mem=65537K\n\
             --time=2\n/runs/r/job.sh"
        );
    }

    #[test]
    fn no_shell_sees_a_word() {
        let line = ["/a b", "$(id)`id`", "it's\nso"].map(OsString::from);
        let script = String::from_utf8(script(&line)).expect("text");
        assert_eq!(
            script,
            "#!/bin/sh\nexec '/a b' '$(id)`id`' 'it'\\''s\nso'\n"
        );
    }

    /// Recorded by `tests/data/slurm/record` with Slurm 22.05.8.
    #[test]
    fn refusals_are_told_apart() {
        let said = include_str!("../../tests/data/slurm/22.05-refusals.txt");
        let understood = |why: &str| {
            let mut lines = said.lines().filter_map(|line| line.split_once('|'));
            let (_, words) = lines.find(|(of, _)| *of == why).expect("it was recorded");
            understand(&words.replace("\\n", "\n"), String::new())
        };
        assert!(matches!(understood("too many jobs"), NotSubmitted::Full(_)));
        for why in [
            "no such partition",
            "no such account",
            "no such QOS",
            "no such constraint",
            "no such GRES",
            "too much memory",
            "no such option",
        ] {
            assert!(matches!(understood(why), NotSubmitted::Refused(_)), "{why}");
        }
        let away = understood("no controller, submitting");
        assert!(matches!(away, NotSubmitted::Unknown(_)));
    }
}
