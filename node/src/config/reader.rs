//! Reads typed values out of the tree and collects every mistake on the way.
//!
//! A [`Section`] learns its keys from what is asked of it, so the list behind
//! "did you mean" can't differ from what is read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::problem::{Notice, Origin, Problem, Weight};
use super::units;
use super::yaml::{Key, Node, Value};
use crate::secret::Secret;

/// What is wrong with one value, and what to do.
#[derive(Debug)]
pub(super) struct Fault {
    pub what: String,
    pub remedy: String,
}

pub(super) fn fault<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        what: what.into(),
        remedy: remedy.into(),
    })
}

/// The mistakes and notices of one configuration while it is read.
pub(super) struct Context {
    file: PathBuf,
    problems: RefCell<Vec<Problem>>,
    notices: RefCell<Vec<Notice>>,
}

impl Context {
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            problems: RefCell::default(),
            notices: RefCell::default(),
        }
    }

    /// The directory to which relative paths in the file belong.
    pub fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    pub fn in_file(&self, line: usize, key: impl Into<String>, fault: Fault) {
        self.problem(
            Origin::File {
                path: self.file.clone(),
                line,
            },
            key,
            fault,
        );
    }

    pub fn in_environment(&self, variable: impl Into<String>, fault: Fault) {
        self.problem(Origin::Environment, variable, fault);
    }

    fn problem(&self, origin: Origin, key: impl Into<String>, fault: Fault) {
        let Fault { what, remedy } = fault;
        self.problems.borrow_mut().push(Problem {
            origin,
            key: key.into(),
            what,
            remedy,
        });
    }

    pub fn info(&self, key: impl Into<String>, what: impl Into<String>) {
        self.notice(Weight::Info, key, what);
    }

    pub fn warn(&self, key: impl Into<String>, what: impl Into<String>) {
        self.notice(Weight::Warning, key, what);
    }

    fn notice(&self, weight: Weight, key: impl Into<String>, what: impl Into<String>) {
        let notice = Notice {
            weight,
            key: key.into(),
            what: what.into(),
        };
        self.notices.borrow_mut().push(notice);
    }

    /// Mistakes in the order of the file, then those of the environment.
    pub fn finish(self) -> (Vec<Problem>, Vec<Notice>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| match problem.origin {
            Origin::File { line, .. } => line,
            Origin::Environment => usize::MAX,
        });
        (problems, self.notices.into_inner())
    }
}

/// One value with its path, to be read as what the key wants.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub path: String,
    pub line: usize,
    node: &'a Node,
}

impl<'a> Field<'a> {
    pub fn new(path: impl Into<String>, node: &'a Node) -> Self {
        Self {
            path: path.into(),
            line: node.line,
            node,
        }
    }

    fn scalar(&self) -> Result<&'a str, Fault> {
        match &self.node.value {
            Value::Scalar { text, .. } => Ok(text),
            Value::Sequence(_) => fault("a list is here", "write one value"),
            Value::Mapping(_) => fault("a section with keys is here", "write one value"),
        }
    }

    /// All of it, for types that are somebody else's.
    pub fn json(&self) -> serde_json::Value {
        json(self.node)
    }

    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::Sequence(_))
    }

    pub fn text(&self) -> Result<String, Fault> {
        let text = self.scalar()?.trim();
        if text.is_empty() {
            return fault("it is empty", "write a value, or remove the key");
        }
        Ok(text.to_owned())
    }

    /// The text as it is written, which may be empty.
    pub fn raw_text(&self) -> Result<String, Fault> {
        self.scalar().map(str::to_owned)
    }

    /// As [`Self::text`], but nothing that is wrong is ever quoted, nor is it trimmed.
    pub fn secret(&self) -> Result<Secret, Fault> {
        let text = self.scalar()?;
        if text.is_empty() {
            return fault("it is empty", "write a value, or remove the key");
        }
        Ok(Secret::new(text))
    }

    pub fn boolean(&self) -> Result<bool, Fault> {
        match self.scalar()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            other => fault(
                format!("\"{other}\" is neither true nor false"),
                "write true or false",
            ),
        }
    }

    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Result<T, Fault>
    where
        T: FromStr + PartialOrd + Display,
    {
        let text = self.scalar()?;
        match text.trim().parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => fault(
                format!("\"{text}\" is not a number that fits here"),
                format!(
                    "write a whole number from {} to {}",
                    range.start(),
                    range.end()
                ),
            ),
        }
    }

    pub fn port(&self) -> Result<u16, Fault> {
        self.integer(1..=u16::MAX)
    }

    /// A size of at least one byte.
    pub fn size(&self) -> Result<u64, Fault> {
        let text = self.scalar()?;
        match units::size(text) {
            Some(bytes) if bytes > 0 => Ok(bytes),
            _ => fault(
                format!("\"{text}\" is not a size"),
                "write a whole number with a unit, for example 512MiB or 4GiB",
            ),
        }
    }

    pub fn cpus(&self) -> Result<u32, Fault> {
        let text = self.scalar()?;
        match units::cpus(text) {
            Some(milli) if milli > 0 => Ok(milli),
            _ => fault(
                format!("\"{text}\" is not a number of processors"),
                "write for example 2, 0.5 or 500m",
            ),
        }
    }

    /// A duration above zero.
    pub fn duration(&self) -> Result<Duration, Fault> {
        let text = self.scalar()?;
        match units::duration(text) {
            Some(time) if !time.is_zero() => Ok(time),
            _ => fault(
                format!("\"{text}\" is not a duration"),
                "write a whole number with a unit, for example 30s, 15m, 12h or 7d",
            ),
        }
    }

    pub fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Result<T, Fault> {
        parse(&self.text()?)
    }

    /// The items of a list; one value alone counts as a list of one, as in V6.
    pub fn items(&self) -> Result<Vec<Field<'a>>, Fault> {
        match &self.node.value {
            Value::Sequence(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Field::new(format!("{}[{index}]", self.path), node))
                .collect()),
            Value::Scalar { .. } => Ok(vec![self.clone()]),
            Value::Mapping(_) => fault("a section with keys is here", "write a list"),
        }
    }

    /// The entries of a section whose keys are names that the operator chooses.
    pub fn entries(&self) -> Result<Vec<(&'a str, Field<'a>)>, Fault> {
        match &self.node.value {
            Value::Mapping(entries) => Ok(entries
                .iter()
                .map(|(key, node)| {
                    (
                        key.name.as_str(),
                        Field {
                            line: key.line,
                            ..Field::new(join(&self.path, &key.name), node)
                        },
                    )
                })
                .collect()),
            _ => fault(
                "this is not a section with keys",
                "write one line \"name: value\" for each",
            ),
        }
    }
}

fn json(node: &Node) -> serde_json::Value {
    use serde_json::Value as Json;
    match &node.value {
        _ if node.is_null() => Json::Null,
        Value::Scalar { text, plain } => match (text.as_str(), text.parse::<i64>()) {
            ("true", _) if *plain => Json::Bool(true),
            ("false", _) if *plain => Json::Bool(false),
            (_, Ok(number)) if *plain => Json::from(number),
            _ => Json::from(text.clone()),
        },
        Value::Sequence(items) => items.iter().map(json).collect(),
        Value::Mapping(entries) => {
            let entries = entries.iter();
            entries
                .map(|(key, node)| (key.name.clone(), json(node)))
                .collect()
        }
    }
}

/// A mapping whose keys are known.
pub(super) struct Section<'a> {
    context: &'a Context,
    path: String,
    line: usize,
    entries: &'a [(Key, Node)],
    known: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Section<'a> {
    /// Opens `field` as a section; anything else is reported, and an empty section returned.
    pub fn open(context: &'a Context, field: &Field<'a>) -> Self {
        let entries: &[(Key, Node)] = match &field.node.value {
            Value::Mapping(entries) => entries,
            _ if field.node.is_null() => &[],
            _ => {
                let what = "this should be a section with keys";
                let remedy = "write its keys on lines of their own below it, indented";
                context.in_file(
                    field.line,
                    field.path.clone(),
                    Fault {
                        what: what.into(),
                        remedy: remedy.into(),
                    },
                );
                &[]
            }
        };
        Self {
            context,
            path: field.path.clone(),
            line: field.line,
            entries,
            known: RefCell::default(),
        }
    }

    pub fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    pub fn path(&self) -> String {
        self.path.clone()
    }

    pub fn line(&self) -> usize {
        self.line
    }

    /// The items at `key` if it is a list.
    pub fn get_list(&self, key: &'static str) -> Option<Vec<Field<'a>>> {
        self.get(key).filter(Field::is_list)?.items().ok()
    }

    /// The value of `key`, if it is there and not null.
    pub fn get(&self, key: &'static str) -> Option<Field<'a>> {
        self.known.borrow_mut().insert(key);
        let (found, node) = self.entries.iter().find(|(found, _)| found.name == key)?;
        (!node.is_null()).then(|| Field {
            line: found.line,
            ..Field::new(self.path_of(key), node)
        })
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(found, _)| found.name == key)
    }

    /// The value of `key`, read by `read`; a mistake is reported and is like absence.
    pub fn read<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Field<'a>) -> Result<T, Fault>,
    ) -> Option<T> {
        let field = self.get(key)?;
        self.check(&field, read(&field))
    }

    /// As [`Self::read`]; absence is reported with `remedy`.
    pub fn require<T>(
        &self,
        key: &'static str,
        remedy: &str,
        read: impl FnOnce(&Field<'a>) -> Result<T, Fault>,
    ) -> Option<T> {
        if self.get(key).is_none() {
            self.report(
                self.line,
                &self.path_of(key),
                Fault {
                    what: "it is missing".into(),
                    remedy: remedy.into(),
                },
            );
            return None;
        }
        self.read(key, read)
    }

    /// Every item of the list at `key`, read by `read`; absent is `None`.
    pub fn list<T>(
        &self,
        key: &'static str,
        mut read: impl FnMut(&Field<'a>) -> Result<T, Fault>,
    ) -> Option<Vec<T>> {
        let items = self.read(key, Field::items)?;
        Some(
            items
                .iter()
                .filter_map(|item| self.check(item, read(item)))
                .collect(),
        )
    }

    /// The section at `key`; an empty one when it is absent.
    pub fn section(&self, key: &'static str) -> Section<'a> {
        match self.get(key) {
            Some(field) => Section::open(self.context, &field),
            None => Section {
                context: self.context,
                path: self.path_of(key),
                line: self.line,
                entries: &[],
                known: RefCell::default(),
            },
        }
    }

    /// Keys that are right in V6 and have no effect here; each one found becomes a notice.
    pub fn ignore(&self, keys: &[&'static str], why: &str) {
        for key in keys {
            if self.get(key).is_some() {
                self.context.info(self.path_of(key), why);
            }
        }
    }

    pub fn check<T>(&self, field: &Field<'_>, result: Result<T, Fault>) -> Option<T> {
        result
            .map_err(|fault| self.report(field.line, &field.path, fault))
            .ok()
    }

    pub fn report(&self, line: usize, key: &str, fault: Fault) {
        self.context.in_file(line, key, fault);
    }

    /// The entries of a section whose keys are names that the operator chooses.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.entries.iter().map(|(key, node)| {
            let field = Field {
                line: key.line,
                ..Field::new(self.path_of(&key.name), node)
            };
            (key.name.as_str(), field)
        })
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(&self) {
        let known = self.known.borrow();
        for (key, _) in self.entries {
            if !known.contains(key.name.as_str()) {
                let remedy = match nearest(&key.name, known.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => "remove it; docs/configuration.md lists all keys".to_owned(),
                };
                self.report(
                    key.line,
                    &self.path_of(&key.name),
                    Fault {
                        what: "no such key".into(),
                        remedy,
                    },
                );
            }
        }
    }
}

/// The candidate most like `word`, if one is alike enough to be a slip of the fingers.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Case and separators are the usual difference between V6's two spellings of a key.
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let word = plain(word);
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&word, &plain(candidate)),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= candidate.len().min(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
