//! Which private files of a run are taken into its session.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::name::SUFFIX;

/// How deep private folders may nest.
const MAX_DEPTH: usize = 16;

/// The files taken so far, by what they would be in the session's folder.
#[derive(Debug, Default)]
pub(super) struct Plan {
    files: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

impl Plan {
    /// The name below the session's folder, or why the file is not taken.
    pub(super) fn target(
        &self,
        path: &Path,
        strip: usize,
        session: &Path,
    ) -> Result<PathBuf, &'static str> {
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => {
                    if name
                        .to_str()
                        .is_none_or(|name| name.len() > 255 || name.contains('\0'))
                    {
                        return Err("its name is not usable");
                    }
                    parts.push(name);
                }
                Component::CurDir => {}
                _ => return Err("its path leads out of the session's folder"),
            }
        }
        let parts = parts.get(strip..).unwrap_or_default();
        let [first, rest @ ..] = parts else {
            return Err("it has no name");
        };
        if parts.len() > MAX_DEPTH {
            return Err("it is nested too deep");
        }
        if rest.is_empty() && first.to_string_lossy().ends_with(SUFFIX) {
            return Err(
                "parquet files beside the dataframes are the node's; a private one may be in a folder",
            );
        }
        let target: PathBuf = parts.iter().collect();
        let mut parents = target
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty());
        let file_in_the_way = parents.any(|parent| {
            self.files.contains(parent)
                || session
                    .join(parent)
                    .symlink_metadata()
                    .is_ok_and(|about| !about.is_dir())
        });
        let folder_in_the_way = self.folders.contains(&target)
            || session
                .join(&target)
                .symlink_metadata()
                .is_ok_and(|about| !about.is_file());
        if file_in_the_way || folder_in_the_way {
            return Err("there is a file where a folder would be, or the other way round");
        }
        Ok(target)
    }

    pub(super) fn take(&mut self, target: PathBuf) {
        self.folders
            .extend(target.ancestors().skip(1).map(Path::to_owned));
        self.files.insert(target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_below_the_session() {
        let mut plan = Plan::default();
        let nowhere = Path::new("/nowhere");
        let ok = |plan: &Plan, path: &str, strip| plan.target(Path::new(path), strip, nowhere).ok();
        assert_eq!(ok(&plan, "./session/a/b", 1), Some(PathBuf::from("a/b")));
        assert_eq!(ok(&plan, "a", 0), Some(PathBuf::from("a")));
        assert_eq!(
            ok(&plan, "a/x.parquet", 0),
            Some(PathBuf::from("a/x.parquet"))
        );
        for no in [
            "../a",
            "/etc/passwd",
            "a/../../b",
            "",
            ".",
            "x.parquet",
            "session_state.parquet",
        ] {
            assert_eq!(ok(&plan, no, 0), None, "{no}");
        }
        assert_eq!(ok(&plan, "session", 1), None);
        assert_eq!(ok(&plan, &"a/".repeat(20), 0), None);
        plan.take("a/b".into());
        assert_eq!(ok(&plan, "a", 0), None);
        assert_eq!(ok(&plan, "a/b/c", 0), None);
        assert_eq!(ok(&plan, "a/b", 0), Some(PathBuf::from("a/b")));
    }
}
