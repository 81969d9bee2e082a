//! The image of containers that are never started: without a single file, and made here.

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::ImportImageOptionsBuilder;
use bytes::Bytes;
use futures_util::TryStreamExt;

use crate::engine::Engine;
use crate::error::{Error, Result};

/// Its name in the engine; a whole one, since Podman adds `localhost/` where Docker adds its hub.
pub(crate) const NAME: &str = "localhost/v6-runtime-files:1";

/// Makes a container of this image; the engine gets the image if it has none.
pub(crate) async fn create(
    engine: &Engine,
    name: &str,
    body: ContainerCreateBody,
) -> Result<String> {
    match engine.create_container(name, body.clone()).await {
        Err(error) if error.status() == Some(404) => {
            load(engine).await?;
            engine.create_container(name, body).await
        }
        made => made,
    }
}

async fn load(engine: &Engine) -> Result<()> {
    let image = archive()
        .map_err(|error| Error::host("the image for files cannot be put together", error))?;
    let options = ImportImageOptionsBuilder::new().quiet(true).build();
    let body = bollard::body_full(image);
    let lines = engine.docker.import_image(options, body, None);
    let load = lines.try_for_each(|_| std::future::ready(Ok(())));
    engine.call("loading the image for files", load).await
}

/// The image as `docker save` would write it.
fn archive() -> std::io::Result<Bytes> {
    let config = serde_json::json!({
        "architecture": v6_helper::ARCHITECTURE,
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": [NAME], "Layers": [] }
    ]);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        let content = serde_json::to_vec(&content)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(archive.into_inner()?.into())
}
