//! Where this process is, as the engine sees it.

use std::path::Path;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountBindOptions, MountType};
use futures_util::TryStreamExt;

use crate::archive;
use crate::engine::Engine;
use crate::error::Result;
use crate::files_image;

/// The empty file in the folder by which it is known.
pub(crate) const INSIDE: &str = "this-one";

/// The engine's path of a folder of this process, or why there is none.
pub(crate) async fn engine_path(engine: &Engine, folder: &Path) -> Result<Result<String, String>> {
    let Some(here) = folder.to_str() else {
        return Ok(Err(format!("{} is not UTF-8", folder.display())));
    };
    let Some(own) = own_container() else {
        return Ok(Ok(here.to_owned()));
    };
    let Some(container) = engine.container(&own).await? else {
        // A container of another engine, or of none: the paths may still be the same.
        return Ok(Ok(here.to_owned()));
    };
    let mounts = container.mounts.unwrap_or_default();
    let pairs = mounts
        .iter()
        .filter_map(|m| Some((m.destination.as_deref()?, m.source.as_deref()?)));
    Ok(translate(here, pairs).ok_or_else(|| {
        format!("{here} is inside this process's own container: mount a folder of the host there")
    }))
}

/// The outside path of an inside one, by the longest mount that holds it.
fn translate<'a>(path: &str, mounts: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let inside = |(target, source): (&'a str, &'a str)| {
        let rest = path.strip_prefix(target.trim_end_matches('/'))?;
        let whole = rest.is_empty() || rest.starts_with('/');
        whole.then(|| {
            (
                target.len(),
                format!("{}{rest}", source.trim_end_matches('/')),
            )
        })
    };
    let longest = mounts.filter_map(inside).max_by_key(|(length, _)| *length);
    longest.map(|(_, path)| path)
}

/// The id of the container that this process runs in, if it is one of Docker's.
fn own_container() -> Option<String> {
    container_id(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// Docker mounts the files that it makes for each container from a folder named by its id.
fn container_id(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (source, target) = (fields.next()?, fields.next()?);
        if !matches!(target, "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf") {
            return None;
        }
        let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
        source.split('/').find(is_id).map(str::to_owned)
    })
}

/// Whether the engine sees a folder at this path that is the one this process made: the only proof
/// that sockets reach a container.
pub(crate) async fn is_seen(engine: &Engine, name: &str, path: &str) -> Result<bool> {
    let bind = Mount {
        typ: Some(MountType::BIND),
        source: Some(path.to_owned()),
        target: Some("/probe".to_owned()),
        read_only: Some(true),
        bind_options: Some(MountBindOptions::default()),
        ..Default::default()
    };
    let body = ContainerCreateBody {
        image: Some(files_image::NAME.to_owned()),
        cmd: Some(vec!["-".to_owned()]),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![bind]),
            ..Default::default()
        }),
        ..Default::default()
    };
    match files_image::create(engine, name, body).await {
        Ok(id) => {
            // Podman makes a folder that is not there.
            let file = archive::get_file(engine.clone(), id.clone(), format!("/probe/{INSIDE}"), 0);
            let seen = file.try_for_each(|_| std::future::ready(Ok(()))).await;
            engine.remove_container(&id).await?;
            match seen {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == v6_runtime::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) if error.status() == Some(400) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_counts() {
        let mounts = [
            ("/", "/r"),
            ("/run/v6", "/srv/v6"),
            ("/run", "/x"),
            ("/run/v", "/no"),
        ];
        let at = |path| translate(path, mounts.into_iter());
        assert_eq!(at("/run/v6/a"), Some("/srv/v6/a".into()));
        assert_eq!(at("/run/v6"), Some("/srv/v6".into()));
        assert_eq!(at("/run/v66"), Some("/x/v66".into()));
        assert_eq!(translate("/a", [("/b", "/c")].into_iter()), None);
    }

    #[test]
    fn the_own_container_is_found() {
        let id = "0123456789abcdef".repeat(4);
        let line = format!(
            "1 2 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/sda rw"
        );
        assert_eq!(container_id(&line), Some(id.clone()));
        assert_eq!(container_id(&line.replace("/etc/hostname", "/data")), None);
        assert_eq!(
            container_id("1 2 8:1 / /etc/hosts rw - ext4 /dev/sda rw"),
            None
        );
        assert_eq!(container_id(""), None);
    }
}
