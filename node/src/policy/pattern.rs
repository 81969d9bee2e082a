//! The two kinds of entries in a policy: plain text and regular expressions.

use std::fmt;

use regex::Regex;
use v6_runtime::{Digest, ImageRef, ResolvedImage};

/// Why an entry can't be used.
#[derive(Debug, thiserror::Error)]
#[error("\"{text}\" is not usable as a pattern: {why}")]
pub struct PatternError {
    text: String,
    why: String,
}

/// An entry that is compared with a text: a regular expression if it contains one of
/// `* \ ? $ ^ [ ] ( ) { } | +`, as in V6, else the text itself. Both match whole texts only.
#[derive(Clone)]
pub struct TextPattern {
    text: String,
    regex: Option<Regex>,
}

impl TextPattern {
    /// Reads an entry.
    ///
    /// # Errors
    ///
    /// When it is no regular expression that can be run in linear time: look-around and
    /// back-references, which Python has, are refused.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let regex = match text.contains(|c: char| r"*\?$^[](){}|+".contains(c)) {
            true => Some(whole(text)?),
            false => None,
        };
        Ok(Self {
            text: text.to_owned(),
            regex,
        })
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match &self.regex {
            Some(regex) => regex.is_match(text),
            None => self.text == text,
        }
    }

    /// The entry as the operator wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for TextPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

fn whole(text: &str) -> Result<Regex, PatternError> {
    let refuse = |error: regex::Error| PatternError {
        text: text.to_owned(),
        why: last_line(&error),
    };
    // By itself first: "a)(b" must not become right by the parentheses around it.
    Regex::new(text).map_err(refuse)?;
    Regex::new(&format!(r"\A(?:{text})\z")).map_err(refuse)
}

/// The reason alone, without the drawing of the pattern above it.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// An entry that is compared with an image.
///
/// A regular expression has to match the whole image as HQ names it, or all of it but tag
/// and digest. A plain entry means: with a digest, that content and no other; with a tag,
/// that tag, or an image whose content is what the tag stands for; with neither, every
/// image of that repository.
#[derive(Clone, Debug)]
pub struct ImagePattern {
    pattern: TextPattern,
    plain: Option<Plain>,
}

#[derive(Clone, Debug)]
struct Plain {
    image: ImageRef,
    any_tag: bool,
}

impl ImagePattern {
    /// Reads an entry.
    ///
    /// # Errors
    ///
    /// As [`TextPattern::parse`], and when a plain entry is not the name of an image.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let pattern = TextPattern::parse(text)?;
        let plain = match pattern.regex {
            Some(_) => None,
            None => {
                let image = ImageRef::parse(text).map_err(|error| PatternError {
                    text: text.to_owned(),
                    why: error.message().to_owned(),
                })?;
                Some(Plain {
                    image,
                    any_tag: without_tag(text) == text,
                })
            }
        };
        Ok(Self { pattern, plain })
    }

    /// The entry as the operator wrote it.
    pub fn as_str(&self) -> &str {
        self.pattern.as_str()
    }

    /// The one image that the entry names, if it is plain and has a tag or digest.
    pub fn image(&self) -> Option<&ImageRef> {
        let plain = self.plain.as_ref()?;
        (!plain.any_tag).then_some(&plain.image)
    }

    /// The entry's own image, if [`Self::matches`] needs to know what its tag stands for
    /// before it can decide about `image`.
    pub fn to_resolve(&self, image: &ImageRef) -> Option<&ImageRef> {
        let plain = self.plain.as_ref()?;
        let undecided = !plain.any_tag
            && plain.image.digest().is_none()
            && plain.image.name() == image.name()
            && (image.digest().is_some() || plain.image.tag() != image.tag());
        undecided.then_some(&plain.image)
    }

    /// Whether the image matches. `written` is the image as HQ names it, `resolved` what it
    /// stands for, and `digest_of` what an entry of [`Self::to_resolve`] stands for, if known.
    pub fn matches(
        &self,
        written: &str,
        resolved: &ResolvedImage,
        digest_of: impl Fn(&ImageRef) -> Option<Digest>,
    ) -> bool {
        let Some(plain) = &self.plain else {
            return self.pattern.matches(written) || self.pattern.matches(without_tag(written));
        };
        let image = &resolved.reference;
        if plain.image.name() != image.name() {
            return false;
        }
        let is_content = |digest: &Digest| {
            resolved.identity.digest() == digest || image.digest() == Some(digest)
        };
        if let Some(digest) = plain.image.digest() {
            return is_content(digest);
        }
        // With a digest beside it, a tag says nothing about the content.
        let same_tag = image.digest().is_none() && image.tag() == plain.image.tag();
        plain.any_tag
            || same_tag
            || digest_of(&plain.image).is_some_and(|digest| is_content(&digest))
    }
}

/// `image` up to its tag or digest.
fn without_tag(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use v6_runtime::ImageIdentity;

    use super::*;

    fn digest(fill: char) -> Digest {
        Digest::new(format!("sha256:{}", fill.to_string().repeat(64))).unwrap()
    }

    fn matches(entry: &str, image: &str, content: char) -> bool {
        let reference = ImageRef::parse(image).unwrap();
        let identity = ImageIdentity::Manifest(digest(content));
        let resolved = ResolvedImage::new(reference, identity, "linux/amd64");
        // What entries with a tag stand for: always content "e".
        ImagePattern::parse(entry)
            .unwrap()
            .matches(image, &resolved, |_| Some(digest('e')))
    }

    #[test]
    fn an_entry_without_tag_takes_every_tag_of_that_repository() {
        assert!(matches("reg.io/a/b", "reg.io/a/b:1", 'a'));
        assert!(matches(
            "reg.io/a/b",
            &format!("reg.io/a/b@{}", digest('a')),
            'a'
        ));
        assert!(matches("a/b", "docker.io/a/b:2", 'a'));
        assert!(!matches("reg.io/a/b", "reg.io/a/bc:1", 'a'));
        assert!(!matches("reg.io/a/b", "other.io/a/b:1", 'a'));
        assert!(matches("localhost:5000/a", "localhost:5000/a:1", 'a'));
    }

    #[test]
    fn an_entry_with_tag_takes_that_tag_or_the_same_content() {
        assert!(matches("reg.io/a:1", "reg.io/a:1", 'a'));
        assert!(!matches("reg.io/a:1", "reg.io/a:2", 'a'));
        assert!(matches("reg.io/a:1", "reg.io/a:2", 'e'));
        assert!(matches(
            "reg.io/a:1",
            &format!("reg.io/a@{}", digest('e')),
            'e'
        ));
    }

    #[test]
    fn a_tag_beside_a_digest_proves_nothing() {
        let image = format!("reg.io/a:1@{}", digest('a'));
        assert!(!matches("reg.io/a:1", &image, 'a'));
        assert!(!matches(r"reg\.io/a:1", &image, 'a'));
        assert!(matches(
            "reg.io/a:1",
            &format!("reg.io/a:1@{}", digest('e')),
            'e'
        ));
    }

    #[test]
    fn an_entry_with_digest_takes_that_content_alone() {
        let entry = format!("reg.io/a:1@{}", digest('a'));
        assert!(matches(&entry, "reg.io/a:other", 'a'));
        assert!(!matches(&entry, "reg.io/a:1", 'b'));
        assert!(!matches(&entry, "reg.io/b:1", 'a'));
    }

    #[test]
    fn expressions_match_the_whole_image_or_all_but_its_tag() {
        let entry = r"^reg\.io/v6/[a-z]+";
        assert!(matches(entry, "reg.io/v6/mean:latest", 'a'));
        assert!(!matches(entry, "reg.io/v6/mean/evil:latest", 'a'));
        assert!(!matches(entry, "xreg.io/v6/mean", 'a'));
        assert!(matches("a|reg.io/b.*", "reg.io/b:1", 'a'));
        assert!(!matches("reg.io/a|reg.io/b", "reg.io/bc", 'a'));
    }

    #[test]
    fn when_the_entry_has_to_be_resolved() {
        let needed = |entry: &str, image: &str| {
            let entry = ImagePattern::parse(entry).unwrap();
            entry.to_resolve(&ImageRef::parse(image).unwrap()).is_some()
        };
        assert!(needed("reg.io/a:1", "reg.io/a:2"));
        assert!(needed("reg.io/a:1", &format!("reg.io/a:1@{}", digest('a'))));
        assert!(!needed("reg.io/a:1", "reg.io/a:1"));
        assert!(!needed("reg.io/a", "reg.io/a:1"));
        assert!(!needed("reg.io/a:1", "reg.io/b:1"));
        assert!(!needed(&format!("reg.io/a@{}", digest('a')), "reg.io/a:1"));
    }

    #[test]
    fn unusable_entries_say_why() {
        for (entry, word) in [
            ("(a", "unclosed"),
            ("a)(b", "unopened"),
            ("(?=a)b+", "look-around"),
            ("A B", "registry"),
        ] {
            let error = ImagePattern::parse(entry).unwrap_err().to_string();
            assert!(error.contains(word) || entry == "A B", "{entry}: {error}");
        }
    }
}
