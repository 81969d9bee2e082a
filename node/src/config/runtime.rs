//! The `runtime:` section, which V6 does not have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use sha2::{Digest, Sha256};
use v6_runtime::{NAME_MAX, Owner, VolumePath};

use super::database::{Database, Located, Source, VolumeData, absolute};
use super::egress::Endpoint;
use super::environment::Environment;
use super::reader::{Context, Fault, Field, Section, fault, nearest};
use super::types::{ImageException, Proxy, Runtime, RuntimeKind};
use super::{kubernetes, limits, singularity, slurm};
use crate::hq::{Action, proxy_address};
use crate::policy::ImagePattern;
use crate::secret::Secret;

pub(super) fn read(
    context: &Context,
    environment: &Environment,
    section: &Section<'_>,
    name: &str,
    databases: &mut [Database],
) -> Runtime {
    let kind = section.read("kind", |field| {
        choice(field, RuntimeKind::value_variants(), |kind| kind.name())
    });
    let owner = section
        .read("owner", |field| field.parse(owner))
        .unwrap_or_else(|| owner_from(name));
    let path = |field: &Field<'_>| field.text().map(|text| absolute(context.directory(), text));
    let data_dir = section.read("data_dir", path);
    let runtime_dir = section.read("runtime_dir", path);
    let limits = limits::read(context, &section.section("run"), &section.section("total"));
    read_databases(context, &section.section("databases"), databases);
    Runtime {
        kind: kind.unwrap_or(RuntimeKind::Docker),
        data_dir: data_dir.unwrap_or_else(|| default_data_dir(environment).join(owner.as_str())),
        runtime_dir: runtime_dir
            .unwrap_or_else(|| default_runtime_dir(environment).join(owner.as_str())),
        owner,
        max_concurrent_runs: section
            .read("max_concurrent_runs", |field| field.integer(1..=10_000))
            .unwrap_or(8),
        total: limits.total,
        run: limits.run,
        run_by_step: limits.by_step,
        run_by_image: limits.by_image,
        poll_interval: section
            .read("poll_interval", Field::duration)
            .unwrap_or(Duration::from_secs(60)),
        images: images(context, section),
        egress: egress(&section.section("egress")),
        docker_host: host(&section.section("docker"), "/var/run/docker.sock"),
        podman_host: host(&section.section("podman"), "/run/podman/podman.sock"),
        singularity: singularity::read(context, &section.section("singularity")),
        slurm: slurm::read(context, &section.section("slurm")),
        kubernetes: kubernetes::read(context, &section.section("kubernetes")),
        proxy: proxy(context, environment, &section.section("proxy")),
        ca_certificates: section.list("ca_certificates", path).unwrap_or_default(),
    }
}

/// Where an engine listens; `usual` is where it often does.
fn host(section: &Section<'_>, usual: &str) -> Option<String> {
    let host = section.read("host", |field| {
        field.parse(|text| match text.split_once("://") {
            Some(("unix" | "tcp" | "http" | "https", rest)) if !rest.is_empty() => {
                Ok(text.to_owned())
            }
            _ => fault(
                format!("\"{text}\" is not an engine's address"),
                format!("write for example unix://{usual}"),
            ),
        })
    });
    section.finish();
    host
}

fn images(context: &Context, section: &Section<'_>) -> Vec<ImageException> {
    let Some(items) = section.read("images", Field::items) else {
        return Vec::new();
    };
    let exceptions = items.iter().filter_map(|item| {
        let entry = Section::open(context, item);
        let pattern = entry.require("pattern", "write an image or a regular expression", pattern);
        let run_as = entry.read("run_as", |field| choice(field, &["image"], |word| word));
        let writable_root = entry.read("writable_root", Field::boolean).unwrap_or(false);
        let risk_accepted = entry.require(
            "risk_accepted",
            "write in your own words which risk you accept, and why",
            Field::text,
        );
        let run_as_image = run_as.is_some();
        let idle = !run_as_image && !writable_root && !entry.has("run_as");
        if idle {
            let fault = Fault {
                what: "this exception allows nothing".into(),
                remedy: "write run_as: image or writable_root: true, or remove it".into(),
            };
            entry.report(item.line, &item.path, fault);
        }
        entry.finish();
        Some(ImageException {
            pattern: pattern?,
            run_as_image,
            writable_root,
            risk_accepted: risk_accepted?,
        })
    });
    exceptions.collect()
}

/// A policy's or exception's image pattern.
pub(super) fn pattern(field: &Field<'_>) -> Result<ImagePattern, Fault> {
    field.parse(|text| {
        ImagePattern::parse(text).or_else(|error| {
            fault(
                error.to_string(),
                "write an image name, or a regular expression without look-around and back-references",
            )
        })
    })
}

fn egress(section: &Section<'_>) -> BTreeMap<Action, Vec<Endpoint>> {
    let granted = Action::ALL
        .iter()
        .filter_map(|action| Some((*action, section.list(action.as_str(), endpoint)?)));
    let granted = granted.collect();
    section.finish();
    granted
}

fn endpoint(field: &Field<'_>) -> Result<Endpoint, Fault> {
    field.parse(Endpoint::parse)
}

/// Adds what the section says to the databases that it names.
fn read_databases(context: &Context, section: &Section<'_>, databases: &mut [Database]) {
    for (label, field) in section.entries() {
        let labels = databases.iter().map(|database| database.label.as_str());
        let Some(at) = databases
            .iter()
            .position(|database| database.label == label)
        else {
            let remedy = match nearest(label, labels) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "name a label of this node's databases, or remove it".to_owned(),
            };
            let fault = Fault {
                what: "there is no database with this label".into(),
                remedy,
            };
            section.report(field.line, &field.path, fault);
            continue;
        };
        let database = &mut databases[at];
        let entry = Section::open(context, &field);
        if let Some(read_only) = entry.read("read_only", Field::boolean) {
            database.read_only = read_only;
        }
        let path = entry.read("path", |field| field.parse(volume_path));
        if let Some(name) = entry.read("volume", |field| field.parse(volume_name)) {
            database.source = Source::Volume(VolumeData { name, path });
        } else if path.is_some() {
            let fault = Fault {
                what: "it is a path in a volume, and there is no volume".into(),
                remedy: "name the volume, or write a path of this machine into the database's uri"
                    .into(),
            };
            entry.report(field.line, &format!("{}.path", field.path), fault);
        }
        database.group = entry.read("group", |field| field.integer(1..=u32::MAX - 1));
        database.egress = entry.list("egress", endpoint).unwrap_or_default();
        entry.finish();
    }
    for database in databases.iter() {
        warn_of(context, database);
    }
}

fn warn_of(context: &Context, database: &Database) {
    let key = format!("runtime.databases.{}", database.label);
    if let Source::Service(uri) = &database.source
        && database.egress.is_empty()
    {
        let example = Endpoint::of_uri(uri.expose()).map_or_else(
            || "[\"HOST:PORT\"]".to_owned(),
            |endpoint| format!("[\"{endpoint}\"]"),
        );
        context.warn(
            &key,
            format!(
                "this database is a service, and a run can't reach it until you grant that; write egress: {example}"
            ),
        );
    }
    if !database.read_only {
        context.warn(&key, "algorithms may change this data (read_only: false)");
    }
    if database.kind == "folder" && matches!(database.locate(), Located::File(_)) {
        context.warn(&key, "its type is folder, but it is a file");
    }
}

fn volume_name(name: &str) -> Result<String, Fault> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.len() <= 128
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(allowed)
    {
        return Ok(name.to_owned());
    }
    fault(
        format!("{name:?} is not the name of a volume"),
        "use letters, digits, _, . and -; a path belongs into the database's uri",
    )
}

fn volume_path(text: &str) -> Result<VolumePath, Fault> {
    VolumePath::new(text).or_else(|_| {
        fault(
            format!("{text:?} is not a path in a volume"),
            "write it from the volume's root, without a slash before or after, . or ..",
        )
    })
}

/// The section's proxies, each from the environment where the section has none.
fn proxy(context: &Context, environment: &Environment, section: &Section<'_>) -> Proxy {
    let usable = |text: Option<Secret>| match text {
        Some(text) if proxy_address(text.expose()).is_some() => Ok(text),
        _ => fault(
            "it is not the address of an HTTP proxy",
            "write for example http://proxy.example.org:3128",
        ),
    };
    let address = |key, variables: [&str; 4]| {
        if section.get(key).is_some() {
            // A word alone is rather a slip here; in the environment it is custom.
            let spelt_out = |text: &Secret| text.expose().contains("://");
            return section.read(key, |field| usable(Some(field.secret()?).filter(spelt_out)));
        }
        let given = |name: &&str| environment.get(name).is_some();
        let name = variables.into_iter().find(given)?;
        match usable(environment.get(name).map(Secret::new)) {
            Ok(address) => Some(address),
            Err(fault) => {
                context.in_environment(name, fault);
                None
            }
        }
    };
    let proxy = Proxy {
        http: address(
            "http",
            ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
        ),
        https: address(
            "https",
            ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        ),
        no_proxy: section.read("no_proxy", Field::text).or_else(|| {
            let found = environment
                .get("no_proxy")
                .or_else(|| environment.get("NO_PROXY"));
            found.map(str::to_owned)
        }),
    };
    section.finish();
    proxy
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    field: &Field<'_>,
    choices: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, Fault> {
    let text = field.text()?;
    if let Some(found) = choices.iter().find(|choice| name(**choice) == text) {
        return Ok(*found);
    }
    let names: Vec<&str> = choices.iter().map(|choice| name(*choice)).collect();
    let remedy = match nearest(&text, names.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("use {}", names.join(" or ")),
    };
    fault(format!("\"{text}\" is not known here"), remedy)
}

fn owner(text: &str) -> Result<Owner, Fault> {
    Owner::new(text).or_else(|_| {
        fault(
            format!("{text:?} can't mark this node's runs"),
            format!(
                "use small letters, digits and - (not first or last); at most {NAME_MAX} characters"
            ),
        )
    })
}

/// A node's name as an owner. A name that had to be changed gets a digest of the whole
/// name at its end, so that two nodes never share an owner by accident.
fn owner_from(name: &str) -> Owner {
    if let Ok(owner) = Owner::new(name) {
        return owner;
    }
    let digest = Sha256::digest(name.as_bytes());
    let suffix: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let words: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let words: Vec<&str> = words.split('-').filter(|word| !word.is_empty()).collect();
    let mut words = words.join("-");
    words.truncate(NAME_MAX - suffix.len() - 1);
    let words = Some(words.trim_end_matches('-')).filter(|words| !words.is_empty());
    Owner::new(format!("{}-{suffix}", words.unwrap_or("node")))
        .expect("letters, digits and single inner dashes, cut to length")
}

fn default_data_dir(environment: &Environment) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/v6-node");
    }
    directory(environment, "XDG_DATA_HOME")
        .or_else(|| Some(directory(environment, "HOME")?.join(".local/share")))
        .unwrap_or_else(std::env::temp_dir)
        .join("v6-node")
}

fn default_runtime_dir(environment: &Environment) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/v6-node");
    }
    directory(environment, "XDG_RUNTIME_DIR")
        .or_else(|| directory(environment, "XDG_STATE_HOME"))
        .or_else(|| Some(directory(environment, "HOME")?.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("v6-node")
}

/// The XDG base directory specification ignores relative paths.
fn directory(environment: &Environment, variable: &str) -> Option<PathBuf> {
    environment
        .get(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn owners_from_names() {
        assert_eq!(owner_from("hospital-a").as_str(), "hospital-a");
        let one = owner_from("Hospital A");
        assert!(one.as_str().starts_with("hospital-a-"), "{one}");
        assert_ne!(one, owner_from("hospital_a"));
        assert!(owner_from("病院").as_str().starts_with("node-"));
    }

    proptest! {
        #[test]
        fn every_name_gives_a_usable_owner(name in ".{0,80}") {
            let owner = owner_from(&name);
            prop_assert!(owner.as_str().len() <= NAME_MAX);
        }
    }
}
