//! The `runtime.run:` and `runtime.total:` sections: what one run gets, and all together.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use v6_runtime::{Gpu, ImageRef};

use super::reader::{Context, Fault, Field, Section, fault};
use super::singularity::image_name;
use super::types::{OwnLimits, RunLimits, Total};
use super::units;
use crate::hq::Action;

/// What a run gets unless the operator says otherwise. Python with a data frame of
/// some million rows fits; what it needs beyond, the operator grants.
const ONE_CPU: NonZeroU32 = NonZeroU32::new(1000).unwrap();
const PIDS: NonZeroU32 = NonZeroU32::new(512).unwrap();
const ONE_GIB: NonZeroU64 = NonZeroU64::new(1 << 30).unwrap();
const TWO_GIB: NonZeroU64 = NonZeroU64::new(2 << 30).unwrap();
const LOG_LIMIT: NonZeroU64 = NonZeroU64::new(16 << 20).unwrap();
/// A central task waits for the slowest of its subtasks.
const SEVEN_DAYS: Duration = Duration::from_secs(7 * 86_400);
const GRACE: Duration = Duration::from_secs(10);

/// What both sections say.
pub(super) struct Limits {
    pub run: RunLimits,
    pub by_step: BTreeMap<Action, OwnLimits>,
    pub by_image: BTreeMap<ImageRef, OwnLimits>,
    pub total: Total,
}

pub(super) fn read(context: &Context, run: &Section<'_>, total: &Section<'_>) -> Limits {
    let total = Sum {
        cpu_milli: total.read("cpus", Field::cpus).and_then(NonZeroU32::new),
        memory_bytes: total.read("memory", Field::size).and_then(NonZeroU64::new),
        section: total,
    };
    let common = own(run).over(RunLimits {
        cpu_milli: Some(ONE_CPU),
        memory_bytes: Some(TWO_GIB),
        pids: Some(PIDS),
        gpus: None,
        scratch_bytes: ONE_GIB,
        output_bytes: ONE_GIB,
        deadline: Some(SEVEN_DAYS),
        grace: GRACE,
        log_bytes: run
            .read("log_limit", Field::size)
            .and_then(NonZeroU64::new)
            .unwrap_or(LOG_LIMIT),
    });
    total.compare(run, Some(common.cpu_milli), Some(common.memory_bytes));
    let exception = |section: &Section<'_>| {
        let own = own(section);
        section.finish();
        total.compare(section, own.cpu_milli, own.memory_bytes);
        own
    };
    let steps = run.section("steps");
    let by_step = Action::ALL.iter().map(|action| {
        let own = exception(&steps.section(action.as_str()));
        (*action, own)
    });
    let by_step = by_step.filter(|(_, own)| *own != OwnLimits::default());
    let by_step = by_step.collect();
    steps.finish();
    let images = run.section("images");
    let by_image = images.entries().filter_map(|(name, field)| {
        let own = exception(&Section::open(context, &field));
        let name = images.check(&field, image_name(name))?;
        Some((name, own))
    });
    let by_image = by_image.collect();
    run.finish();
    Limits {
        run: common,
        by_step,
        by_image,
        total: total.finish(),
    }
}

/// What a section says of one run.
fn own(section: &Section<'_>) -> OwnLimits {
    let size = |key| section.read(key, Field::size).and_then(NonZeroU64::new);
    let cpus = section.read("cpus", |field| or_none(field, Field::cpus));
    let memory = section.read("memory", |field| or_none(field, Field::size));
    let pids = section.read("pids", |field| {
        or_none(field, |field| field.integer(1..=4_194_304))
    });
    OwnLimits {
        cpu_milli: cpus.map(|cpus| cpus.and_then(NonZeroU32::new)),
        memory_bytes: memory.map(|size| size.and_then(NonZeroU64::new)),
        pids: pids.map(|pids| pids.and_then(NonZeroU32::new)),
        gpus: section.read("gpus", |field| or_none(field, gpus)),
        scratch_bytes: size("scratch"),
        output_bytes: size("max_output"),
        deadline: section.read("deadline", |field| or_none(field, Field::duration)),
        grace: section.read("grace", Field::duration),
    }
}

/// A value, or the word `none` for no limit.
pub(super) fn or_none<'a, T>(
    field: &Field<'a>,
    read: impl FnOnce(&Field<'a>) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    match field.text()?.as_str() {
        "none" => Ok(None),
        _ => read(field).map(Some),
    }
}

/// A number of accelerators, or the word `all`.
fn gpus(field: &Field<'_>) -> Result<Gpu, Fault> {
    if field.text()? == "all" {
        return Ok(Gpu::All);
    }
    let count = field.integer(1..=1024)?;
    Ok(Gpu::Count(
        NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN),
    ))
}

/// What all runs together may take, as it is compared with what one takes.
struct Sum<'a> {
    section: &'a Section<'a>,
    cpu_milli: Option<NonZeroU32>,
    memory_bytes: Option<NonZeroU64>,
}

impl Sum<'_> {
    /// A run without a limit has no part in a sum, and one that is larger than the sum would wait until
    /// nothing else runs.
    fn compare(
        &self,
        of: &Section<'_>,
        cpu_milli: Option<Option<NonZeroU32>>,
        memory_bytes: Option<Option<NonZeroU64>>,
    ) {
        let cpus = self.section.get("cpus").zip(self.cpu_milli);
        if let (Some((field, sum)), Some(one)) = (cpus, cpu_milli) {
            let fits = one.is_some_and(|milli| milli <= sum);
            let needed = one.map(|milli| format!("{milli}m"));
            let fits = at_least(&of.path_of("cpus"), fits, needed);
            self.section.check(&field, fits);
        }
        let memory = self.section.get("memory").zip(self.memory_bytes);
        if let (Some((field, sum)), Some(one)) = (memory, memory_bytes) {
            let fits = one.is_some_and(|bytes| bytes <= sum);
            let needed = one.map(|bytes| units::show_size(bytes.get()));
            let fits = at_least(&of.path_of("memory"), fits, needed);
            self.section.check(&field, fits);
        }
    }

    fn finish(self) -> Total {
        self.section.finish();
        Total {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
        }
    }
}

fn at_least(key: &str, fits: bool, needed: Option<String>) -> Result<(), Fault> {
    match needed {
        _ if fits => Ok(()),
        None => fault(
            format!("one run has no limit ({key}: none), so that no sum can be kept"),
            format!("remove it, or give {key} a value"),
        ),
        Some(needed) => fault(
            "it is less than one run needs, which would wait for ever",
            format!("write at least {needed}, or lower {key}"),
        ),
    }
}
