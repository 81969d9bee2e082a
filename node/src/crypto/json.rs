//! Whether Python's `json.loads` accepts a text.
//!
//! The text form of an encrypted value is decoded differently for JSON (protocol 7.2),
//! and Python's idea of JSON decides: it takes `NaN` and `Infinity`, which results made
//! with pandas often hold and which serde_json refuses.

/// How deep lists and objects may nest; Python's own limit is its recursion limit.
const MAX_DEPTH: usize = 1000;

/// Whether `text` is one JSON value for Python. Nothing is built, so memory is constant
/// apart from one byte per level of nesting.
pub(super) fn is_python_json(text: &str) -> bool {
    let mut scan = Scan {
        text: text.as_bytes(),
        at: 0,
    };
    scan.value().is_some() && {
        scan.space();
        scan.at == scan.text.len()
    }
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &[u8]) -> Option<()> {
        self.text
            .get(self.at..)?
            .starts_with(word)
            .then(|| self.at += word.len())
    }

    /// One value with all that it holds; the open brackets are kept on a stack of our own
    /// so that hostile nesting cannot overflow the thread's.
    fn value(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            match self.peek()? {
                bracket @ (b'[' | b'{') => {
                    self.at += 1;
                    self.space();
                    let close = bracket + 2;
                    if self.peek()? == close {
                        self.at += 1;
                    } else {
                        if open.len() == MAX_DEPTH {
                            return None;
                        }
                        open.push(close);
                        if bracket == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'"' => self.string()?,
                _ => self.word_or_number()?,
            }
            // A value has ended: close what it completes, or go on to the next one.
            loop {
                let Some(&close) = open.last() else {
                    return Some(());
                };
                self.space();
                match self.peek()? {
                    b',' => {
                        self.at += 1;
                        if close == b'}' {
                            self.space();
                            self.key()?;
                        }
                        break;
                    }
                    byte if byte == close => {
                        self.at += 1;
                        open.pop();
                    }
                    _ => return None,
                }
            }
        }
    }

    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.space();
        self.take(b":")
    }

    fn string(&mut self) -> Option<()> {
        self.take(b"\"")?;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
                        b'u' => {
                            let digits = self.text.get(self.at + 1..self.at + 5)?;
                            if !digits.iter().all(u8::is_ascii_hexdigit) {
                                return None;
                            }
                            self.at += 5;
                        }
                        _ => return None,
                    }
                }
                0..=0x1f => return None,
                _ => self.at += 1,
            }
        }
    }

    fn word_or_number(&mut self) -> Option<()> {
        const WORDS: [&[u8]; 6] = [
            b"null",
            b"true",
            b"false",
            b"NaN",
            b"Infinity",
            b"-Infinity",
        ];
        if WORDS.iter().any(|word| self.take(word).is_some()) {
            return Some(());
        }
        let _ = self.take(b"-");
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') && self.text.get(self.at + 1).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
            self.digits();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            let sign = matches!(self.text.get(self.at + 1), Some(b'+' | b'-'));
            let first = self.at + 1 + usize::from(sign);
            if self.text.get(first).is_some_and(u8::is_ascii_digit) {
                self.at = first;
                self.digits();
            }
        }
        Some(())
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn agrees_with_python() {
        for yes in [
            "{}",
            "[]",
            "null",
            " 42 ",
            "-0.5e+7",
            "NaN",
            "[-Infinity, Infinity]",
            "\"\\ud800\"",
            "{\"a\": [1, {\"b\": \"é\"}], \"c\": NaN}",
            "[[], {}]\n",
            "\"\\u00e9\"",
            "1e5",
        ] {
            assert!(is_python_json(yes), "{yes:?}");
        }
        for no in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "01",
            "1.",
            "-",
            "+1",
            "'a'",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "nul",
            "[1 2]",
            "1 2",
            "{1: 2}",
            "]",
            "\u{feff}{}",
            "hello world",
            "1e",
            "[}",
            "Nan",
        ] {
            assert!(!is_python_json(no), "{no:?}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_fatal() {
        assert!(is_python_json(&format!(
            "{}{}",
            "[".repeat(900),
            "]".repeat(900)
        )));
        assert!(!is_python_json(&"[".repeat(1_000_000)));
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = is_python_json(&text);
        }

        #[test]
        fn what_serde_takes_python_takes(text in "[\\[\\]{}\",:0-9eE.+\\- a\\\\nu]{0,12}") {
            if serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() {
                prop_assert!(is_python_json(&text));
            }
        }
    }
}
