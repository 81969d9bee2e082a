//! Archives of images, as OCI and as `docker save` have them: what is in them, by digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use v6_runtime::ImageIdentity;

use super::describe::{Description, Manifest, digest_of};

/// A manifest or configuration has some kilobytes.
const MAX_JSON: u64 = 4 << 20;
/// Entries of an archive: an image has at most some hundred layers.
const MAX_ENTRIES: usize = 10_000;

/// What an archive holds.
#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) identity: ImageIdentity,
    pub(crate) description: Description,
    /// The word by which Apptainer reads it.
    pub(crate) transport: &'static str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
}

/// Looks into an archive with one image.
pub(crate) fn read(path: &Path) -> Result<Archive, String> {
    let files = small_files(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let get = |name: &str| {
        let found = files.get(name);
        found.ok_or_else(|| format!("{} has no {name}", path.display()))
    };
    let blob = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        let bytes = get(&format!("blobs/sha256/{hex}"))?;
        match digest_of(bytes) {
            found if found.as_str() == digest => Ok((bytes, found)),
            found => Err(format!("{}: {digest} is {found}", path.display())),
        }
    };
    if let Some(index) = files.get("index.json") {
        let mut manifest = Manifest::parse(index)?;
        let mut digest = None;
        // An index may lead to another one.
        for _ in 0..4 {
            let Some(next) = manifest.ours() else { break };
            let (bytes, found) = blob(&next.digest)?;
            manifest = Manifest::parse(bytes)?;
            digest = Some(found);
        }
        let (Some(digest), Some(config)) = (digest, manifest.config) else {
            let what = "not exactly one image for this machine";
            return Err(format!("{}: {what}", path.display()));
        };
        return Ok(Archive {
            identity: ImageIdentity::Manifest(digest),
            description: Description::parse(blob(&config.digest)?.0)?,
            transport: "oci-archive",
        });
    }
    let saved: Vec<Saved> = serde_json::from_slice(get("manifest.json")?)
        .map_err(|error| format!("{}: manifest.json: {error}", path.display()))?;
    let [saved] = &saved[..] else {
        return Err(format!(
            "{} has {} images, not one",
            path.display(),
            saved.len()
        ));
    };
    let config = get(&saved.config)?;
    Ok(Archive {
        identity: ImageIdentity::ImageId(digest_of(config)),
        description: Description::parse(config)?,
        transport: "docker-archive",
    })
}

/// The content of all that could be JSON.
fn small_files(path: &Path) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut files = BTreeMap::new();
    for entry in archive.entries()?.take(MAX_ENTRIES) {
        let mut entry = entry?;
        let size = entry.size();
        if size > MAX_JSON || !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.display().to_string();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        let mut start = [0];
        if entry.read(&mut start)? == 1 && matches!(start[0], b'{' | b'[') {
            let mut content = start.to_vec();
            entry.read_to_end(&mut content)?;
            files.insert(name, content);
        }
    }
    Ok(files)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(file.reopen().unwrap());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.finish().unwrap();
        file
    }

    fn config() -> String {
        let arch = v6_helper::ARCHITECTURE;
        format!(r#"{{"architecture":"{arch}","os":"linux","config":{{"Cmd":["/x"]}}}}"#)
    }

    #[test]
    fn both_kinds_are_read() {
        let config = config();
        let saved = archive(&[
            ("abc.json", config.as_bytes()),
            ("layer1.tar", b"no json"),
            (
                "manifest.json",
                br#"[{"Config":"abc.json","Layers":["layer1.tar"]}]"#,
            ),
        ]);
        let read_back = read(saved.path()).unwrap();
        let id = digest_of(config.as_bytes());
        assert_eq!(read_back.identity, ImageIdentity::ImageId(id.clone()));
        assert_eq!(read_back.description.cmd, ["/x"]);
        assert!(read_back.description.runs_here());

        let manifest = format!(r#"{{"config":{{"digest":"{id}"}},"layers":[]}}"#);
        let digest = digest_of(manifest.as_bytes());
        let index = format!(r#"{{"manifests":[{{"digest":"{digest}"}}]}}"#);
        let place = |digest: &v6_runtime::Digest| {
            format!(
                "blobs/sha256/{}",
                digest.as_str().trim_start_matches("sha256:")
            )
        };
        let files: [(&str, &[u8]); 3] = [
            ("index.json", index.as_bytes()),
            (&place(&digest), manifest.as_bytes()),
            (&place(&id), config.as_bytes()),
        ];
        let oci = read(archive(&files).path()).unwrap();
        assert_eq!(oci.identity, ImageIdentity::Manifest(digest));
        assert_eq!(oci.transport, "oci-archive");
        // What is not what its name says is not taken.
        let mut wrong = files;
        wrong[2].1 = b"{}";
        assert!(
            read(archive(&wrong).path())
                .unwrap_err()
                .contains("is sha256:")
        );
    }

    #[test]
    fn what_is_no_archive_is_told() {
        assert!(
            read(Path::new("/nowhere"))
                .unwrap_err()
                .contains("/nowhere")
        );
        assert!(
            read(archive(&[("a", b"{}")]).path())
                .unwrap_err()
                .contains("manifest.json")
        );
    }
}
