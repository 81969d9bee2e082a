//! The node's configuration: V6's own file and variables, and our `runtime:` section.
//!
//! [`load`] takes the file of a vantage6 5.x node in either of its two forms, the flat
//! one that the node reads or the values of its chart with their `node:` section, and
//! the variables of the process. What comes out is checked; what is wrong is reported
//! all at once, with the place and the remedy. `docs/configuration.md` lists the keys.

mod database;
mod egress;
mod environment;
mod kubernetes;
mod limits;
mod problem;
mod reader;
mod runtime;
mod singularity;
mod slurm;
mod types;
pub mod units;
mod v6;
mod yaml;

use std::path::Path;

use url::Url;

pub use database::{Database, KNOWN_TYPES, Located, Source, VolumeData};
pub use egress::Endpoint;
pub use environment::Environment;
pub use problem::{Notice, Origin, Problem, Problems, Weight};
use reader::{Context, Fault, Field, Section};
pub use types::{
    Config, ControlGroup, Encryption, GpuKind, Hq, ImageException, Keycloak, Listen, OwnLimits,
    Placement, Proxy, RegistryLogin, RunLimits, Runtime, RuntimeKind, Singularity, Slurm, SlurmAsk,
    Total,
};

use crate::secret::Secret;

/// V6's default when `encryption.private_key` is empty.
const PRIVATE_KEY: &str = "private_key.pem";
/// The largest file that is read as a configuration.
const MAX_BYTES: u64 = 4 << 20;

/// Reads the configuration in `file`, with the variables of `environment`.
///
/// # Errors
///
/// All mistakes that were found, in the order of the file, those of the environment last.
pub fn load(file: &Path, environment: &Environment) -> Result<Config, Problems> {
    let text = read_file(file).map_err(|fault| {
        let Fault { what, remedy } = fault;
        let origin = Origin::File {
            path: file.to_owned(),
            line: 0,
        };
        Problems(vec![Problem {
            origin,
            key: String::new(),
            what,
            remedy,
        }])
    })?;
    parse(file, &text, environment)
}

fn read_file(file: &Path) -> Result<String, Fault> {
    let unreadable = |error: std::io::Error| Fault {
        what: format!("it can't be read: {error}"),
        remedy: "give the path of the node's configuration file, readable for this user".into(),
    };
    let size = std::fs::metadata(file).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return reader::fault(
            "it is larger than 4MiB",
            "give the node's configuration file",
        );
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

/// As [`load`], from a text that was read already. `file` names it in messages, and its
/// directory is the base of relative paths.
///
/// # Errors
///
/// As [`load`].
pub fn parse(file: &Path, text: &str, environment: &Environment) -> Result<Config, Problems> {
    let context = Context::new(file);
    let config = match yaml::parse(text) {
        Ok(root) => read(&context, file, &Field::new("", &root), environment),
        Err(error) => {
            let remedy = "correct the YAML on or shortly before this line; take care of indentation and quotes";
            context.in_file(
                error.line,
                "",
                Fault {
                    what: error.message,
                    remedy: remedy.into(),
                },
            );
            None
        }
    };
    let (problems, notices) = context.finish();
    match config {
        Some(config) if problems.is_empty() => Ok(Config { notices, ..config }),
        _ => Err(Problems(problems)),
    }
}

/// `None` only if something was reported.
fn read(
    context: &Context,
    file: &Path,
    root: &Field<'_>,
    environment: &Environment,
) -> Option<Config> {
    let top = Section::open(context, root);
    let is_chart = top.has("node");
    let (common, chart, hq, databases_of_file);
    if is_chart {
        let node = top.section("node");
        top.ignore(
            &["nameOverride", "namespace"],
            "it has no effect: it is about V6's chart",
        );
        if node.has("runtime") {
            node.report(
                node.line(),
                &node.path_of("runtime"),
                Fault {
                    what: "it is in the wrong place".into(),
                    remedy: "move runtime: out of node:, to the beginning of a line".into(),
                },
            );
            let _ = node.get("runtime");
        }
        common = v6::common(context, &node);
        let found = v6::chart(environment, &node);
        hq = found.hq.clone();
        chart = Some(found);
        databases_of_file = node.get("databases");
        node.finish();
    } else {
        common = v6::common(context, &top);
        hq = v6::flat(&top);
        chart = None;
        databases_of_file = None;
    }
    let chart = chart.as_ref();
    let identity = identity(context, environment, chart);
    let keycloak = keycloak(context, environment, chart);
    for variable in ["V6_PROXY_HOST", "V6_PROXY_PORT", "V6_K8S_NODE_NAME"] {
        if environment.get(variable).is_some() {
            context.info(variable, "it has no effect: each run reaches the node's proxy at an address inside its own container");
        }
    }
    let mut databases = database::read(context, environment, databases_of_file);
    let name = identity.as_ref().map_or("node", |(name, _)| name.as_str());
    let section = top.section("runtime");
    let runtime = runtime::read(context, environment, &section, name, &mut databases);
    section.finish();
    top.finish();
    let private_key = environment
        .get("PRIVATE_KEY")
        .map(str::to_owned)
        .or(common.private_key);
    let private_key = match private_key {
        Some(path) => Some(database::absolute(&runtime.data_dir, path)),
        None => common.encrypted.then(|| runtime.data_dir.join(PRIVATE_KEY)),
    };
    let (name, api_key) = identity?;
    Some(Config {
        file: file.to_owned(),
        name,
        api_key,
        keycloak: keycloak?,
        hq: hq?,
        encryption: Encryption {
            enabled: common.encrypted,
            private_key,
        },
        databases,
        policies: common.policies,
        share_config: common.share_config,
        share_algorithm_logs: common.share_algorithm_logs,
        algorithm_env: common.algorithm_env,
        registries: common.registries,
        log_level: common.log_level,
        runtime,
        notices: Vec::new(),
    })
}

fn identity(
    context: &Context,
    environment: &Environment,
    chart: Option<&v6::Chart>,
) -> Option<(String, Secret)> {
    let name = environment
        .get("V6_NODE_NAME")
        .map(|name| name.trim().to_owned());
    let name = name.or_else(|| chart?.name.clone());
    if name.is_none() {
        missing(
            context,
            chart,
            "V6_NODE_NAME",
            "node.name",
            "the name under which the node was made at HQ",
        );
    }
    let api_key = environment.get("V6_API_KEY").map(Secret::new);
    let api_key = api_key.or_else(|| chart?.api_key.clone());
    if api_key.is_none() {
        missing(
            context,
            chart,
            "V6_API_KEY",
            "node.apiKey",
            "the API key that HQ showed when the node was made",
        );
    }
    name.zip(api_key)
}

fn keycloak(
    context: &Context,
    environment: &Environment,
    chart: Option<&v6::Chart>,
) -> Option<Keycloak> {
    let url: Option<Url> = match environment.get("KEYCLOAK_URL") {
        Some(text) => match v6::base_url(text.trim()) {
            Ok(url) => Some(url),
            Err(fault) => {
                context.in_environment("KEYCLOAK_URL", fault);
                None
            }
        },
        None => {
            let url = chart.and_then(|chart| chart.keycloak_url.clone());
            if url.is_none() {
                missing(
                    context,
                    chart,
                    "KEYCLOAK_URL",
                    "node.keycloak.url",
                    "the address of Keycloak",
                );
            }
            url
        }
    };
    let realm = environment
        .get("KEYCLOAK_REALM")
        .map(|realm| realm.trim().to_owned());
    // The chart's default; without a chart, V6 has none.
    let realm = realm.or_else(|| Some(chart?.realm.clone().unwrap_or_else(|| "vantage6".into())));
    if realm.is_none() {
        missing(
            context,
            chart,
            "KEYCLOAK_REALM",
            "",
            "the realm at Keycloak, normally vantage6",
        );
    }
    Some(Keycloak {
        url: url?,
        realm: realm?,
    })
}

fn missing(context: &Context, chart: Option<&v6::Chart>, variable: &str, key: &str, meaning: &str) {
    if chart.is_some_and(|chart| chart.wrong.contains(&variable)) {
        return;
    }
    let remedy = match chart {
        Some(_) => format!("set {variable} in the environment, or {key} in the file, to {meaning}"),
        None => format!("set it to {meaning}"),
    };
    context.in_environment(
        variable,
        Fault {
            what: "it is missing".into(),
            remedy,
        },
    );
}

#[cfg(test)]
mod database_tests;
#[cfg(test)]
mod tests;
