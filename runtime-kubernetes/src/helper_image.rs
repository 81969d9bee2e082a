//! The image with the helper's program, for the registry from which the cluster fetches it.

use std::io;

use sha2::{Digest, Sha256};

/// An OCI archive with one image, of the helper's program alone: the same bytes each time. Its
/// manifest's digest names it: the second value.
///
/// # Errors
/// None that is known: it is put together in memory.
pub fn helper_image(name: &str) -> io::Result<(Vec<u8>, String)> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "v6-helper", v6_helper::PROGRAM, 0o555)?;
    let layer = layer.into_inner()?;
    let config = json(&serde_json::json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": v6_helper::ARCHITECTURE,
        "os": "linux",
        "config": { "Entrypoint": ["/v6-helper"], "User": "65532:65532" },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }))?;
    let manifest = json(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
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
    for blob in [&manifest, &config, &layer] {
        let path = format!("blobs/{}", digest(blob).replace(':', "/"));
        append(&mut archive, &path, blob, 0o644)?;
    }
    Ok((archive.into_inner()?, digest(&manifest)))
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
}
