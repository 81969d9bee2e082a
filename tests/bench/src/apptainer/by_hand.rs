//! Apptainer's command called by hand, with the same effects as a run of ours.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use v6_runtime::{RunId, RunPhase, Runtime};

use crate::Result;
use crate::ours::{COMMAND, INPUT, Ours, check};

/// More than any file of a run that is not the helper.
const SMALL: u64 = 64 << 10;
/// As long as a run of the pattern's takes, and much more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run of ours consists of.
pub(crate) struct Pattern {
    /// Its folder.
    folder: PathBuf,
    /// The command line in a network of its own, with the run's folder in it, up to the image.
    line: Vec<OsString>,
    /// What the command sees of an environment.
    environment: Vec<(String, String)>,
    /// The files and folders in its folder, by relative path, before it began.
    files: Vec<(PathBuf, u32, Option<Vec<u8>>)>,
    image: OsString,
}

impl Pattern {
    /// Of a run that is begun for this, below the runtime's folder.
    pub(crate) async fn of(ours: &Ours, folder: &Path) -> Result<Self> {
        let id = ours.id()?;
        let spec = ours.spec.clone().with_command(["sleep", "1000"]);
        ours.runtime.run(&id, &spec).await?;
        running(ours, &id).await?;
        let owner = ours.runtime.owner().as_str();
        let run = folder
            .join("owners")
            .join(owner)
            .join("runs")
            .join(id.as_str());
        let monitor = monitor_of(&run)?;
        let words = strings(&fs::read(monitor.join("cmdline"))?);
        let mut line: Vec<_> = words
            .into_iter()
            .skip_while(|word| word != "--")
            .skip(1)
            .collect();
        // Where `init` begins.
        let helper = line.iter().position(|word| word == "/.v6/helper");
        line.truncate(helper.ok_or("the monitor's command line has no init")?);
        let image = line
            .pop()
            .ok_or("the monitor's command line has no image")?;
        let environment = strings(&fs::read(monitor.join("environ"))?);
        let environment = environment.into_iter().filter_map(|pair| {
            let pair = pair.into_string().ok()?;
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        let environment = environment.collect();
        let mut files = Vec::new();
        read(&run, Path::new(""), &mut files)?;
        ours.cleanup(&id).await?;
        Ok(Self {
            folder: run,
            line,
            environment,
            files,
            image,
        })
    }

    pub(crate) fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// The same for a run in another folder: its command line, whose program is the cycle's.
    pub(crate) fn command_line(&self, folder: &Path) -> Result<Vec<OsString>> {
        let (old, new) = (
            self.folder.to_str().ok_or("a path that is no text")?,
            folder.to_str().ok_or("a path that is no text")?,
        );
        // Ours has no network either, by its monitor.
        let network = ["unshare", "--user", "--map-current-user", "--net", "--"];
        let mut line: Vec<OsString> = network.map(OsString::from).to_vec();
        for word in &self.line {
            let word = word.to_str().ok_or("a word that is no text")?;
            line.push(word.replace(old, new).into());
        }
        line.push(self.image.clone());
        line.extend(COMMAND.map(OsString::from));
        Ok(line)
    }

    /// The files that ours has, in another folder.
    pub(crate) fn make(&self, folder: &Path) -> Result<()> {
        DirBuilder::new().mode(0o700).create(folder)?;
        for (path, mode, content) in &self.files {
            let path = folder.join(path);
            match content {
                None => DirBuilder::new().mode(*mode).create(&path)?,
                Some(bytes) => {
                    let mut options = OpenOptions::new();
                    options.write(true).create_new(true).mode(0o600);
                    let mut file = options.open(&path)?;
                    file.write_all(bytes)?;
                    file.set_permissions(Permissions::from_mode(*mode))?;
                }
            }
        }
        Ok(())
    }
}

async fn running(ours: &Ours, id: &RunId) -> Result<()> {
    let waited = async {
        while ours.runtime.status(id).await?.phase != RunPhase::Running {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, waited).await?
}

/// The process that watches over a run.
fn monitor_of(run: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let words = strings(&fs::read(entry.path().join("cmdline")).unwrap_or_default());
        let is_monitor = words.get(1).is_some_and(|word| word == "monitor");
        if is_monitor && words.iter().any(|word| Path::new(word).starts_with(run)) {
            return Ok(entry.path());
        }
    }
    Err("the pattern's monitor is not there".into())
}

fn strings(bytes: &[u8]) -> Vec<OsString> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let all = bytes.split(|byte| *byte == 0);
    all.map(|one| OsString::from_vec(one.to_vec())).collect()
}

/// Regular files and folders, which are before what is in them.
fn read(run: &Path, below: &Path, files: &mut Vec<(PathBuf, u32, Option<Vec<u8>>)>) -> Result<()> {
    for entry in fs::read_dir(run.join(below))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let path = below.join(entry.file_name());
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() {
            files.push((path.clone(), mode, None));
            read(run, &path, files)?;
        } else if metadata.is_file() && metadata.len() < SMALL {
            files.push((path, mode, Some(fs::read(entry.path())?)));
        }
    }
    Ok(())
}

/// Runs like the pattern, without us.
pub(crate) struct ByHand {
    pub(crate) pattern: Pattern,
    folder: PathBuf,
}

impl ByHand {
    pub(crate) fn new(pattern: Pattern, folder: PathBuf) -> Result<Self> {
        DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self { pattern, folder })
    }

    /// The folder of one of several at a time.
    pub(crate) fn place(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// One run from its files to their removal.
    pub(crate) async fn cycle(&self, number: usize) -> Result<()> {
        let folder = self.place(number);
        self.pattern.make(&folder)?;
        let line = self.pattern.command_line(&folder)?;
        self.end(&line, Some(&folder.join("printed"))).await?;
        collect(&folder)?;
        fs::remove_dir_all(&folder)?;
        Ok(())
    }

    /// The least that a container can be.
    pub(crate) async fn bare(&self) -> Result<()> {
        let program = self.pattern.line.first().ok_or("no program")?.clone();
        let line = [
            program,
            "exec".into(),
            self.pattern.image.clone(),
            "true".into(),
        ];
        self.end(&line, None).await
    }

    async fn end(&self, line: &[OsString], printed: Option<&Path>) -> Result<()> {
        let (out, err) = match printed {
            Some(path) => {
                let file = fs::File::create(path)?;
                (Stdio::from(file.try_clone()?), Stdio::from(file))
            }
            None => (Stdio::null(), Stdio::null()),
        };
        let (program, arguments) = line.split_first().ok_or("no program")?;
        let ended = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(self.pattern.environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .status()
            .await?;
        let printed = printed.and_then(|path| fs::read_to_string(path).ok());
        let printed = printed.unwrap_or_default();
        check(ended.success(), &format!("by hand: {ended}: {printed}"))
    }
}

/// Reads the output.
pub(crate) fn collect(folder: &Path) -> Result<()> {
    let output = fs::read(folder.join("out/0"))?;
    check(output == INPUT, "the output by hand is not what was put in")
}
