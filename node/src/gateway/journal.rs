//! What a run has asked HQ to create, and not been told of yet.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changed when an older node could not read what a newer one writes.
const VERSION: u32 = 1;
/// Answers that were never fetched; beyond these the oldest is dropped.
const UNDELIVERED_MAX: usize = 64;

/// One `POST /task` whose answer the algorithm does not have yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// SHA-256 of the algorithm's body, in hexadecimal.
    pub(super) body: String,
    pub(super) name: String,
    pub(super) method: String,
    pub(super) organizations: usize,
    /// HQ's answer, once known.
    pub(super) task: Option<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Of the subtasks that HQ is known to have made for this run, or that were there before
    /// it, the highest id. HQ counts upwards, so what is above comes from an open entry.
    seen: i64,
    entries: Vec<Entry>,
}

/// The journal of one run: a file, replaced atomically, that survives the node.
///
/// At most one entry has no answer: before a request is sent, the fate of the one before it is
/// found out.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    content: Option<Content>,
    end: End,
}

/// Whether a run is over: once it is, its journal is gone, and a request that was still under
/// way does not bring it back.
#[derive(Debug, Clone, Default)]
pub(super) struct End(Arc<Mutex<bool>>);

impl End {
    /// Removes the journal of the run, and what a killed node left of writing it.
    pub(super) fn reached(&self, path: &Path) -> io::Result<()> {
        let mut over = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *over = true;
        for file in [path, &part(path)] {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives a file its name, unless the run is over: then the file goes.
    fn publish(&self, part: &Path, path: &Path) -> io::Result<()> {
        let over = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *over {
            std::fs::remove_file(part)
        } else {
            std::fs::rename(part, path)
        }
    }
}

impl Journal {
    /// Reads the run's journal, if there is one.
    ///
    /// # Errors
    /// A file that cannot be read or is of another version.
    pub(super) fn open(path: PathBuf, end: End) -> io::Result<Self> {
        let content = match std::fs::read(&path) {
            Ok(bytes) => {
                let content: Content = serde_json::from_slice(&bytes)?;
                if content.version != VERSION {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "the journal is of another version of v6-node",
                    ));
                }
                Some(content)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path, content, end })
    }

    /// Whether anything was ever written. If not, [`begin`](Self::begin) comes first.
    pub(super) fn is_new(&self) -> bool {
        self.content.is_none()
    }

    /// Starts the journal of a run under whose task HQ has subtasks up to the id `seen`.
    pub(super) fn begin(&mut self, seen: i64) {
        self.content = Some(Content {
            version: VERSION,
            seen,
            entries: Vec::new(),
        });
    }

    pub(super) fn seen(&self) -> i64 {
        self.content.as_ref().map_or(0, |content| content.seen)
    }

    /// The answer to a body that was sent before and not fetched.
    pub(super) fn undelivered(&self, body: &str) -> Option<&Value> {
        let content = self.content.as_ref()?;
        let entry = content.entries.iter().find(|entry| entry.body == body)?;
        entry.task.as_ref()
    }

    /// The entry whose fate is unknown.
    pub(super) fn open_entry(&self) -> Option<&Entry> {
        let content = self.content.as_ref()?;
        content.entries.iter().find(|entry| entry.task.is_none())
    }

    /// Notes a request that is about to be sent.
    pub(super) fn sending(&mut self, entry: Entry) -> io::Result<()> {
        if let Some(content) = &mut self.content {
            content.entries.push(entry);
            if content.entries.len() > UNDELIVERED_MAX {
                content.entries.remove(0);
            }
        }
        self.save()
    }

    /// Notes HQ's answer to the open entry; `None` says that nothing was created.
    pub(super) fn resolved(&mut self, task: Option<Value>) -> io::Result<()> {
        if let Some(content) = &mut self.content {
            match task {
                Some(task) => {
                    let id = task.get("id").and_then(Value::as_i64).unwrap_or(0);
                    content.seen = content.seen.max(id);
                    for entry in content.entries.iter_mut().filter(|e| e.task.is_none()) {
                        entry.task = Some(task.clone());
                    }
                }
                None => content.entries.retain(|entry| entry.task.is_some()),
            }
        }
        self.save()
    }

    /// Notes that the algorithm has the answer to this body.
    pub(super) fn delivered(&mut self, body: &str) -> io::Result<()> {
        if let Some(content) = &mut self.content {
            content.entries.retain(|entry| entry.body != body);
        }
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let Some(content) = &self.content else {
            return Ok(());
        };
        let part = part(&self.path);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_data()?;
        self.end.publish(&part, &self.path)
    }
}

/// Where a journal is written before it gets its name.
fn part(path: &Path) -> PathBuf {
    path.with_extension("part")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    fn entry(body: &str) -> Entry {
        Entry {
            body: body.to_owned(),
            name: "n".to_owned(),
            method: "m".to_owned(),
            organizations: 1,
            task: None,
        }
    }

    #[test]
    fn survives_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run-1.json");
        let end = End::default();
        let open = || Journal::open(path.clone(), end.clone()).unwrap();
        let mut journal = open();
        assert!(journal.is_new() && journal.open_entry().is_none());
        journal.begin(7);
        journal.sending(entry("a")).unwrap();

        let mut journal = open();
        assert_eq!(journal.open_entry(), Some(&entry("a")));
        assert_eq!((journal.seen(), journal.undelivered("a")), (7, None));
        journal.resolved(Some(json!({"id": 9}))).unwrap();

        let mut journal = open();
        assert_eq!(journal.undelivered("a"), Some(&json!({"id": 9})));
        assert_eq!((journal.open_entry(), journal.seen()), (None, 9));
        journal.sending(entry("b")).unwrap();
        journal.resolved(None).unwrap();
        assert!(journal.undelivered("a").is_some() && journal.open_entry().is_none());
        journal.delivered("a").unwrap();

        let journal = open();
        assert_eq!((journal.undelivered("a"), journal.seen()), (None, 9));
    }

    #[test]
    fn does_not_come_back_when_the_run_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run-1.json");
        for written_before in [false, true] {
            let end = End::default();
            let mut journal = Journal::open(path.clone(), end.clone()).unwrap();
            journal.begin(7);
            if written_before {
                journal.sending(entry("a")).unwrap();
                assert!(path.exists());
            }
            std::fs::write(part(&path), "of a killed node").unwrap();
            end.reached(&path).unwrap();
            end.reached(&path).unwrap();
            journal.sending(entry("b")).unwrap();
            let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run-1.json");
        for text in ["{}", "", r#"{"version": 2, "seen": 0, "entries": []}"#] {
            std::fs::write(&path, text).unwrap();
            assert!(
                Journal::open(path.clone(), End::default()).is_err(),
                "{text}"
            );
        }
    }
}
