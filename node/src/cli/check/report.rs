//! How findings are shown.

use std::io::{self, Write};

use serde::Serialize;

use super::probe::{Line, Verdict};
use crate::cli::exit::Exit;

#[derive(Serialize)]
struct JsonReport<'a> {
    ok: bool,
    checks: Vec<JsonLine<'a>>,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    name: &'a str,
    verdict: Verdict,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

/// The exit code of a check with these lines: that of the first failure.
pub fn exit(lines: &[Line]) -> Exit {
    let failed = lines
        .iter()
        .find(|line| line.finding.verdict == Verdict::Fail);
    failed.map_or(Exit::Ok, |line| line.finding.exit)
}

/// Writes one line for people: `ok|warn|FAIL  name  message  -> remedy`.
pub fn write_line(out: &mut dyn Write, line: &Line, colour: bool) -> io::Result<()> {
    let (word, paint) = match line.finding.verdict {
        Verdict::Ok => ("ok  ", "\x1b[32m"),
        Verdict::Warn => ("warn", "\x1b[31m"),
        Verdict::Fail => ("FAIL", "\x1b[1;31m"),
    };
    let (paint, plain) = if colour { (paint, "\x1b[0m") } else { ("", "") };
    write!(
        out,
        "{paint}{word}{plain}  {:<16}  {}",
        line.name,
        one_line(&line.finding.message)
    )?;
    if let Some(remedy) = &line.finding.remedy {
        write!(out, "  -> {}", one_line(remedy))?;
    }
    writeln!(out)
}

/// Writes all lines as one JSON object.
pub fn write_json(out: &mut dyn Write, lines: &[Line]) -> io::Result<()> {
    let report = JsonReport {
        ok: exit(lines) == Exit::Ok,
        checks: lines
            .iter()
            .map(|line| JsonLine {
                name: &line.name,
                verdict: line.finding.verdict,
                message: &line.finding.message,
                remedy: line.finding.remedy.as_deref(),
            })
            .collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

/// A message may quote a name with any character in it; a report has one line for each.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use crate::cli::check::Finding;

    #[test]
    fn one_line_each_and_the_first_failure_decides() {
        let lines = [
            Line::new("disk", Finding::ok("9GiB\nfree\x1b[31m")),
            Line::new("clock", Finding::fail("wrong", "set it")),
            Line::new(
                "hq",
                Finding::fail("away", "wait").with_exit(Exit::Unavailable),
            ),
        ];
        let mut out = Vec::new();
        lines
            .iter()
            .for_each(|line| write_line(&mut out, line, false).unwrap());
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains('\x1b'));
        assert_eq!(exit(&lines), Exit::Failed);
        assert_eq!(exit(&lines[..1]), Exit::Ok);
    }
}
