//! Who spoke with whom, for the operator: one line for each connection and each request.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// Past this length, in bytes, the file becomes `audit.jsonl.1`.
const FILE_MAX: u64 = 16 << 20;
/// Older files that are kept.
const FILES: usize = 8;
/// Longest path that is written, in bytes.
const PATH_MAX: usize = 256;

/// One line. No field can hold a header, a body or the text of a query.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    pub(super) time: String,
    /// `connection` or `request`.
    pub(super) event: &'static str,
    pub(super) run: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<i64>,
    pub(super) grant: String,
    pub(super) destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    /// Bytes that came from the run; of a request, those of its body.
    pub(super) from_run: u64,
    /// Bytes that went to the run; of a request, those of the answer's body.
    pub(super) to_run: u64,
    pub(super) milliseconds: u64,
    /// `ok`, or why not.
    pub(super) outcome: String,
}

impl Record {
    pub(super) fn now() -> String {
        crate::hq::iso_utc(SystemTime::now())
    }

    pub(super) fn milliseconds(of: Duration) -> u64 {
        u64::try_from(of.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The path as it may be written: from the query only numbers, which are ids and pages.
pub(super) fn shown(path: &str, query: Option<&str>) -> String {
    let mut text: String = path.chars().take(PATH_MAX).collect();
    let numbers = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| {
            pair.split_once('=').is_some_and(|(name, value)| {
                let word = |text: &str| {
                    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                };
                name.len() <= 32
                    && word(name)
                    && (1..=20).contains(&value.len())
                    && value.bytes().all(|b| b.is_ascii_digit())
            })
        })
        .take(8);
    for (at, pair) in numbers.enumerate() {
        text.push(if at == 0 { '?' } else { '&' });
        text.push_str(pair);
    }
    text
}

/// The audit file, and the tracing target `audit` that gets the same.
#[derive(Debug)]
pub(super) struct Audit {
    path: PathBuf,
    open: Mutex<(File, u64)>,
}

impl Audit {
    /// Opens `audit.jsonl` in the folder to append to it.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join("audit.jsonl");
        let open = Mutex::new(append_to(&path)?);
        Ok(Self { path, open })
    }

    pub(super) fn write(&self, record: &Record) {
        tracing::info!(
            target: "audit",
            event = record.event,
            run = record.run,
            task = record.task,
            grant = record.grant,
            destination = record.destination,
            method = record.method,
            path = record.path,
            status = record.status,
            from_run = record.from_run,
            to_run = record.to_run,
            milliseconds = record.milliseconds,
            outcome = record.outcome,
        );
        if let Err(error) = self.append(record) {
            tracing::error!(%error, file = %self.path.display(), "the audit file could not be written");
        }
    }

    fn append(&self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.1 >= FILE_MAX {
            self.rotate()?;
            *open = append_to(&self.path)?;
        }
        open.0.write_all(&line)?;
        open.1 += line.len() as u64;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..FILES).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_query_shows_numbers_only() {
        for (query, want) in [
            (None, "/result"),
            (Some("task_id=3&page=2"), "/result?task_id=3&page=2"),
            (
                Some("name=Alice&task_id=3&key=s3cret&x"),
                "/result?task_id=3",
            ),
            (Some("A%0a=1&task_id=3%0a"), "/result"),
        ] {
            assert_eq!(shown("/result", query), want);
        }
        assert_eq!(shown(&"x".repeat(1000), None).len(), PATH_MAX);
    }

    #[test]
    fn old_files_move_aside() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path()).unwrap();
        let record = Record {
            time: Record::now(),
            event: "request",
            run: "run-1".to_owned(),
            task: Some(1),
            grant: "hq".to_owned(),
            destination: "proxy".to_owned(),
            method: None,
            path: Some("/a\n\"b".to_owned()),
            status: Some(200),
            from_run: 0,
            to_run: 0,
            milliseconds: 0,
            outcome: "ok".to_owned(),
        };
        audit.write(&record);
        for _ in 0..FILES + 2 {
            audit.open.lock().unwrap().1 = FILE_MAX;
            audit.write(&record);
        }
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), FILES + 1, "{names:?}");
        let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["path"], "/a\n\"b");
        assert_eq!(text.lines().count(), 1);
    }
}
