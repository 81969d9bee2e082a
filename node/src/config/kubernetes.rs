//! The `runtime.kubernetes:` section.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use v6_runtime::ImageRef;

use super::database::absolute;
use super::limits::or_none;
use super::reader::{Context, Fault, Field, Section, fault};
use super::runtime::choice;
use super::types::Kubernetes;

pub(super) fn read(context: &Context, section: &Section<'_>) -> Kubernetes {
    let word = |key| section.read(key, |field| field.text());
    let words = |key| section.list(key, |field| field.text()).unwrap_or_default();
    let gate = section.read("gate", |field| {
        choice(field, &["denial", "off"], |word| word)
    });
    let outputs = section.read("outputs", |field| {
        choice(field, &["pod", "claim"], |word| word)
    });
    let claims = outputs == Some("claim");
    let read = Kubernetes {
        kubeconfig: section.read("kubeconfig", |field| {
            field.text().map(|text| absolute(context.directory(), text))
        }),
        context: word("context"),
        namespace: word("namespace"),
        helper_image: section.read("helper_image", |field| field.parse(helper_image)),
        image_pull_secrets: words("image_pull_secrets"),
        insecure_registries: words("insecure_registries"),
        node_selector: pairs(&section.section("node_selector")),
        labels: pairs(&section.section("labels")),
        runtime_class: word("runtime_class"),
        priority_class: word("priority_class"),
        booked_cpu_milli: section
            .read("booked_cpus", Field::cpus)
            .and_then(NonZeroU32::new),
        gpu: word("gpu"),
        gate: gate != Some("off"),
        claims,
        storage_class: section.read("storage_class", |field| storage_class(field, claims)),
        canary: section.read("canary", |field| or_none(field, Field::duration)),
        start_timeout: section.read("start_timeout", Field::duration),
        pull_timeout: section.read("pull_timeout", Field::duration),
    };
    section.finish();
    read
}

fn storage_class(field: &Field<'_>, claims: bool) -> Result<String, Fault> {
    if !claims {
        return fault(
            "there is nothing that it would be the class of",
            "write outputs: claim, too",
        );
    }
    field.text()
}

fn helper_image(name: &str) -> Result<ImageRef, Fault> {
    ImageRef::parse(name).or_else(|error| {
        fault(
            error.message().to_owned(),
            "write where the cluster finds what `v6-node helper-image` has written, such as \
             registry.example.org/v6-helper:1",
        )
    })
}

/// Names and values that the cluster judges.
fn pairs(section: &Section<'_>) -> BTreeMap<String, String> {
    let entries = section.entries();
    let pairs = entries.filter_map(|(name, field)| {
        let value = section.check(&field, field.text())?;
        Some((name.to_owned(), value))
    });
    pairs.collect()
}
