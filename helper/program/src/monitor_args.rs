//! The command line of mode `monitor`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::args::{Words, parse_bytes, parse_seconds};

/// What `monitor` is asked for.
#[derive(Debug)]
pub struct Monitor {
    pub folder: OsString,
    pub tmpfs: Vec<Tmpfs>,
    /// Since the beginning of Unix time.
    pub deadline: Option<Duration>,
    pub grace: Duration,
    pub log_bytes: u64,
    /// The control group that the run is in, made by whoever starts this.
    pub cgroup: Option<OsString>,
    /// It is a job of a batch system, for this attempt at the run.
    pub job: Option<OsString>,
    pub env_file: Option<OsString>,
    pub tunnel: Option<TunnelArgs>,
    pub command: Words,
}

/// The `--tunnel`.
#[derive(Debug)]
pub struct TunnelArgs {
    /// The file with the address of whoever answers.
    pub address: OsString,
    pub run: String,
    pub grants: u16,
}

/// One `--tmpfs`.
#[derive(Debug)]
pub struct Tmpfs {
    pub path: OsString,
    pub bytes: u64,
}

/// Reads the arguments that follow the mode.
///
/// # Errors
///
/// In one sentence, what is wrong with them.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Monitor, String> {
    let mut monitor = Monitor {
        folder: OsString::new(),
        tmpfs: Vec::new(),
        deadline: None,
        grace: Duration::from_secs(10),
        log_bytes: 64 << 20,
        cgroup: None,
        job: None,
        env_file: None,
        tunnel: None,
        command: Words::Given(Vec::new()),
    };
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            monitor.command = Words::Given(arguments.collect());
            return check(monitor);
        }
        let name = argument.to_str().filter(|name| name.starts_with("--"));
        let Some(name) = name else {
            return Err(format!("{argument:?} is not an option, see --help"));
        };
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        match name {
            "--folder" => monitor.folder = value,
            "--tmpfs" => monitor.tmpfs.push(parse_tmpfs(&value)?),
            "--deadline" => monitor.deadline = Some(parse_seconds(name, &value)?),
            "--grace" => monitor.grace = parse_seconds(name, &value)?,
            "--log-bytes" => monitor.log_bytes = parse_bytes(name, &value)?,
            "--cgroup" => monitor.cgroup = Some(value),
            "--job" => monitor.job = Some(value),
            "--tunnel" => monitor.tunnel = Some(parse_tunnel(&value)?),
            "--env-file" => monitor.env_file = Some(value),
            "--command-file" => monitor.command = Words::File(value),
            _ => return Err(format!("{name} is not an option, see --help")),
        }
    }
    check(monitor)
}

fn parse_tunnel(value: &OsStr) -> Result<TunnelArgs, String> {
    let wrong = || format!("--tunnel takes GRANTS,RUN=FILE, not {value:?}");
    let text = value.to_str().ok_or_else(wrong)?;
    let (about, address) = text.split_once('=').ok_or_else(wrong)?;
    let (grants, run) = about.split_once(',').ok_or_else(wrong)?;
    Ok(TunnelArgs {
        address: address.into(),
        run: run.to_owned(),
        grants: grants.parse().map_err(|_| wrong())?,
    })
}

fn check(monitor: Monitor) -> Result<Monitor, String> {
    if monitor.folder.is_empty() {
        return Err("--folder is missing".into());
    }
    match &monitor.command {
        Words::Given(words) if words.is_empty() => Err("a command is missing".into()),
        _ => Ok(monitor),
    }
}

fn parse_tmpfs(value: &OsStr) -> Result<Tmpfs, String> {
    let wrong = || format!("--tmpfs takes BYTES=FOLDER, not {value:?}");
    let bytes = value.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    let at = at.ok_or_else(wrong)?;
    let path = OsStr::from_bytes(&bytes[at + 1..]).to_owned();
    let bytes = parse_bytes("--tmpfs", OsStr::from_bytes(&bytes[..at])).map_err(|_| wrong())?;
    if path.is_empty() {
        return Err(wrong());
    }
    Ok(Tmpfs { path, bytes })
}
