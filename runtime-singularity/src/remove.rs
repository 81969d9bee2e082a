//! Removing what a hostile program has made: of any depth, with any rights.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Removes a file or folder, with all that is in it. Goes on past what cannot be removed, and gives
/// the first error. Nothing of a folder is followed out of it.
///
/// However deep it is, this takes the same memory and few open files: what is deep is moved up.
pub(crate) fn remove_tree(top: &Path) -> io::Result<()> {
    let about = match fs::symlink_metadata(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        about => about?,
    };
    if !about.is_dir() {
        return fs::remove_file(top);
    }
    let mut first = None;
    let mut moved = 0_u64;
    open_up(top);
    loop {
        let before = moved;
        let folders = remove_files(top, &mut first)?;
        if folders.is_empty() {
            break;
        }
        for folder in &folders {
            empty_into(folder, top, &mut moved, &mut first);
        }
        if let Some(error) = first.take_if(|_| before == moved) {
            // Nothing more can be done.
            return Err(error);
        }
    }
    match (first, fs::remove_dir(top)) {
        (Some(error), Err(_)) => Err(error),
        (_, removed) => removed,
    }
}

/// Removes what is directly in a folder; gives the folders.
fn remove_files(top: &Path, first: &mut Option<io::Error>) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(top)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        } else if let Err(error) = gone(fs::remove_file(entry.path())) {
            first.get_or_insert(error);
        }
    }
    Ok(folders)
}

/// Moves the folders in a folder up to `top`, removes its files and then the folder itself.
fn empty_into(folder: &Path, top: &Path, moved: &mut u64, first: &mut Option<io::Error>) {
    open_up(folder);
    let emptied = (|| -> io::Result<()> {
        for inner in remove_files(folder, first)? {
            open_up(&inner);
            *moved += 1;
            let name = format!(".removing-{}-{moved}", rand::random::<u32>());
            fs::rename(&inner, top.join(name))?;
        }
        let removed = gone(fs::remove_dir(folder));
        if removed.is_ok() {
            *moved += 1;
        }
        removed
    })();
    if let Err(error) = emptied {
        first.get_or_insert(error);
    }
}

/// A folder that its owner may not enter can be opened by the owner.
fn open_up(folder: &Path) {
    let closed = fs::symlink_metadata(folder)
        .is_ok_and(|about| about.is_dir() && about.permissions().mode() & 0o700 != 0o700);
    if closed {
        let _ = fs::set_permissions(folder, Permissions::from_mode(0o700));
    }
}

fn gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    #[test]
    fn deep_closed_and_linked_goes() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        let top = folder.path().join("top");
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("a/link")).unwrap();
        fs::write(top.join("a/b/file"), "x").unwrap();
        fs::set_permissions(top.join("a/b"), Permissions::from_mode(0)).unwrap();
        // Deeper than a path can be long, in steps that each have a short one.
        let mut bottom = top.clone();
        for _ in 0..300 {
            for _ in 0..3 {
                bottom.push("d".repeat(200));
            }
            fs::create_dir_all(&bottom).unwrap();
            let near = folder.path().join("near");
            fs::rename(&top, &near).unwrap();
            fs::create_dir(&top).unwrap();
            fs::rename(&near, top.join("n".repeat(100))).unwrap();
            bottom = top.clone();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
        remove_tree(&top).unwrap();
    }
}
