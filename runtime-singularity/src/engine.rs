//! The command: Apptainer or SingularityCE. What it is given, and in which environment.
//!
//! Nothing of this process's environment gets to it but the way to its own helpers, so that no
//! `APPTAINER_*` or `SINGULARITY_*` of the operator's changes what a run sees.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use v6_runtime::RegistryCredentials;

use crate::command::{self, Said};
use crate::config::ImageFormat;
use crate::error::{Error, Result};
use crate::gpu::GpuKind;
use crate::image::Ready;

/// The names under which it is looked for.
const NAMES: [&str; 2] = ["apptainer", "singularity"];
/// Where its own helpers are looked for, besides where it is itself.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The first versions of each that know all options that are used here.
const OLDEST: (u32, u32) = (1, 2);
const OLDEST_CE: (u32, u32) = (3, 11);

/// The command as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) program: PathBuf,
    /// `Apptainer` or `SingularityCE`.
    pub(crate) name: &'static str,
    pub(crate) version: String,
    /// A folder for its own settings and files of this user.
    folder: PathBuf,
}

impl Engine {
    /// Finds the command and asks for its version.
    pub(crate) async fn find(
        program: Option<&Path>,
        folder: &Path,
        patience: Duration,
    ) -> Result<Self> {
        let program = match program {
            Some(path) if path.is_absolute() => path.to_owned(),
            Some(name) => look_up(name.as_os_str()).ok_or_else(|| not_there(name))?,
            None => NAMES
                .iter()
                .find_map(|name| look_up(OsStr::new(name)))
                .ok_or_else(|| not_there(Path::new(NAMES[0])))?,
        };
        let mut engine = Self {
            program,
            name: "",
            version: String::new(),
            folder: folder.join("engine"),
        };
        crate::record::make_private(&engine.folder.join("tmp")).map_err(Error::host(format!(
            "the folder {} cannot be made",
            engine.folder.display()
        )))?;
        engine.ask_version(patience).await?;
        Ok(engine)
    }

    /// Asks again.
    pub(crate) async fn ask_version(&mut self, patience: Duration) -> Result<()> {
        let said = self
            .run(
                ["--version".into()],
                &[],
                patience,
                "asking for the version",
            )
            .await?;
        let (name, version) = understand_version(&said).ok_or_else(|| {
            Error::Config(format!(
                "{} is neither Apptainer from {}.{} nor SingularityCE from {}.{}: it says {said:?}",
                self.program.display(),
                OLDEST.0,
                OLDEST.1,
                OLDEST_CE.0,
                OLDEST_CE.1,
            ))
        })?;
        (self.name, self.version) = (name, version);
        Ok(())
    }

    /// All that the command sees of an environment.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut path = OsString::from(PATH);
        if let Some(own) = self.program.parent() {
            path.push(":");
            path.push(own);
        }
        let tmp = self.folder.join("tmp");
        let folder = |name: &str| self.folder.join(name).into_os_string();
        let mut all = vec![
            ("PATH".into(), path),
            ("LANG".into(), "C".into()),
            ("HOME".into(), self.folder.clone().into_os_string()),
            ("TMPDIR".into(), tmp.clone().into_os_string()),
        ];
        for prefix in ["APPTAINER", "SINGULARITY"] {
            let mut set = |name: &str, value: OsString| {
                all.push((format!("{prefix}_{name}").into(), value));
            };
            set("CONFIGDIR", folder("config"));
            set("CACHEDIR", folder("cache"));
            set("TMPDIR", tmp.clone().into_os_string());
            // Layers are kept by us, unpacked.
            set("DISABLE_CACHE", "true".into());
        }
        all
    }

    /// Unpacks an image. Dropping the future ends it, and all that it has started.
    pub(crate) async fn build(
        &self,
        source: &OsStr,
        target: &Path,
        format: ImageFormat,
        credentials: Option<&RegistryCredentials>,
        plain: bool,
    ) -> Result<()> {
        let mut arguments: Vec<OsString> = vec!["build".into(), "--disable-cache".into()];
        if format == ImageFormat::Folder {
            // Folders of the image that their owner cannot write could not be removed again.
            arguments.extend(["--sandbox".into(), "--fix-perms".into()]);
        }
        if plain {
            arguments.push("--no-https".into());
        }
        arguments.extend([target.as_os_str().to_owned(), source.to_owned()]);
        let mut secret = Vec::new();
        // The way out of a house that has only one.
        for name in ["http_proxy", "https_proxy", "no_proxy"] {
            for name in [name.to_owned(), name.to_uppercase()] {
                if let Ok(value) = std::env::var(&name) {
                    secret.push((name, value));
                }
            }
        }
        if let Some(credentials) = credentials {
            for prefix in ["APPTAINER", "SINGULARITY"] {
                let mut set = |name: &str, value: &str| {
                    secret.push((format!("{prefix}_DOCKER_{name}"), value.to_owned()));
                };
                set("USERNAME", &credentials.username);
                set("PASSWORD", credentials.password.expose());
            }
        }
        self.run(arguments, &secret, Duration::MAX, "building the image")
            .await?;
        Ok(())
    }

    /// Runs the command to its end; what it says on standard output.
    async fn run(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
        secret: &[(String, String)],
        patience: Duration,
        step: &'static str,
    ) -> Result<String> {
        let mut line = Command::new(&self.program);
        line.args(arguments)
            .env_clear()
            .envs(self.environment())
            .envs(secret.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder);
        let Said { status, out, err } = command::run(line, patience, step).await?;
        if status.success() {
            return Ok(out.trim().to_owned());
        }
        let words = match err.trim() {
            "" => format!("{} ended with {status}", self.program.display()),
            words => words.to_owned(),
        };
        Err(Error::Engine { step, words })
    }

    /// The command line that runs a container, and becomes it; `init` is what is run inside.
    pub(crate) fn exec(
        &self,
        image: &Ready,
        container: &Container,
        init: &[String],
    ) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![self.program.clone().into()];
        let mut add = |words: &[&str]| line.extend(words.iter().map(OsString::from));
        add(&["--silent", "exec", "--userns", "--containall"]);
        // No shell looks at arguments and environment; no power is kept; our `init` is the first.
        add(&["--no-eval", "--no-privs", "--no-init"]);
        // What the site's configuration would add. `/sys` shows the machine's devices.
        add(&["--no-mount", "bind-paths,hostfs,sys,tmp,home,cwd"]);
        add(&["--hostname", "run"]);
        let seccomp = container.seccomp.display();
        add(&["--security", &format!("seccomp:{seccomp}")]);
        if let Some(gpu) = container.gpu {
            add(&[gpu.option()]);
        }
        for bind in &container.binds {
            add(&["--mount", &bind.text()]);
        }
        line.push(image.path.clone().into());
        line.extend(init.iter().map(OsString::from));
        line
    }
}

/// What a container has besides its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) binds: Vec<Bind>,
    pub(crate) seccomp: PathBuf,
    /// Which accelerators it gets, if any.
    pub(crate) gpu: Option<GpuKind>,
}

/// A file or folder that is seen inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

impl Bind {
    /// As `--mount` takes it: comma-separated, each field in quotes, so that it can hold anything.
    fn text(&self) -> String {
        let field = |name: &str, value: &str| format!("\"{name}={}\"", value.replace('"', "\"\""));
        let (source, target) = (
            field("source", &self.source),
            field("destination", &self.target),
        );
        let access = if self.read_only { ",ro" } else { "" };
        format!("type=bind,{source},{target}{access}")
    }
}

pub(crate) fn look_up(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_absolute() && path.is_file())
}

fn not_there(name: &Path) -> Error {
    Error::Config(format!(
        "there is no {} in PATH: install Apptainer, or say where it is",
        name.display()
    ))
}

/// `apptainer version 1.4.5`, `singularity-ce version 4.1.0-jammy`.
fn understand_version(said: &str) -> Option<(&'static str, String)> {
    let (program, version) = said.trim().split_once(" version ")?;
    let (name, oldest) = match program {
        "apptainer" => ("Apptainer", OLDEST),
        "singularity-ce" => ("SingularityCE", OLDEST_CE),
        "singularity-pro" | "singularitypro" => ("SingularityPRO", OLDEST_CE),
        _ => return None,
    };
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    let found = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (found >= oldest).then(|| (name, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let known = |said: &str| understand_version(said).map(|(name, _)| name);
        assert_eq!(known("apptainer version 1.4.5\n"), Some("Apptainer"));
        assert_eq!(known("apptainer version 1.2.0-rc.1"), Some("Apptainer"));
        assert_eq!(
            known("singularity-ce version 4.1.0-jammy"),
            Some("SingularityCE")
        );
        for other in [
            "apptainer version 1.1.9",
            "singularity version 3.8.7",
            "docker 20",
            "",
        ] {
            assert_eq!(known(other), None, "{other}");
        }
    }

    #[test]
    fn a_bind_can_hold_anything() {
        let bind = Bind {
            source: "/a,b \"c\":d".into(),
            target: "/x\ny".into(),
            read_only: true,
        };
        assert_eq!(
            bind.text(),
            "type=bind,\"source=/a,b \"\"c\"\":d\",\"destination=/x\ny\",ro"
        );
    }

    #[test]
    fn the_command_line_is_the_same_whatever_the_run() {
        let engine = Engine {
            program: "/usr/bin/apptainer".into(),
            name: "Apptainer",
            version: "1".into(),
            folder: "/f".into(),
        };
        let image = Ready {
            path: "/i/rootfs".into(),
            description: crate::image::Description::of_native(),
            native: false,
        };
        let line = |gpu| {
            let container = Container {
                binds: Vec::new(),
                seccomp: "/f/s".into(),
                gpu,
            };
            let line = engine.exec(&image, &container, &["/.v6/helper".into(), "init".into()]);
            let line: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
            line.join(" ")
        };
        assert_eq!(
            line(None),
            "/usr/bin/apptainer --silent exec --userns --containall --no-eval --no-privs --no-init \
             --no-mount bind-paths,hostfs,sys,tmp,home,cwd --hostname run --security seccomp:/f/s \
             /i/rootfs /.v6/helper init"
        );
        assert!(line(Some(GpuKind::Nvidia)).contains(" seccomp:/f/s --nv /i/rootfs "));
        assert!(line(Some(GpuKind::Rocm)).contains(" seccomp:/f/s --rocm /i/rootfs "));
        let names = engine.environment();
        assert!(names.iter().all(|(name, _)| !name.is_empty()));
        assert!(!names.iter().any(|(name, _)| name == "USER"));
    }
}
