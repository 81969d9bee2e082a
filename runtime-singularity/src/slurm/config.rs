//! What an operator sets of Slurm.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use v6_runtime::{Annotations, ImageRef};

use crate::error::{Error, Result};

/// How jobs are submitted, and how often Slurm is asked about them.
///
/// What is not set, is as the site has it. Nothing of this process's own environment is used: no
/// `SBATCH_*` of the operator's changes a job.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SlurmConfig {
    /// The folder with `sbatch`, `squeue`, `scancel` and `sacct`, if they are not in `PATH`.
    pub commands: Option<PathBuf>,
    /// Slurm's configuration (`SLURM_CONF`), if it is not where Slurm looks for it.
    pub conf: Option<PathBuf>,
    /// What every job asks for.
    pub ask: SlurmOptions,
    /// What jobs of runs with one of these annotations, by name and value, ask for instead and in
    /// addition.
    pub ask_by_annotation: BTreeMap<(String, String), SlurmOptions>,
    /// What jobs of these images ask for instead and in addition to both, by the name that was asked for.
    pub ask_by_image: BTreeMap<ImageRef, SlurmOptions>,
    /// The most jobs of this owner that are in Slurm's hands at once; 100. Further runs wait here.
    pub max_jobs: NonZeroU32,
    /// How often Slurm is asked about all jobs together while there are some; 2 s. An end is mostly
    /// seen earlier, from the folder.
    pub poll: Duration,
    /// The longest wait for an answer of Slurm's; 30 s.
    pub call_timeout: Duration,
    /// Where runs on compute nodes reach this process, for their granted connections. Without it there
    /// is no egress.
    pub listen: Option<SlurmListen>,
}

/// A place on this host that all compute nodes reach: the first port of these that is free. Nobody but
/// a job that has its run's key gets an answer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlurmListen {
    /// An address of this host.
    pub address: IpAddr,
    /// Ports that are open to the compute nodes; 0 is any.
    pub ports: RangeInclusive<u16>,
}

/// What a job asks Slurm for, as `sbatch` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlurmOptions {
    /// `--partition`
    pub partition: Option<String>,
    /// `--account`
    pub account: Option<String>,
    /// `--qos`
    pub qos: Option<String>,
    /// `--constraint`
    pub constraint: Option<String>,
    /// `--gres`
    pub gres: Option<String>,
    /// `--cpus-per-task`: whole processors. Whether a job is kept to them is the site's choice.
    pub cpus: Option<NonZeroU32>,
    /// The longest that a job of a run without a deadline may take; rounded up to minutes. If not given,
    /// the partition's default.
    pub time_limit: Option<Duration>,
    /// Any other options of `sbatch`, one word each, `--NAME=VALUE`.
    pub arguments: Vec<String>,
}

impl Default for SlurmConfig {
    fn default() -> Self {
        Self {
            commands: None,
            conf: None,
            ask: SlurmOptions::default(),
            ask_by_annotation: BTreeMap::new(),
            ask_by_image: BTreeMap::new(),
            max_jobs: NonZeroU32::new(100).expect("not zero"),
            poll: Duration::from_secs(2),
            call_timeout: Duration::from_secs(30),
            listen: None,
        }
    }
}

/// Options of `sbatch` that are ours: with another value, runs could not be told apart, would run
/// twice, or see what is not theirs.
const OURS: [&str; 17] = [
    "--array",
    "--chdir",
    "--comment",
    "--dependency",
    "--error",
    "--export",
    "--export-file",
    "--get-user-env",
    "--input",
    "--job-name",
    "--no-requeue",
    "--ntasks",
    "--output",
    "--parsable",
    "--requeue",
    "--time",
    "--wrap",
];

impl SlurmOptions {
    /// As words of `sbatch`'s command line.
    pub(crate) fn words(&self) -> impl Iterator<Item = String> {
        let named = [
            ("partition", self.partition.clone()),
            ("account", self.account.clone()),
            ("qos", self.qos.clone()),
            ("constraint", self.constraint.clone()),
            ("gres", self.gres.clone()),
            ("cpus-per-task", self.cpus.map(|cpus| cpus.to_string())),
        ];
        let named = named
            .into_iter()
            .filter_map(|(name, value)| Some(format!("--{name}={}", value?)));
        named.chain(self.arguments.iter().cloned())
    }

    /// These, where something is set, and what is set below them elsewhere.
    fn over(&self, below: Self) -> Self {
        let own = self.clone();
        Self {
            partition: own.partition.or(below.partition),
            account: own.account.or(below.account),
            qos: own.qos.or(below.qos),
            constraint: own.constraint.or(below.constraint),
            gres: own.gres.or(below.gres),
            cpus: own.cpus.or(below.cpus),
            time_limit: own.time_limit.or(below.time_limit),
            // Of two that are the same, sbatch takes the last.
            arguments: [below.arguments, own.arguments].concat(),
        }
    }

    fn validate(&self) -> Result<()> {
        for word in self.words() {
            let name = word.split('=').next().unwrap_or_default();
            if !name.starts_with("--") || name.len() < 4 || word.contains(char::is_control) {
                let why = format!("{word:?} is no option of sbatch of the form --NAME=VALUE");
                return Err(Error::Config(why));
            }
            // sbatch takes any beginning of a name that is not ambiguous.
            if let Some(ours) = OURS.iter().find(|ours| ours.starts_with(name)) {
                let why = format!("{word:?} cannot be set: {ours} is set for every job");
                return Err(Error::Config(why));
            }
        }
        Ok(())
    }
}

impl SlurmConfig {
    /// Whether this can be used at all.
    pub(crate) fn validate(&self) -> Result<()> {
        for path in [&self.commands, &self.conf].into_iter().flatten() {
            if !path.is_absolute() {
                let why = format!("{} is not an absolute path", path.display());
                return Err(Error::Config(why));
            }
        }
        let own = self.ask_by_image.values();
        own.chain(self.ask_by_annotation.values())
            .chain([&self.ask])
            .try_for_each(SlurmOptions::validate)
    }

    /// What a job of this image with these annotations asks for.
    pub(crate) fn ask_for(&self, image: &ImageRef, annotations: &Annotations) -> SlurmOptions {
        let annotated = self.ask_by_annotation.iter();
        let annotated = annotated
            .filter(|((name, value), _)| annotations.get(name) == Some(value))
            .map(|(_, own)| own);
        annotated
            .chain(self.ask_by_image.get(image))
            .fold(self.ask.clone(), |below, own| own.over(below))
    }
}

macro_rules! setters {
    ($of:ident: $($set:ident $field:ident: $type:ty,)*) => {
        impl $of {
            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $set(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

setters! { SlurmConfig:
    with_commands commands: Option<PathBuf>,
    with_conf conf: Option<PathBuf>,
    with_ask ask: SlurmOptions,
    with_ask_by_annotation ask_by_annotation: BTreeMap<(String, String), SlurmOptions>,
    with_ask_by_image ask_by_image: BTreeMap<ImageRef, SlurmOptions>,
    with_max_jobs max_jobs: NonZeroU32,
    with_poll poll: Duration,
    with_call_timeout call_timeout: Duration,
    with_listen listen: Option<SlurmListen>,
}

setters! { SlurmOptions:
    with_partition partition: Option<String>,
    with_account account: Option<String>,
    with_qos qos: Option<String>,
    with_constraint constraint: Option<String>,
    with_gres gres: Option<String>,
    with_cpus cpus: Option<NonZeroU32>,
    with_time_limit time_limit: Option<Duration>,
    with_arguments arguments: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_and_an_image_can_ask_for_more() {
        let large = ImageRef::parse("localhost/large:1").expect("a name");
        let other = ImageRef::parse("localhost/other:1").expect("a name");
        let noted = Annotations::from_iter([("kind", "central")]);
        let kind = SlurmOptions::default()
            .with_gres(Some("license:1".into()))
            .with_qos(Some("long".into()))
            .with_cpus(NonZeroU32::new(4))
            .with_time_limit(Some(Duration::from_secs(60)))
            .with_arguments(vec!["--nice=5".into()]);
        let own = SlurmOptions::default()
            .with_gres(Some("gpu:1".into()))
            .with_arguments(vec!["--nice=9".into()]);
        let ask = SlurmOptions::default()
            .with_partition(Some("main".into()))
            .with_gres(Some("none".into()))
            .with_arguments(vec!["--nice=1".into()]);
        let config = SlurmConfig::default()
            .with_ask(ask)
            .with_ask_by_annotation(BTreeMap::from([(("kind".into(), "central".into()), kind)]))
            .with_ask_by_image(BTreeMap::from([(large.clone(), own)]));
        let words = |image, annotations| config.ask_for(image, annotations).words().collect();
        let words: [Vec<String>; 3] = [
            words(&large, &Annotations::default()),
            words(&other, &noted),
            words(&large, &noted),
        ];
        let wanted = [
            "--partition=main --gres=gpu:1 --nice=1 --nice=9",
            "--partition=main --qos=long --gres=license:1 --cpus-per-task=4 --nice=1 --nice=5",
            "--partition=main --qos=long --gres=gpu:1 --cpus-per-task=4 --nice=1 --nice=5 --nice=9",
        ];
        assert_eq!(words.map(|words| words.join(" ")), wanted);
        let limit = config.ask_for(&large, &noted).time_limit;
        assert_eq!(limit, Some(Duration::from_secs(60)));
        for value in ["centra", "", "central "] {
            let differs = Annotations::from_iter([("kind", value)]);
            assert_eq!(config.ask_for(&other, &differs), config.ask, "{value:?}");
        }
    }

    #[test]
    fn what_is_ours_cannot_be_set() {
        let with = |word: &str| {
            let ask = SlurmOptions::default().with_arguments(vec![word.to_owned()]);
            let by = BTreeMap::from([(("kind".into(), "any".into()), ask.clone())]);
            let annotated = SlurmConfig::default().with_ask_by_annotation(by).validate();
            let all = SlurmConfig::default().with_ask(ask).validate();
            assert_eq!(all.is_ok(), annotated.is_ok(), "{word}");
            all
        };
        for fine in [
            "--nice=100",
            "--exclude=node3",
            "--licenses=a:1",
            "--reservation=x",
        ] {
            assert!(with(fine).is_ok(), "{fine}");
        }
        for wrong in [
            "--requeue",
            "--export=ALL",
            "--expor=ALL",
            "--job-name=x",
            "--array=0-3",
            "-p",
            "--",
            "main",
            "--comment=a\nb",
            "--wrap=id",
        ] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
    }
}
