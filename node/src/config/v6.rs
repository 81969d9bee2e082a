//! The settings that a node of vantage6 5.x has: the flat file that it reads in its
//! container, and the values of its chart, which hold the same under `node:`.

use std::collections::BTreeMap;

use tracing::Level;
use url::Url;

use super::environment::Environment;
use super::reader::{Context, Fault, Field, Section, fault};
use super::runtime::pattern;
use super::types::{Hq, RegistryLogin};
use crate::policy::{Policies, TextPattern};
use crate::secret::Secret;

/// Why most of V6's settings about Kubernetes and files do nothing here.
const NOT_KUBERNETES: &str = "it has no effect: it is about V6's way of using Kubernetes";
const NO_NETWORK: &str =
    "it has no effect: a run has no network but what runtime.egress and runtime.databases grant";
const NO_PROXY_PORT: &str =
    "it has no effect: each run reaches the node's proxy at an address inside its own container";
const NO_METRICS: &str = "it has no effect: this node does not send metrics to HQ";

/// What both forms of the file say.
pub(super) struct Common {
    pub encrypted: bool,
    pub private_key: Option<String>,
    pub policies: Policies,
    pub share_config: bool,
    pub share_algorithm_logs: bool,
    pub algorithm_env: BTreeMap<String, String>,
    pub registries: Vec<RegistryLogin>,
    pub log_level: Option<Level>,
}

/// Reads what flat file and chart have in common from `section`.
pub(super) fn common(context: &Context, section: &Section<'_>) -> Common {
    section.ignore(&["production", "dev", "debug"], NOT_KUBERNETES);
    let prometheus = section.section("prometheus");
    let _ = prometheus.read("report_interval_seconds", |field| {
        field.integer(1..=u32::MAX)
    });
    if prometheus.read("enabled", Field::boolean) == Some(true) {
        context.info(prometheus.path_of("enabled"), NO_METRICS);
    }
    prometheus.finish();
    let encryption = section.section("encryption");
    let encrypted = encryption.read("enabled", Field::boolean).unwrap_or(false);
    // The command line of V6 writes an empty text for "none".
    let private_key = encryption
        .read("private_key", |field| Ok(field.text().ok()))
        .flatten();
    encryption.finish();
    Common {
        encrypted,
        private_key,
        policies: policies(context, &section.section("policies")),
        share_config: section.read("share_config", Field::boolean).unwrap_or(true),
        share_algorithm_logs: section
            .read("share_algorithm_logs", Field::boolean)
            .unwrap_or(true),
        algorithm_env: algorithm_env(context, section),
        registries: registries(context, section),
        log_level: log_level(&section.section("logging")),
    }
}

/// The flat file's own keys. `None` when something is wrong, which is then reported.
pub(super) fn flat(section: &Section<'_>) -> Option<Hq> {
    section.ignore(&["task_dir", "task_namespace"], NOT_KUBERNETES);
    section.ignore(&["node_proxy_port"], NO_PROXY_PORT);
    section.ignore(
        &["databases"],
        "it has no effect, as in V6: databases come from DATABASE_LABELS and the variables with it",
    );
    let url = section.require(
        "hq_url",
        "write HQ's address, for example https://hq.example.org",
        hq_url,
    );
    let port = section.require("port", "write HQ's port, for example 443", Field::port);
    let path = section.require(
        "api_path",
        "write the path of HQ's API, normally /hq",
        api_path,
    );
    hq(url?, port?, path?)
}

/// What the chart's values hold besides [`common`] and the databases.
pub(super) struct Chart {
    pub name: Option<String>,
    pub api_key: Option<Secret>,
    pub keycloak_url: Option<Url>,
    pub realm: Option<String>,
    pub hq: Option<Hq>,
    /// The variables whose keys were there with a mistake that is reported already.
    pub wrong: Vec<&'static str>,
}

/// The keys of the chart's `node:` section.
pub(super) fn chart(environment: &Environment, node: &Section<'_>) -> Chart {
    let kubernetes = [
        "createSecrets",
        "image",
        "imagePullPolicy",
        "k8sNodeName",
        "persistence",
        "taskNamespace",
    ];
    node.ignore(&kubernetes, NOT_KUBERNETES);
    node.ignore(&["proxyPort"], NO_PROXY_PORT);
    node.ignore(&["whitelist"], NO_NETWORK);
    let hq_section = node.section("hq");
    let url = hq_section.require(
        "url",
        "write HQ's address, for example https://hq.example.org",
        hq_url,
    );
    let port = match hq_section.get("port") {
        Some(_) => hq_section.read("port", Field::port),
        None => Some(7601),
    };
    let path = match hq_section.get("path") {
        Some(_) => hq_section.read("path", api_path),
        None => Some("/hq".to_owned()),
    };
    hq_section.finish();
    let keycloak = node.section("keycloak");
    let mut wrong = Vec::new();
    let mut given = Given {
        environment,
        wrong: &mut wrong,
    };
    let name = given.read("V6_NODE_NAME", node, "name", Field::text);
    let api_key = given.read("V6_API_KEY", node, "apiKey", Field::secret);
    let keycloak_url = given.read("KEYCLOAK_URL", &keycloak, "url", |field| {
        field.parse(base_url)
    });
    let realm = given.read("KEYCLOAK_REALM", &keycloak, "realm", Field::text);
    keycloak.finish();
    let hq = url
        .zip(port)
        .zip(path)
        .and_then(|((url, port), path)| hq(url, port, path));
    Chart {
        name,
        api_key,
        keycloak_url,
        realm,
        hq,
        wrong,
    }
}

/// Keys that may as well be left to the environment, which wins.
struct Given<'e> {
    environment: &'e Environment,
    wrong: &'e mut Vec<&'static str>,
}

impl Given<'_> {
    fn read<'a, T>(
        &mut self,
        variable: &'static str,
        section: &Section<'a>,
        key: &'static str,
        read: impl FnOnce(&Field<'a>) -> Result<T, Fault>,
    ) -> Option<T> {
        let field = section.get(key)?;
        if self.environment.get(variable).is_some() {
            return None;
        }
        let value = section.check(&field, read(&field));
        if value.is_none() {
            self.wrong.push(variable);
        }
        value
    }
}

fn hq(mut root: Url, port: u16, api_path: String) -> Option<Hq> {
    root.set_port(Some(port)).ok()?;
    Some(Hq { root, api_path })
}

fn hq_url(field: &Field<'_>) -> Result<Url, Fault> {
    const EXAMPLE: &str = "write scheme and host alone, for example https://hq.example.org; port and path have keys of their own";
    let url = field.parse(http_url)?;
    if url.port().is_some()
        || url.path() != "/"
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return fault("it holds more than a scheme and a host", EXAMPLE);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fault("it holds a user name or password", EXAMPLE);
    }
    Ok(url)
}

fn api_path(field: &Field<'_>) -> Result<String, Fault> {
    field.parse(|text| {
        let inner = text.trim_matches('/');
        let part = |part: &str| {
            !part.is_empty()
                && !matches!(part, "." | "..")
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        if inner.is_empty() {
            Ok(String::new())
        } else if inner.split('/').all(part) {
            Ok(format!("/{inner}"))
        } else {
            fault(
                format!("\"{text}\" is not the path of an API"),
                "write for example /hq",
            )
        }
    })
}

/// An address whose path may be extended by [`Url::join`].
pub(super) fn base_url(text: &str) -> Result<Url, Fault> {
    let mut url = http_url(text)?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

fn http_url(text: &str) -> Result<Url, Fault> {
    const EXAMPLE: &str = "write it with its scheme, for example https://hq.example.org";
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        Ok(_) => fault("it is not an address of http or https", EXAMPLE),
        Err(error) => fault(format!("it is not an address: {error}"), EXAMPLE),
    }
}

fn policies(context: &Context, section: &Section<'_>) -> Policies {
    let policies = Policies {
        allowed_algorithms: section
            .list("allowed_algorithms", pattern)
            .unwrap_or_default(),
        allowed_stores: section
            .list("allowed_algorithm_stores", |field| {
                field.parse(|text| {
                    TextPattern::parse(text).or_else(|error| {
                        fault(
                            error.to_string(),
                            "write the store's address, or a regular expression",
                        )
                    })
                })
            })
            .unwrap_or_default(),
        either: section
            .read("allow_either_whitelist_or_store", Field::boolean)
            .unwrap_or(false),
        allowed_users: section
            .list("allowed_users", |field| match field.integer(1..=i64::MAX) {
                Ok(id) => Ok(id),
                Err(Fault { what, .. }) => fault(
                    what,
                    "write the user's id at HQ; user names are not supported, as in V6",
                ),
            })
            .unwrap_or_default(),
        allowed_organizations: section
            .list("allowed_organizations", Field::text)
            .unwrap_or_default(),
        require_pull: section
            .read("require_algorithm_pull", Field::boolean)
            .unwrap_or(true),
    };
    section.finish();
    for key in [
        "allowed_algorithms",
        "allowed_algorithm_stores",
        "allowed_users",
        "allowed_organizations",
    ] {
        if section.get_list(key).is_some_and(|items| items.is_empty()) {
            context.warn(
                section.path_of(key),
                "an empty list restricts nothing, as in V6",
            );
        }
    }
    for warning in policies.warnings() {
        context.warn(section.path(), warning);
    }
    policies
}

/// A mapping in V6's documentation, a list of `{name, value}` in one of its charts.
fn algorithm_env(context: &Context, section: &Section<'_>) -> BTreeMap<String, String> {
    let Some(field) = section.get("algorithm_env") else {
        return BTreeMap::new();
    };
    let mut pairs: Vec<(String, Field<'_>)> = Vec::new();
    if field.is_list() {
        for item in field.items().unwrap_or_default() {
            let entry = Section::open(context, &item);
            let name = entry.require("name", "write the variable's name", Field::text);
            let value = entry.get("value");
            entry.finish();
            match (name, value) {
                (Some(name), Some(value)) => pairs.push((name, value)),
                (Some(_), None) => entry.report(
                    item.line,
                    &entry.path_of("value"),
                    Fault {
                        what: "it is missing".into(),
                        remedy: "write the variable's value".into(),
                    },
                ),
                (None, _) => {}
            }
        }
    } else {
        let entries = section.check(&field, field.entries()).unwrap_or_default();
        pairs.extend(
            entries
                .into_iter()
                .map(|(name, field)| (name.to_owned(), field)),
        );
    }
    let mut variables = BTreeMap::new();
    for (name, field) in pairs {
        let value = check_variable(&name).and_then(|()| field.raw_text());
        if let Some(value) = section.check(&field, value) {
            variables.insert(name, value);
        }
    }
    variables
}

/// V6 fails every run if one name is not an identifier or is `PKG_NAME`.
fn check_variable(name: &str) -> Result<(), Fault> {
    let identifier = !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !identifier {
        return fault(
            format!("{name:?} can't be the name of a variable"),
            "use letters, digits and _, not beginning with a digit",
        );
    }
    if name == "PKG_NAME" {
        return fault("PKG_NAME belongs to the image", "remove it");
    }
    Ok(())
}

fn registries(context: &Context, section: &Section<'_>) -> Vec<RegistryLogin> {
    let Some(items) = section.read("private_docker_registries", Field::items) else {
        return Vec::new();
    };
    let mut logins: Vec<RegistryLogin> = Vec::new();
    for item in &items {
        let entry = Section::open(context, item);
        let registry = entry.require(
            "registry",
            "write the registry's host, for example registry.example.org",
            |field| {
                field.parse(|text| {
                    if text.contains("://") || text.contains('/') {
                        return fault(
                            "it is more than a host",
                            "write host or host:port, without https:// and path",
                        );
                    }
                    if logins.iter().any(|login| login.registry == text) {
                        return fault("this registry has a login already", "keep one of them");
                    }
                    Ok(text.to_owned())
                })
            },
        );
        let username = entry.require("username", "write the user name", Field::text);
        let password = entry.require("password", "write the password or token", Field::secret);
        entry.finish();
        if let (Some(registry), Some(username), Some(password)) = (registry, username, password) {
            logins.push(RegistryLogin {
                registry,
                username,
                password,
            });
        }
    }
    logins
}

fn log_level(section: &Section<'_>) -> Option<Level> {
    section.ignore(
        &[
            "file",
            "storageSize",
            "storageClass",
            "volumeHostPath",
            "max_size",
            "use_console",
            "datefmt",
            "format",
            "backup_count",
            "loggers",
        ],
        "it has no effect: this node writes its log to standard error",
    );
    let level = section.read("level", |field| {
        Ok(match field.text()?.to_ascii_uppercase().as_str() {
            "CRITICAL" | "FATAL" | "ERROR" => Level::ERROR,
            "WARNING" | "WARN" => Level::WARN,
            "INFO" => Level::INFO,
            "DEBUG" | "NOTSET" => Level::DEBUG,
            other => {
                return fault(
                    format!("\"{other}\" is not a level"),
                    "use DEBUG, INFO, WARNING, ERROR or CRITICAL",
                );
            }
        })
    });
    section.finish();
    level
}
