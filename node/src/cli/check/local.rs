//! The checks that need neither HQ nor an engine: data, key, disk, clock.

use std::borrow::Cow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::probe::{Finding, Probe};
use crate::config::{Config, Database, Located, units};
use crate::crypto::PrivateKey;
use crate::readable::{Obstacle, Reader};

/// All of them, for this configuration.
pub fn probes(config: &Config) -> Vec<Box<dyn Probe>> {
    let mut probes: Vec<Box<dyn Probe>> = Vec::new();
    for database in &config.databases {
        probes.push(Box::new(Data(database.clone())));
    }
    if let Some(path) = config
        .encryption
        .private_key
        .clone()
        .filter(|_| config.encryption.enabled)
    {
        probes.push(Box::new(Key(path)));
    }
    let largest = config.runtime.all_limits().map(|run| {
        let outputs = run.output_bytes.get();
        run.scratch_bytes.get().saturating_add(outputs)
    });
    probes.push(Box::new(Disk {
        folder: config.runtime.data_dir.clone(),
        one_run: largest.max().unwrap_or_default(),
    }));
    probes.push(Box::new(Clock {
        written: config.file.clone(),
    }));
    probes
}

/// One database: is it there, and could a run read it.
struct Data(Database);

#[async_trait]
impl Probe for Data {
    fn name(&self) -> Cow<'_, str> {
        format!("data {}", self.0.label).into()
    }

    async fn run(&self) -> Finding {
        let database = self.0.clone();
        let looked = tokio::task::spawn_blocking(move || {
            look_at(&database, &Reader::of_runs(database.group))
        })
        .await;
        looked.unwrap_or_else(|_| {
            Finding::fail(
                "looking at it failed",
                "report this as a mistake in v6-node",
            )
        })
    }
}

fn look_at(database: &Database, reader: &Reader) -> Finding {
    let label = &database.label;
    let (path, what) = match database.locate() {
        Located::File(path) => (path, "file"),
        Located::Folder(path) => (path, "folder"),
        Located::Volume(data) => return Finding::ok(format!("{data} of the engine")),
        Located::Service(_) if database.egress.is_empty() => {
            return Finding::fail(
                "it is a service, and no run can reach it",
                format!("grant that with runtime.databases.{label}.egress"),
            );
        }
        Located::Service(_) => {
            let granted: Vec<String> = database.egress.iter().map(ToString::to_string).collect();
            return Finding::ok(format!("service; runs may reach {}", granted.join(", ")));
        }
        Located::Missing(path) => {
            return Finding::fail(
                format!("there is no file or folder {}", path.display()),
                "correct the path, or mount the disk that holds it",
            );
        }
    };
    let uid = reader.uid;
    match reader.can_read(&path) {
        Ok(()) => Finding::ok(format!(
            "{what} {}, readable for runs (user {uid})",
            path.display()
        )),
        Err(Obstacle::Unreadable(at, group)) => {
            let group = group.map_or(String::new(), |group| {
                format!(", or set runtime.databases.{label}.group: {group}")
            });
            Finding::fail(
                format!("runs (user {uid}) can't read {}", at.display()),
                format!("let others read it (chmod -R o+rX){group}"),
            )
        }
        Err(Obstacle::Closed(at)) => Finding::warn(
            format!(
                "runs (user {uid}) can't pass {}, above the data; an engine that runs as root can mount it all the same",
                at.display()
            ),
            format!("with a rootless engine: chmod o+x {}", at.display()),
        ),
        Err(Obstacle::Unseen(at, error)) => Finding::fail(
            format!("{} can't be looked at: {error}", at.display()),
            "let this user read it",
        ),
    }
}

/// The organization's private key.
struct Key(PathBuf);

#[async_trait]
impl Probe for Key {
    fn name(&self) -> Cow<'_, str> {
        "key".into()
    }

    async fn run(&self) -> Finding {
        let path = self.0.display();
        let pem = match tokio::fs::read(&self.0).await {
            Ok(pem) => pem,
            Err(error) => {
                return Finding::fail(
                    format!("the private key {path} can't be read: {error}"),
                    "correct encryption.private_key, or put the organization's key there",
                );
            }
        };
        if let Err(error) = PrivateKey::from_pem(&pem) {
            return Finding::fail(
                format!("{path} is not a usable private key: {error}"),
                "put the organization's unencrypted RSA key in PEM form there",
            );
        }
        match tokio::fs::metadata(&self.0).await {
            Ok(metadata) if metadata.mode() & 0o077 != 0 => Finding::warn(
                format!("other users of this machine may read the private key {path}"),
                format!("chmod 600 {path}"),
            ),
            _ => Finding::ok(format!("the private key {path} can be used")),
        }
    }
}

/// Room on the disk of the data folder.
struct Disk {
    folder: PathBuf,
    one_run: u64,
}

/// Below this, not even the node's own files are safe.
const DISK_FLOOR: u64 = 256 << 20;

#[async_trait]
impl Probe for Disk {
    fn name(&self) -> Cow<'_, str> {
        "disk".into()
    }

    async fn run(&self) -> Finding {
        // The folder is made at the first start; until then, its disk is that of its parent.
        let Some(existing) = self.folder.ancestors().find(|folder| folder.is_dir()) else {
            return Finding::fail(
                format!("no folder above {} exists", self.folder.display()),
                "correct runtime.data_dir",
            );
        };
        match rustix::fs::statvfs(existing) {
            Ok(disk) => judge_room(
                &self.folder,
                disk.f_bavail.saturating_mul(disk.f_frsize),
                self.one_run,
            ),
            Err(error) => Finding::fail(
                format!("the disk of {} can't be asked: {error}", existing.display()),
                "correct runtime.data_dir",
            ),
        }
    }
}

fn judge_room(folder: &Path, free: u64, one_run: u64) -> Finding {
    let seen = format!("{} MiB free for {}", free >> 20, folder.display());
    let remedy = "free some space, or set runtime.data_dir to a larger disk";
    if free < DISK_FLOOR {
        Finding::fail(seen, remedy)
    } else if free < one_run {
        let limit = units::show_size(one_run);
        Finding::warn(
            format!("{seen}, less than one run may use ({limit})"),
            remedy,
        )
    } else {
        Finding::ok(seen)
    }
}

/// The machine's clock, as far as the machine itself can tell: tokens and certificates
/// need it right. Comparing it with HQ's is HQ's probe.
struct Clock {
    written: PathBuf,
}

/// 2026-01-01 UTC: no clock that shows less can be right.
const OLDEST: Duration = Duration::from_secs(1_767_225_600);

#[async_trait]
impl Probe for Clock {
    fn name(&self) -> Cow<'_, str> {
        "clock".into()
    }

    async fn run(&self) -> Finding {
        let written = tokio::fs::metadata(&self.written)
            .await
            .and_then(|metadata| metadata.modified())
            .ok();
        judge_clock(SystemTime::now(), written)
    }
}

fn judge_clock(now: SystemTime, written: Option<SystemTime>) -> Finding {
    let remedy = "set the clock, and let it be kept by NTP";
    if now < SystemTime::UNIX_EPOCH + OLDEST {
        return Finding::fail("the clock shows a time before 2026", remedy);
    }
    match written {
        // Some file systems round up.
        Some(written) if written > now + Duration::from_secs(60) => Finding::fail(
            "the clock shows a time before the configuration file was written",
            remedy,
        ),
        _ => Finding::ok("the clock is plausible"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cli::check::Verdict;

    #[test]
    fn room() {
        let verdict = |free, one_run| judge_room(Path::new("/x"), free, one_run).verdict;
        assert_eq!(verdict(1 << 40, 1 << 30), Verdict::Ok);
        assert_eq!(verdict(1 << 29, 1 << 30), Verdict::Warn);
        assert_eq!(verdict(1 << 20, 1), Verdict::Fail);
    }

    #[test]
    fn clocks() {
        let start = SystemTime::UNIX_EPOCH + OLDEST;
        let hour = Duration::from_secs(3600);
        assert_eq!(
            judge_clock(SystemTime::UNIX_EPOCH, None).verdict,
            Verdict::Fail
        );
        assert_eq!(judge_clock(start + hour, Some(start)).verdict, Verdict::Ok);
        assert_eq!(
            judge_clock(start, Some(start + hour)).verdict,
            Verdict::Fail
        );
    }

    #[tokio::test]
    async fn keys() {
        let recorded: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/encryption-5.0.3.json"))
                .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let probe = Key(path.clone());
        for (text, mode, verdict) in [
            (
                recorded["private_key_pkcs8_pem"].as_str().unwrap(),
                0o600,
                Verdict::Ok,
            ),
            (
                recorded["private_key_pkcs8_pem"].as_str().unwrap(),
                0o644,
                Verdict::Warn,
            ),
            (
                recorded["private_key_encrypted_pem"].as_str().unwrap(),
                0o600,
                Verdict::Fail,
            ),
            ("no key", 0o600, Verdict::Fail),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let finding = probe.run().await;
            assert_eq!(finding.verdict, verdict, "{finding:?}");
        }
    }

    #[test]
    fn unreadable_data_names_the_group_that_may() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o040)).unwrap();
        let group = fs::metadata(&path).unwrap().gid();
        let database = Database {
            label: "a".into(),
            kind: "csv".into(),
            source: crate::config::Source::Path(path),
            parameters: std::collections::BTreeMap::new(),
            read_only: true,
            group: None,
            egress: Vec::new(),
        };
        let own = rustix::process::geteuid().as_raw();
        let mut reader = Reader {
            uid: own + 1,
            groups: Vec::new(),
        };
        let finding = look_at(&database, &reader);
        assert_eq!(finding.verdict, Verdict::Fail, "{finding:?}");
        let hint = format!("runtime.databases.a.group: {group}");
        assert!(finding.remedy.is_some_and(|remedy| remedy.contains(&hint)));
        reader.groups.push(group);
        let finding = look_at(&database, &reader);
        assert_ne!(finding.verdict, Verdict::Fail, "{finding:?}");
    }
}
