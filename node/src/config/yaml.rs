//! A YAML document as a tree that knows the line of each value.
//!
//! Scalars stay text until the key that they belong to says what type it wants:
//! the Python node reads YAML 1.1 (`yes` is a boolean there, `0123` a number), and
//! an API key of digits must not lose its leading zero. Duplicate keys are an error.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

/// How deep collections may nest, and how many values a document may hold, aliases
/// counted as often as they are used. Far beyond any configuration.
const MAX_DEPTH: usize = 32;
const MAX_VALUES: usize = 20_000;

/// One value and the line (from 1) on which it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// `plain`: written without quotes, so that `null`, `true` and `~` have a meaning.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub line: usize,
    pub name: String,
}

impl Node {
    /// An empty value or a written null.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// Why a text is not a usable document. The message never quotes the text.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub line: usize,
    pub message: String,
}

/// Reads the one document of `text`; an empty text is an empty mapping.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut tree = Tree {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        values: 0,
    };
    let mut root = None;
    loop {
        let (event, span) = tree.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if root.is_some() => {
                return Err(error(
                    &span,
                    "a second document; one file holds one configuration",
                ));
            }
            other => root = Some(tree.node(other, span, 0)?),
        }
    }
    Ok(root.unwrap_or(Node {
        line: 1,
        value: Value::Mapping(Vec::new()),
    }))
}

struct Tree<'input> {
    parser: Parser<'input, saphyr_parser::StrInput<'input>>,
    anchors: HashMap<usize, Node>,
    values: usize,
}

impl<'input> Tree<'input> {
    fn next(&mut self) -> Result<(Event<'input>, Span), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(scan)) => Err(SyntaxError {
                line: scan.marker().line(),
                message: scan.info().to_owned(),
            }),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(
        &mut self,
        event: Event<'input>,
        span: Span,
        depth: usize,
    ) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(error(&span, "values are nested too deep"));
        }
        let line = span.start.line();
        let (anchor, value) = match event {
            Event::Alias(id) => {
                let node =
                    self.anchors.get(&id).cloned().ok_or_else(|| {
                        error(&span, "an alias (*name) without its anchor (&name)")
                    })?;
                self.count(size(&node), &span)?;
                return Ok(Node {
                    line,
                    value: node.value,
                });
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                (
                    anchor,
                    Value::Scalar {
                        text: Cow::into_owned(text),
                        plain,
                    },
                )
            }
            Event::SequenceStart(anchor, _) => (anchor, Value::Sequence(self.sequence(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Value::Mapping(self.mapping(depth)?)),
            _ => return Err(error(&span, "a value was expected here")),
        };
        self.count(1, &span)?;
        let node = Node { line, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Node>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(items);
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, SyntaxError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let name = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(error(&span, "a key must be plain text")),
            };
            let line = span.start.line();
            if let Some((first, _)) = entries.iter().find(|(key, _)| key.name == name) {
                let message = format!(
                    "the key \"{name}\" is here a second time; it is first on line {}",
                    first.line
                );
                return Err(SyntaxError { line, message });
            }
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            entries.push((Key { line, name }, node));
        }
    }

    fn count(&mut self, values: usize, span: &Span) -> Result<(), SyntaxError> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            return Err(error(span, "too many values"));
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar { .. } => 0,
        Value::Sequence(items) => items.iter().map(size).sum(),
        Value::Mapping(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
    }
}

fn error(span: &Span, message: &str) -> SyntaxError {
    SyntaxError {
        line: span.start.line(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;

    #[test]
    fn scalars_stay_text_and_know_their_line() {
        let root = parse("a: 1\nb:\n  - '0123'\n  - ~\n").unwrap();
        let Value::Mapping(entries) = &root.value else {
            panic!("{root:?}")
        };
        assert_eq!(entries[1].0.line, 2);
        let Value::Sequence(items) = &entries[1].1.value else {
            panic!("{root:?}")
        };
        assert!(matches!(&items[0].value, Value::Scalar { text, plain: false } if text == "0123"));
        assert_eq!(items[0].line, 3);
        assert!(items[1].is_null());
    }

    #[test]
    fn what_is_refused() {
        for (text, line, message) in [
            ("a: 1\nb: 2\na: 3\n", 3, "second time"),
            ("a: 1\n---\nb: 1\n", 3, "second document"),
            ("? [a]\n: 1\n", 1, "plain text"),
            ("a: *nowhere\n", 1, ""),
            ("a: [1, 2\n", 2, ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.contains(message), "{text}: {error:?}");
            assert!(error.line.abs_diff(line) <= 1, "{text}: {error:?}");
        }
        assert!(parse(&"[".repeat(100)).is_err());
        let laughs = (0..10).fold(
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(),
            |text, i| {
                let next = i + 1;
                format!(
                    "{text}a{next}: &a{next} [{}]\n",
                    vec![format!("*a{i}"); 10].join(", ")
                )
            },
        );
        assert!(parse(&laughs).unwrap_err().message.contains("too many"));
    }

    #[test]
    fn anchors_and_an_empty_text() {
        let root = parse("a: &x {k: v}\nb: *x\n").unwrap();
        let Value::Mapping(entries) = &root.value else {
            panic!("{root:?}")
        };
        assert!(matches!(&entries[1].1.value, Value::Mapping(inner) if inner[0].0.name == "k"));
        assert!(matches!(parse("").unwrap().value, Value::Mapping(entries) if entries.is_empty()));
    }
}
