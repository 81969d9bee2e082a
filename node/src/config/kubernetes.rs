//! The `runtime.kubernetes:` section.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use v6_runtime::ImageRef;

use super::database::absolute;
use super::limits::or_none;
use super::reader::{Context, Fault, Field, Section, fault};
use super::runtime::choice;
use super::singularity::image_name;
use super::types::{Kubernetes, Placement};
use crate::backends;
use crate::hq::Action;

pub(super) fn read(context: &Context, section: &Section<'_>) -> Kubernetes {
    let word = |key| section.read(key, |field| field.text());
    let words = |key| section.list(key, |field| field.text()).unwrap_or_default();
    let gate = section.read("gate", |field| {
        choice(field, &["denial", "off"], |word| word)
    });
    let own = section.section("images");
    let images = own.entries().filter_map(|(name, field)| {
        let entry = Section::open(context, &field);
        let read = placement(&entry);
        entry.finish();
        let name = own.check(&field, image_name(name))?;
        Some((name, read))
    });
    let by_step = section.section("steps");
    let steps = Action::ALL.iter().map(|action| {
        let own = by_step.section(action.as_str());
        let read = placement(&own);
        own.finish();
        (*action, read)
    });
    let steps = steps.filter(|(_, read)| *read != Placement::default());
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
        placement: placement(section),
        steps: steps.collect(),
        images: images.collect(),
        booked_cpu_milli: section
            .read("booked_cpus", Field::cpus)
            .and_then(NonZeroU32::new),
        helper_cpu_milli: section
            .read("helper_cpus", Field::cpus)
            .and_then(NonZeroU32::new),
        ephemeral_storage_bytes: section
            .read("ephemeral_storage", Field::size)
            .and_then(NonZeroU64::new),
        gpu: word("gpu"),
        user_namespaces: section
            .read("user_namespaces", Field::boolean)
            .unwrap_or_default(),
        requests_per_second: section
            .read("requests_per_second", |field| field.integer(1..=10_000))
            .and_then(NonZeroU32::new),
        gate: gate != Some("off"),
        canary: section.read("canary", |field| or_none(field, Field::duration)),
        claims,
        storage_class: section.read("storage_class", |field| storage_class(field, claims)),
        start_timeout: section.read("start_timeout", Field::duration),
        pull_timeout: section.read("pull_timeout", Field::duration),
    };
    by_step.finish();
    section.finish();
    read
}

fn placement(section: &Section<'_>) -> Placement {
    let word = |key| section.read(key, |field| field.text());
    Placement {
        node_selector: pairs(&section.section("node_selector")),
        tolerations: section.read("tolerations", |field| {
            judged(field, backends::judge_tolerations)
        }),
        affinity: section.read("affinity", |field| judged(field, backends::judge_affinity)),
        labels: pairs(&section.section("labels")),
        annotations: pairs(&section.section("annotations")),
        runtime_class: word("runtime_class"),
        priority_class: word("priority_class"),
    }
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

/// What the cluster's API has a type for, if it fits.
fn judged(
    field: &Field<'_>,
    judge: impl FnOnce(&serde_json::Value) -> v6_runtime::Result<()>,
) -> Result<serde_json::Value, Fault> {
    let value = field.json();
    match judge(&value) {
        Ok(()) => Ok(value),
        Err(error) => fault(
            error.message().to_owned(),
            "write it as in the `spec` of a Pod (kubectl explain pod.spec)",
        ),
    }
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
