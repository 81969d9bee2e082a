//! The record of a run: the pod itself, which carries a finalizer of ours, so that nothing but
//! `cleanup` takes it away, and what is noted about the run as annotations.
//!
//! Owners and run ids have no dot, so that no two names below ever meet.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use v6_runtime::{
    Annotations, EgressGrant, OutputKind, OutputName, Owner, ResolvedImage, RunId, RunSpec,
    SpecDigest, StartFailure,
};

use crate::error::{Error, Result};
use crate::time;

/// The version of the record; another one is not read.
const SCHEMA: &str = "1";

/// Keeps the pod until `cleanup` has taken everything else away.
pub(crate) const FINALIZER: &str = "v6-runtime/record";
/// Keeps the pod from being given to a machine before its input is stored.
pub(crate) const INPUT_GATE: &str = "v6-runtime/input";

const SCHEMA_LABEL: &str = "v6-runtime.schema";
pub(crate) const OWNER: &str = "v6-runtime.owner";
const RUN: &str = "v6-runtime.run";
/// What the standing NetworkPolicy selects.
pub(crate) const PART: &str = "v6-runtime.part";
pub(crate) const PART_RUN: &str = "run";
const PART_SECRET: &str = "secret";
const PART_CLAIM: &str = "claim";
/// On pods that read outputs, which are no record: they lack the version of one.
const READER: &str = "v6-runtime.reader";
/// A pod that shows whether the policy works, and which look it belongs to.
pub(crate) const CANARY: &str = "v6-runtime.canary";
const PART_CONTROL: &str = "control";

const ATTEMPT: &str = "v6-runtime.attempt";
const SPEC: &str = "v6-runtime.spec";
const IMAGE: &str = "v6-runtime.image";
const ANNOTATIONS: &str = "v6-runtime.annotations";
const EGRESS: &str = "v6-runtime.egress";
const OUTPUTS: &str = "v6-runtime.outputs";
const DEADLINE: &str = "v6-runtime.deadline";
const GRACE: &str = "v6-runtime.grace";
const CREATED: &str = "v6-runtime.created";
const STREAMS: &str = "v6-runtime.streams";
const SECRETS: &str = "v6-runtime.secrets";
/// Who is bringing the input, and when he last said so.
const DRIVER: &str = "v6-runtime.driver";
/// All input is there: the run goes on without anybody's help.
pub(crate) const STORED: &str = "v6-runtime.stored";
const CANCELLED: &str = "v6-runtime.cancelled";
const FAILED: &str = "v6-runtime.failed";
const REMOVING: &str = "v6-runtime.removing";

/// The cluster's name of a run's pod.
pub(crate) fn name(owner: &Owner, run: &RunId) -> String {
    format!("v6-{owner}.{run}")
}

/// Name and labels of a pod that the policy takes for a run's, though it is nobody's run, and of one that it
/// does not select.
pub(crate) fn canary(mark: &str, denied: bool) -> (String, BTreeMap<String, String>) {
    let part = if denied { PART_RUN } else { PART_CONTROL };
    let labels = [(CANARY, mark), (PART, part)];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
    (format!("v6-canary.{mark}.{part}"), labels.into())
}

/// The selector that finds all pods of an owner.
pub(crate) fn of_owner(owner: &Owner) -> String {
    format!("{OWNER}={owner},{SCHEMA_LABEL}={SCHEMA},{PART}={PART_RUN}")
}

/// The selector that finds all claims of an owner.
pub(crate) fn claims_of(owner: &Owner) -> String {
    format!("{OWNER}={owner},{SCHEMA_LABEL}={SCHEMA},{PART}={PART_CLAIM}")
}

/// The selector that finds all pods of an owner that read outputs.
pub(crate) fn readers_of(owner: &Owner) -> String {
    format!("{OWNER}={owner},{READER}=true")
}

/// The name of one of the further objects of a run. Nobody else comes upon it: an attempt is random.
fn part_name(owner: &Owner, run: &RunId, attempt: &str, part: &str) -> String {
    let attempt = attempt.get(..12).unwrap_or_default();
    format!("v6-{owner}.{run}.{attempt}.{part}")
}

/// The name of the claim with the outputs of an attempt.
pub(crate) fn claim_name(owner: &Owner, run: &RunId, attempt: &str) -> String {
    part_name(owner, run, attempt, "out")
}

/// The name of the pod that reads them.
pub(crate) fn reader_name(owner: &Owner, run: &RunId, attempt: &str) -> String {
    part_name(owner, run, attempt, "read")
}

/// Of which run and attempt something is, by its labels, if its owner is this one.
pub(crate) fn part_of<'a>(owner: &Owner, about: &'a ObjectMeta) -> Option<(RunId, &'a str)> {
    let labels = about.labels.as_ref()?;
    let get = |label: &str| labels.get(label).map(String::as_str);
    let run = RunId::new(get(RUN)?).ok()?;
    (get(OWNER)? == owner.as_str()).then_some((run, get(ATTEMPT)?))
}

/// Which run a pod is, if labels and name are of this owner.
pub(crate) fn identify(owner: &Owner, pod: &Pod) -> Option<RunId> {
    let labels = pod.metadata.labels.as_ref()?;
    let get = |label: &str| labels.get(label).map(String::as_str);
    let ours =
        get(OWNER)? == owner.as_str() && get(SCHEMA_LABEL)? == SCHEMA && get(PART)? == PART_RUN;
    let run = RunId::new(get(RUN)?).ok()?;
    (ours && pod.metadata.name.as_deref() == Some(&name(owner, &run))).then_some(run)
}

/// An output as the record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredOutput {
    /// Its place in the volume for outputs.
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
    /// Whether input is brought through the tunnel.
    pub(crate) streams: bool,
    /// How many Secrets it has.
    pub(crate) secrets: usize,
}

impl Record {
    /// A record of a new attempt.
    pub(crate) fn new(id: &RunId, spec: &RunSpec, secrets: usize, now: SystemTime) -> Self {
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
            streams: spec
                .mounts
                .iter()
                .any(|mount| matches!(mount.source, v6_runtime::MountSource::Stream(_))),
            secrets,
        }
    }

    /// The name of one of its Secrets.
    pub(crate) fn secret_name(&self, owner: &Owner, index: usize) -> String {
        part_name(owner, &self.id, &self.attempt, &index.to_string())
    }

    /// The labels of the pod.
    pub(crate) fn labels(&self, owner: &Owner) -> BTreeMap<String, String> {
        self.labels_of(owner, PART_RUN)
    }

    /// The labels of its Secrets.
    pub(crate) fn secret_labels(&self, owner: &Owner) -> BTreeMap<String, String> {
        self.labels_of(owner, PART_SECRET)
    }

    /// The labels of the claim with its outputs.
    pub(crate) fn claim_labels(&self, owner: &Owner) -> BTreeMap<String, String> {
        self.labels_of(owner, PART_CLAIM)
    }

    /// The labels of a pod that reads its outputs: the standing policy denies it the network like any run.
    pub(crate) fn reader_labels(&self, owner: &Owner) -> BTreeMap<String, String> {
        let mut labels = self.labels(owner);
        labels.remove(SCHEMA_LABEL);
        labels.insert(READER.to_owned(), "true".to_owned());
        labels
    }

    fn labels_of(&self, owner: &Owner, part: &str) -> BTreeMap<String, String> {
        [
            (SCHEMA_LABEL, SCHEMA),
            (OWNER, owner.as_str()),
            (RUN, self.id.as_str()),
            (PART, part),
            (ATTEMPT, &self.attempt),
        ]
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .collect()
    }

    /// The annotations of the pod.
    pub(crate) fn annotations(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
        set(SPEC, self.spec.to_string());
        set(IMAGE, self.json(&self.image)?);
        set(ANNOTATIONS, self.json(&self.annotations)?);
        set(EGRESS, self.json(&self.egress)?);
        set(OUTPUTS, self.json(&self.outputs)?);
        set(GRACE, self.grace.as_nanos().to_string());
        set(CREATED, time::to_text(self.created));
        set(STREAMS, self.streams.to_string());
        set(SECRETS, self.secrets.to_string());
        if let Some(deadline) = self.deadline {
            set(DEADLINE, time::to_text(deadline));
        }
        Ok(all)
    }

    fn json(&self, value: &impl Serialize) -> Result<String> {
        serde_json::to_string(value).map_err(|error| Error::Record {
            name: self.id.to_string(),
            why: error.to_string(),
        })
    }

    /// Reads the pod that [`identify`] recognized.
    pub(crate) fn read(id: RunId, pod: &Pod) -> Result<Self> {
        let bad = |why: String| Error::Record {
            name: id.to_string(),
            why,
        };
        let find = |name: &str| annotation(pod, name);
        let get = |name: &str| find(name).ok_or_else(|| bad(format!("{name} is missing")));
        fn json<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, String> {
            serde_json::from_str(text).map_err(|error| error.to_string())
        }
        let when = |name: &str, text: &str| {
            time::from_text(text).ok_or_else(|| bad(format!("{name} is {text:?}")))
        };
        let deadline = match find(DEADLINE) {
            Some(text) => Some(when(DEADLINE, text)?),
            None => None,
        };
        Ok(Self {
            attempt: attempt(pod).unwrap_or_default().to_owned(),
            spec: get(SPEC)?.parse()?,
            image: json(get(IMAGE)?).map_err(bad)?,
            annotations: json(get(ANNOTATIONS)?).map_err(bad)?,
            egress: json(get(EGRESS)?).map_err(bad)?,
            outputs: json(get(OUTPUTS)?).map_err(bad)?,
            grace: nanos(get(GRACE)?).ok_or_else(|| bad(format!("{GRACE} is no number")))?,
            created: when(CREATED, get(CREATED)?)?,
            streams: json(get(STREAMS)?).map_err(bad)?,
            secrets: json(get(SECRETS)?).map_err(bad)?,
            deadline,
            id,
        })
    }
}

/// Which attempt at a run a pod is.
pub(crate) fn attempt(pod: &Pod) -> Option<&str> {
    let labels = pod.metadata.labels.as_ref()?;
    labels.get(ATTEMPT).map(String::as_str)
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

fn nanos(text: &str) -> Option<Duration> {
    let nanos: u128 = text.parse().ok()?;
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(
        seconds,
        u32::try_from(nanos % 1_000_000_000).ok()?,
    ))
}

/// Somebody who is bringing a run's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Driver {
    /// Which value of the runtime.
    pub(crate) who: String,
    /// When it last said so.
    pub(crate) at: SystemTime,
}

impl Driver {
    /// After so long without a word of him, he is gone.
    pub(crate) const SILENCE: Duration = Duration::from_secs(15);
    /// How often he says so.
    pub(crate) const BEAT: Duration = Duration::from_secs(4);

    fn read(text: &str) -> Option<Self> {
        let (who, at) = text.split_once(' ')?;
        let at = time::from_text(at)?;
        let who = who.to_owned();
        Some(Self { who, at })
    }

    /// As an annotation.
    pub(crate) fn annotation(&self) -> (String, String) {
        let text = format!("{} {}", self.who, time::to_text(self.at));
        (DRIVER.to_owned(), text)
    }

    /// The change of a pod that says so again.
    pub(crate) fn note(&self) -> serde_json::Value {
        let (name, value) = self.annotation();
        note(&name, &value)
    }

    /// Whether he may still be there.
    pub(crate) fn is_live(&self, now: SystemTime) -> bool {
        // A clock that runs ahead is no sign of death.
        now.duration_since(self.at).unwrap_or_default() < Self::SILENCE
    }
}

/// What has been noted about a run since its record was made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    pub(crate) driver: Option<Driver>,
    pub(crate) stored: bool,
    pub(crate) cancelled: Option<SystemTime>,
    pub(crate) failed: Option<StartFailure>,
    /// A cleanup has begun: for everybody else there is no such run any more.
    pub(crate) removing: bool,
}

impl Marks {
    pub(crate) fn read(pod: &Pod) -> Self {
        Self {
            driver: annotation(pod, DRIVER).and_then(Driver::read),
            stored: annotation(pod, STORED).is_some(),
            cancelled: annotation(pod, CANCELLED).and_then(time::from_text),
            failed: annotation(pod, FAILED).and_then(|text| serde_json::from_str(text).ok()),
            removing: annotation(pod, REMOVING).is_some(),
        }
    }
}

/// The change of a pod that notes something.
pub(crate) fn note(name: &str, value: &str) -> serde_json::Value {
    serde_json::json!({ "metadata": { "annotations": { name: value } } })
}

/// Notes that a run is to end.
pub(crate) fn note_cancelled(at: SystemTime) -> serde_json::Value {
    note(CANCELLED, &time::to_text(at))
}

/// Notes that a run cannot be started.
pub(crate) fn note_failed(failure: &StartFailure) -> Result<serde_json::Value> {
    let text = serde_json::to_string(failure).map_err(|error| Error::Record {
        name: "a failed start".into(),
        why: error.to_string(),
    })?;
    Ok(note(FAILED, &text))
}

/// Notes that a cleanup of this very pod has begun.
pub(crate) fn note_removing(uid: &str) -> serde_json::Value {
    let mut change = note(REMOVING, "true");
    change["metadata"]["uid"] = uid.into();
    change
}

/// Notes that all input is there, and lets the pod go to a machine.
pub(crate) fn note_stored(release: bool) -> serde_json::Value {
    let mut change = note(STORED, "true");
    if release {
        change["spec"] = serde_json::json!({ "schedulingGates": null });
    }
    change
}

/// Lets the pod go to a machine, where its input will be brought to it.
pub(crate) fn release() -> serde_json::Value {
    serde_json::json!({ "spec": { "schedulingGates": null } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_read_as_it_was_noted() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let who = "0123".to_owned();
        let driver = Driver { who, at };
        let (_, text) = driver.annotation();
        assert_eq!(Driver::read(&text), Some(driver));
        for wrong in ["", "0123", "0123 ", "0123 soon", "0123 1.0 2.0"] {
            assert_eq!(Driver::read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_driver_who_is_silent_is_gone() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let driver = Driver {
            who: "0123".to_owned(),
            at,
        };
        assert!(driver.is_live(at + Driver::BEAT));
        assert!(!driver.is_live(at + Driver::SILENCE));
        // Its clock runs ahead of ours.
        assert!(driver.is_live(at - Duration::from_secs(60)));
    }
}
