//! How seeds are declared, their names, and all of them as a page.

use std::fmt::{self, Write};
use std::str::FromStr;

use super::Seed;

/// Declares [`Seed`] from a list of groups: `Group "Title" { /// what is wrong. Name [cases] }`.
macro_rules! seeds {
    ($($group:ident $title:literal {
        $(#[doc = $first:literal] $(#[doc = $more:literal])* $name:ident [$($case:ident),*])+
    })+) => {
        /// One way in which a runtime can go wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Seed {
            $($(#[doc = $first] $(#[doc = $more])* $name,)+)+
        }

        impl Seed {
            /// Every one, in groups with a title.
            #[must_use]
            pub fn groups() -> Vec<(&'static str, Vec<Self>)> {
                vec![$(($title, vec![$(Self::$name),+])),+]
            }

            /// What is wrong, in a sentence.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self {
                    $($(Self::$name => concat!($first $(, $more)*).trim_ascii(),)+)+
                }
            }

            /// The cases that have to be red, and no others.
            #[must_use]
            pub fn cases(self) -> &'static [&'static str] {
                match self {
                    $($(Self::$name => &[$(stringify!($case)),*],)+)+
                }
            }

            pub(in crate::faults) fn variant(self) -> &'static str {
                match self {
                    $($(Self::$name => stringify!($name),)+)+
                }
            }
        }
    };
}

impl Seed {
    /// Every one.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let groups = Self::groups().into_iter();
        groups.flat_map(|(_, seeds)| seeds).collect()
    }
}

/// The name in small letters, its words joined by hyphens.
impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = String::new();
        let mut before: Option<char> = None;
        for letter in self.variant().chars() {
            let digits = |c: char| c.is_ascii_digit();
            let begins =
                letter.is_ascii_uppercase() || digits(letter) && !before.is_some_and(digits);
            if begins && before.is_some() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
            before = Some(letter);
        }
        f.pad(&name)
    }
}

/// There is no seed of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownSeed(String);

impl fmt::Display for UnknownSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no seed {:?}; there are:", self.0)?;
        Seed::all()
            .into_iter()
            .try_for_each(|seed| write!(f, " {seed}"))
    }
}

impl std::error::Error for UnknownSeed {}

impl FromStr for Seed {
    type Err = UnknownSeed;

    fn from_str(name: &str) -> Result<Self, UnknownSeed> {
        let known = Self::all()
            .into_iter()
            .find(|seed| seed.to_string() == name);
        known.ok_or_else(|| UnknownSeed(name.to_owned()))
    }
}

/// All seeds as a page of Markdown.
#[must_use]
pub fn table() -> String {
    let mut page = format!(
        "# Faults\n\n\
         The suite run on runtimes that are known to be wrong: {} faults, each a switch in the in-memory\n\
         runtime, and beside each the cases that turn red. The self-test `tests/conformance/tests/faults.rs`\n\
         runs every case on every fault, and fails if another case turns red, or if a case is never red.\n\n\
         Written by that test, with `V6_UPDATE=1`.\n",
        Seed::all().len()
    );
    for (title, seeds) in Seed::groups() {
        let _ = write!(
            page,
            "\n## {title}\n\n| fault | what is wrong | cases |\n| --- | --- | --- |\n"
        );
        for seed in seeds {
            let cases: Vec<String> = seed.cases().iter().map(|id| format!("`{id}`")).collect();
            let cases = cases.join(", ");
            let _ = writeln!(page, "| {seed} | {} | {cases} |", seed.description());
        }
    }
    page
}
