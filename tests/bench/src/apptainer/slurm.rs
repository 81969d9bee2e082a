//! The library on Slurm against a script that is submitted by hand.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tokio::process::Command;
use v6_runtime_singularity::{ImageFormat, SlurmConfig, SlurmListen, SlurmOptions};

use super::by_hand::{ByHand, Pattern, collect};
use super::{connect, engine};
use crate::ours::{Ours, check, in_turns};
use crate::report::Row;
use crate::{Apptainer, Plan, Result};

/// What the project calls of Slurm's.
const COMMANDS: [&str; 5] = ["sbatch", "squeue", "scancel", "sacct", "scontrol"];
/// How many jobs are under way in the measure of calls.
const JOBS: usize = 200;
/// What is aimed at: calls of `squeue` for each job, and how soon an end is seen.
const CALLS: f64 = 0.2;
const NEWS: Duration = Duration::from_millis(50);
/// How soon who waits by hand looks again.
const LOOK: Duration = Duration::from_millis(5);

/// Everything about Slurm, and which Apptainer it was.
pub(crate) async fn measure(plan: &Plan, at: &Apptainer) -> Result<(Vec<Row>, String)> {
    let folder = tempfile::tempdir()?;
    let site = Site::new(at, folder.path().join("commands"))?;
    // A monitor on this machine shows what a job of ours consists of; the job's own is another's.
    let local = connect(plan, at, folder.path(), ImageFormat::Folder, None).await?;
    let pattern = Pattern::of(&local, folder.path()).await?;
    drop(local);
    let slurm = Some(site.config());
    let ours = connect(plan, at, folder.path(), ImageFormat::Folder, slurm).await?;
    let by_hand = ByHand::new(pattern, folder.path().join("by-hand"))?;
    let measured = measures(plan, &ours, &site, &by_hand).await;
    ours.sweep().await?;
    Ok((measured?, engine(&ours).await?))
}

async fn measures(plan: &Plan, ours: &Ours, site: &Site, by_hand: &ByHand) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let row = "slurm: cycle, one at a time";
    if plan.wants(row) {
        let hand = || site.cycle(by_hand);
        let (a, b) = in_turns(plan.times(30), || ours.cycle(), hand).await?;
        rows.push(Row::of_times(row, &a, &b));
    }
    let row = "slurm: from the end to its news, against the aim";
    if plan.wants(row) {
        let mut times = Vec::new();
        for _ in 0..plan.times(30) {
            let id = ours.id()?;
            let status = ours.finish(&id, &ours.spec).await?;
            let ended = status.finished.ok_or("a run that ended tells no time")?;
            times.push(SystemTime::now().duration_since(ended).unwrap_or_default());
            ours.cleanup(&id).await?;
        }
        rows.push(Row::against(row, &times, NEWS));
    }
    let row = "slurm: squeue for each of 200 jobs, against the aim";
    if plan.wants(row) {
        let before = site.calls("squeue");
        let (submitted, cancelled) = (site.calls("sbatch"), site.calls("scancel"));
        try_join_all((0..JOBS).map(|_| ours.cycle())).await?;
        let count = |calls: usize| f64::from(u32::try_from(calls).unwrap_or(u32::MAX));
        let asked = count(site.calls("squeue") - before) / count(JOBS);
        rows.push(Row::of(row, "calls", asked, CALLS));
        let told = site.calls("sbatch") + site.calls("scancel") - submitted - cancelled;
        let row = "slurm: sbatch and scancel for each of 200 jobs";
        rows.push(Row::of(row, "calls", count(told) / count(JOBS), 1.0));
    }
    Ok(rows)
}

/// The cluster, with commands in front of its own that count the calls.
struct Site {
    commands: PathBuf,
    conf: Option<PathBuf>,
    partition: Option<String>,
}

impl Site {
    fn new(at: &Apptainer, commands: PathBuf) -> Result<Self> {
        fs::create_dir(&commands)?;
        for name in COMMANDS {
            let path = commands.join(name);
            let calls = commands.join(format!("{name}.calls"));
            let script = format!(
                "#!/bin/sh\necho >>'{}'\nPATH=/usr/local/bin:/usr/bin:/bin\nexec {name} \"$@\"\n",
                calls.display()
            );
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        }
        Ok(Self {
            commands,
            conf: at.slurm_conf.clone(),
            partition: at.partition.clone(),
        })
    }

    fn config(&self) -> SlurmConfig {
        let ask = SlurmOptions::default().with_partition(self.partition.clone());
        let listen = SlurmListen {
            address: [127, 0, 0, 1].into(),
            ports: 0..=0,
        };
        SlurmConfig::default()
            .with_commands(Some(self.commands.clone()))
            .with_conf(self.conf.clone())
            .with_ask(ask)
            .with_listen(Some(listen))
    }

    fn calls(&self, name: &str) -> usize {
        let calls = fs::read_to_string(self.commands.join(format!("{name}.calls")));
        calls.map_or(0, |calls| calls.lines().count())
    }

    /// One job from its files to their removal, whose end is seen by a file.
    async fn cycle(&self, by_hand: &ByHand) -> Result<()> {
        let folder = by_hand.place(0);
        by_hand.pattern.make(&folder)?;
        self.submit(by_hand, &folder).await?;
        let exit = folder.join("exit");
        while !exit.exists() {
            tokio::time::sleep(LOOK).await;
        }
        let code = fs::read_to_string(&exit)?;
        let printed = fs::read_to_string(folder.join("printed")).unwrap_or_default();
        check(code.trim() == "0", &format!("by hand: {code}: {printed}"))?;
        collect(&folder)?;
        fs::remove_dir_all(&folder)?;
        Ok(())
    }

    async fn submit(&self, by_hand: &ByHand, folder: &Path) -> Result<()> {
        let mut script = "#!/bin/sh\nexport ".to_owned();
        for (name, value) in by_hand.pattern.environment() {
            write!(script, "{name}={} ", quoted(value))?;
        }
        script.push('\n');
        for word in by_hand.pattern.command_line(folder)? {
            let word = word.to_str().ok_or("a word that is no text")?;
            write!(script, "{} ", quoted(word))?;
        }
        let exit = quoted(
            folder
                .join("exit")
                .to_str()
                .ok_or("a path that is no text")?,
        );
        write!(script, "\necho $? >{exit}.new\nmv {exit}.new {exit}\n")?;
        let path = folder.join("script");
        fs::write(&path, script)?;
        let mut sbatch = Command::new("sbatch");
        sbatch.args(["--parsable", "--no-requeue", "--export=NIL"]);
        sbatch
            .arg("--chdir=/")
            .arg("--output")
            .arg(folder.join("printed"));
        if let Some(partition) = &self.partition {
            sbatch.arg("--partition").arg(partition);
        }
        if let Some(conf) = &self.conf {
            sbatch.env("SLURM_CONF", conf);
        }
        let said = sbatch.arg(path).stdin(Stdio::null()).output().await?;
        let words = String::from_utf8_lossy(&said.stderr);
        check(said.status.success(), &format!("sbatch: {words}"))
    }
}

/// As a word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
