//! The record of a run: a folder, and in it the file that makes it one of ours.
//!
//! Owners and run ids have no dot, so that names with one are never a run's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use v6_helper::{RunFolder, RunLock};
use v6_runtime::{
    Access, Annotations, EgressGrant, Outcome, OutputKind, OutputName, Owner, ResolvedImage, RunId,
    RunSpec, SpecDigest, StartFailure,
};

use crate::error::{Error, Result};

/// The version of the record; another one is not read.
const SCHEMA: u32 = 1;
const RECORD: &str = "record.json";
const FAILED: &str = "failed.json";
const CONCLUDED: &str = "concluded.json";
const JOB: &str = "job";
const GROUP: &str = "group";
/// More than the largest annotations and grants take.
const MAX_RECORD: u64 = 1 << 20;

/// An output as the record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredOutput {
    /// Its place below `out/`.
    pub(crate) index: usize,
    pub(crate) folder: bool,
    pub(crate) limit: NonZeroU64,
    /// For a folder: what is mounted below it, by relative path, and is not collected.
    #[serde(default)]
    pub(crate) skip: Vec<String>,
}

/// All that is kept of a run apart from its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    owner: String,
    run: String,
    pub(crate) spec: SpecDigest,
    pub(crate) image: ResolvedImage,
    pub(crate) annotations: Annotations,
    pub(crate) egress: Vec<EgressGrant>,
    pub(crate) outputs: BTreeMap<OutputName, StoredOutput>,
    #[serde(with = "nanos_opt")]
    pub(crate) deadline: Option<SystemTime>,
    pub(crate) grace: Duration,
    #[serde(with = "nanos")]
    pub(crate) created: SystemTime,
}

impl Record {
    /// A record of a new attempt.
    pub(crate) fn new(owner: &Owner, id: &RunId, spec: &RunSpec, now: SystemTime) -> Self {
        let outputs = spec.outputs.iter().enumerate();
        let outputs = outputs.map(|(index, (name, output))| {
            // Given content that may be changed is the beginning of the output.
            let begins =
                |mount: &&v6_runtime::Mount| mount.is_given() && mount.access == Access::ReadWrite;
            let mounts = spec.mounts.iter().filter(|mount| !begins(mount));
            let others = spec.outputs.values().map(|other| &other.path);
            let below = mounts.map(|mount| &mount.target).chain(others);
            let skip = below.filter_map(|path| path.relative_to(&output.path));
            let stored = StoredOutput {
                index,
                folder: output.kind == OutputKind::Folder,
                limit: output.limit,
                skip: skip.map(str::to_owned).collect(),
            };
            (name.clone(), stored)
        });
        Self {
            schema: SCHEMA,
            owner: owner.to_string(),
            run: id.to_string(),
            spec: SpecDigest::of(spec),
            image: spec.image.clone(),
            annotations: spec.annotations.clone(),
            egress: spec.egress.clone(),
            outputs: outputs.collect(),
            deadline: spec.deadline,
            grace: spec.grace,
            created: now,
        }
    }
}

/// The folder in which an owner's runs are, one folder each.
#[derive(Debug, Clone)]
pub(crate) struct Runs {
    owner: Owner,
    folder: PathBuf,
}

/// What is at the place of a run.
#[derive(Debug)]
pub(crate) enum There {
    Nothing,
    /// Something that is not one of our runs.
    Stranger,
    Run(Box<Record>),
}

impl Runs {
    pub(crate) fn new(owner: &Owner, folder: &Path) -> Self {
        let folder = folder.join("owners").join(owner.as_str()).join("runs");
        let owner = owner.clone();
        Self { owner, folder }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder, for this user alone.
    pub(crate) fn make(&self) -> Result<()> {
        make_private(&self.folder).map_err(Error::host(format!(
            "the folder {} cannot be made",
            self.folder.display()
        )))
    }

    pub(crate) fn place(&self, id: &RunId) -> Place {
        Place(RunFolder::new(self.folder.join(id.as_str())))
    }

    /// The ids of all runs, whatever their state.
    pub(crate) fn ids(&self) -> Result<Vec<RunId>> {
        let failed = || Error::host(format!("{} cannot be listed", self.folder.display()));
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed()(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed())?.file_name();
            ids.extend(name.to_str().and_then(|name| RunId::new(name).ok()));
        }
        Ok(ids)
    }

    /// What there is of a run.
    pub(crate) fn read(&self, id: &RunId) -> Result<There> {
        let place = self.place(id);
        let bytes = match read_bounded(&place.file(RECORD)) {
            Ok(bytes) => bytes,
            Err(error) => {
                return match fs::symlink_metadata(place.path()) {
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(There::Nothing),
                    Ok(_) if is_absent(&error) => Ok(There::Stranger),
                    _ => Err(Error::host(format!("the record of {id} cannot be read"))(
                        error,
                    )),
                };
            }
        };
        let bad = |why: String| Error::Record {
            name: id.to_string(),
            why,
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if record.owner != self.owner.as_str() || record.run != id.as_str() {
            return Ok(There::Stranger);
        }
        if record.schema != SCHEMA {
            return Err(bad(format!("it has the unknown version {}", record.schema)));
        }
        Ok(There::Run(Box::new(record)))
    }

    /// Makes the record, with its lock held: `None` if the place is taken. It appears whole.
    pub(crate) fn create(&self, id: &RunId, record: &Record) -> Result<Option<RunLock>> {
        let failed = || Error::host(format!("the record of {id} cannot be made"));
        // The process by whose absence others see that nobody goes on with it.
        let maker = std::process::id();
        let name = format!(".{id}.new-{maker}-{:016x}", rand::random::<u64>());
        let new = Place(RunFolder::new(self.folder.join(name)));
        let made = (|| -> io::Result<Option<RunLock>> {
            fs::DirBuilder::new().mode(0o700).create(new.path())?;
            let lock = new.0.lock()?.ok_or(io::ErrorKind::ResourceBusy)?;
            new.0.prepare()?;
            let text = serde_json::to_vec(record)?;
            write_new(&new.file(RECORD), &text, 0o600)?;
            File::open(new.path())?.sync_all()?;
            let place = self.place(id);
            match move_in(new.path(), place.path()) {
                Ok(()) => {
                    File::open(&self.folder)?.sync_all()?;
                    Ok(Some(lock))
                }
                Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })();
        if !matches!(made, Ok(Some(_))) {
            let _ = fs::remove_dir_all(new.path());
        }
        made.map_err(failed())
    }

    /// Moves a run's folder out of sight; what it holds is then to be removed.
    pub(crate) fn hide(&self, id: &RunId) -> io::Result<()> {
        let name = format!(".{id}.gone-{:016x}", rand::random::<u64>());
        fs::rename(self.place(id).path(), self.folder.join(name))
    }

    /// Folders that were on their way to be a run, or from there, and that nobody works on.
    pub(crate) fn hidden(&self, id: Option<&RunId>) -> Result<Vec<PathBuf>> {
        let failed = || Error::host(format!("{} cannot be listed", self.folder.display()));
        let begin = id.map_or(".".to_owned(), |id| format!(".{id}."));
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.starts_with(&begin) && is_over(name))
            {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

/// Whether nobody works on what has this hidden name: what is to be removed, or was to be a run and
/// whose maker is gone.
fn is_over(name: &str) -> bool {
    if name.contains(".gone-") {
        return true;
    }
    let maker = name
        .split_once(".new-")
        .and_then(|(_, rest)| rest.split('-').next());
    let maker = maker.and_then(|maker| maker.parse::<u32>().ok());
    maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists())
}

/// The folder of one run, and what is where in it.
#[derive(Debug, Clone)]
pub(crate) struct Place(pub(crate) RunFolder);

impl Place {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The folder that is mounted at `/.v6`, read-only.
    pub(crate) fn inside(&self, name: &str) -> PathBuf {
        self.0.inside().join(name)
    }

    pub(crate) fn claim(&self) -> PathBuf {
        self.file("claim")
    }

    pub(crate) fn input(&self, index: usize) -> PathBuf {
        self.file("in").join(index.to_string())
    }

    pub(crate) fn output(&self, index: usize) -> PathBuf {
        self.file("out").join(index.to_string())
    }

    pub(crate) fn scratch(&self, index: usize) -> PathBuf {
        self.file("scratch").join(index.to_string())
    }

    /// Why the run could not be started, if that is so.
    pub(crate) fn failure(&self) -> Result<Option<StartFailure>> {
        self.read(FAILED)
    }

    /// Notes why it could not be started, for good.
    pub(crate) fn fail(&self, failure: &StartFailure) -> Result<()> {
        let noted = serde_json::to_vec(failure).map_err(io::Error::from);
        self.note(FAILED, noted)
    }

    /// How it ended, if only its job's end told that.
    pub(crate) fn conclusion(&self) -> Result<Option<Outcome>> {
        self.read(CONCLUDED)
    }

    /// Notes how it ended, for good: Slurm forgets its jobs.
    pub(crate) fn conclude(&self, outcome: &Outcome) -> Result<()> {
        let noted = serde_json::to_vec(outcome).map_err(io::Error::from);
        self.note(CONCLUDED, noted)
    }

    /// The number of its job, if it is known.
    pub(crate) fn job(&self) -> Result<Option<u64>> {
        self.read(JOB)
    }

    /// Notes the number of its job.
    pub(crate) fn note_job(&self, id: u64) -> Result<()> {
        self.note(JOB, Ok(id.to_string().into_bytes()))
    }

    /// Notes its control group, which is to be removed with it.
    pub(crate) fn note_group(&self, group: &Path) -> Result<()> {
        self.note(GROUP, Ok(group.as_os_str().as_bytes().to_vec()))
    }

    /// Its control group, if it may have one.
    pub(crate) fn group(&self) -> Result<Option<PathBuf>> {
        let path = self.file(GROUP);
        match read_bounded(&path) {
            Ok(bytes) => Ok(Some(OsString::from_vec(bytes).into())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => {
                let what = format!("{} cannot be read", path.display());
                Err(Error::host(what)(error))
            }
        }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.file(name);
        match read_bounded(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::Record {
                    name: path.display().to_string(),
                    why: error.to_string(),
                }),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::host(format!("{} cannot be read", path.display()))(
                error,
            )),
        }
    }

    /// Makes or replaces a file in one step.
    fn note(&self, name: &str, content: io::Result<Vec<u8>>) -> Result<()> {
        let path = self.file(name);
        let noted = content.and_then(|content| {
            // Others may be at it, too.
            let temporary = self.file(&format!("{name}.{:016x}", rand::random::<u64>()));
            write_new(&temporary, &content, 0o600)?;
            fs::rename(temporary, &path)?;
            File::open(self.path())?.sync_all()
        });
        noted.map_err(Error::host(format!("{} cannot be written", path.display())))
    }
}

/// Gives a run's folder its name, if that is free.
fn move_in(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS does not know it. Without it only an empty folder would be replaced, and a run's is
        // never empty.
        Err(Errno::INVAL | Errno::NOSYS) if !to.exists() => renameat(CWD, from, CWD, to),
        Err(Errno::INVAL | Errno::NOSYS) => Err(Errno::EXIST),
        moved => moved,
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file through to the disk.
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_data()
}

/// Makes a folder and those above it, for this user alone.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Points in time as nanoseconds since 1970.
mod nanos {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn of(time: &SystemTime) -> u64 {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(of(time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let nanos = u64::deserialize(from)?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
    }
}

mod nanos_opt {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.as_ref().map(super::nanos::of).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let nanos = Option::<u64>::deserialize(from)?;
        Ok(nanos.map(|nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)))
    }
}
