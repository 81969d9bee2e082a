//! What real engines were seen to say, as `tests/engines.rs`, `tests/states.rs` and
//! `tests/restart.rs` recorded it, for the unit tests.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::path::PathBuf;

use serde_json::Value;

use crate::about::About;
use crate::quirks::Quirks;

/// One engine that answers were recorded of.
pub(crate) struct Engine {
    pub(crate) name: String,
    folder: PathBuf,
}

impl Engine {
    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/engines");
        let mut all: Vec<Self> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                Self {
                    name: entry.file_name().into_string().unwrap(),
                    folder: entry.path(),
                }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut all = Self::all().into_iter();
        all.find(|engine| engine.name == name).unwrap()
    }

    /// What it said in one file; `None` if that was not recorded.
    pub(crate) fn file(&self, name: &str) -> Option<Value> {
        let text = std::fs::read(self.folder.join(name)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    pub(crate) fn answers(&self) -> Value {
        self.file("answers.json").unwrap()
    }

    /// What it says of itself.
    pub(crate) fn about(&self) -> About {
        let mut about = self.file("about.json").unwrap();
        if !about["libpod"].is_null() {
            return About::podman(serde_json::from_value(about["libpod"].take()).unwrap());
        }
        let version = serde_json::from_value(about["version"].take()).unwrap();
        let info = serde_json::from_value(about["info"].take()).unwrap();
        About::docker(version, info)
    }

    /// What is made of that.
    pub(crate) fn quirks(&self) -> Quirks {
        Quirks::of(&self.about())
    }
}
