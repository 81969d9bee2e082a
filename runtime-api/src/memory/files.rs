//! What a program in memory sees as its file system.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::Access;

/// As many links as Linux follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe. It has no content here.
    Fifo,
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    File(Vec<u8>),
    Folder,
    Symlink(String),
    Fifo,
}

impl Node {
    fn kind(&self) -> FileKind {
        match self {
            Self::File(_) => FileKind::File,
            Self::Folder => FileKind::Folder,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::File(bytes) => bytes.len() as u64,
            _ => 0,
        }
    }
}

/// Files and folders by their path from the tree's root, which is the empty path. Clones share
/// one content.
#[derive(Debug, Clone)]
pub(super) struct Tree(Arc<Mutex<BTreeMap<String, Node>>>);

impl Tree {
    pub(super) fn folder() -> Self {
        Self::of(Node::Folder)
    }

    pub(super) fn file(content: Vec<u8>) -> Self {
        Self::of(Node::File(content))
    }

    fn of(root: Node) -> Self {
        Self(Arc::new(Mutex::new([(String::new(), root)].into())))
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a file there, and the folders above it.
    pub(super) fn place(&self, path: &str, content: Vec<u8>) {
        let mut nodes = self.nodes();
        for (end, _) in path.match_indices('/') {
            nodes.entry(path[..end].to_owned()).or_insert(Node::Folder);
        }
        nodes.insert(path.to_owned(), Node::File(content));
    }

    /// The tree's only file, if it is one still.
    pub(super) fn content(&self) -> Option<Bytes> {
        match self.nodes().get("") {
            Some(Node::File(bytes)) => Some(Bytes::copy_from_slice(bytes)),
            _ => None,
        }
    }

    /// Whether something is there.
    pub(super) fn has(&self, path: &str) -> bool {
        self.nodes().contains_key(path)
    }

    /// The bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.nodes().values().map(Node::len).sum()
    }

    /// Its regular files and folders as a tar archive.
    pub(super) fn tar(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, node) in self.nodes().iter().filter(|(path, _)| !path.is_empty()) {
            let mut header = tar::Header::new_gnu();
            let content = match node {
                Node::File(content) => {
                    header.set_mode(0o644);
                    content.as_slice()
                }
                Node::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    &[]
                }
                Node::Symlink(_) | Node::Fifo => continue,
            };
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, content)?;
        }
        archive.into_inner()
    }
}

/// Where the content at and below a path comes from.
#[derive(Debug, Clone)]
pub(super) enum Storage {
    Tree {
        tree: Tree,
        /// What of it: a path from its root.
        part: String,
        /// The most bytes of all files together.
        limit: Option<u64>,
    },
    Host(PathBuf),
}

#[derive(Debug, Clone)]
struct Region {
    at: String,
    storage: Storage,
    access: Access,
}

/// A run's file system: an image's files, and what is mounted over them.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The deepest first.
    regions: Vec<Region>,
}

struct Place<'a> {
    region: &'a Region,
    /// From the root of the region's storage.
    below: String,
}

impl View {
    pub(super) fn new(root: Tree, access: Access) -> Self {
        let storage = Storage::Tree {
            tree: root,
            part: String::new(),
            limit: None,
        };
        let at = String::new();
        Self {
            regions: vec![Region {
                at,
                storage,
                access,
            }],
        }
    }

    pub(super) fn mount(&mut self, at: &str, storage: Storage, access: Access) {
        let at = at.to_owned();
        self.regions.push(Region {
            at,
            storage,
            access,
        });
        self.regions
            .sort_by_key(|region| std::cmp::Reverse(region.at.len()));
    }

    /// Where each mount is, the root left out, and whether it can be written.
    pub(super) fn mounts(&self) -> Vec<(String, bool)> {
        let regions = self.regions.iter().filter(|region| !region.at.is_empty());
        regions
            .map(|region| (region.at.clone(), region.access == Access::ReadWrite))
            .collect()
    }

    pub(super) fn read(&self, path: &str) -> io::Result<Bytes> {
        self.with(&self.followed(path)?, |place| match &place.region.storage {
            Storage::Host(root) => Ok(std::fs::read(below(root, &place.below))?.into()),
            Storage::Tree { tree, .. } => match tree.nodes().get(&place.below) {
                Some(Node::File(bytes)) => Ok(Bytes::copy_from_slice(bytes)),
                Some(Node::Folder) => Err(ErrorKind::IsADirectory.into()),
                Some(_) => Err(ErrorKind::InvalidInput.into()),
                None => Err(ErrorKind::NotFound.into()),
            },
        })
    }

    /// Creates or changes a file.
    pub(super) fn write(&self, path: &str, bytes: &[u8], append: bool) -> io::Result<()> {
        self.with(&self.followed(path)?, |place| {
            place.may_change()?;
            let (tree, limit) = match &place.region.storage {
                Storage::Host(root) => {
                    let mut options = std::fs::OpenOptions::new();
                    options.create(true).append(append).write(true);
                    return options
                        .truncate(!append)
                        .open(below(root, &place.below))?
                        .write_all(bytes);
                }
                Storage::Tree { tree, limit, .. } => (tree, *limit),
            };
            let used = tree.size();
            let mut nodes = tree.nodes();
            let old = nodes.get(&place.below).map_or(0, Node::len);
            let kept = if append { old } else { 0 };
            let new = used - old + kept + bytes.len() as u64;
            if limit.is_some_and(|limit| new > limit) {
                return Err(ErrorKind::StorageFull.into());
            }
            match nodes.get_mut(&place.below) {
                Some(Node::File(content)) => {
                    if !append {
                        content.clear();
                    }
                    content.extend_from_slice(bytes);
                }
                Some(Node::Folder) => return Err(ErrorKind::IsADirectory.into()),
                Some(_) => return Err(ErrorKind::InvalidInput.into()),
                None => {
                    has_folder(&nodes, &place.below)?;
                    nodes.insert(place.below.clone(), Node::File(bytes.to_vec()));
                }
            }
            Ok(())
        })
    }

    /// Makes something new.
    pub(super) fn create(&self, path: &str, node: Node) -> io::Result<()> {
        let path = normal(path);
        if self.look(&path).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.with(&path, |place| {
            place.may_change()?;
            match &place.region.storage {
                Storage::Host(root) => {
                    let path = below(root, &place.below);
                    match node {
                        Node::Folder => std::fs::create_dir(path),
                        Node::Symlink(target) => std::os::unix::fs::symlink(target, path),
                        Node::File(_) | Node::Fifo => Err(ErrorKind::Unsupported.into()),
                    }
                }
                Storage::Tree { tree, .. } => {
                    let mut nodes = tree.nodes();
                    has_folder(&nodes, &place.below)?;
                    nodes.insert(place.below.clone(), node);
                    Ok(())
                }
            }
        })
    }

    /// Removes a file, or a folder with all that is in it.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let path = normal(path);
        self.look(&path)?;
        self.is_no_mount(&path)?;
        self.with(&path, |place| {
            place.may_change()?;
            match &place.region.storage {
                Storage::Host(root) => {
                    let path = below(root, &place.below);
                    if std::fs::symlink_metadata(&path)?.is_dir() {
                        std::fs::remove_dir_all(path)
                    } else {
                        std::fs::remove_file(path)
                    }
                }
                Storage::Tree { tree, .. } => {
                    let inside = format!("{}/", place.below);
                    tree.nodes()
                        .retain(|path, _| *path != place.below && !path.starts_with(&inside));
                    Ok(())
                }
            }
        })
    }

    /// Moves something within one mount.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        self.look(&from)?;
        self.is_no_mount(&from)?;
        self.is_no_mount(&to)?;
        let (old, new) = (self.locate(&from)?, self.locate(&to)?);
        if !std::ptr::eq(old.region, new.region) {
            return Err(ErrorKind::CrossesDevices.into());
        }
        old.may_change()?;
        match &old.region.storage {
            Storage::Host(root) => {
                std::fs::rename(below(root, &old.below), below(root, &new.below))
            }
            Storage::Tree { tree, .. } => {
                let mut nodes = tree.nodes();
                has_folder(&nodes, &new.below)?;
                let inside = format!("{}/", old.below);
                let moved: Vec<String> = nodes
                    .keys()
                    .filter(|path| **path == old.below || path.starts_with(&inside))
                    .cloned()
                    .collect();
                for path in moved {
                    if let Some(node) = nodes.remove(&path) {
                        nodes.insert(format!("{}{}", new.below, &path[old.below.len()..]), node);
                    }
                }
                Ok(())
            }
        }
    }

    /// Kind and size of what is there, links not followed.
    pub(super) fn look(&self, path: &str) -> io::Result<(FileKind, u64)> {
        let path = normal(path);
        let found = self.with(&path, |place| match &place.region.storage {
            Storage::Host(root) => {
                let found = std::fs::symlink_metadata(below(root, &place.below))?;
                let kind = match found.file_type() {
                    kind if kind.is_dir() => FileKind::Folder,
                    kind if kind.is_symlink() => FileKind::Symlink,
                    kind if kind.is_file() => FileKind::File,
                    _ => FileKind::Fifo,
                };
                Ok((kind, found.len()))
            }
            Storage::Tree { tree, .. } => match tree.nodes().get(&place.below) {
                Some(node) => Ok((node.kind(), node.len())),
                None => Err(ErrorKind::NotFound.into()),
            },
        });
        match found {
            // A folder that is there only because something is mounted below it.
            Err(_) if self.regions.iter().any(|r| is_below(&r.at, &path)) => {
                Ok((FileKind::Folder, 0))
            }
            found => found,
        }
    }

    pub(super) fn link_target(&self, path: &str) -> io::Result<String> {
        self.with(&normal(path), |place| match &place.region.storage {
            Storage::Host(root) => Ok(std::fs::read_link(below(root, &place.below))?
                .to_string_lossy()
                .into_owned()),
            Storage::Tree { tree, .. } => match tree.nodes().get(&place.below) {
                Some(Node::Symlink(target)) => Ok(target.clone()),
                Some(_) => Err(ErrorKind::InvalidInput.into()),
                None => Err(ErrorKind::NotFound.into()),
            },
        })
    }

    /// The names in a folder.
    pub(super) fn list(&self, path: &str) -> io::Result<BTreeSet<String>> {
        let path = self.followed(path)?;
        if self.look(&path)?.0 != FileKind::Folder {
            return Err(ErrorKind::NotADirectory.into());
        }
        let child = |all: &str, folder: &str| {
            is_below(all, folder)
                .then(|| all[folder.len()..].trim_start_matches('/'))
                .and_then(|rest| rest.split('/').next().map(str::to_owned))
        };
        let mut names: BTreeSet<String> = self
            .regions
            .iter()
            .filter_map(|region| child(&region.at, &path))
            .collect();
        self.with(&path, |place| {
            match &place.region.storage {
                Storage::Host(root) => {
                    for entry in std::fs::read_dir(below(root, &place.below))? {
                        names.insert(entry?.file_name().to_string_lossy().into_owned());
                    }
                }
                Storage::Tree { tree, .. } => {
                    let nodes = tree.nodes();
                    names.extend(nodes.keys().filter_map(|node| child(node, &place.below)));
                }
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// The path with a link at its end replaced by what it leads to.
    fn followed(&self, path: &str) -> io::Result<String> {
        let mut path = normal(path);
        for _ in 0..LINKS_MAX {
            // The host's own links are followed by the host.
            if matches!(self.locate(&path)?.region.storage, Storage::Host(_)) {
                return Ok(path);
            }
            match self.link_target(&path) {
                Ok(target) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    path = normal(&if target.starts_with('/') {
                        target
                    } else {
                        format!("{folder}/{target}")
                    });
                }
                Err(_) => return Ok(path),
            }
        }
        Err(io::Error::other("too many links"))
    }

    fn is_no_mount(&self, path: &str) -> io::Result<()> {
        let busy = |region: &Region| region.at == path || is_below(&region.at, path);
        match self.regions.iter().any(busy) {
            true => Err(ErrorKind::ResourceBusy.into()),
            false => Ok(()),
        }
    }

    fn locate(&self, path: &str) -> io::Result<Place<'_>> {
        let region = self
            .regions
            .iter()
            .find(|region| region.at == path || is_below(path, &region.at))
            .ok_or(ErrorKind::NotFound)?;
        let below = path[region.at.len()..].trim_start_matches('/');
        let below = match &region.storage {
            Storage::Tree { part, .. } if part.is_empty() => below.to_owned(),
            Storage::Tree { part, .. } if below.is_empty() => part.clone(),
            Storage::Tree { part, .. } => format!("{part}/{below}"),
            Storage::Host(_) => below.to_owned(),
        };
        Ok(Place { region, below })
    }

    fn with<T>(&self, path: &str, act: impl FnOnce(Place<'_>) -> io::Result<T>) -> io::Result<T> {
        act(self.locate(path)?)
    }
}

impl Place<'_> {
    fn may_change(&self) -> io::Result<()> {
        match self.region.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

fn below(root: &std::path::Path, rest: &str) -> PathBuf {
    // `join("")` would add a slash, which a file does not have.
    if rest.is_empty() {
        root.to_owned()
    } else {
        root.join(rest)
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.len() > folder.len()
        && (folder.is_empty()
            || path
                .strip_prefix(folder)
                .is_some_and(|rest| rest.starts_with('/')))
}

fn has_folder(nodes: &BTreeMap<String, Node>, path: &str) -> io::Result<()> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    match nodes.get(folder) {
        Some(Node::Folder) => Ok(()),
        Some(_) => Err(ErrorKind::NotADirectory.into()),
        None => Err(ErrorKind::NotFound.into()),
    }
}

/// Without `.`, `..` and doubled slashes; the root is the empty path.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.iter().map(|part| format!("/{part}")).collect()
}
