//! The record of a run, a labelled volume, and the marks beside it.
//!
//! Owners and run ids have no dot, so that no two names below ever meet.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use bollard::models::Volume;
use serde::{Deserialize, Serialize};
use v6_runtime::{
    Annotations, EgressGrant, OutputKind, OutputName, Owner, ResolvedImage, RunId, RunSpec,
    SpecDigest, StartFailure, StartFailureCause,
};

use crate::error::{Error, Result};
use crate::time;

/// The version of the labels; another one is not read.
const SCHEMA: &str = "1";

const SCHEMA_LABEL: &str = "v6-runtime.schema";
const OWNER: &str = "v6-runtime.owner";
const RUN: &str = "v6-runtime.run";
const PART: &str = "v6-runtime.part";
const ATTEMPT: &str = "v6-runtime.attempt";
const SPEC: &str = "v6-runtime.spec";
const IMAGE: &str = "v6-runtime.image";
const ANNOTATIONS: &str = "v6-runtime.annotations";
const EGRESS: &str = "v6-runtime.egress";
const OUTPUTS: &str = "v6-runtime.outputs";
const DEADLINE: &str = "v6-runtime.deadline";
const GRACE: &str = "v6-runtime.grace";
const CREATED: &str = "v6-runtime.created";
const AT: &str = "v6-runtime.at";
const CAUSE: &str = "v6-runtime.cause";
const MESSAGE: &str = "v6-runtime.message";

/// What an object of the engine is to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// The volume that is the record and holds the files.
    Record,
    /// The container that runs the program.
    Run,
    /// The container, never started, through which the files are put. It is there as long as the
    /// program has surely not been started.
    Files,
    /// The volume that says: cancelled.
    Cancelled,
    /// The volume that says: the deadline has passed.
    Deadline,
    /// The volume that says: it could not be started, and why.
    Failed,
    /// The volume that says: both record and container for files were made. Only where that takes
    /// two calls.
    Stored,
}

impl Part {
    pub(crate) const MARKS: [Self; 3] = [Self::Cancelled, Self::Deadline, Self::Failed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Run => "run",
            Self::Files => "files",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
            Self::Failed => "failed",
            Self::Stored => "stored",
        }
    }
}

/// The engine's name of one part of a run.
pub(crate) fn name(owner: &Owner, run: &RunId, part: Part) -> String {
    match part {
        Part::Record | Part::Run => format!("v6-{owner}.{run}"),
        part => format!("v6-{owner}.{run}.{}", part.as_str()),
    }
}

/// The filter that finds all objects of an owner.
pub(crate) fn of_owner(owner: &Owner) -> Vec<String> {
    vec![
        format!("{OWNER}={owner}"),
        format!("{SCHEMA_LABEL}={SCHEMA}"),
    ]
}

/// The filter that finds all objects of one run.
pub(crate) fn of_run(owner: &Owner, run: &RunId) -> Vec<String> {
    let mut labels = of_owner(owner);
    labels.push(format!("{RUN}={run}"));
    labels
}

/// Which run and part the labels speak of, if they and the name are of this owner.
pub(crate) fn identify(
    owner: &Owner,
    name_seen: &str,
    labels: &HashMap<String, String>,
) -> Option<(RunId, Part)> {
    let get = |label: &str| labels.get(label).map(String::as_str);
    if get(OWNER)? != owner.as_str() || get(SCHEMA_LABEL)? != SCHEMA {
        return None;
    }
    let run = RunId::new(get(RUN)?).ok()?;
    let part = [Part::Record, Part::Run, Part::Files, Part::Stored]
        .into_iter()
        .chain(Part::MARKS)
        .find(|part| Some(part.as_str()) == get(PART))?;
    (name(owner, &run, part) == name_seen.trim_start_matches('/')).then_some((run, part))
}

/// Whether labels are of this kind at all, whoever the owner.
pub(crate) fn is_any(labels: &HashMap<String, String>) -> bool {
    labels.contains_key(OWNER)
}

/// Which attempt at a run the labels belong to.
pub(crate) fn attempt(labels: &HashMap<String, String>) -> Option<&str> {
    labels.get(ATTEMPT).map(String::as_str)
}

/// An output as the record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredOutput {
    /// Its place below `out/` in the volume.
    pub(crate) index: usize,
    pub(crate) folder: bool,
    pub(crate) limit: NonZeroU64,
    /// For a folder: what is mounted below it, by relative path, and is not collected.
    #[serde(default)]
    pub(crate) skip: Vec<String>,
}

/// All that is kept of a run apart from its files.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: RunId,
    pub(crate) attempt: String,
    pub(crate) spec: SpecDigest,
    pub(crate) image: ResolvedImage,
    pub(crate) annotations: Annotations,
    pub(crate) egress: Vec<EgressGrant>,
    pub(crate) outputs: BTreeMap<OutputName, StoredOutput>,
    pub(crate) deadline: Option<SystemTime>,
    pub(crate) grace: Duration,
    pub(crate) created: SystemTime,
}

impl Record {
    /// A record of a new attempt.
    pub(crate) fn new(id: &RunId, spec: &RunSpec, now: SystemTime) -> Self {
        let outputs = spec.outputs.iter().enumerate();
        let outputs = outputs.map(|(index, (name, output))| {
            let given = |mount: &&v6_runtime::Mount| {
                // Given content that may be changed is the beginning of the output.
                !(mount.is_given() && mount.access == v6_runtime::Access::ReadWrite)
            };
            let mounts = spec.mounts.iter().filter(given).map(|mount| &mount.target);
            let others = spec.outputs.values().map(|other| &other.path);
            let below = mounts.chain(others);
            let skip = below.filter_map(|path| path.relative_to(&output.path));
            let stored = StoredOutput {
                index,
                folder: output.kind == OutputKind::Folder,
                limit: output.limit,
                skip: skip.map(str::to_owned).collect(),
            };
            (name.clone(), stored)
        });
        Self {
            id: id.clone(),
            attempt: format!("{:032x}", rand::random::<u128>()),
            spec: SpecDigest::of(spec),
            image: spec.image.clone(),
            annotations: spec.annotations.clone(),
            egress: spec.egress.clone(),
            outputs: outputs.collect(),
            deadline: spec.deadline,
            grace: spec.grace,
            created: now,
        }
    }

    /// The labels of the record itself.
    pub(crate) fn labels(&self, owner: &Owner) -> Result<HashMap<String, String>> {
        let mut labels = self.labels_of(owner, Part::Record);
        let mut set = |label: &str, value: String| labels.insert(label.to_owned(), value);
        set(SPEC, self.spec.to_string());
        set(IMAGE, self.json(&self.image)?);
        set(ANNOTATIONS, self.json(&self.annotations)?);
        set(EGRESS, self.json(&self.egress)?);
        set(OUTPUTS, self.json(&self.outputs)?);
        set(GRACE, self.grace.as_nanos().to_string());
        set(CREATED, time::to_label(self.created));
        if let Some(deadline) = self.deadline {
            set(DEADLINE, time::to_label(deadline));
        }
        Ok(labels)
    }

    /// The labels that tell whose an object is.
    pub(crate) fn labels_of(&self, owner: &Owner, part: Part) -> HashMap<String, String> {
        [
            (SCHEMA_LABEL, SCHEMA),
            (OWNER, owner.as_str()),
            (RUN, self.id.as_str()),
            (PART, part.as_str()),
            (ATTEMPT, &self.attempt),
        ]
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .collect()
    }

    fn json(&self, value: &impl Serialize) -> Result<String> {
        serde_json::to_string(value).map_err(|error| Error::Record {
            name: self.id.to_string(),
            why: error.to_string(),
        })
    }

    /// Reads the labels of a volume that [`identify`] recognized.
    pub(crate) fn read(id: RunId, volume: &Volume) -> Result<Self> {
        let bad = |why: String| Error::Record {
            name: volume.name.clone(),
            why,
        };
        let find = |label: &str| volume.labels.get(label).map(String::as_str);
        let get = |label: &str| find(label).ok_or_else(|| bad(format!("{label} is missing")));
        fn json<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, String> {
            serde_json::from_str(text).map_err(|error| error.to_string())
        }
        let when = |label: &str, text: &str| {
            time::from_label(text).ok_or_else(|| bad(format!("{label} is {text:?}")))
        };
        let deadline = match find(DEADLINE) {
            Some(text) => Some(when(DEADLINE, text)?),
            None => None,
        };
        Ok(Self {
            attempt: get(ATTEMPT)?.to_owned(),
            spec: get(SPEC)?.parse()?,
            image: json(get(IMAGE)?).map_err(bad)?,
            annotations: json(get(ANNOTATIONS)?).map_err(bad)?,
            egress: json(get(EGRESS)?).map_err(bad)?,
            outputs: json(get(OUTPUTS)?).map_err(bad)?,
            grace: nanos(get(GRACE)?).ok_or_else(|| bad(format!("{GRACE} is no number")))?,
            created: when(CREATED, get(CREATED)?)?,
            deadline,
            id,
        })
    }
}

fn nanos(text: &str) -> Option<Duration> {
    let nanos: u128 = text.parse().ok()?;
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(
        seconds,
        u32::try_from(nanos % 1_000_000_000).ok()?,
    ))
}

/// What has been noted about a run since its record was made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    pub(crate) cancelled: Option<Stop>,
    pub(crate) deadline: Option<Stop>,
    pub(crate) failed: Option<StartFailure>,
}

/// When a run was told to end, and how long it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) at: SystemTime,
    pub(crate) grace: Duration,
}

impl Stop {
    pub(crate) fn labels(&self, base: HashMap<String, String>) -> HashMap<String, String> {
        let mut labels = base;
        labels.insert(AT.to_owned(), time::to_label(self.at));
        labels.insert(GRACE.to_owned(), self.grace.as_nanos().to_string());
        labels
    }

    fn read(labels: &HashMap<String, String>) -> Option<Self> {
        Some(Self {
            at: time::from_label(labels.get(AT)?)?,
            grace: nanos(labels.get(GRACE)?)?,
        })
    }
}

/// The labels of a mark that says why a run could not be started.
pub(crate) fn failure_labels(
    failure: &StartFailure,
    base: HashMap<String, String>,
) -> Result<HashMap<String, String>> {
    let mut labels = base;
    let cause = serde_json::to_string(&failure.cause).map_err(|error| Error::Record {
        name: "a failed start".into(),
        why: error.to_string(),
    })?;
    labels.insert(CAUSE.to_owned(), cause);
    labels.insert(MESSAGE.to_owned(), failure.message.clone());
    Ok(labels)
}

impl Marks {
    /// Takes in one mark. A mark of an earlier attempt says nothing about this one.
    pub(crate) fn add(&mut self, part: Part, labels: &HashMap<String, String>, record: &Record) {
        if attempt(labels) != Some(&record.attempt) {
            return;
        }
        match part {
            Part::Cancelled => self.cancelled = Stop::read(labels),
            Part::Deadline => self.deadline = Stop::read(labels),
            Part::Failed => {
                let cause = labels.get(CAUSE).and_then(|c| serde_json::from_str(c).ok());
                self.failed = Some(StartFailure::new(
                    cause.unwrap_or(StartFailureCause::Engine),
                    labels.get(MESSAGE).cloned().unwrap_or_default(),
                ));
            }
            Part::Record | Part::Run | Part::Files | Part::Stored => {}
        }
    }
}
