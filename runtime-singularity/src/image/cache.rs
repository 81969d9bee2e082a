//! The images of this machine: each in a folder of its digest, unpacked, built once.
//!
//! An image is built under another name, looked at, and renamed: it is whole or not there. Whoever
//! builds holds a lock, also across machines that share the folder, which a crash gives back.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use v6_runtime::{
    Error, ErrorKind, ImageIdentity, ImageRef, PullPolicy, ResolvedImage, StartFailure,
    StartFailureCause,
};

use super::describe::{Description, digest_from, own_platform};
use super::registry::{self, Clients};
use super::{archive, words};
use crate::config::{ImageFormat, SingularityConfig};
use crate::engine::Engine;
use crate::error::{Error as Step, Result, blocking};
use crate::record::{make_private, write_new};
use crate::remove::remove_tree;

/// Between two looks at a lock that another builder holds.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// An image that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    /// A folder or a SIF file.
    pub(crate) path: PathBuf,
    pub(crate) description: Description,
    /// Whether it is no OCI image: its environment is then what Apptainer makes of it.
    pub(crate) native: bool,
}

/// Why there is no image.
#[derive(Debug)]
pub(crate) enum Fault {
    /// For good, as far as this run goes.
    Failure(StartFailure),
    /// Something here.
    Step(Step),
}

impl From<Step> for Fault {
    fn from(error: Step) -> Self {
        Self::Step(error)
    }
}

/// What is written beside an image.
#[derive(Debug, Serialize, Deserialize)]
struct Beside {
    resolved: ResolvedImage,
    description: Description,
}

/// All images.
#[derive(Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    format: ImageFormat,
    local: BTreeMap<ImageRef, PathBuf>,
    credentials: Vec<v6_runtime::RegistryCredentials>,
    clients: Clients,
    engine: Engine,
    timeout: Duration,
}

impl Images {
    pub(crate) fn new(config: &SingularityConfig, engine: Engine) -> Result<Self> {
        let folder = config.cache_folder();
        make_private(&folder.join("names")).map_err(Step::host(format!(
            "the folder {} cannot be made",
            folder.display()
        )))?;
        Ok(Self {
            folder,
            format: config.image_format,
            local: config.images.clone(),
            credentials: config.credentials.clone(),
            clients: Clients::new(config.call_timeout)?,
            engine,
            timeout: config.build_timeout,
        })
    }

    /// What a name stands for.
    pub(crate) async fn resolve(
        &self,
        image: &ImageRef,
        policy: PullPolicy,
    ) -> Result<ResolvedImage> {
        if let Some(path) = self.local.get(image) {
            let (path, image) = (path.clone(), image.clone());
            return blocking(move || Ok(look(&path, &image)?.resolved)).await;
        }
        let known = self.known(image).await?;
        if let (Some(known), PullPolicy::IfNotPresent | PullPolicy::Never) = (&known, policy) {
            return Ok(known.clone());
        }
        if policy == PullPolicy::Never {
            let message = format!("{image} is not here, and its registry is not to be asked");
            return Err(Error::new(ErrorKind::NotFound, message).into());
        }
        let credentials = registry::credentials(&self.credentials, image);
        let (resolved, description) = registry::resolve(&self.clients, credentials, image).await?;
        let beside = Beside {
            resolved: resolved.clone(),
            description,
        };
        self.note(image, &beside).await?;
        Ok(resolved)
    }

    /// What was found out about a name before, if the image is here.
    async fn known(&self, image: &ImageRef) -> Result<Option<ResolvedImage>> {
        let name = self.name_file(image);
        let places =
            [ImageFormat::Folder, ImageFormat::Sif].map(|format| (self.folder.clone(), format));
        blocking(move || {
            let noted = read_beside(&name)?.map(|noted| noted.resolved);
            Ok(noted.filter(|noted| {
                let is_here = |(folder, format): &(PathBuf, ImageFormat)| {
                    content(&place(folder, noted), *format).exists()
                };
                places.iter().any(is_here)
            }))
        })
        .await
    }

    fn name_file(&self, image: &ImageRef) -> PathBuf {
        let name = digest_from(&Sha256::digest(image.to_string().as_bytes()));
        self.folder.join("names").join(hex(&name))
    }

    async fn note(&self, image: &ImageRef, beside: &Beside) -> Result<()> {
        let path = self.name_file(image);
        let text = serde_json::to_vec(beside).map_err(io::Error::from);
        blocking(move || {
            let temporary = path.with_extension(format!("{:016x}", rand::random::<u64>()));
            let noted = text
                .and_then(|text| write_new(&temporary, &text, 0o600))
                .and_then(|()| fs::rename(&temporary, &path));
            noted.map_err(Step::host(format!("{} cannot be written", path.display())))
        })
        .await
    }

    /// The image, built if it is not here. Dropping the future stops the building.
    pub(crate) async fn ensure(&self, image: &ResolvedImage) -> Result<Ready, Fault> {
        if let Some(ready) = self.ready(image).await? {
            return Ok(ready);
        }
        if let Some(path) = self.local.get(&image.reference) {
            return self.ensure_local(path, image).await;
        }
        if let ImageIdentity::ImageId(digest) = &image.identity {
            // No registry has a name for it.
            let message = format!("{} ({digest}) is not here", image.reference);
            let cause = StartFailureCause::ImageNotFound;
            return Err(Fault::Failure(StartFailure::new(cause, message)));
        }
        let pinned = image.reference.pinned(image.identity.digest().clone());
        let beside = self.described(image, &pinned).await?;
        let source = OsString::from(format!("docker://{pinned}"));
        self.build(image, source, beside).await
    }

    /// What a registry says of an image: as it was noted when the name was resolved, or else asked.
    async fn described(&self, image: &ResolvedImage, pinned: &ImageRef) -> Result<Beside, Fault> {
        let name = self.name_file(&image.reference);
        let noted = blocking(move || read_beside(&name)).await?;
        if let Some(noted) = noted.filter(|noted| noted.resolved.identity == image.identity) {
            return Ok(noted);
        }
        let credentials = registry::credentials(&self.credentials, pinned);
        let resolved = registry::resolve(&self.clients, credentials, pinned).await;
        let (resolved, description) = resolved.map_err(|error| failure_of(&error))?;
        Ok(Beside {
            resolved,
            description,
        })
    }

    /// An image of this machine: from where its name leads, or any other of ours, if that is what it
    /// was when it was resolved.
    async fn ensure_local(&self, path: &Path, image: &ResolvedImage) -> Result<Ready, Fault> {
        let others = self.local.values().filter(|other| *other != path);
        let paths: Vec<PathBuf> = [path]
            .into_iter()
            .chain(others.map(PathBuf::as_path))
            .map(Path::to_owned)
            .collect();
        let (name, wanted) = (image.reference.clone(), image.identity.clone());
        let found = blocking(move || {
            let mut now = None;
            for path in &paths {
                match look(path, &name) {
                    Ok(found) if found.resolved.identity == wanted => return Ok(Ok(found)),
                    Ok(found) if path == &paths[0] => now = Some(found.resolved.identity),
                    Err(error) if path == &paths[0] => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(Err(now))
        })
        .await?;
        let found = found.map_err(|now| {
            let now = now.map_or_else(String::new, |now| now.digest().to_string());
            unusable(format!(
                "{} is another image now: {now}, not {}",
                image.reference,
                image.identity.digest()
            ))
        })?;
        let Some(transport) = found.transport else {
            return Ok(Ready {
                path: found.path,
                description: found.description,
                native: true,
            });
        };
        let mut source = OsString::from(format!("{transport}:"));
        source.push(&found.path);
        let beside = Beside {
            resolved: found.resolved,
            description: found.description,
        };
        self.build(image, source, beside).await
    }

    async fn ready(&self, image: &ResolvedImage) -> Result<Option<Ready>> {
        let (place, format) = (place(&self.folder, image), self.format);
        blocking(move || {
            let path = content(&place, format);
            if !path.exists() {
                return Ok(None);
            }
            let beside = read_beside(&place.join("image.json"))?;
            Ok(beside.map(|beside| Ready {
                path,
                description: beside.description,
                native: false,
            }))
        })
        .await
    }

    async fn build(
        &self,
        image: &ResolvedImage,
        source: OsString,
        beside: Beside,
    ) -> Result<Ready, Fault> {
        let until = Instant::now() + self.timeout;
        let place = place(&self.folder, image);
        let _lock = self.lock(&place, until).await?;
        if let Some(ready) = self.ready(image).await? {
            return Ok(ready);
        }
        let part = Part::new(&place).await?;
        let format = self.format;
        let target = content(&part.0, format);
        let credentials = registry::credentials(&self.credentials, &image.reference);
        let is_plain = registry::is_plain(image.reference.registry());
        let build = self
            .engine
            .build(&source, &target, format, credentials, is_plain);
        match tokio::time::timeout_at(until, build).await {
            Ok(Ok(())) => {}
            Ok(Err(Step::Engine { words: said, .. })) => {
                let said = words::last_lines(&said);
                return Err(Fault::Failure(StartFailure::new(words::cause(&said), said)));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                return Err(Step::Timeout {
                    step: "building the image",
                    after: self.timeout,
                }
                .into());
            }
        }
        let text = serde_json::to_vec(&beside).map_err(io::Error::from);
        let description = beside.description;
        blocking(move || {
            let path = content(&place, format);
            let done = text.and_then(|text| {
                write_new(&part.0.join("image.json"), &text, 0o600)?;
                // What the command said it had made.
                let made = fs::symlink_metadata(&target)?;
                let right = match format {
                    ImageFormat::Folder => made.is_dir(),
                    ImageFormat::Sif => made.is_file() && made.len() > 0,
                };
                if !right {
                    return Err(io::Error::other("no image was made"));
                }
                if place.exists() {
                    // It was there in the other form.
                    fs::rename(&target, &path)?;
                } else {
                    fs::rename(&part.0, &place)?;
                }
                File::open(place.parent().unwrap_or(&place))?.sync_all()
            });
            done.map_err(Step::host(format!("{} cannot be made", path.display())))?;
            Ok(Ready {
                path,
                description,
                native: false,
            })
        })
        .await
        .map_err(Fault::Step)
    }

    async fn lock(&self, place: &Path, until: Instant) -> Result<File> {
        let path = place.with_extension("lock");
        let failed = || Step::host(format!("{} cannot be locked", path.display()));
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed())?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed()(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    return Err(Step::Timeout {
                        step: "waiting for another process that builds the image",
                        after: self.timeout,
                    });
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            }
        }
    }
}

/// A folder in which an image is built; gone with this value unless it was renamed.
struct Part(PathBuf);

impl Part {
    /// Makes one, and removes those that a killed builder has left: we hold the lock.
    async fn new(place: &Path) -> Result<Self> {
        let place = place.to_owned();
        blocking(move || {
            let failed = || {
                Step::host(format!(
                    "a folder beside {} cannot be made",
                    place.display()
                ))
            };
            let folder = place.parent().unwrap_or(&place);
            let name = place.file_name().unwrap_or_default().to_string_lossy();
            let begin = format!("{name}.part-");
            for entry in fs::read_dir(folder).map_err(failed())? {
                let entry = entry.map_err(failed())?;
                if entry.file_name().to_string_lossy().starts_with(&begin) {
                    remove_tree(&entry.path()).map_err(failed())?;
                }
            }
            let part = folder.join(format!("{begin}{:016x}", rand::random::<u64>()));
            make_private(&part).map_err(failed())?;
            Ok(Self(part))
        })
        .await
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        if path.exists() {
            let remove = move || {
                if let Err(error) = remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "part of an image is left");
                }
            };
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(remove)),
                Err(_) => remove(),
            }
        }
    }
}

fn place(folder: &Path, image: &ResolvedImage) -> PathBuf {
    folder.join(hex(image.identity.digest()))
}

fn hex(digest: &v6_runtime::Digest) -> &str {
    let text = digest.as_str();
    text.strip_prefix("sha256:").unwrap_or(text)
}

fn content(place: &Path, format: ImageFormat) -> PathBuf {
    place.join(match format {
        ImageFormat::Folder => "rootfs",
        ImageFormat::Sif => "image.sif",
    })
}

fn read_beside(path: &Path) -> Result<Option<Beside>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Step::Record {
                name: path.display().to_string(),
                why: error.to_string(),
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Step::host(format!("{} cannot be read", path.display()))(
            error,
        )),
    }
}

/// An image of this machine.
struct Found {
    path: PathBuf,
    resolved: ResolvedImage,
    description: Description,
    /// Of an archive, how the command reads it; others are run as they are.
    transport: Option<&'static str>,
}

fn look(path: &Path, name: &ImageRef) -> Result<Found, Error> {
    let not_there = |error: io::Error| {
        let message = format!("{name} is to be {}, which cannot be read", path.display());
        Error::new(ErrorKind::NotFound, message).with_source(error)
    };
    let (identity, description, transport) = if path.is_dir() {
        (
            fingerprint(path).map_err(not_there)?,
            Description::of_native(),
            None,
        )
    } else if is_sif(path).map_err(not_there)? {
        (
            sum(path).map_err(not_there)?,
            Description::of_native(),
            None,
        )
    } else {
        let archive = archive::read(path).map_err(|why| Error::new(ErrorKind::NotFound, why))?;
        (
            archive.identity,
            archive.description,
            Some(archive.transport),
        )
    };
    if !description.runs_here() {
        let message = format!(
            "{name} is for {}, not {}",
            description.platform,
            own_platform()
        );
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let platform = description.platform.clone();
    Ok(Found {
        path: path.to_owned(),
        resolved: ResolvedImage::new(name.clone(), identity, platform),
        description,
        transport,
    })
}

fn is_sif(path: &Path) -> io::Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut start)?;
    // After the line that starts it as a program.
    Ok(start.get(32..42) == Some(b"SIF_MAGIC\0"))
}

fn sum(path: &Path) -> io::Result<ImageIdentity> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(ImageIdentity::ImageId(digest_from(&hash.finalize())))
}

/// What tells one state of a folder from another: names, kinds, sizes and times of all that is in it.
fn fingerprint(top: &Path) -> io::Result<ImageIdentity> {
    let mut hash = Sha256::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let about = entry.metadata()?;
            let below = entry.path();
            let relative = below.strip_prefix(top).unwrap_or(&below);
            let modified = about.modified()?.duration_since(SystemTime::UNIX_EPOCH);
            let kind = (about.is_dir(), about.is_symlink(), about.len());
            let nanos = modified.unwrap_or_default().as_nanos();
            let line = format!("{}\0{kind:?}\0{nanos}\0", relative.display());
            hash.update(line.as_bytes());
            if about.is_dir() {
                folders.push(below);
            }
        }
    }
    Ok(ImageIdentity::ImageId(digest_from(&hash.finalize())))
}

fn unusable(message: String) -> Fault {
    Fault::Failure(StartFailure::new(StartFailureCause::ImageUnusable, message))
}

/// What an answer of a registry means for a run.
fn failure_of(error: &Error) -> Fault {
    let cause = match error.kind() {
        ErrorKind::NotFound => StartFailureCause::ImageNotFound,
        ErrorKind::Denied => StartFailureCause::ImageDenied,
        ErrorKind::Unavailable | ErrorKind::Timeout => StartFailureCause::RegistryUnreachable,
        _ => StartFailureCause::ImageUnusable,
    };
    Fault::Failure(StartFailure::new(cause, error.message()))
}
