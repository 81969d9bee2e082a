//! The registry and the image store of an engine in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::files::Tree;
use super::program::{ExitStatus, Program, ProgramContext};
use crate::{
    Digest, Error, ErrorKind, ImageIdentity, ImageRef, PullPolicy, ResolvedImage, Result,
    StartFailureCause,
};

/// Where a program is if nobody says otherwise.
const PROGRAM: &str = "/program";
const PLATFORM: &str = "linux/amd64";

/// An image in memory: programs by path, files, and what is started by default.
#[derive(Clone)]
pub struct MemoryImage {
    programs: HashMap<String, Program>,
    entry: String,
    args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    files: Vec<(String, Vec<u8>)>,
}

impl MemoryImage {
    /// An image that starts this program, which is at `/program`.
    pub fn new<F, Fut>(program: F) -> Self
    where
        F: Fn(ProgramContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ExitStatus> + Send + 'static,
    {
        Self {
            programs: HashMap::new(),
            entry: PROGRAM.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
        }
        .with_program(PROGRAM, program)
    }

    /// Adds a program that a spec may name as its command.
    #[must_use]
    pub fn with_program<F, Fut>(mut self, path: impl Into<String>, program: F) -> Self
    where
        F: Fn(ProgramContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ExitStatus> + Send + 'static,
    {
        let program: Program = Arc::new(move |context| Box::pin(program(context)));
        self.programs.insert(path.into(), program);
        self
    }

    /// Moves the program that is started by default to this path.
    #[must_use]
    pub fn with_entry_point(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        if let Some(program) = self.programs.remove(&self.entry) {
            self.programs.insert(path.clone(), program);
        }
        self.entry = path;
        self
    }

    /// Sets the arguments of a spec that has neither command nor arguments.
    #[must_use]
    pub fn with_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds a file that is no program.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// A fresh copy of its files.
    pub(super) fn root(&self) -> Tree {
        let root = Tree::folder();
        let programs = self.programs.keys().map(|path| (path, Vec::new()));
        let files = self
            .files
            .iter()
            .map(|(path, content)| (path, content.clone()));
        for (path, content) in programs.chain(files) {
            root.place(path.trim_start_matches('/'), content);
        }
        root
    }

    /// The command with its arguments.
    pub(super) fn words(&self, command: Option<&[String]>, args: &[String]) -> Vec<String> {
        match command {
            Some(command) => command.iter().chain(args).cloned().collect(),
            None => {
                let args = if args.is_empty() { &self.args } else { args };
                std::iter::once(&self.entry).chain(args).cloned().collect()
            }
        }
    }

    pub(super) fn program(&self, path: &str) -> Option<&Program> {
        self.programs.get(path)
    }
}

impl std::fmt::Debug for MemoryImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryImage")
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// What a registry answers instead of an image, with its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryFault {
    /// There is no such image (any more).
    NotFound(String),
    /// It wants credentials, or refuses these.
    Denied(String),
    /// It does not answer.
    Unreachable(String),
    /// It gives the image, and the image cannot be used.
    Unusable(String),
    /// It tells of the image, begins to give it, and never gets on.
    Stalled,
}

impl RegistryFault {
    fn error(&self) -> Error {
        let (kind, words) = match self {
            Self::NotFound(words) => (ErrorKind::NotFound, words),
            Self::Denied(words) => (ErrorKind::Denied, words),
            Self::Unreachable(words) => (ErrorKind::Unavailable, words),
            Self::Unusable(words) => (ErrorKind::Protocol, words),
            Self::Stalled => return Error::new(ErrorKind::Timeout, "the image does not arrive"),
        };
        Error::new(kind, words.as_str())
    }

    pub(super) fn cause(&self) -> (StartFailureCause, String) {
        match self {
            Self::NotFound(words) => (StartFailureCause::ImageNotFound, words.clone()),
            Self::Denied(words) => (StartFailureCause::ImageDenied, words.clone()),
            Self::Unreachable(words) => (StartFailureCause::RegistryUnreachable, words.clone()),
            Self::Unusable(words) => (StartFailureCause::ImageUnusable, words.clone()),
            Self::Stalled => (
                StartFailureCause::RegistryUnreachable,
                "the image does not arrive".into(),
            ),
        }
    }
}

#[derive(Default)]
pub(super) struct Images {
    /// What each name stands for at the registry.
    names: HashMap<ImageRef, Digest>,
    content: HashMap<Digest, Arc<MemoryImage>>,
    faults: HashMap<ImageRef, RegistryFault>,
    /// What the engine has, and under which names.
    local: HashSet<Digest>,
    local_names: HashMap<ImageRef, Digest>,
    made: u64,
}

impl Images {
    pub(super) fn add(&mut self, reference: &ImageRef, image: MemoryImage) -> ResolvedImage {
        self.made += 1;
        let digest = digest_of(&format!("{reference} {}", self.made));
        self.content.insert(digest.clone(), Arc::new(image));
        self.names.insert(reference.clone(), digest.clone());
        resolved(reference, digest)
    }

    /// The same, and the engine has it too.
    pub(super) fn load(&mut self, reference: &ImageRef, image: MemoryImage) -> ResolvedImage {
        let image = self.add(reference, image);
        let digest = image.identity.digest();
        self.local.insert(digest.clone());
        self.local_names.insert(reference.clone(), digest.clone());
        image
    }

    pub(super) fn set_fault(&mut self, reference: ImageRef, fault: Option<RegistryFault>) {
        match fault {
            Some(fault) => drop(self.faults.insert(reference, fault)),
            None => drop(self.faults.remove(&reference)),
        }
    }

    /// What the registry says that a name stands for.
    fn ask(&self, reference: &ImageRef) -> Result<Digest, RegistryFault> {
        if let Some(fault) = self.faults.get(reference) {
            return Err(fault.clone());
        }
        let pinned = reference.digest();
        let known = pinned.filter(|digest| self.content.contains_key(digest));
        if pinned.is_some() {
            known.cloned()
        } else {
            self.names.get(reference).cloned()
        }
        .ok_or_else(|| RegistryFault::NotFound(format!("{reference}: manifest unknown")))
    }

    pub(super) fn resolve(
        &mut self,
        reference: &ImageRef,
        policy: PullPolicy,
        pull: bool,
    ) -> Result<ResolvedImage> {
        let local = match reference.digest() {
            Some(digest) => self.local.get(digest),
            None => self.local_names.get(reference),
        };
        let never = policy == PullPolicy::Never || !pull;
        let digest = match (policy, local) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(digest)) => digest.clone(),
            (_, Some(digest)) if !pull => digest.clone(),
            (_, None) if never => {
                let message = format!("{reference}: the engine has no such image");
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            _ => match self.ask(reference) {
                // Neither shows before it is fetched.
                Err(fault @ (RegistryFault::Unusable(_) | RegistryFault::Stalled)) => {
                    let known = self.names.get(reference).cloned();
                    known.ok_or_else(|| fault.error())?
                }
                answer => answer.map_err(|fault| fault.error())?,
            },
        };
        Ok(resolved(reference, digest))
    }

    /// Whether fetching it never gets on.
    pub(super) fn is_stalled(&self, image: &ResolvedImage) -> bool {
        !self.has(image) && self.faults.get(&image.reference) == Some(&RegistryFault::Stalled)
    }

    pub(super) fn has(&self, image: &ResolvedImage) -> bool {
        self.local.contains(image.identity.digest())
    }

    /// Fetches exactly this content.
    pub(super) fn fetch(&mut self, image: &ResolvedImage, pull: bool) -> Result<(), RegistryFault> {
        let digest = image.identity.digest();
        if self.local.contains(digest) {
            return Ok(());
        }
        if let Some(fault) = self.faults.get(&image.reference) {
            return Err(fault.clone());
        }
        if !pull || !self.content.contains_key(digest) {
            let words = format!("{}@{digest}: manifest unknown", image.reference.name());
            return Err(RegistryFault::NotFound(words));
        }
        self.local.insert(digest.clone());
        self.local_names
            .insert(image.reference.clone(), digest.clone());
        Ok(())
    }

    pub(super) fn prefetch(&mut self, image: &ResolvedImage, pull: bool) -> Result<()> {
        self.fetch(image, pull).map_err(|fault| fault.error())
    }

    pub(super) fn content(&self, image: &ResolvedImage) -> Option<Arc<MemoryImage>> {
        self.content.get(image.identity.digest()).cloned()
    }
}

fn resolved(reference: &ImageRef, digest: Digest) -> ResolvedImage {
    ResolvedImage::new(reference.clone(), ImageIdentity::Manifest(digest), PLATFORM)
}

fn digest_of(text: &str) -> Digest {
    use std::fmt::Write;
    let mut name = String::from("sha256:");
    for byte in Sha256::digest(text) {
        let _ = write!(name, "{byte:02x}");
    }
    Digest::new(name).expect("an algorithm and 64 hexadecimal digits")
}
