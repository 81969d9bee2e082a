//! What the node must know of a run besides what the engine knows; it travels with the run's
//! record as annotations, so that a restarted node needs nothing else.

use serde::{Deserialize, Serialize};
use v6_runtime::{Annotations, Error, ErrorKind, GrantName, RunId};

use crate::hq::{Action, OpenRun, UnknownWord};

/// The annotation that holds the whole context as JSON.
const KEY: &str = "vantage6.run";
/// The annotation with HQ's word for the step type alone, for what an engine does by step.
pub const STEP: &str = "vantage6.step";
/// Changed when an older node could not read what a newer one writes.
const VERSION: u32 = 1;

/// A run of HQ, as far as it concerns what happens after its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunContext {
    version: u32,
    /// HQ's id of the run.
    pub run: i64,
    /// HQ's id of the task.
    pub task: i64,
    /// The task whose algorithm created this one.
    pub parent: Option<i64>,
    /// The organization that receives the result; the value is encrypted for it.
    pub init_org: Option<i64>,
    /// HQ's word for the step type.
    pub action: String,
    /// The function that is called.
    pub method: String,
    /// The image as HQ named it.
    pub image: String,
    /// The session it works in.
    pub session: Option<i64>,
    /// The dataframe that it writes.
    pub dataframe: Option<DataframeTarget>,
    /// Where each egress grant of the run leads.
    pub destinations: Vec<Destination>,
    /// Whether its output may be shown to HQ.
    pub share_logs: bool,
    /// The most bytes that its result may have.
    pub output_limit: u64,
}

/// The dataframe that an extraction or preprocessing writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataframeTarget {
    /// HQ's id.
    pub id: i64,
    /// Its name in the session.
    pub name: String,
}

/// Where one grant leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The grant's name.
    pub grant: GrantName,
    /// What is behind it.
    pub to: Target,
}

/// What is behind a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The node's proxy to HQ.
    Proxy,
    /// A host and port that the operator allows.
    Address {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
}

impl RunContext {
    /// The context of a run that HQ has for this node.
    ///
    /// # Errors
    /// An action that this node does not know.
    pub fn of(run: &OpenRun, share_logs: bool, output_limit: u64) -> Result<Self, UnknownWord> {
        run.task.action()?;
        let dataframe = run.task.dataframe.as_ref();
        Ok(Self {
            version: VERSION,
            run: run.id,
            task: run.task.id,
            parent: run.task.parent,
            init_org: run.task.init_org,
            action: run.task.action_word.clone(),
            method: run.task.method.clone(),
            image: run.task.image.clone(),
            session: run.task.session,
            dataframe: dataframe.map(|df| DataframeTarget {
                id: df.id,
                name: df.name.clone(),
            }),
            destinations: Vec::new(),
            share_logs,
            output_limit,
        })
    }

    /// The step type.
    ///
    /// # Errors
    /// As [`of`](Self::of); a context that was made has a known one.
    pub fn action(&self) -> Result<Action, UnknownWord> {
        self.action.parse()
    }

    /// The name of the run at the engine.
    ///
    /// # Panics
    /// Never: a number makes a name.
    #[must_use]
    pub fn run_id(&self) -> RunId {
        run_id(self.run)
    }

    /// Where a grant leads.
    #[must_use]
    pub fn destination(&self, grant: &GrantName) -> Option<&Target> {
        self.destinations
            .iter()
            .find(|d| d.grant == *grant)
            .map(|d| &d.to)
    }

    /// The context as annotations.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] if it cannot be written.
    pub fn to_annotations(&self) -> Result<Annotations, Error> {
        let json = serde_json::to_string(self).map_err(|error| {
            Error::new(
                ErrorKind::Unexpected,
                "the run's context could not be written",
            )
            .with_source(error)
        })?;
        let pairs = [(KEY, json), (STEP, self.action.clone())];
        Ok(pairs.into_iter().collect())
    }

    /// The context in the annotations of a record.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] if there is none, or a newer node wrote it.
    pub fn from_annotations(annotations: &Annotations) -> Result<Self, Error> {
        let bad = |why: &str| Error::new(ErrorKind::Protocol, why);
        let json = annotations
            .get(KEY)
            .ok_or_else(|| bad("the run's record has no context of a vantage6 run"))?;
        let context: Self = serde_json::from_str(json).map_err(|error| {
            bad("the context in the run's record cannot be read").with_source(error)
        })?;
        if context.version != VERSION {
            return Err(bad(
                "the context in the run's record is of another version of v6-node",
            ));
        }
        Ok(context)
    }
}

/// The name at the engine of HQ's run `id`. The owner tells nodes and servers apart.
#[must_use]
pub fn run_id(id: i64) -> RunId {
    RunId::new(format!("run-{}", id.unsigned_abs())).expect("digits after a letter are a name")
}
