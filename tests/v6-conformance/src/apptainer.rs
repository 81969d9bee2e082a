//! Apptainer, on this machine or in jobs of Slurm, and ways to make life with it hard. On this machine
//! there is no daemon: what can go wrong on the way to one cannot go wrong there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use clap::{Args, ValueEnum};
use v6_runtime::{Error, ErrorKind, ImageRef, Owner, Result, RunId, Runtime};
use v6_runtime_conformance::{
    Fault, Harness, Injected, Planted, Registries, Stranger, Tagged, Untouched, suite_process,
};
use v6_runtime_singularity::{
    ControlGroup, GpuKind, ImageFormat, SingularityConfig, SingularityRuntime,
};

use crate::engine::EngineOptions;
use crate::registries::Started;
use crate::restart::Restart;
use crate::slurm::{Site, SlurmArguments};

/// The content of a stranger's file, by which it is known.
const STRANGER: &str = "somebody else's\n";

/// How Apptainer is reached.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApptainerOptions {
    /// The command, by path [default: V6_APPTAINER, or the one in PATH]
    #[arg(long, value_name = "FILE")]
    apptainer: Option<PathBuf>,
    /// Who calls it, if root starts the suite [default: V6_APPTAINER_USER]
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The archive with the probe (tests/algorithms/build --to FOLDER probe)
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// A control group of version 2 that is the user's, below which the suite is, in which runs get theirs
    /// [default: V6_APPTAINER_CGROUP]
    #[arg(long, value_name = "FOLDER")]
    cgroup: Option<PathBuf>,
    /// Which accelerators the machine has [default: none]
    #[arg(long, value_name = "KIND")]
    gpu: Option<Accelerators>,
    /// Keep images as SIF files instead of unpacked
    #[arg(long)]
    sif: bool,
}

/// Kinds of accelerators.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Accelerators {
    Nvidia,
    Rocm,
}

impl From<Accelerators> for GpuKind {
    fn from(kind: Accelerators) -> Self {
        match kind {
            Accelerators::Nvidia => Self::Nvidia,
            Accelerators::Rocm => Self::Rocm,
        }
    }
}

impl ApptainerOptions {
    /// Who calls Apptainer: as the options say, or else the environment.
    pub(crate) fn user(&self) -> Option<String> {
        let set = || {
            std::env::var("V6_APPTAINER_USER")
                .ok()
                .filter(|user| !user.is_empty())
        };
        self.user.clone().or_else(set)
    }
}

/// A folder of the suite and of its children, which have their runs in it: the suite removes it,
/// since a child is killed.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("v6-{}", suite_process()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if suite_process() == std::process::id() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Apptainer, with everything in one folder.
pub(crate) struct ApptainerHarness {
    folder: Folder,
    program: Option<PathBuf>,
    format: ImageFormat,
    cgroup: Option<PathBuf>,
    gpu: Option<GpuKind>,
    archive: PathBuf,
    registries: Option<Started>,
    /// What was made past the runtime, by owner.
    planted: Mutex<HashMap<Owner, Vec<PathBuf>>>,
    /// Where runs are jobs.
    site: Option<Site>,
    restart: Option<Restart>,
}

impl ApptainerHarness {
    /// Apptainer as the options say.
    ///
    /// # Errors
    /// No archive with the probe; registries that cannot be read; no temporary folder.
    pub(crate) fn new(
        options: ApptainerOptions,
        slurm: Option<SlurmArguments>,
        engine: EngineOptions,
    ) -> std::result::Result<Self, String> {
        let archive = options.archive.ok_or(
            "name the probe's archive with --archive (tests/algorithms/build --to FOLDER probe)",
        )?;
        let archive = fs::canonicalize(&archive)
            .map_err(|error| format!("{}: {error}", archive.display()))?;
        let set = |name| std::env::var_os(name).map(PathBuf::from);
        let folder = Folder::new().map_err(|error| format!("a temporary folder: {error}"))?;
        Ok(Self {
            site: slurm.map(|slurm| Site::new(slurm, &folder.0)),
            restart: Restart::of(engine.restart),
            folder,
            program: options.apptainer.or_else(|| set("V6_APPTAINER")),
            gpu: options.gpu.map(GpuKind::from),
            cgroup: options.cgroup.or_else(|| set("V6_APPTAINER_CGROUP")),
            format: if options.sif {
                ImageFormat::Sif
            } else {
                ImageFormat::Folder
            },
            archive,
            registries: engine
                .registries
                .as_deref()
                .map(Started::read)
                .transpose()?,
            planted: Mutex::default(),
        })
    }

    fn owner(&self, owner: &str) -> PathBuf {
        self.folder.0.join("owners").join(owner)
    }

    fn moving(&self, owner: &Owner) -> (ImageRef, PathBuf) {
        let name = format!("localhost/v6-conformance/{owner}:moving");
        let name = ImageRef::parse(&name).expect("an owner can be part of a name");
        (name, self.folder.0.join(format!("moving-{owner}.tar")))
    }

    fn note(&self, owner: &Owner, path: PathBuf) {
        let mut planted = self.planted.lock().unwrap_or_else(PoisonError::into_inner);
        planted.entry(owner.clone()).or_default().push(path);
    }

    fn is_planted(&self, path: &Path) -> bool {
        let planted = self.planted.lock().unwrap_or_else(PoisonError::into_inner);
        planted.values().flatten().any(|known| known == path)
    }
}

/// Says what was being done.
fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = format!("the suite, {what}");
    move |error| Error::new(ErrorKind::Unexpected, what).with_source(error)
}

#[async_trait]
impl Harness for ApptainerHarness {
    async fn connect(&self, owner: &Owner) -> Result<Arc<dyn Runtime>> {
        let (name, path) = self.moving(owner);
        let images = BTreeMap::from([(self.probe_image(), self.archive.clone()), (name, path)]);
        let slurm = self
            .site
            .as_ref()
            .map(|site| site.config(owner))
            .transpose();
        let slurm = slurm.map_err(failed("making Slurm's commands"))?;
        let config = SingularityConfig::new(owner.clone(), self.folder.0.clone())
            .with_program(self.program.clone())
            .with_image_format(self.format)
            .with_gpu(self.gpu)
            .with_cgroup(self.cgroup.clone().map(ControlGroup::At))
            .with_images(images)
            .with_slurm(slurm)
            .with_credentials(self.registries.iter().map(Started::credentials).collect());
        Ok(Arc::new(SingularityRuntime::connect(config).await?))
    }

    fn probe_image(&self) -> ImageRef {
        ImageRef::parse("localhost/v6-probe:test").expect("a name")
    }

    async fn inventory(&self, owner: &Owner) -> Result<Vec<String>> {
        let runs = self.owner(owner.as_str()).join("runs");
        let mut found = match &self.site {
            // First: what a job that is just ending has started, ends with it.
            Some(site) => site.jobs(owner).await.map_err(failed("listing jobs"))?,
            None => Vec::new(),
        };
        let entries = match fs::read_dir(&runs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(failed("listing runs"))?,
        };
        for entry in entries {
            let path = entry.map_err(failed("listing runs"))?.path();
            if !self.is_planted(&path) {
                let record = fs::read_to_string(path.join("record.json")).unwrap_or_default();
                found.push(format!("folder {}: {record}", path.display()));
            }
        }
        if let Some(root) = &self.cgroup {
            let groups = fs::read_dir(root).map_err(failed("listing control groups"))?;
            let ours = format!("v6.{owner}.");
            let names = groups.flatten().map(|entry| entry.file_name());
            let names = names.filter(|name| name.to_string_lossy().starts_with(&ours));
            found.extend(names.map(|name| format!("control group {}", name.display())));
        }
        // Monitors and what they started, as everybody on the machine sees them.
        let mark = format!("{}/", runs.display());
        for entry in fs::read_dir("/proc")
            .map_err(failed("listing processes"))?
            .flatten()
        {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&mark) {
                found.push(format!("process {}: {line}", entry.file_name().display()));
            }
        }
        Ok(found)
    }

    fn calls(&self, owner: &Owner) -> Option<u64> {
        self.site.as_ref().map(|site| site.calls(owner))
    }

    async fn restart_engine(&self) -> Result<Option<()>> {
        Restart::hook(self.restart.as_ref()).await
    }

    fn outlives_us(&self) -> bool {
        true
    }

    async fn inject(&self, owner: &Owner, fault: Fault) -> Result<Option<Injected>> {
        if fault != Fault::Stuck {
            let Some(site) = &self.site else {
                return Ok(None);
            };
            let made = site
                .inject(owner, fault)
                .map_err(failed("making Slurm's commands fail"))?;
            return Ok(made.map(Injected::new));
        }
        let mut closed = Closed(Vec::new());
        let runs = self.owner(owner.as_str()).join("runs");
        for entry in fs::read_dir(runs)
            .map_err(failed("listing runs"))?
            .flatten()
        {
            let folder = entry.path();
            fs::set_permissions(&folder, Permissions::from_mode(0o500))
                .map_err(failed("closing a run's folder"))?;
            closed.0.push(folder);
        }
        Ok(Some(Injected::new(closed)))
    }

    fn shared_folder(&self) -> Option<PathBuf> {
        Some(self.folder.0.clone())
    }

    async fn plant(&self, owner: &Owner, id: &RunId, place: Planted) -> Result<Option<Stranger>> {
        let runs = self.owner(owner.as_str()).join("runs");
        let other = |owner: String| self.owner(&owner).join("runs").join(id.as_str());
        let wanted = match place {
            Planted::InPlace => vec![runs.join(id.as_str())],
            Planted::Beside => vec![
                runs.join(format!("{id}x")),
                runs.join(format!("x-{id}")),
                runs.join(format!(".{id}.kept")),
                other(format!("{owner}-2")),
                other(format!("x-{owner}")),
            ],
        };
        for folder in &wanted {
            let made =
                fs::create_dir_all(folder).and_then(|()| fs::write(folder.join("mine"), STRANGER));
            made.map_err(failed("making a stranger's folder"))?;
            self.note(owner, folder.clone());
        }
        Ok(Some(Box::new(Folders(wanted))))
    }

    async fn move_tag(&self, owner: &Owner, to: Tagged) -> Result<Option<ImageRef>> {
        let (name, path) = self.moving(owner);
        let new = path.with_extension("new");
        let made = match to {
            Tagged::Probe => fs::copy(&self.archive, &new).map(drop),
            Tagged::Other => derive(&self.archive, &new),
        };
        made.and_then(|()| fs::rename(&new, &path))
            .map_err(failed("making an archive"))?;
        Ok(Some(name))
    }

    async fn registries(&self) -> Result<Option<Registries>> {
        let Some(started) = &self.registries else {
            return Ok(None);
        };
        let names = started.names(|| async { Ok(()) }).await?;
        forget(&self.folder.0.join("images")).map_err(failed("forgetting images"))?;
        Ok(Some(names))
    }

    async fn tidy(&self, owner: &Owner) -> Result<()> {
        if let Some(site) = &self.site {
            site.tidy(owner)
                .map_err(failed("removing Slurm's commands"))?;
        }
        let planted = {
            let mut all = self.planted.lock().unwrap_or_else(PoisonError::into_inner);
            all.remove(owner).unwrap_or_default()
        };
        let removed = planted
            .into_iter()
            .map(fs::remove_dir_all)
            .chain([fs::remove_file(self.moving(owner).1)]);
        for removed in removed {
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing what was planted")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Takes all images, and what is known of their names, out of a cache.
fn forget(cache: &Path) -> io::Result<()> {
    let files = |folder: &Path| -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    for path in files(cache)? {
        if path.ends_with("names") {
            files(&path)?.iter().try_for_each(fs::remove_file)?;
        } else if path.is_dir() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Folders in which nothing can be removed, until this is dropped.
struct Closed(Vec<PathBuf>);

impl Drop for Closed {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = fs::set_permissions(folder, Permissions::from_mode(0o700));
        }
    }
}

/// Folders that somebody else made.
struct Folders(Vec<PathBuf>);

#[async_trait]
impl Untouched for Folders {
    async fn is_there(&self) -> Result<bool> {
        let whole = |folder: &PathBuf| {
            fs::read_to_string(folder.join("mine")).is_ok_and(|text| text == STRANGER)
                && fs::read_dir(folder).is_ok_and(|entries| entries.count() == 1)
        };
        Ok(self.0.iter().all(whole))
    }

    async fn remove(&self) -> Result<()> {
        for folder in &self.0 {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing a stranger's folder")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The archive of an image that does nothing but exit with 99, whatever arguments follow: the
/// probe's with another entry point, and so another id.
fn derive(archive: &Path, to: &Path) -> io::Result<()> {
    const CONFIG: &str = "other.json";
    let mut from = tar::Archive::new(fs::File::open(archive)?);
    let mut made = tar::Builder::new(fs::File::create(to)?);
    let mut described = None;
    let mut configs: HashMap<String, serde_json::Value> = HashMap::new();
    for entry in from.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let name = name.trim_start_matches("./").to_owned();
        if !name.ends_with(".json") {
            let mut header = entry.header().clone();
            made.append_data(&mut header, &name, &mut entry)?;
            continue;
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        let value: serde_json::Value = serde_json::from_slice(&text)?;
        if name == "manifest.json" {
            described = Some(value);
        } else {
            configs.insert(name, value);
        }
    }
    let wrong = || io::Error::other("the probe's archive is not as `docker save` has it");
    let mut described = described.ok_or_else(wrong)?;
    let image = described.get_mut(0).ok_or_else(wrong)?;
    let config = image["Config"]
        .as_str()
        .and_then(|name| configs.remove(name));
    let mut config = config.ok_or_else(wrong)?;
    config["config"]["Entrypoint"] = serde_json::json!(["/probe", "exit", "99", "then"]);
    image["Config"] = CONFIG.into();
    for (name, value) in [(CONFIG, config), ("manifest.json", described)] {
        let text = serde_json::to_vec(&value)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        made.append_data(&mut header, name, &text[..])?;
    }
    made.finish()
}
