//! Images that are put together here, without any tool: the helper's, and the node's own.

use std::io;

use sha2::{Digest, Sha256};

/// The user and group of programs in images of ours.
const USER: &str = "65532:65532";

/// A file of an image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageFile {
    /// Where it is, without a `/` before it.
    pub path: String,
    /// What it holds.
    pub content: Vec<u8>,
    /// Whether it is a program, or a library.
    pub executable: bool,
}

impl ImageFile {
    /// A file at a path, with or without a `/` before it.
    #[must_use]
    pub fn new(path: &str, content: Vec<u8>, executable: bool) -> Self {
        Self {
            path: path.trim_start_matches('/').to_owned(),
            content,
            executable,
        }
    }

    /// The helper's program, where pods of runs look for it.
    #[must_use]
    pub fn helper() -> Self {
        Self::new("v6-helper", v6_helper::PROGRAM.to_vec(), true)
    }
}

/// An OCI archive with one image, of the helper's program alone: the same bytes each time. Its
/// manifest's digest names it: the second value.
///
/// # Errors
/// None that is known: it is put together in memory.
pub fn helper_image(name: &str) -> io::Result<(Vec<u8>, String)> {
    image(name, "/v6-helper", &[], &[ImageFile::helper()])
}

/// An OCI archive with one image of these files and an empty `/tmp`, whose program is `entrypoint`, with
/// these variables (`NAME=value`): the same bytes each time, and the digest of its manifest.
///
/// # Errors
/// A path that no archive can hold.
pub fn image(
    name: &str,
    entrypoint: &str,
    environment: &[String],
    files: &[ImageFile],
) -> io::Result<(Vec<u8>, String)> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut folder = tar::Header::new_gnu();
    folder.set_entry_type(tar::EntryType::Directory);
    folder.set_size(0);
    folder.set_mode(0o1777);
    layer.append_data(&mut folder, "tmp/", io::empty())?;
    for file in files {
        let mode = if file.executable { 0o555 } else { 0o444 };
        append(&mut layer, &file.path, &file.content, mode)?;
    }
    let layer = layer.into_inner()?;
    let layers = [descriptor("layer.v1.tar", &layer)];
    let config = json(&serde_json::json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": v6_helper::ARCHITECTURE,
        "os": "linux",
        "config": { "Entrypoint": [entrypoint], "User": USER, "Env": environment },
        "rootfs": { "type": "layers", "diff_ids": [layers[0]["digest"]] },
    }))?;
    let manifest = json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": &layers,
    }))?;
    let mut entry = descriptor("manifest.v1+json", &manifest);
    entry["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    let index = json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    let mut archive = tar::Builder::new(Vec::new());
    append(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    append(&mut archive, "index.json", &index, 0o644)?;
    let named = digest(&manifest);
    let layer_digest = layers[0]["digest"].as_str().unwrap_or_default();
    for (digest, blob) in [
        (named.as_str(), &manifest),
        (&digest(&config), &config),
        (layer_digest, &layer),
    ] {
        let path = format!("blobs/{}", digest.replace(':', "/"));
        append(&mut archive, &path, blob, 0o644)?;
    }
    Ok((archive.into_inner()?, named))
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, path, content)
}

fn json(value: &serde_json::Value) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn descriptor(kind: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": digest(bytes),
        "size": bytes.len(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_each_time_and_whole() {
        let (archive, name) = helper_image("localhost/helper:1").unwrap();
        assert_eq!(helper_image("localhost/helper:1").unwrap().1, name);
        let mut read = tar::Archive::new(archive.as_slice());
        let mut blobs = 0;
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry, &mut content).unwrap();
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&content), format!("sha256:{hex}"));
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3);
    }

    #[test]
    fn its_files_are_where_they_were_named_and_nobody_can_change_them() {
        let files = [
            ImageFile::new("/lib64/ld.so", b"loader".to_vec(), true),
            ImageFile::new("etc/a", b"text".to_vec(), false),
        ];
        let (archive, _) = image("localhost/a:1", "/a", &["A=1".to_owned()], &files).unwrap();
        let mut read = tar::Archive::new(archive.as_slice());
        let mut found = Vec::new();
        for entry in read.entries().unwrap() {
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry.unwrap(), &mut content).unwrap();
            let mut layer = tar::Archive::new(content.as_slice());
            for file in layer.entries().unwrap().flatten() {
                let path = file.path().unwrap().to_string_lossy().into_owned();
                let mode = file.header().mode().unwrap();
                found.push((path, mode, file.size()));
            }
        }
        let whole = [
            ("tmp/".to_owned(), 0o1777, 0),
            ("lib64/ld.so".to_owned(), 0o555, 6),
            ("etc/a".to_owned(), 0o444, 4),
        ];
        assert_eq!(found, whole);
    }
}
