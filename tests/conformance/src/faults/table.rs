//! How seeds are declared, their names, and all of them as a page.

use std::fmt::{self, Write};

use super::{ELSEWHERE, Seed};

/// Declares an enum of seeds from groups with a title:
///
/// ```text
/// "Title" {
///     /// what is wrong
///     Name [cases that have to be red] + A_CONSTANT_WITH_MORE
/// }
/// ```
///
/// Those of the in-memory runtime are [`Seed`].
macro_rules! seeds {
    ($(#[doc = $doc:literal])+ $seed:ident: $($title:literal {
        $(#[doc = $first:literal] $(#[doc = $more:literal])* $name:ident [$($case:ident)*] $(+ $set:ident)*)+
    })+) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $seed {
            $($(#[doc = $first] $(#[doc = $more])* $name,)+)+
        }

        impl $seed {
            /// Every one, in groups with a title.
            #[must_use]
            pub fn groups() -> Vec<(&'static str, Vec<Self>)> {
                vec![$(($title, vec![$(Self::$name),+])),+]
            }

            /// The same, each as a row of [`table`](fn@crate::faults::table).
            #[must_use]
            pub fn rows() -> Vec<$crate::faults::table::Rows> {
                let row = |seed: Self| (seed.to_string(), seed.description(), seed.cases());
                let groups = Self::groups().into_iter();
                let rows = |seeds: Vec<Self>| seeds.into_iter().map(row).collect();
                groups.map(|(title, seeds)| (title, rows(seeds))).collect()
            }

            /// Every one.
            #[must_use]
            pub fn all() -> Vec<Self> {
                Self::groups().into_iter().flat_map(|(_, seeds)| seeds).collect()
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
            pub fn cases(self) -> Vec<&'static str> {
                let all: &[&[&str]] = match self {
                    $($(Self::$name => &[&[$(stringify!($case)),*] $(, $set)*],)+)+
                };
                all.concat()
            }
        }

        /// The name in small letters, its words joined by hyphens.
        impl std::fmt::Display for $seed {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&$crate::faults::table::hyphenated(&format!("{self:?}")))
            }
        }

        impl std::str::FromStr for $seed {
            type Err = $crate::faults::UnknownSeed;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let known = Self::all().into_iter().find(|seed| seed.to_string() == name);
                known.ok_or_else(|| $crate::faults::UnknownSeed::new(name, &Self::all()))
            }
        }
    };
}

/// A title, and of each seed its name, what is wrong, and the cases.
pub type Rows = (&'static str, Vec<(String, &'static str, Vec<&'static str>)>);

/// `NameOfASeed128` as `name-of-a-seed-128`.
pub(super) fn hyphenated(name: &str) -> String {
    let mut words = String::new();
    let mut before = None;
    for letter in name.chars() {
        let is_digit = letter.is_ascii_digit();
        let begins = letter.is_ascii_uppercase() || is_digit;
        let goes_on = is_digit && before.is_some_and(|c: char| c.is_ascii_digit());
        if begins && !goes_on && before.is_some() {
            words.push('-');
        }
        words.push(letter.to_ascii_lowercase());
        before = Some(letter);
    }
    words
}

/// There is no seed of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownSeed {
    name: String,
    known: Vec<String>,
}

impl UnknownSeed {
    pub(super) fn new<S: ToString>(name: &str, known: &[S]) -> Self {
        Self {
            name: name.to_owned(),
            known: known.iter().map(S::to_string).collect(),
        }
    }
}

impl fmt::Display for UnknownSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.join(" ");
        write!(f, "there is no fault {:?}; there are: {known}", self.name)
    }
}

impl std::error::Error for UnknownSeed {}

/// All seeds as a page of Markdown, with the faults that are made at a real engine.
#[must_use]
pub fn table(engine: Vec<Rows>) -> String {
    let mut page = format!(
        "# Faults\n\n\
         A green report says something only if the suite would be red otherwise. So it is run on runtimes that are\n\
         known to be wrong, and beside each fault stand the cases that turn red.\n\n\
         - {} are switches in the in-memory runtime. The self-test `tests/conformance/tests/faults.rs` runs every case on\n  \
         every one of them, and fails if a case that is named here stays green, if another turns red, or if a case is\n  \
         never red: `cargo test -p v6-runtime-conformance --features faults`.\n\
         - {} are made at a real engine, between it and the suite, for what memory has not: a kernel around a program, a\n  \
         process that can be killed. `cargo run -p v6-conformance --features faults -- prove --runtime docker` runs the\n  \
         cases that such a fault can touch (with `--whole` all), and is as strict.\n\n\
         Written by the tests of v6-conformance, with `V6_UPDATE=1`.\n",
        Seed::all().len(),
        engine.iter().map(|(_, rows)| rows.len()).sum::<usize>(),
    );
    sections(&mut page, Seed::rows());
    sections(&mut page, engine);
    page.push_str(
        "\n## Cases that the in-memory runtime cannot run\n\n\
         Each is turned red by a fault at a real engine, above.\n\n\
         | why | cases |\n| --- | --- |\n",
    );
    for (why, cases) in ELSEWHERE {
        let _ = writeln!(page, "| {why} | {} |", listed(cases));
    }
    page
}

fn sections(page: &mut String, groups: Vec<Rows>) {
    for (title, rows) in groups {
        let _ = write!(
            page,
            "\n## {title}\n\n| fault | what is wrong | cases |\n| --- | --- | --- |\n"
        );
        for (name, description, cases) in rows {
            let _ = writeln!(page, "| {name} | {description} | {} |", listed(&cases));
        }
    }
}

fn listed(cases: &[&str]) -> String {
    let cases: Vec<String> = cases.iter().map(|id| format!("`{id}`")).collect();
    cases.join(", ")
}
