//! The node's data: labels, addresses, types and parameters.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use v6_runtime::VolumePath;

use super::egress::Endpoint;
use super::environment::Environment;
use super::reader::{Context, Fault, Field, Section, fault, nearest};
use crate::secret::Secret;

/// The types that vantage6 knows (`vantage6.common.enum.DatabaseType`).
pub const KNOWN_TYPES: [&str; 8] = [
    "csv", "excel", "sparql", "parquet", "sql", "omop", "other", "folder",
];
/// Types that are a file or a folder unless their address has a scheme.
const FILE_TYPES: [&str; 4] = ["csv", "excel", "parquet", "folder"];

/// One database.
#[derive(Clone, Debug)]
pub struct Database {
    /// The name by which tasks ask for it: letters, digits, `-`, `_`; at most 63 bytes.
    pub label: String,
    /// V6's type; the same characters. Also the extension of the path in a container.
    pub kind: String,
    /// Where it is.
    pub source: Source,
    /// Extra parameters by upper-case name; algorithms get them as `DB_PARAM_NAME`.
    pub parameters: BTreeMap<String, Secret>,
    /// Whether runs may only read it.
    pub read_only: bool,
    /// A supplementary group id that the run needs to read it.
    pub group: Option<u32>,
    /// What a run that asks for this database may reach.
    pub egress: Vec<Endpoint>,
}

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or folder of this machine; absolute. It need not exist when the node starts.
    Path(PathBuf),
    /// A volume of the engine, or what it has at a path.
    Volume(VolumeData),
    /// The address of a service; a secret, since it may hold a password.
    Service(Secret),
}

/// Data in a volume of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeData {
    /// The volume's name.
    pub name: String,
    /// Where in it, a file or a folder; `None` is all of it, a folder.
    pub path: Option<VolumePath>,
}

impl fmt::Display for VolumeData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path} in the volume {}", self.name),
            None => write!(f, "the volume {}", self.name),
        }
    }
}

/// What a [`Source`] turns out to be at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// A regular file.
    File(PathBuf),
    /// A folder.
    Folder(PathBuf),
    /// A volume of the engine, or what it has at a path.
    Volume(VolumeData),
    /// A service.
    Service(Secret),
    /// The path leads to nothing, or to neither a file nor a folder.
    Missing(PathBuf),
}

impl Database {
    /// The name in the container's database folder: `<label>.<type>`.
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.label, self.kind)
    }

    /// Looks at the disk: an existing file is a file, an existing folder a folder.
    pub fn locate(&self) -> Located {
        match &self.source {
            Source::Path(path) if path.is_file() => Located::File(path.clone()),
            Source::Path(path) if path.is_dir() => Located::Folder(path.clone()),
            Source::Path(path) => Located::Missing(path.clone()),
            Source::Volume(data) => Located::Volume(data.clone()),
            Source::Service(uri) => Located::Service(uri.clone()),
        }
    }
}

/// The databases of the environment if it names any, else those of the file's
/// `section`. V6 reads only the environment, which its chart fills from the file.
pub(super) fn read(
    context: &Context,
    environment: &Environment,
    section: Option<Field<'_>>,
) -> Vec<Database> {
    let of_file = section
        .map(|field| read_chart(context, &field))
        .unwrap_or_default();
    let databases = match environment.get("DATABASE_LABELS") {
        Some(labels) => {
            let databases = read_environment(context, environment, labels);
            for unused in of_file
                .iter()
                .filter(|a| !databases.iter().any(|b| b.label == a.label))
            {
                let what = format!(
                    "the database \"{}\" of the file is not offered, since DATABASE_LABELS has other labels",
                    unused.label
                );
                context.warn("DATABASE_LABELS", what);
            }
            databases
        }
        None => of_file,
    };
    for database in &databases {
        for (name, value) in &database.parameters {
            if is_base32(value.expose()) {
                let what = format!(
                    "the value of parameter {name} looks like base32; vantage6's Python algorithms will decode it and get something else"
                );
                context.warn(format!("database {}", database.label), what);
            }
        }
    }
    databases
}

fn read_environment(context: &Context, environment: &Environment, labels: &str) -> Vec<Database> {
    let mut accepted: Vec<(String, String)> = Vec::new();
    for label in labels
        .split(',')
        .map(str::trim)
        .filter(|label| !label.is_empty())
    {
        match check_label(label)
            .and_then(|()| check_unique(label, accepted.iter().map(|(label, _)| label.as_str())))
        {
            Ok(()) => accepted.push((label.to_owned(), environment_form(label))),
            Err(fault) => context.in_environment("DATABASE_LABELS", fault),
        }
    }
    // Each variable belongs to the longest label that fits, so that the label `a`
    // never gets the address and the credentials of the label `a_b`.
    let mut variables: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (rest, value) in environment
        .with_prefix("DATABASE_")
        .filter(|(rest, _)| *rest != "LABELS")
    {
        let owner = accepted
            .iter()
            .filter_map(|(label, form)| {
                Some((
                    label.as_str(),
                    rest.strip_prefix(form.as_str())?.strip_prefix('_')?,
                ))
            })
            .min_by_key(|(_, key)| key.len());
        match owner {
            Some((label, key)) => {
                variables.entry(label).or_default().insert(key, value);
            }
            None => {
                context.info(
                    format!("DATABASE_{rest}"),
                    "it belongs to no label in DATABASE_LABELS and is not used",
                );
            }
        }
    }
    accepted
        .iter()
        .filter_map(|(label, form)| {
            let mut of_label = variables.remove(label.as_str()).unwrap_or_default();
            let mut take = |key: &str, remedy: &str| {
                let value = of_label
                    .remove(key)
                    .map(str::trim)
                    .filter(|value| !value.is_empty());
                if value.is_none() {
                    let fault = Fault {
                        what: "it is missing".into(),
                        remedy: remedy.into(),
                    };
                    context.in_environment(format!("DATABASE_{form}_{key}"), fault);
                }
                value
            };
            let uri = take("URI", "set it to the data's path or address");
            let kind = take("TYPE", "set it to the data's type, for example csv or sql");
            let kind = kind.filter(|kind| {
                match check_kind(context, &format!("DATABASE_{form}_TYPE"), kind) {
                    Ok(()) => true,
                    Err(fault) => {
                        context.in_environment(format!("DATABASE_{form}_TYPE"), fault);
                        false
                    }
                }
            });
            let mut parameters = BTreeMap::new();
            for (key, value) in of_label {
                match check_parameter(key) {
                    Ok(()) => {
                        parameters.insert(key.to_ascii_uppercase(), Secret::new(value));
                    }
                    Err(fault) => context.in_environment(format!("DATABASE_{form}_{key}"), fault),
                }
            }
            let (uri, kind) = (uri?, kind?);
            Some(database(
                label,
                kind,
                source(uri, kind, context.directory()),
                parameters,
            ))
        })
        .collect()
}

fn read_chart(context: &Context, field: &Field<'_>) -> Vec<Database> {
    // The template of V6's command line writes `databases: []` for none.
    if field.is_list() && field.items().is_ok_and(|items| items.is_empty()) {
        return Vec::new();
    }
    let section = Section::open(context, field);
    let mut databases: Vec<Database> = Vec::new();
    for (key, file_based) in [("fileBased", true), ("serviceBased", false)] {
        let Some(items) = section.read(key, Field::items) else {
            continue;
        };
        for item in &items {
            let entry = Section::open(context, item);
            let label = entry.require(
                "name",
                "write the label by which tasks ask for it",
                |field| {
                    field.parse(|text| {
                        check_label(text)?;
                        check_unique(
                            text,
                            databases.iter().map(|database| database.label.as_str()),
                        )?;
                        Ok(text.to_owned())
                    })
                },
            );
            let kind = entry.require(
                "type",
                "write the data's type, for example csv or sql",
                |field| {
                    field.parse(|text| {
                        check_kind(context, &field.path, text).map(|()| text.to_owned())
                    })
                },
            );
            let place = if file_based { file_path(&entry) } else { None };
            let uri = match place {
                Some(path) => {
                    // `uri` is the same file as seen by whoever wrote the configuration.
                    let _ = entry.get("uri");
                    Some(path)
                }
                None => entry.require("uri", "write the data's path or address", Field::text),
            };
            let mut parameters = BTreeMap::new();
            if file_based {
                entry.ignore(&["mount_mode"], "data is never copied; runs get it read-only unless runtime.databases says otherwise");
            } else if let Some(variables) = entry.read("env", Field::entries) {
                for (name, field) in variables {
                    let value = check_parameter(name).and_then(|()| field.secret());
                    if let Some(value) = entry.check(&field, value) {
                        parameters.insert(name.to_ascii_uppercase(), value);
                    }
                }
            }
            if let (Some(label), Some(kind), Some(uri)) = (label, kind, uri) {
                let source = source(&uri, &kind, context.directory());
                databases.push(database(&label, &kind, source, parameters));
            }
            entry.finish();
        }
    }
    section.finish();
    databases
}

fn file_path(entry: &Section<'_>) -> Option<String> {
    let folder = entry.read("volumePath", Field::text);
    let name = entry.read("originalName", Field::text);
    Some(
        Path::new(&folder?)
            .join(name?)
            .to_string_lossy()
            .into_owned(),
    )
}

fn database(
    label: &str,
    kind: &str,
    source: Source,
    parameters: BTreeMap<String, Secret>,
) -> Database {
    Database {
        label: label.to_owned(),
        kind: kind.to_owned(),
        source,
        parameters,
        read_only: true,
        group: None,
        egress: Vec::new(),
    }
}

/// V6 calls whatever exists on disk a file or folder and the rest a service. A file
/// that is missing today is still a file, or its absence would be found by nobody.
fn source(uri: &str, kind: &str, directory: &Path) -> Source {
    if let Some(path) = uri.strip_prefix("file://") {
        return Source::Path(absolute(directory, path));
    }
    let path = absolute(directory, uri);
    let looks_local = uri.starts_with('/') || uri.starts_with("./") || uri.starts_with("../");
    let local =
        !uri.contains("://") && (looks_local || FILE_TYPES.contains(&kind) || path.exists());
    if local {
        Source::Path(path)
    } else {
        Source::Service(Secret::new(uri))
    }
}

/// `path` as it is meant in a file of `directory`.
pub(super) fn absolute(directory: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = directory.join(path);
    std::path::absolute(&path).unwrap_or(path)
}

/// The form of a label in the names of variables (`vantage6.common.kubernetes.utils`).
fn environment_form(label: &str) -> String {
    label.replace('-', "_").to_ascii_uppercase()
}

fn check_label(label: &str) -> Result<(), Fault> {
    if is_path_part(label, 63) {
        return Ok(());
    }
    fault(
        format!("{label:?} is not a usable label"),
        "use letters, digits, - and _, beginning with a letter or digit; at most 63 characters",
    )
}

fn check_unique<'a>(label: &str, others: impl Iterator<Item = &'a str>) -> Result<(), Fault> {
    for other in others {
        if environment_form(other) == environment_form(label) {
            return fault(
                format!("the labels {other:?} and {label:?} are the same to vantage6"),
                "give one of them a name that differs by more than case or - and _",
            );
        }
    }
    Ok(())
}

fn check_kind(context: &Context, key: &str, kind: &str) -> Result<(), Fault> {
    if !is_path_part(kind, 32) {
        return fault(
            format!("{kind:?} is not a usable type"),
            format!("use one of {}", KNOWN_TYPES.join(", ")),
        );
    }
    if !KNOWN_TYPES.contains(&kind) {
        let hint = match nearest(kind, KNOWN_TYPES) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => format!("; it knows {}", KNOWN_TYPES.join(", ")),
        };
        context.warn(
            key,
            format!("\"{kind}\" is not a type that vantage6 knows{hint}"),
        );
    }
    Ok(())
}

fn check_parameter(name: &str) -> Result<(), Fault> {
    if !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return Ok(());
    }
    fault(
        format!("{name:?} can't be part of a variable's name"),
        "use letters, digits and _",
    )
}

fn is_path_part(text: &str, longest: usize) -> bool {
    text.len() <= longest
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Whether vantage6's algorithm wrapper would take the text for an encoded value.
fn is_base32(text: &str) -> bool {
    let digits = text.trim_end_matches(['!', '=']);
    !digits.is_empty()
        && text.len().is_multiple_of(8)
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_or_service() {
        let here = Path::new("/etc/v6");
        for (uri, kind, path) in [
            ("/data/a.csv", "csv", "/data/a.csv"),
            ("data/a.csv", "csv", "/etc/v6/data/a.csv"),
            ("./x", "other", "/etc/v6/./x"),
            ("file:///data/a", "other", "/data/a"),
        ] {
            assert_eq!(source(uri, kind, here), Source::Path(path.into()), "{uri}");
        }
        for (uri, kind) in [
            ("https://x/a.csv", "csv"),
            ("db:5432/omop", "omop"),
            ("Server=db", "sql"),
        ] {
            assert!(
                matches!(source(uri, kind, here), Source::Service(_)),
                "{uri}"
            );
        }
    }

    #[test]
    fn labels_become_paths_and_must_not_leave_them() {
        for label in ["a", "A-b_9", "0"] {
            assert!(check_label(label).is_ok(), "{label}");
        }
        for label in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            "-a",
            "a\n",
            "é",
            &"a".repeat(64),
        ] {
            assert!(check_label(label).is_err(), "{label}");
        }
        assert!(check_unique("a-b", ["A_B"].into_iter()).is_err());
        assert!(check_unique("a-b", ["ab"].into_iter()).is_ok());
    }

    #[test]
    fn values_that_the_wrapper_would_decode() {
        assert!(is_base32("ABCDEFGH"));
        assert!(is_base32("MFRGG==="));
        assert!(!is_base32("abcdefgh"));
        assert!(!is_base32("ABCDEFG1"));
        assert!(!is_base32(""));
    }
}
