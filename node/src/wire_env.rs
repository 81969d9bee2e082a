//! The environment of an algorithm's container (protocol 5.3 to 5.5 and 5.7).
//!
//! [`variables`] is a pure function from what is known of a run to the variables that
//! vantage6's algorithm tools 5.0.3 expect. Values are written in base32 with `!` for `=`,
//! except the two kinds that vantage6 hands over raw (token, database parameters).

use std::collections::{BTreeMap, BTreeSet};

use crate::hq::Action;
use crate::secret::Secret;

/// Where an algorithm finds its arguments.
pub const INPUT_FILE: &str = "/app/vantage6/task/input";
/// Where an algorithm writes its result.
pub const OUTPUT_FILE: &str = "/app/vantage6/task/output";
/// Where an algorithm finds the session's files.
pub const SESSION_FOLDER: &str = "/app/vantage6/task/session";
/// The log of the session's steps.
pub const SESSION_FILE: &str = "/app/vantage6/task/session/session_state.parquet";
/// The folder of file and folder databases.
pub const DATABASE_FOLDER: &str = "/app/databases";

/// Set in an algorithm's image, never by a node.
const NOT_OURS: &str = "PKG_NAME";

/// What is known of a run before it starts.
#[derive(Debug)]
pub struct RunVariables<'a> {
    /// What kind of step it is.
    pub action: Action,
    /// The function to call.
    pub method: &'a str,
    /// HQ's id of the task.
    pub task: i64,
    /// HQ's id of this node.
    pub node: i64,
    /// HQ's id of this node's organization.
    pub organization: i64,
    /// HQ's id of the collaboration.
    pub collaboration: i64,
    /// The node's gateway as the algorithm sees it: scheme and host, no port.
    pub proxy_host: &'a str,
    /// The gateway's port.
    pub proxy_port: u16,
    /// What the step works on.
    pub data: RunData<'a>,
    /// What the container shows to the gateway (`central_compute` only).
    pub token: Option<&'a Secret>,
    /// The operator's variables for every algorithm.
    pub algorithm_env: &'a BTreeMap<String, String>,
}

/// What a step works on.
#[derive(Debug)]
pub enum RunData<'a> {
    /// A data extraction: one source database.
    Source {
        /// Path in the container or address of the database; it may hold a password.
        uri: &'a Secret,
        /// The configured type, e.g. `csv`.
        kind: &'a str,
        /// Further parameters, e.g. `USER`; names are upper-cased.
        parameters: &'a BTreeMap<String, Secret>,
    },
    /// Every other step: names of dataframes, one group for each argument of the function
    /// in the order of `position` (protocol 4.5).
    Dataframes(&'a [Vec<String>]),
}

/// The variables, ready for a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ContainerEnvironment {
    /// Name and encoded value.
    pub plain: BTreeMap<String, String>,
    /// Name and value of what must not be seen in the engine's listings: the token and
    /// database parameters as they are, the database's address encoded.
    pub secret: BTreeMap<String, Secret>,
    /// What the operator should know.
    pub warnings: Vec<EnvironmentWarning>,
}

/// Something that is not refused but may surprise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentWarning {
    /// A variable of `algorithm_env` has the name of one of vantage6's.
    #[error(
        "algorithm_env: '{0}' is left out, because vantage6 sets a variable of that name itself"
    )]
    Collision(String),
    /// An algorithm made with vantage6's Python tools will read another value.
    #[error(
        "the value of '{0}' looks like base32 (capitals and digits 2-7, length a multiple of 8): algorithms on vantage6's Python tools will decode it and read garbage, or stop"
    )]
    LooksEncoded(String),
}

/// A variable that cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// Not letters, digits and underscores, or a digit first.
    #[error(
        "'{0}' cannot be the name of an environment variable: only letters, digits and underscores, and no digit first"
    )]
    Name(String),
    /// The image sets it, and vantage6 forbids nodes to.
    #[error(
        "the environment variable '{NOT_OURS}' is set in the algorithm's image and cannot be set by the node"
    )]
    NotSettable,
    /// Operating systems end a value at a NUL byte.
    #[error("the value of the environment variable '{0}' holds a NUL byte")]
    Nul(String),
}

/// The environment of a run.
///
/// # Errors
/// A name or raw value that cannot be set, from the databases or `algorithm_env`; the run
/// is then to be reported as `failed`.
pub fn variables(run: &RunVariables<'_>) -> Result<ContainerEnvironment, EnvironmentError> {
    let mut plain: BTreeMap<String, String> = [
        ("INPUT_FILE", INPUT_FILE.to_owned()),
        ("OUTPUT_FILE", OUTPUT_FILE.to_owned()),
        ("SESSION_FOLDER", SESSION_FOLDER.to_owned()),
        ("SESSION_FILE", SESSION_FILE.to_owned()),
        ("ALGORITHM_METHOD", run.method.to_owned()),
        ("FUNCTION_ACTION", run.action.as_str().to_owned()),
        ("TASK_ID", run.task.to_string()),
        ("NODE_ID", run.node.to_string()),
        ("ORGANIZATION_ID", run.organization.to_string()),
        ("COLLABORATION_ID", run.collaboration.to_string()),
        ("HOST", run.proxy_host.to_owned()),
        ("PORT", run.proxy_port.to_string()),
        ("API_PATH", String::new()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let mut raw: BTreeMap<String, Secret> = BTreeMap::new();
    let mut address = None;
    match &run.data {
        RunData::Source {
            uri,
            kind,
            parameters,
        } => {
            address = Some(*uri);
            plain.insert("DATABASE_TYPE".to_owned(), (*kind).to_owned());
            for (name, value) in *parameters {
                raw.insert(format!("DB_PARAM_{}", name.to_uppercase()), value.clone());
            }
        }
        RunData::Dataframes(groups) => {
            let groups: Vec<String> = groups.iter().map(|group| group.join(",")).collect();
            plain.insert("USER_REQUESTED_DATAFRAMES".to_owned(), groups.join(";"));
        }
    }
    if let (Some(token), Action::CentralCompute) = (run.token, &run.action) {
        raw.insert("CONTAINER_TOKEN".to_owned(), token.clone());
    }

    let mut warnings = Vec::new();
    let ours: BTreeSet<String> = plain
        .keys()
        .chain(raw.keys())
        .cloned()
        .chain(address.map(|_| "DATABASE_URI".to_owned()))
        .collect();
    for (name, value) in run.algorithm_env {
        if ours.contains(name) || ours.contains(&name.to_uppercase()) {
            warnings.push(EnvironmentWarning::Collision(name.clone()));
        } else {
            plain.insert(name.clone(), value.clone());
        }
    }
    for name in plain.keys().chain(raw.keys()) {
        check_name(name)?;
    }
    for (name, value) in &raw {
        if value.expose().contains('\0') {
            return Err(EnvironmentError::Nul(name.clone()));
        }
    }
    // The tools decode some variables twice, so an encoded value that reads as base32 once
    // more is as much at risk as a raw one.
    warnings.extend(
        plain
            .iter()
            .map(|(name, value)| (name, value.as_str()))
            .chain(raw.iter().map(|(name, value)| (name, value.expose())))
            .filter(|(_, value)| looks_encoded(value))
            .map(|(name, _)| EnvironmentWarning::LooksEncoded(name.clone())),
    );

    let plain = plain
        .into_iter()
        .map(|(name, value)| (name, encode(&value)))
        .collect();
    if let Some(uri) = address {
        if looks_encoded(uri.expose()) {
            warnings.push(EnvironmentWarning::LooksEncoded("DATABASE_URI".to_owned()));
        }
        raw.insert("DATABASE_URI".to_owned(), Secret::new(encode(uri.expose())));
    }
    Ok(ContainerEnvironment {
        plain,
        secret: raw,
        warnings,
    })
}

fn check_name(name: &str) -> Result<(), EnvironmentError> {
    let mut letters = name.chars();
    let first_fits = letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
    if !first_fits || !letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
        return Err(EnvironmentError::Name(name.to_owned()));
    }
    if name == NOT_OURS {
        return Err(EnvironmentError::NotSettable);
    }
    Ok(())
}

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Base32 (RFC 4648) of the UTF-8 text, with `!` for the padding `=` (protocol 5.4).
pub fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len().div_ceil(5) * 8);
    for group in value.as_bytes().chunks(5) {
        let mut word = [0; 8];
        word[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(word);
        let letters = (group.len() * 8).div_ceil(5);
        for at in 0..8 {
            out.push(if at < letters {
                char::from(ALPHABET[(bits >> (35 - 5 * at)) as usize & 31])
            } else {
                '!'
            });
        }
    }
    out
}

/// Whether vantage6's tools would take a raw value for an encoded one: non-empty, whole
/// groups of eight of the alphabet, with padding of a length that exists.
pub fn looks_encoded(value: &str) -> bool {
    if value.is_empty() || !value.len().is_multiple_of(8) {
        return false;
    }
    let letters = value.trim_end_matches(['!', '=']);
    matches!(value.len() - letters.len(), 0 | 1 | 3 | 4 | 6)
        && letters.bytes().all(|byte| ALPHABET.contains(&byte))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use proptest::prelude::*;

    fn decode(text: &str) -> String {
        let mut out = Vec::new();
        for group in text.as_bytes().chunks(8) {
            let letters: Vec<u64> = group
                .iter()
                .filter(|&&byte| byte != b'!')
                .map(|byte| ALPHABET.iter().position(|letter| letter == byte).unwrap() as u64)
                .collect();
            let bits = letters
                .iter()
                .enumerate()
                .fold(0, |bits, (at, five)| bits | five << (35 - 5 * at));
            out.extend_from_slice(&u64::to_be_bytes(bits)[3..3 + letters.len() * 5 / 8]);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn encodes_as_vantage6_does() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../tests/data/encryption-vectors.json")).unwrap();
        let entries = file["env"].as_array().unwrap();
        assert_eq!(entries.len(), 6);
        for entry in entries {
            assert_eq!(encode(entry["value"].as_str().unwrap()), entry["encoded"]);
        }
        assert_eq!(encode("http://x"), "NB2HI4B2F4XXQ!!!");
    }

    fn run<'a>(data: RunData<'a>, env: &'a BTreeMap<String, String>) -> RunVariables<'a> {
        RunVariables {
            action: Action::FederatedCompute,
            method: "partial",
            task: 3,
            node: 2,
            organization: 4,
            collaboration: 1,
            proxy_host: "http://gateway",
            proxy_port: 7654,
            data,
            token: None,
            algorithm_env: env,
        }
    }

    fn shown(environment: &ContainerEnvironment) -> Vec<String> {
        environment
            .plain
            .iter()
            .map(|(name, value)| format!("{name}={}", decode(value)))
            .collect()
    }

    #[test]
    fn a_compute_step() {
        let groups = [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]];
        let env = BTreeMap::from([("THREADS".to_owned(), "4".to_owned())]);
        let token = Secret::new("jwt");
        let mut run = run(RunData::Dataframes(&groups), &env);
        run.token = Some(&token);
        let got = variables(&run).unwrap();
        assert_eq!(
            shown(&got),
            [
                "ALGORITHM_METHOD=partial",
                "API_PATH=",
                "COLLABORATION_ID=1",
                "FUNCTION_ACTION=federated_compute",
                "HOST=http://gateway",
                "INPUT_FILE=/app/vantage6/task/input",
                "NODE_ID=2",
                "ORGANIZATION_ID=4",
                "OUTPUT_FILE=/app/vantage6/task/output",
                "PORT=7654",
                "SESSION_FILE=/app/vantage6/task/session/session_state.parquet",
                "SESSION_FOLDER=/app/vantage6/task/session",
                "TASK_ID=3",
                "THREADS=4",
                "USER_REQUESTED_DATAFRAMES=a,b;c",
            ]
        );
        assert_eq!((got.secret.len(), got.warnings), (0, Vec::new()));

        run.action = Action::CentralCompute;
        let central = variables(&run).unwrap();
        assert_eq!(central.secret["CONTAINER_TOKEN"].expose(), "jwt");
    }

    #[test]
    fn an_extraction() {
        let uri = Secret::new("postgresql://u:p@db/x");
        let parameters = BTreeMap::from([("user".to_owned(), Secret::new("ABCDEFGH"))]);
        let env = BTreeMap::from([
            ("database_uri".to_owned(), "x".to_owned()),
            ("db_param_user".to_owned(), "x".to_owned()),
        ]);
        let data = RunData::Source {
            uri: &uri,
            kind: "sql",
            parameters: &parameters,
        };
        let mut run = run(data, &env);
        run.action = Action::DataExtraction;
        let got = variables(&run).unwrap();
        assert_eq!(decode(&got.plain["DATABASE_TYPE"]), "sql");
        assert!(!got.plain.contains_key("USER_REQUESTED_DATAFRAMES"));
        assert_eq!(
            decode(got.secret["DATABASE_URI"].expose()),
            "postgresql://u:p@db/x"
        );
        assert_eq!(got.secret["DB_PARAM_USER"].expose(), "ABCDEFGH");
        assert_eq!(
            got.warnings,
            [
                EnvironmentWarning::Collision("database_uri".to_owned()),
                EnvironmentWarning::Collision("db_param_user".to_owned()),
                EnvironmentWarning::LooksEncoded("DB_PARAM_USER".to_owned()),
            ]
        );
    }

    #[test]
    fn names_that_cannot_be_set() {
        for (name, want) in [
            ("A-B", EnvironmentError::Name("A-B".to_owned())),
            ("1A", EnvironmentError::Name("1A".to_owned())),
            ("", EnvironmentError::Name(String::new())),
            ("A=B", EnvironmentError::Name("A=B".to_owned())),
            ("PKG_NAME", EnvironmentError::NotSettable),
        ] {
            let env = BTreeMap::from([(name.to_owned(), "x".to_owned())]);
            assert_eq!(variables(&run(RunData::Dataframes(&[]), &env)), Err(want));
        }
    }

    #[test]
    fn what_looks_encoded() {
        for yes in ["ABCDEFGH", "MFRGG!!!", "MFRGG===", "ABCDEFGHIJKLMNOP"] {
            assert!(looks_encoded(yes), "{yes}");
        }
        for no in [
            "", "abcdefgh", "ABCDEFG", "ABCDEFG1", "ABC!!!!!", "hunter2!",
        ] {
            assert!(!looks_encoded(no), "{no}");
        }
    }

    proptest! {
        #[test]
        fn encoding_comes_back(value: String) {
            prop_assert_eq!(decode(&encode(&value)), value.clone());
            prop_assert!(value.is_empty() || looks_encoded(&encode(&value)));
        }
    }
}
