//! The events of protocol 3.4 and 3.6: their meaning, and their form on the wire.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::socketio;
use super::types::{Identity, RunStatus};

/// Longest packet that is sent. HQ drops a connection on which a frame has more than
/// 1,000,000 bytes.
const LONGEST: usize = 990_000;
/// Longest piece of a log in one packet, as JSON; the rest is for names and ids.
const LONGEST_LOG: usize = LONGEST - 1_000;

/// What HQ tells the node. Only what concerns it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// HQ knows the node, on a new connection or once more: read the open runs, send
    /// [`Emit::NodeInfo`].
    Sync,
    /// There may be open runs of this task; often there are none for this node.
    NewTask {
        /// HQ's id.
        task: i64,
    },
    /// Runs of this node are to be ended.
    Kill(Kill),
    /// A dataframe was deleted at HQ: delete it here too, then send
    /// [`Emit::DataframeDeleted`], also if it was not there.
    DeleteDataframe {
        /// HQ's id.
        session: i64,
        /// Its name; to be checked before it becomes a file's.
        name: String,
    },
    /// A run of the collaboration, of any node, has another status.
    RunStatus {
        /// HQ's id of the run.
        run: i64,
        /// HQ's id of its task.
        task: i64,
        /// HQ's word.
        status: String,
    },
    /// There is no connection; a new one is being made.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
}

/// Which runs are to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kill {
    /// These, which HQ has closed or is about to. Never empty; some may be unknown here.
    Runs(Vec<i64>),
    /// All of this node. HQ does not close their runs: the node must report them.
    Node,
}

/// What this node allows, for HQ to show and to check tasks with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Whether the node encrypts.
    pub encryption: bool,
    /// The configured list; empty means all.
    pub allowed_algorithms: Vec<String>,
    /// Ids of users; empty means all. HQ takes numbers only.
    pub allowed_users: Vec<i64>,
    /// Ids or names of organizations; empty means all.
    pub allowed_organizations: Vec<String>,
    /// Label and type of each database.
    pub databases: BTreeMap<String, String>,
}

/// What the node tells HQ.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Emit {
    /// A run has another status. Send it after HQ has taken the PATCH: `completed` makes
    /// HQ announce the tasks that waited for this one.
    StatusChange {
        /// HQ's id of the run.
        run: i64,
        /// HQ's id of its task.
        task: i64,
        /// The task's parent.
        parent: Option<i64>,
        /// The new status.
        status: RunStatus,
    },
    /// Lines that a run has written. HQ appends a newline. Long ones are sent in pieces.
    Log {
        /// HQ's id of the run.
        run: i64,
        /// HQ's id of its task.
        task: i64,
        /// The text.
        text: String,
    },
    /// What this node allows. HQ forgets it when the connection ends.
    NodeInfo(NodeInfo),
    /// A dataframe is not here any more.
    DataframeDeleted {
        /// HQ's id.
        session: i64,
        /// Its name.
        name: String,
    },
}

/// Why an event was not taken for sending.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// HQ would close the connection.
    #[error("the event is larger than HQ takes")]
    TooLarge,
    /// Too many events wait already.
    #[error("too many events wait to be sent to HQ")]
    Full,
    /// The socket was closed.
    #[error("the connection to HQ's socket was closed")]
    Closed,
}

impl Emit {
    /// Only a configuration of a megabyte can fail this.
    pub(super) fn check(&self) -> Result<(), EmitError> {
        let fits = match self {
            Self::NodeInfo(info) => packet("node_info_update", &info.json()).len() <= LONGEST,
            Self::DataframeDeleted { name, .. } => name.len() <= LONGEST / 8,
            Self::StatusChange { .. } | Self::Log { .. } => true,
        };
        if fits {
            Ok(())
        } else {
            Err(EmitError::TooLarge)
        }
    }

    pub(super) fn packets(&self, us: &Identity) -> Vec<String> {
        match self {
            Self::StatusChange {
                run,
                task,
                parent,
                status,
            } => vec![packet(
                "algorithm_status_change",
                &json!({
                    "node_id": us.node,
                    "status": status.as_str(),
                    "run_id": run,
                    "task_id": task,
                    "collaboration_id": us.collaboration,
                    "organization_id": us.organization,
                    "parent_id": parent,
                }),
            )],
            Self::Log { run, task, text } => pieces(text, LONGEST_LOG)
                .map(|piece| {
                    packet(
                        "algorithm_log",
                        &json!({
                            "collaboration_id": us.collaboration,
                            "run_id": run,
                            "task_id": task,
                            "log": piece,
                        }),
                    )
                })
                .collect(),
            Self::NodeInfo(info) => vec![packet("node_info_update", &info.json())],
            Self::DataframeDeleted { session, name } => vec![packet(
                "dataframe_deleted",
                &json!({ "df_name": name, "session_id": session, "node_id": us.node }),
            )],
        }
    }
}

impl NodeInfo {
    fn json(&self) -> Value {
        let Self {
            encryption,
            allowed_algorithms,
            allowed_users,
            allowed_organizations,
            databases,
        } = self;
        let mut map = Map::new();
        let encryption = if *encryption { "True" } else { "False" };
        map.insert("encryption".to_owned(), json!(encryption));
        let algorithms = match allowed_algorithms.as_slice() {
            [] => json!("all"),
            list => json!(list),
        };
        map.insert("allowed_algorithms".to_owned(), algorithms);
        // HQ restricts tasks as soon as a list is there, so an empty one is left out.
        if !allowed_users.is_empty() {
            map.insert("allowed_users".to_owned(), json!(allowed_users));
        }
        if !allowed_organizations.is_empty() {
            let list: Vec<Value> = allowed_organizations
                .iter()
                .map(|entry| {
                    entry
                        .parse::<i64>()
                        .map_or_else(|_| json!(entry), |id| json!(id))
                })
                .collect();
            map.insert("allowed_orgs".to_owned(), json!(list));
        }
        map.insert(
            "database_labels".to_owned(),
            json!(databases.keys().collect::<Vec<_>>()),
        );
        let types: Map<String, Value> = databases
            .iter()
            .map(|(label, kind)| (format!("db_type_{label}"), json!(kind)))
            .collect();
        map.insert("database_types".to_owned(), Value::Object(types));
        Value::Object(map)
    }
}

fn packet(name: &str, argument: &Value) -> String {
    socketio::event(name, argument)
}

/// Cuts a text so that each piece is at most `limit` bytes as JSON.
fn pieces(text: &str, limit: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let whole = rest?;
        let mut length = 0;
        for (at, letter) in whole.char_indices() {
            length += match letter {
                '"' | '\\' => 2,
                '\0'..='\u{1f}' => 6,
                other => other.len_utf8(),
            };
            if length > limit {
                rest = Some(&whole[at..]);
                return Some(&whole[..at]);
            }
        }
        rest = None;
        Some(whole)
    })
}

pub(super) enum Received {
    Event(Event),
    TokenRefused,
    Said(String),
    Ignored,
    Broken,
}

/// What an event means for the node `us`.
pub(super) fn read(name: &str, argument: &Value, us: &Identity) -> Received {
    let number = |key: &str| argument.get(key).and_then(Value::as_i64);
    let text = |key: &str| argument.get(key).and_then(Value::as_str).map(str::to_owned);
    let event = match name {
        "sync" => Some(Event::Sync),
        "expired_token" | "invalid_token" => return Received::TokenRefused,
        "new_task_update" => number("id").map(|task| Event::NewTask { task }),
        "kill_containers" => {
            return match kill(argument, us) {
                Some(kill) => Received::Event(Event::Kill(kill)),
                None => Received::Ignored,
            };
        }
        "delete_dataframe" => number("session_id")
            .zip(text("df_name"))
            .map(|(session, name)| Event::DeleteDataframe { session, name }),
        "algorithm_status_change" => match (number("run_id"), number("task_id"), text("status")) {
            (Some(run), Some(task), Some(status)) => Some(Event::RunStatus { run, task, status }),
            _ => None,
        },
        "message" => {
            return Received::Said(
                argument
                    .as_str()
                    .unwrap_or_default()
                    .chars()
                    .take(500)
                    .collect(),
            );
        }
        _ => return Received::Ignored,
    };
    event.map_or(Received::Broken, Received::Event)
}

/// Every node of the collaboration hears of every kill. A list is for the organizations
/// that it names; without a list the whole node is meant, which must be named (protocol
/// 4.8 and 12, point 17).
fn kill(argument: &Value, us: &Identity) -> Option<Kill> {
    let is = |key: &str, id: i64| argument.get(key).and_then(Value::as_i64) == Some(id);
    if !is("collaboration_id", us.collaboration) {
        return None;
    }
    if let Some(list) = argument.get("kill_list") {
        let runs: Vec<i64> = list
            .as_array()?
            .iter()
            .filter(|item| {
                item.get("organization_id").and_then(Value::as_i64) == Some(us.organization)
            })
            .filter_map(|item| item.get("run_id").and_then(Value::as_i64))
            .collect();
        return (!runs.is_empty()).then_some(Kill::Runs(runs));
    }
    is("node_id", us.node).then_some(Kill::Node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us() -> Identity {
        Identity {
            node: 2,
            node_name: "n".to_owned(),
            organization: 4,
            collaboration: 1,
        }
    }

    fn heard(name: &str, argument: Value) -> Option<Event> {
        match read(name, &argument, &us()) {
            Received::Event(event) => Some(event),
            _ => None,
        }
    }

    #[test]
    fn kills_are_only_ours() {
        let item = |run: i64, organization: i64| json!({ "task_id": 8, "run_id": run, "organization_id": organization });
        let heard = |argument| heard("kill_containers", argument);
        let runs = |runs: &[i64]| Some(Event::Kill(Kill::Runs(runs.to_vec())));
        assert_eq!(
            heard(json!({ "collaboration_id": 1, "kill_list": [item(14, 4), item(15, 3)] })),
            runs(&[14])
        );
        assert_eq!(
            heard(json!({ "collaboration_id": 1, "kill_list": [item(15, 3)] })),
            None
        );
        assert_eq!(
            heard(json!({ "collaboration_id": 9, "kill_list": [item(14, 4)] })),
            None
        );
        assert_eq!(
            heard(json!({ "collaboration_id": 1, "kill_list": [], "node_id": 2 })),
            None
        );
        assert_eq!(
            heard(json!({ "collaboration_id": 1, "node_id": 2 })),
            Some(Event::Kill(Kill::Node))
        );
        assert_eq!(heard(json!({ "collaboration_id": 1, "node_id": 3 })), None);
        assert_eq!(heard(json!({ "collaboration_id": 1 })), None);
        assert_eq!(
            heard(json!({ "collaboration_id": 1, "kill_list": 3, "node_id": 2 })),
            None
        );
        assert_eq!(heard(Value::Null), None);
    }

    #[test]
    fn other_events() {
        assert_eq!(heard("sync", Value::Null), Some(Event::Sync));
        assert_eq!(
            heard("new_task_update", json!({ "id": 2, "parent_id": null })),
            Some(Event::NewTask { task: 2 })
        );
        assert_eq!(
            heard(
                "delete_dataframe",
                json!({ "df_name": "d", "session_id": 1 })
            ),
            Some(Event::DeleteDataframe {
                session: 1,
                name: "d".to_owned()
            })
        );
        assert_eq!(heard("node-online", json!({ "id": 3 })), None);
        assert!(matches!(
            read("new_task_update", &Value::Null, &us()),
            Received::Broken
        ));
        assert!(matches!(
            read("expired_token", &Value::Null, &us()),
            Received::TokenRefused
        ));
    }

    #[test]
    fn node_info_as_recorded() {
        let mut info = NodeInfo {
            databases: BTreeMap::from([("default".to_owned(), "csv".to_owned())]),
            ..NodeInfo::default()
        };
        assert_eq!(
            info.json(),
            json!({ "encryption": "False", "allowed_algorithms": "all",
                "database_labels": ["default"], "database_types": { "db_type_default": "csv" } })
        );
        info.encryption = true;
        info.allowed_users = vec![3];
        info.allowed_organizations = vec!["6".to_owned(), "root".to_owned()];
        info.allowed_algorithms = vec!["a".to_owned()];
        let json = info.json();
        assert_eq!(json["encryption"], "True");
        assert_eq!(json["allowed_users"], json!([3]));
        assert_eq!(json["allowed_orgs"], json!([6, "root"]));
        assert_eq!(json["allowed_algorithms"], json!(["a"]));
    }

    #[test]
    fn a_flood_is_sent_in_pieces_that_hq_takes() {
        for letter in ["a", "\"", "\u{1}", "é", "😀"] {
            let text = letter.repeat(2_500_000 / letter.len());
            let packets = Emit::Log {
                run: 1,
                task: 2,
                text: text.clone(),
            }
            .packets(&us());
            assert!(packets.len() > 2);
            let mut back = String::new();
            for packet in packets {
                assert!(packet.len() < LONGEST);
                match socketio::read(&packet) {
                    Some(socketio::Packet::Event(_, argument)) => {
                        back.push_str(argument["log"].as_str().unwrap_or_default());
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(back, text);
        }
    }

    proptest! {
        #[test]
        fn pieces_are_whole_and_short(text: String, limit in 6usize..50) {
            let cut: Vec<&str> = pieces(&text, limit).collect();
            prop_assert_eq!(cut.concat(), text.clone());
            for piece in cut {
                prop_assert!(json!(piece).to_string().len() <= limit + 2);
            }
        }
    }
}
