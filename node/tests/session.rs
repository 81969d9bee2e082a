//! Sessions on disk, from the outside.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use v6_node::hq::Action;
use v6_node::session::{
    DataframeName, FileKind, Merge, Merged, PrivateFiles, SessionError, SessionLimits, Sessions,
    SnapshotFile,
};

fn name(name: &str) -> DataframeName {
    name.parse().unwrap()
}

async fn store() -> (tempfile::TempDir, Sessions) {
    let folder = tempfile::tempdir().unwrap();
    let sessions = Sessions::open(folder.path()).await.unwrap();
    (folder, sessions)
}

enum Item<'a> {
    File(&'a str, &'a [u8]),
    Folder(&'a str),
    Link(&'a str, &'a str),
}

async fn tar(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tokio_tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        let mut set_path = |path: &str| {
            // `set_path` refuses what a hostile stream may hold.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        };
        let content: &[u8] = match item {
            Item::File(path, content) => {
                set_path(path);
                header.set_entry_type(tokio_tar::EntryType::Regular);
                header.set_size(content.len() as u64);
                content
            }
            Item::Folder(path) => {
                set_path(path);
                header.set_entry_type(tokio_tar::EntryType::Directory);
                b""
            }
            Item::Link(path, target) => {
                set_path(path);
                header.set_entry_type(tokio_tar::EntryType::Symlink);
                header.set_link_name(target).unwrap();
                b""
            }
        };
        header.set_cksum();
        builder.append(&header, content).await.unwrap();
    }
    builder.into_inner().await.unwrap()
}

fn private(tar: &[u8]) -> Option<PrivateFiles<'_>> {
    Some(PrivateFiles {
        tar: Box::pin(tar),
        strip: 1,
    })
}

async fn extract(sessions: &Sessions, run: i64, frame: &str, content: &[u8]) -> Merged {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    let merge = Merge {
        run,
        action: Action::DataExtraction,
        dataframe: Some((name(frame), file.path())),
        private: None,
    };
    sessions.merge(5, merge).await.unwrap()
}

async fn compute(sessions: &Sessions, run: i64, tar: &[u8]) -> Result<Merged, SessionError> {
    let merge = Merge {
        run,
        action: Action::FederatedCompute,
        dataframe: None,
        private: private(tar),
    };
    sessions.merge(5, merge).await
}

async fn content(file: &SnapshotFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.open()
        .await
        .unwrap()
        .read_to_end(&mut bytes)
        .await
        .unwrap();
    bytes
}

async fn paths(sessions: &Sessions) -> Vec<String> {
    sessions
        .snapshot(5)
        .await
        .unwrap()
        .files
        .into_iter()
        .map(|file| file.path)
        .collect()
}

fn count(folder: PathBuf) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn the_first_use_makes_the_session_as_the_python_node_does() {
    let (folder, sessions) = store().await;
    assert!(sessions.list().await.unwrap().is_empty());
    assert!(sessions.dataframes(5).await.unwrap().is_empty());
    let snapshot = sessions.snapshot(5).await.unwrap();
    assert_eq!(snapshot.files.len(), 1);
    assert_eq!(snapshot.files[0].kind, FileKind::State);
    assert!(
        folder
            .path()
            .join("sessions/session000000005/session_state.parquet")
            .is_file()
    );
    assert_eq!(sessions.list().await.unwrap(), [5]);
    let history = sessions.history(5).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(
        (history[0].action.as_str(), history[0].file.as_str()),
        ("", "session_state.parquet")
    );
}

#[tokio::test]
async fn a_dataframe_is_merged_once_and_logged() {
    let (folder, sessions) = store().await;
    assert_eq!(extract(&sessions, 1, "d", b"one").await, Merged::default());
    assert!(extract(&sessions, 1, "d", b"again").await.already);
    // The same after a restart.
    drop(sessions);
    let sessions = Sessions::open(folder.path()).await.unwrap();
    assert!(extract(&sessions, 1, "d", b"again").await.already);
    let path = folder.path().join("sessions/session000000005/d.parquet");
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    assert_eq!(sessions.dataframes(5).await.unwrap(), [name("d")]);
    let rows = sessions.history(5).await.unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                row.action.as_str(),
                row.file.as_str(),
                row.message.as_str(),
                row.dataframe.as_str(),
            ]
        })
        .collect();
    assert_eq!(
        rows[1..],
        [["data_extraction", "d.parquet", "Session updated.", "d"]]
    );
    let snapshot = sessions.snapshot(5).await.unwrap();
    assert_eq!(
        snapshot.missing(["d", "x", "session_state"]),
        ["x", "session_state"]
    );
    sessions.forget_run(5, 1).await.unwrap();
    assert!(!extract(&sessions, 1, "d", b"two").await.already);
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
}

#[tokio::test]
async fn a_snapshot_stays_as_it_was() {
    let (folder, sessions) = store().await;
    extract(&sessions, 1, "d", b"one").await;
    let before = sessions.snapshot(5).await.unwrap();
    extract(&sessions, 2, "d", b"two").await;
    assert!(sessions.delete_dataframe(5, &name("d")).await.unwrap());
    let frame = before
        .files
        .iter()
        .find(|file| file.path == "d.parquet")
        .unwrap();
    assert_eq!((content(frame).await, frame.length), (b"one".to_vec(), 3));
    assert_eq!(frame.kind, FileKind::Dataframe(name("d")));
    let links = folder.path().join("sessions-snapshots");
    assert_eq!(count(links.clone()), 1);
    drop(before);
    assert_eq!(count(links), 0);
}

#[tokio::test]
async fn private_files_are_merged_and_hostile_ones_are_not() {
    let (folder, sessions) = store().await;
    extract(&sessions, 1, "d", b"one").await;
    let tar = tar(&[
        Item::Folder("session/"),
        Item::File("session/model.bin", b"weights"),
        Item::File("session/deep/er/x.parquet", b"mine"),
        // Copies of what the node keeps: passed over without a word.
        Item::File("session/d.parquet", b"changed"),
        Item::File("session/session_state.parquet", b"changed"),
        Item::File("session/other.parquet", b"x"),
        Item::File("session/../../outside", b"x"),
        Item::File("/etc/outside", b"x"),
        Item::Link("session/link", "/etc/passwd"),
        Item::File("session/link/through", b"x"),
        Item::File("session/model.bin/below", b"x"),
    ])
    .await;
    let merged = compute(&sessions, 2, &tar).await.unwrap();
    let skipped: Vec<&str> = merged
        .skipped
        .iter()
        .map(|(path, _)| path.as_str())
        .collect();
    for path in [
        "session/other.parquet",
        "session/../../outside",
        "session/link",
        "session/model.bin/below",
    ] {
        assert!(skipped.contains(&path), "{path} of {skipped:?}");
    }
    assert!(
        !skipped
            .iter()
            .any(|path| path.ends_with("d.parquet") || path.ends_with("state.parquet"))
    );
    assert!(!folder.path().join("outside").exists() && !Path::new("/etc/outside").exists());
    let paths = paths(&sessions).await;
    for path in [
        "d.parquet",
        "deep/er/x.parquet",
        "model.bin",
        "session_state.parquet",
    ] {
        assert!(paths.iter().any(|own| own == path), "{path} of {paths:?}");
    }
    assert!(
        !paths
            .iter()
            .any(|path| path == "other.parquet" || path == "link")
    );
    let snapshot = sessions.snapshot(5).await.unwrap();
    let frame = snapshot
        .files
        .iter()
        .find(|file| file.path == "d.parquet")
        .unwrap();
    assert_eq!(content(frame).await, b"one");
    let last = sessions.history(5).await.unwrap().pop().unwrap();
    assert_eq!(
        (last.action.as_str(), last.message.as_str()),
        ("federated_compute", "Algorithm completed successfully.")
    );
}

#[tokio::test]
async fn a_broken_or_too_large_merge_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let limits = SessionLimits {
        bytes: 100_000,
        files: 3,
    };
    let sessions = Sessions::open_with(folder.path(), limits).await.unwrap();
    extract(&sessions, 1, "d", &[0; 50_000]).await;
    let before = (paths(&sessions).await, sessions.history(5).await.unwrap());
    let large = vec![1; 60_000];
    let whole = tar(&[
        Item::File("session/a", b"x"),
        Item::File("session/b", &large),
    ])
    .await;
    for (number, bytes) in [&whole[..], &whole[..whole.len() / 2]]
        .into_iter()
        .enumerate()
    {
        let error = compute(&sessions, 10 + number as i64, bytes)
            .await
            .unwrap_err();
        match number {
            0 => assert!(
                matches!(error, SessionError::Quota { limit: 100_000 }),
                "{error}"
            ),
            _ => assert!(matches!(error, SessionError::Tar(_)), "{error}"),
        }
    }
    let many = tar(&[
        Item::File("s/a", b""),
        Item::File("s/b", b""),
        Item::File("s/c", b""),
        Item::File("s/d", b""),
    ])
    .await;
    let error = compute(&sessions, 12, &many).await.unwrap_err();
    assert!(
        matches!(error, SessionError::TooManyFiles { limit: 3 }),
        "{error}"
    );
    assert_eq!(
        (paths(&sessions).await, sessions.history(5).await.unwrap()),
        before
    );
    assert_eq!(
        count(folder.path().join("sessions-journal/session000000005")),
        1
    );
}

#[tokio::test]
async fn merges_at_the_same_time_all_count() {
    let (_folder, sessions) = store().await;
    let merges: Vec<_> = (0..20)
        .map(|run| {
            let sessions = sessions.clone();
            tokio::spawn(async move { extract(&sessions, run, &format!("d{run}"), b"x").await })
        })
        .collect();
    for merge in merges {
        merge.await.unwrap();
    }
    assert_eq!(sessions.dataframes(5).await.unwrap().len(), 20);
    assert_eq!(sessions.history(5).await.unwrap().len(), 21);
}

#[tokio::test]
async fn deletion_and_purge() {
    let (folder, sessions) = store().await;
    extract(&sessions, 1, "d", b"one").await;
    assert!(!sessions.delete_dataframe(5, &name("x")).await.unwrap());
    assert!(sessions.delete_dataframe(5, &name("d")).await.unwrap());
    let last = sessions.history(5).await.unwrap().pop().unwrap();
    assert_eq!(
        (
            last.action.as_str(),
            last.message.as_str(),
            last.dataframe.as_str()
        ),
        ("delete", "Dataframe deleted", "d")
    );
    sessions.purge(5).await.unwrap();
    sessions.purge(5).await.unwrap();
    assert!(sessions.list().await.unwrap().is_empty());
    assert_eq!(count(folder.path().join("sessions-journal")), 0);
    assert!(!extract(&sessions, 1, "d", b"new").await.already);
}

#[tokio::test]
async fn a_damaged_log_of_steps_stops_nothing() {
    let (folder, sessions) = store().await;
    sessions.snapshot(5).await.unwrap();
    let state = folder
        .path()
        .join("sessions/session000000005/session_state.parquet");
    std::fs::write(&state, b"PAR1 nonsense").unwrap();
    assert!(matches!(
        sessions.history(5).await,
        Err(SessionError::NotParquet(_))
    ));
    extract(&sessions, 1, "d", b"one").await;
    assert_eq!(sessions.history(5).await.unwrap().len(), 2);
    assert!(state.with_extension("damaged").is_file());
}
