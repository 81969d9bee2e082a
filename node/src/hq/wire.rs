//! JSON as HQ 5.0 writes and reads it (protocol 2.3 to 2.5). Whatever may be null or
//! missing there is optional here; unknown fields are left alone.

use serde::{Deserialize, Serialize};

use super::time::iso_utc;
use super::types::{
    AlgorithmStore, Collaboration, Identity, OpenRun, Organization, RunPatch, RunState, Task,
    TaskDatabase, TaskDataframe,
};

#[derive(Deserialize)]
pub(super) struct Ref {
    id: i64,
}

fn id(of: Option<Ref>) -> Option<i64> {
    of.map(|Ref { id }| id)
}

#[derive(Deserialize)]
pub(super) struct NodeMe {
    id: i64,
    name: String,
    organization: Ref,
    collaboration: Ref,
}

impl From<NodeMe> for Identity {
    fn from(wire: NodeMe) -> Self {
        let NodeMe {
            id,
            name,
            organization,
            collaboration,
        } = wire;
        Self {
            node: id,
            node_name: name,
            organization: organization.id,
            collaboration: collaboration.id,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WireOrganization {
    id: i64,
    name: Option<String>,
    public_key: Option<String>,
}

impl From<WireOrganization> for Organization {
    fn from(wire: WireOrganization) -> Self {
        let WireOrganization {
            id,
            name,
            public_key,
        } = wire;
        Self {
            id,
            name: name.unwrap_or_default(),
            public_key: public_key.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WireCollaboration {
    id: i64,
    name: Option<String>,
    encrypted: bool,
}

impl From<WireCollaboration> for Collaboration {
    fn from(wire: WireCollaboration) -> Self {
        let WireCollaboration {
            id,
            name,
            encrypted,
        } = wire;
        Self {
            id,
            name: name.unwrap_or_default(),
            encrypted,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WireStore {
    id: i64,
    url: String,
    api_path: Option<String>,
}

impl From<WireStore> for AlgorithmStore {
    fn from(wire: WireStore) -> Self {
        let WireStore { id, url, api_path } = wire;
        Self {
            id,
            url,
            api_path: api_path.unwrap_or_default(),
        }
    }
}

/// A page of a list. Items are read one by one, so that one that makes no sense does not
/// hide the others.
#[derive(Deserialize)]
pub(super) struct Page {
    pub data: Vec<serde_json::Value>,
    #[serde(default)]
    pub links: Links,
}

#[derive(Deserialize, Default)]
pub(super) struct Links {
    pub next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct WireRunState {
    id: i64,
    status: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
}

impl From<WireRunState> for RunState {
    fn from(wire: WireRunState) -> Self {
        let WireRunState {
            id,
            status,
            started_at,
            finished_at,
        } = wire;
        Self {
            id,
            status: status.unwrap_or_default(),
            started_at,
            finished_at,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WireOpenRun {
    id: i64,
    status: Option<String>,
    arguments: Option<String>,
    #[serde(default)]
    blob_storage_used: Option<bool>,
    started_at: Option<String>,
    pub finished_at: Option<String>,
    log: Option<String>,
    task: WireTask,
}

impl From<WireOpenRun> for OpenRun {
    fn from(wire: WireOpenRun) -> Self {
        let WireOpenRun {
            id,
            status,
            arguments,
            blob_storage_used,
            started_at,
            finished_at: _,
            log,
            task,
        } = wire;
        Self {
            id,
            status: status.unwrap_or_default(),
            arguments,
            arguments_in_blob: blob_storage_used.unwrap_or_default(),
            started_at,
            log,
            task: task.into(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct WireTask {
    id: i64,
    name: Option<String>,
    image: Option<String>,
    method: Option<String>,
    action: Option<String>,
    parent: Option<Ref>,
    init_org: Option<Ref>,
    init_user: Option<Ref>,
    job_id: Option<i64>,
    session: Option<Ref>,
    algorithm_store: Option<Ref>,
    dataframe: Option<WireDataframe>,
    #[serde(default)]
    databases: Option<Vec<WireDatabase>>,
}

impl From<WireTask> for Task {
    fn from(wire: WireTask) -> Self {
        let WireTask {
            id: own,
            name,
            image,
            method,
            action,
            parent,
            init_org,
            init_user,
            job_id,
            session,
            algorithm_store,
            dataframe,
            databases,
        } = wire;
        Self {
            id: own,
            name: name.unwrap_or_default(),
            image: image.unwrap_or_default(),
            method: method.unwrap_or_default(),
            action_word: action.unwrap_or_default(),
            parent: id(parent),
            init_org: id(init_org),
            init_user: id(init_user),
            job: job_id,
            session: id(session),
            algorithm_store: id(algorithm_store),
            dataframe: dataframe.map(|WireDataframe { id, name, db_label }| TaskDataframe {
                id,
                name: name.unwrap_or_default(),
                db_label,
            }),
            databases: databases
                .unwrap_or_default()
                .into_iter()
                .map(
                    |WireDatabase {
                         label,
                         kind,
                         dataframe_id,
                         dataframe_name,
                         position,
                     }| {
                        TaskDatabase {
                            kind: kind.unwrap_or_default(),
                            label,
                            dataframe_id,
                            dataframe_name,
                            position: position.unwrap_or_default(),
                        }
                    },
                )
                .collect(),
        }
    }
}

#[derive(Deserialize)]
struct WireDataframe {
    id: i64,
    name: Option<String>,
    db_label: Option<String>,
}

#[derive(Deserialize)]
struct WireDatabase {
    label: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    dataframe_id: Option<i64>,
    dataframe_name: Option<String>,
    position: Option<i64>,
}

/// Fields that are not sent are absent: HQ refuses null.
#[derive(Serialize)]
pub(super) struct WirePatch<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
}

impl<'a> From<&'a RunPatch> for WirePatch<'a> {
    fn from(patch: &'a RunPatch) -> Self {
        let RunPatch {
            status,
            started_at,
            finished_at,
            log,
            result,
        } = patch;
        Self {
            status: status.map(|status| status.as_str()),
            started_at: started_at.map(iso_utc),
            finished_at: finished_at.map(iso_utc),
            log: log.as_deref(),
            result: result.as_deref(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ContainerToken {
    pub container_token: String,
}

#[derive(Deserialize)]
pub(super) struct BlobStatus {
    #[serde(default)]
    pub blob_store_enabled: bool,
}

#[derive(Deserialize)]
pub(super) struct Version {
    pub version: String,
}

#[derive(Deserialize)]
pub(super) struct Named {
    pub name: String,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::hq::RunStatus;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn an_open_run_as_recorded() {
        let page: Page =
            serde_json::from_str(include_str!("../../tests/data/hq-5.0.3-open-runs.json")).unwrap();
        assert!(page.links.next.is_none());
        let runs: Vec<OpenRun> = page
            .data
            .into_iter()
            .map(|item| serde_json::from_value::<WireOpenRun>(item).unwrap().into())
            .collect();
        let run = &runs[0];
        assert_eq!((run.id, run.task.id, run.task.init_org), (3, 2, Some(2)));
        assert_eq!(run.task.action(), Ok(crate::hq::Action::FederatedCompute));
        assert_eq!(
            run.task.dataframe_groups(),
            Some(vec![vec!["eager_brattain".to_owned()]])
        );
        assert_eq!(run.task.source_label(), None);
        let extraction = &runs[1].task;
        assert_eq!(extraction.source_label(), Some("default"));
        assert_eq!(extraction.dataframe_groups(), None);
        assert_eq!(
            extraction.dataframe.as_ref().unwrap().name,
            "eager_brattain"
        );
    }

    /// Objects that were deleted at HQ leave null behind.
    #[test]
    fn nulls_are_tolerated() {
        let text = r#"{"id": 7, "status": null, "arguments": null, "blob_storage_used": null,
            "started_at": null, "finished_at": null, "log": null, "task": {"id": 4, "name": null,
            "image": "i", "method": null, "action": "central_compute", "parent": null,
            "init_org": null, "init_user": null, "job_id": null, "session": null, "study": null,
            "algorithm_store": null, "dataframe": null, "databases": null}}"#;
        let run: OpenRun = serde_json::from_str::<WireOpenRun>(text).unwrap().into();
        assert_eq!(
            (run.id, run.arguments, run.task.session, run.task.init_user),
            (7, None, None, None)
        );
        assert_eq!(run.task.dataframe_groups(), Some(Vec::new()));
    }

    #[test]
    fn groups_follow_position() {
        let item = |name: &str, position| TaskDatabase {
            kind: "dataframe".to_owned(),
            label: None,
            dataframe_id: None,
            dataframe_name: Some(name.to_owned()),
            position,
        };
        let text = r#"{"id": 4}"#;
        let mut task: Task = serde_json::from_str::<WireTask>(text).unwrap().into();
        task.databases = vec![item("c", 1), item("a", 0), item("b", 0)];
        assert_eq!(
            task.dataframe_groups(),
            Some(vec![
                vec!["a".to_owned(), "b".to_owned()],
                vec!["c".to_owned()]
            ])
        );
    }

    #[test]
    fn a_patch_never_holds_null() {
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let json = |patch: &RunPatch| serde_json::to_string(&WirePatch::from(patch)).unwrap();
        assert_eq!(
            json(&RunPatch::claim(now)),
            r#"{"status":"initializing","started_at":"1970-01-01T00:00:01.000000+00:00"}"#
        );
        assert_eq!(json(&RunPatch::active(None)), r#"{"status":"active"}"#);
        assert_eq!(
            json(&RunPatch::finished(
                RunStatus::NoImage,
                now,
                "l".to_owned(),
                String::new()
            )),
            r#"{"status":"non-existing Docker image","finished_at":"1970-01-01T00:00:01.000000+00:00","log":"l","result":""}"#
        );
        assert_eq!(json(&RunPatch::log_only("l".to_owned())), r#"{"log":"l"}"#);
    }
}
