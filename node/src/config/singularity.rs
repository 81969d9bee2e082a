//! The `runtime.singularity:` section.

use std::collections::BTreeMap;
use std::path::PathBuf;

use v6_runtime::ImageRef;

use super::database::absolute;
use super::reader::{Context, Fault, Field, Section, fault};
use super::runtime::choice;
use super::types::{ControlGroup, GpuKind, Singularity};

pub(super) fn read(context: &Context, section: &Section<'_>) -> Singularity {
    let path = |field: &Field<'_>| field.text().map(|text| absolute(context.directory(), text));
    let local = section.section("images");
    let mut images = BTreeMap::new();
    for (name, field) in local.entries() {
        let named = local.check(&field, image_name(name));
        let place = local.check(&field, path(&field));
        if let (Some(name), Some(path)) = (named, place) {
            images.insert(name, path);
        }
    }
    let format = section.read("image_format", |field| {
        choice(field, &["folder", "sif"], |word| word)
    });
    let kinds = [GpuKind::Nvidia, GpuKind::Rocm];
    let gpu = section.read("gpu", |field| {
        choice(field, &kinds, |kind| match kind {
            GpuKind::Nvidia => "nvidia",
            GpuKind::Rocm => "rocm",
        })
    });
    let read = Singularity {
        // A name alone is looked up in PATH.
        program: section.read("program", |field| {
            let text = field.text()?;
            Ok(match text.contains('/') {
                true => absolute(context.directory(), text),
                false => PathBuf::from(text),
            })
        }),
        cache: section.read("cache", path),
        sif: format == Some("sif"),
        images,
        gpu,
        cgroup: section.read("cgroup", |field| match field.text()?.as_str() {
            "own" => Ok(ControlGroup::Own),
            "none" => fault("there is no such control group", "remove the key"),
            _ => path(field).map(ControlGroup::At),
        }),
    };
    section.finish();
    read
}

/// The name of an image that is a key.
pub(super) fn image_name(name: &str) -> Result<ImageRef, Fault> {
    ImageRef::parse(name).or_else(|error| {
        fault(
            error.message().to_owned(),
            "write the name by which algorithms are asked for, such as localhost/average:1",
        )
    })
}
