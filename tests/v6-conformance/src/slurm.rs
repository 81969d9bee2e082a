//! Slurm as the suite reaches it: its commands behind small scripts, which can be told to fail.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use v6_runtime::Owner;
use v6_runtime_conformance::Fault;
use v6_runtime_singularity::{SlurmConfig, SlurmListen, SlurmOptions};

/// How long a job may take from its end until Slurm has taken note of it.
const SETTLED: Duration = Duration::from_secs(20);
const COMMANDS: [&str; 5] = ["sbatch", "squeue", "scancel", "sacct", "scontrol"];

/// How Slurm is reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct SlurmArguments {
    /// Slurm's configuration [default: V6_SLURM_CONF, or where Slurm looks for it]
    #[arg(long, value_name = "FILE")]
    slurm_conf: Option<PathBuf>,
    /// The partition that jobs are submitted to
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
}

/// A site, with commands of our own in front of its, for each owner.
#[derive(Debug)]
pub(crate) struct Site {
    conf: Option<PathBuf>,
    partition: Option<String>,
    folder: PathBuf,
}

impl Site {
    pub(crate) fn new(options: SlurmArguments, folder: &Path) -> Self {
        let set = || std::env::var_os("V6_SLURM_CONF").map(PathBuf::from);
        Self {
            conf: options.slurm_conf.or_else(set),
            partition: options.partition,
            folder: folder.join("commands"),
        }
    }

    /// The commands of an owner, and beside them the files that say how they fail.
    fn commands(&self, owner: &Owner) -> PathBuf {
        self.folder.join(owner.as_str())
    }

    fn make(&self, owner: &Owner) -> io::Result<()> {
        let folder = self.commands(owner);
        // A second process of the same owner finds them.
        if folder.exists() {
            return Ok(());
        }
        let new = self.folder.join(format!("{owner}.{}", std::process::id()));
        fs::create_dir_all(&new)?;
        for name in COMMANDS {
            let path = new.join(name);
            fs::write(&path, script(name, &folder))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        }
        match fs::rename(&new, &folder) {
            Err(_) if folder.exists() => fs::remove_dir_all(new),
            renamed => renamed,
        }
    }

    /// # Errors
    /// Commands that cannot be made.
    pub(crate) fn config(&self, owner: &Owner) -> io::Result<SlurmConfig> {
        self.make(owner)?;
        let ask = SlurmOptions::default();
        Ok(SlurmConfig::default()
            .with_commands(Some(self.commands(owner)))
            .with_conf(self.conf.clone())
            .with_poll(Duration::from_millis(500))
            .with_ask(ask.with_partition(self.partition.clone()))
            .with_listen(Some(SlurmListen {
                address: [127, 0, 0, 1].into(),
                ports: 0..=0,
            })))
    }

    /// How often Slurm was told to do something. It is asked how things are at any time.
    pub(crate) fn calls(&self, owner: &Owner) -> u64 {
        let calls = fs::read_to_string(self.commands(owner).join("changes"));
        calls.map_or(0, |calls| calls.lines().count() as u64)
    }

    /// Makes a fault, until the result is dropped.
    pub(crate) fn inject(&self, owner: &Owner, fault: Fault) -> io::Result<Option<Made>> {
        self.make(owner)?;
        let folder = self.commands(owner);
        let mut made = Made(Vec::new());
        let mut make = |name: String, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map(|()| made.0.push(path))
        };
        match fault {
            // Away altogether, it would keep nobody from reading what is in a run's folder.
            Fault::Errors(calls) => {
                (0..calls).try_for_each(|call| make(format!("error.{call}"), String::new()))?;
            }
            Fault::ReplyLost => make("reply-lost".into(), String::new())?,
            Fault::Slow(time) => make("slow".into(), time.as_secs_f64().to_string())?,
            _ => return Ok(None),
        }
        Ok(Some(made))
    }

    /// Removes an owner's commands.
    pub(crate) fn tidy(&self, owner: &Owner) -> io::Result<()> {
        match fs::remove_dir_all(self.commands(owner)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Jobs of this owner's that have not ended, as Slurm tells of them. One that is just ending is
    /// waited for.
    pub(crate) async fn jobs(&self, owner: &Owner) -> io::Result<Vec<String>> {
        let until = std::time::Instant::now() + SETTLED;
        loop {
            let jobs = self.jobs_now(owner)?;
            if jobs.is_empty() || std::time::Instant::now() > until {
                return Ok(jobs);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn jobs_now(&self, owner: &Owner) -> io::Result<Vec<String>> {
        let mut squeue = Command::new("squeue");
        squeue.args(["--me", "--noheader", "--format=%j %i %T %k"]);
        if let Some(conf) = &self.conf {
            squeue.env("SLURM_CONF", conf);
        }
        let said = squeue.output()?;
        if !said.status.success() {
            let words = String::from_utf8_lossy(&said.stderr).trim().to_owned();
            return Err(io::Error::other(format!("squeue: {words}")));
        }
        let said = String::from_utf8_lossy(&said.stdout);
        let ours = format!("v6.{owner}.");
        let jobs = said.lines().filter(|line| line.starts_with(&ours));
        Ok(jobs.map(|line| format!("job {line}")).collect())
    }
}

/// What is in front of a command of Slurm's.
fn script(name: &str, folder: &Path) -> String {
    format!(
        r#"#!/bin/sh
cd '{folder}' || exit 99
PATH=/usr/local/bin:/usr/bin:/bin
case {name} in sbatch | scancel) echo "$$" >>changes ;; esac
if [ -e slow ]; then sleep "$(cat slow)"; fi
for fault in error.*; do
	if rm "$fault" 2>/dev/null; then
		echo "{name}: error: Unable to contact slurm controller (connect failure)" >&2
		exit 1
	fi
done
if [ {name} = sbatch ] && rm reply-lost 2>/dev/null; then
	{name} "$@" >/dev/null 2>&1
	echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
	exit 1
fi
exec {name} "$@"
"#,
        folder = folder.display()
    )
}

/// Files that say how commands fail, until this is dropped.
pub(crate) struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}
