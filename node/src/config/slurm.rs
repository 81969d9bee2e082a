//! The `runtime.slurm:` section.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use super::database::absolute;
use super::reader::{Context, Fault, Field, Section, fault};
use super::singularity::image_name;
use super::types::{Listen, Slurm, SlurmAsk};
use crate::hq::Action;

const JOBS: u32 = 100;
/// The system hands these out by itself; sites open such a range, or a part of it, between their hosts.
const PORTS: RangeInclusive<u16> = 49_152..=65_535;

pub(super) fn read(context: &Context, section: &Section<'_>) -> Slurm {
    let path = |field: &Field<'_>| field.text().map(|text| absolute(context.directory(), text));
    let own = section.section("images");
    let images = own.entries().filter_map(|(name, field)| {
        let entry = Section::open(context, &field);
        let asked = ask(&entry);
        entry.finish();
        let name = own.check(&field, image_name(name))?;
        Some((name, asked))
    });
    let by_step = section.section("steps");
    let steps = Action::ALL.iter().map(|action| {
        let own = by_step.section(action.as_str());
        let asked = ask(&own);
        own.finish();
        (*action, asked)
    });
    let steps = steps.filter(|(_, asked)| *asked != SlurmAsk::default());
    let steps = steps.collect();
    by_step.finish();
    let read = Slurm {
        commands: section.read("commands", path),
        conf: section.read("conf", path),
        ask: ask(section),
        steps,
        images: images.collect(),
        max_jobs: section
            .read("max_jobs", |field| field.integer(1..=100_000))
            .unwrap_or(JOBS),
        listen: listen(&section.section("listen")),
    };
    section.finish();
    read
}

/// What a job asks for.
fn ask(section: &Section<'_>) -> SlurmAsk {
    let word = |key| section.read(key, |field| field.text());
    SlurmAsk {
        partition: word("partition"),
        account: word("account"),
        qos: word("qos"),
        constraint: word("constraint"),
        gres: word("gres"),
        cpus: section
            .read("cpus", |field| field.integer(1..=65_536))
            .and_then(NonZeroU32::new),
        time_limit: section.read("time_limit", Field::duration),
        arguments: section
            .list("arguments", |field| field.text())
            .unwrap_or_default(),
    }
}

fn listen(section: &Section<'_>) -> Option<Listen> {
    let address = section.read("address", |field| {
        field.parse(|text| {
            text.parse::<IpAddr>().or_else(|_| {
                fault(
                    format!("\"{text}\" is not an address"),
                    "write the address of this host that the compute nodes reach, such as 10.0.0.5",
                )
            })
        })
    });
    let ports = section.read("ports", |field| field.parse(ports));
    section.finish();
    address.map(|address| Listen {
        address,
        ports: ports.unwrap_or(PORTS),
    })
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, Fault> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(first..=last),
        _ => fault(
            format!("\"{text}\" is no range of ports"),
            "write for example 50000-50099, or one port",
        ),
    }
}
