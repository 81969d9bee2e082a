//! The command line.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddrV4;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::monitor_args::{self, Monitor};
use crate::pod;
use crate::sys::MAX_SOCKET_PATH;

pub const HELP: &str = "\
v6-helper: runs beside or inside a container

v6-helper init [OPTION…] -- COMMAND [ARGUMENT…]
    Runs COMMAND as the first process of a container: forwards signals to it, reaps
    orphans, ends with its exit code (128+N for signal N).

    --listen ADDRESS:PORT=SOCKET  listen on a loopback address and copy each connection to
                                  and from a unix socket; repeatable
    --connections NUMBER          connections at once per address (default 256)
    --wait SECONDS                how long a connection waits for the socket to answer
                                  before it is closed (default 600)
    --deadline SECONDS[.FRACTION] Unix time at which all processes get SIGTERM
    --grace SECONDS               from there to SIGKILL (default 10)
    --limit core|fsize=BYTES      the most that a core dump or any one file may have, for good;
                                  repeatable
    --limit nproc=NUMBER          the most processes and threads of this user name space
    --env-file FILE               KEY=VALUE pairs, each ended by a NUL, for COMMAND
    --workdir FOLDER              COMMAND's working folder
    --clear-env                   COMMAND gets the environment of --env-file and no other
    --command-file FILE           instead of -- COMMAND…: the same words, each ended by a NUL
    --stdout FIFO, --stderr FIFO  where COMMAND prints
    --stop-file FILE              if it is there when all is ready, COMMAND is not started
    --claim FILE                  an existing file, into which the end is written as JSON

    Exit codes of its own: 125 it failed itself, 126 COMMAND cannot be executed,
    127 COMMAND was not found.

v6-helper monitor --folder FOLDER [OPTION…] -- COMMAND [ARGUMENT…]
    Holds one run on a host and outlives its starter: runs COMMAND in name spaces of its
    own, takes what the run prints into FOLDER/box/stdout and stderr, and writes down in
    FOLDER how it ended. Standard input is a file in FOLDER that the starter has locked.
    Returns when COMMAND has been started, or has been found not to be.

    --job ATTEMPT                 it is a job of a batch system: stays, ends with COMMAND's exit
                                  code, and needs no standard input. Runs only if FOLDER's file
                                  `attempt` says the same and no other job has begun before.
                                  Looks whether it is to end each second, and at SIGUSR1
    --tunnel GRANTS,RUN=FILE      listens on FOLDER/box/egress/0.sock and so on, one for each grant,
                                  and passes each connection on to the address in FILE, to which
                                  it proves FOLDER's file `key`
    --env-file FILE               COMMAND's whole environment: KEY=VALUE pairs, each ended by a NUL
    --command-file FILE           instead of -- COMMAND…: the same words, each ended by a NUL

    --tmpfs BYTES=FOLDER          mounts a folder of limited size for COMMAND, with the folders
                                  and empty files that FOLDER has; repeatable
    --deadline SECONDS[.FRACTION] Unix time at which the run is asked to end
    --grace SECONDS               from there to the kill (default 10)
    --log-bytes BYTES             the most that is kept of what the run prints (default 64 MiB)
    --cgroup FOLDER               the control group of version 2 that COMMAND is put into

v6-helper examine [--control HOST:PORT] [--network none|denied]
    Tries what a run must not be able to do and prints what it saw as JSON. HOST:PORT must
    answer a line with the same line. With a network that is denied by others, as in a pod, it is
    tried to get out; without one no packet is sent.

v6-helper receive [OPTION…]
    Before the program of a pod: waits until the pod's network is denied, makes the outputs,
    takes input through the tunnel.

    --key FILE                    the key of the tunnel
    --out FOLDER, --in FOLDER     where outputs are, and where streamed input goes
    --file N, --folder N          an output to make; repeatable
    --copy FILE=out/PATH          content to put into an output; repeatable
    --part FOLDER=PATH            what the folder of a volume must have; repeatable
    --stream BYTES=in/N|out/PATH  input that is to come; repeatable
    --control ADDRESS:PORT|none   what must become unreachable (default: the cluster's API)
    --settle SECONDS              how long it must stay so (default 1.5)
    --wait SECONDS                how long the denial may take (default 60)
    --deadline SECONDS[.FRACTION] Unix time after which nothing is started

    --tunnel-port PORT            where the tunnel's other end is expected (default 61653)

    Exit codes of its own: 81 the network is not denied, 82 the deadline is over, 83 nobody
    brought the input, 125 it failed itself.

v6-helper sidecar [OPTION…]
    Beside the program of a pod: carries its connections through the tunnel and gives out what
    it has left.

    --key FILE, --out FOLDER      as above
    --listen ADDRESS:PORT         for each grant, in their order; repeatable
    --deadline SECONDS[.FRACTION] Unix time at which the program's container is to be ended
    --idle SECONDS                end when nothing was asked for so long (default: never)
    --tunnel-port PORT            as above
    --alive-port PORT             listened to for as long as the program may run (default 61654)

v6-helper --version
v6-helper --help
";

/// One `--listen`.
#[derive(Debug)]
pub struct Listen {
    pub address: SocketAddrV4,
    pub socket: OsString,
}

/// One `--limit`.
#[derive(Debug)]
pub struct Limit {
    pub resource: Resource,
    pub most: u64,
}

/// What a limit is on.
#[derive(Clone, Copy, Debug)]
pub enum Resource {
    Core,
    FileSize,
    Processes,
}

/// What `init` is asked for.
#[derive(Debug)]
pub struct Init {
    pub listen: Vec<Listen>,
    pub connections: usize,
    pub wait: Duration,
    /// Since the beginning of Unix time.
    pub deadline: Option<Duration>,
    pub grace: Duration,
    pub limits: Vec<Limit>,
    pub env_file: Option<OsString>,
    pub clear_env: bool,
    pub claim: Option<OsString>,
    pub stdout: Option<OsString>,
    pub stderr: Option<OsString>,
    pub stop_file: Option<OsString>,
    pub workdir: Option<OsString>,
    pub command: Words,
}

/// The command and its arguments.
#[derive(Debug)]
pub enum Words {
    Given(Vec<OsString>),
    /// In this file, each ended by a NUL.
    File(OsString),
}

/// What the program is asked for.
#[derive(Debug)]
pub enum Request {
    Help,
    Version,
    Init(Box<Init>),
    Monitor(Box<Monitor>),
    Examine {
        control: Option<String>,
        in_pod: bool,
    },
    Receive(Box<pod::Options>),
    Sidecar(Box<pod::Options>),
}

/// Reads the arguments that follow the program's name.
///
/// # Errors
///
/// In one sentence, what is wrong with them.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut arguments = arguments.into_iter();
    let Some(mode) = arguments.next() else {
        return Err("a mode is missing, see --help".into());
    };
    match mode.as_bytes() {
        b"examine" => parse_examine(arguments),
        b"--help" | b"-h" => Ok(Request::Help),
        b"--version" | b"-V" => Ok(Request::Version),
        b"monitor" => monitor_args::parse(arguments).map(|it| Request::Monitor(Box::new(it))),
        b"receive" => pod::parse(arguments).map(|it| Request::Receive(Box::new(it))),
        b"sidecar" => pod::parse(arguments).map(|it| Request::Sidecar(Box::new(it))),
        b"init" => parse_init(arguments).map(|init| Request::Init(Box::new(init))),
        _ => Err(format!("{mode:?} is not a mode, see --help")),
    }
}

fn parse_examine(mut arguments: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let (mut control, mut in_pod) = (None, false);
    while let Some(argument) = arguments.next() {
        let name = argument
            .into_string()
            .map_err(|argument| format!("{argument:?} is not an option, see --help"))?;
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?
            .into_string()
            .map_err(|value| format!("{value:?} is not UTF-8"))?;
        match (name.as_str(), value.as_str()) {
            ("--control", _) => control = Some(value),
            ("--network", "none") => in_pod = false,
            ("--network", "denied") => in_pod = true,
            ("--network", _) => {
                return Err(format!(
                    "--network: {value:?} is not understood, see --help"
                ));
            }
            _ => return Err(format!("{name} is not an option, see --help")),
        }
    }
    Ok(Request::Examine { control, in_pod })
}

fn parse_init(mut arguments: impl Iterator<Item = OsString>) -> Result<Init, String> {
    let mut init = Init {
        listen: Vec::new(),
        connections: 256,
        wait: Duration::from_secs(600),
        deadline: None,
        grace: Duration::from_secs(10),
        limits: Vec::new(),
        env_file: None,
        clear_env: false,
        claim: None,
        stdout: None,
        stderr: None,
        stop_file: None,
        workdir: None,
        command: Words::Given(Vec::new()),
    };
    let mut file = None;
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            let words: Vec<OsString> = arguments.collect();
            if words.is_empty() {
                return Err("no command follows --".into());
            }
            if file.is_some() {
                return Err("the command is given twice, by --command-file and --".into());
            }
            init.command = Words::Given(words);
            return Ok(init);
        }
        let name = argument.to_str().filter(|name| name.starts_with("--"));
        let Some(name) = name else {
            return Err(format!("{argument:?} is not an option, see --help"));
        };
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{name} needs a value"))
        };
        match name {
            "--listen" => init.listen.push(parse_listen(&value()?)?),
            "--connections" => init.connections = parse_number(name, &value()?)?,
            "--wait" => init.wait = parse_seconds(name, &value()?)?,
            "--deadline" => init.deadline = Some(parse_seconds(name, &value()?)?),
            "--grace" => init.grace = parse_seconds(name, &value()?)?,
            "--limit" => init.limits.push(parse_limit(&value()?)?),
            "--env-file" => init.env_file = Some(value()?),
            "--clear-env" => init.clear_env = true,
            "--claim" => init.claim = Some(value()?),
            "--stdout" => init.stdout = Some(value()?),
            "--stderr" => init.stderr = Some(value()?),
            "--stop-file" => init.stop_file = Some(value()?),
            "--workdir" => init.workdir = Some(value()?),
            "--command-file" => file = Some(value()?),
            _ => return Err(format!("{name} is not an option, see --help")),
        }
    }
    init.command = Words::File(file.ok_or("-- and a command are missing")?);
    Ok(init)
}

fn parse_listen(value: &OsStr) -> Result<Listen, String> {
    let wrong = || format!("--listen takes ADDRESS:PORT=SOCKET, not {value:?}");
    let bytes = value.as_bytes();
    let split = bytes
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or_else(wrong)?;
    let address: SocketAddrV4 = str::from_utf8(&bytes[..split])
        .ok()
        .and_then(|address| address.parse().ok())
        .ok_or_else(wrong)?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "--listen takes loopback addresses only, not {}",
            address.ip()
        ));
    }
    let socket = &bytes[split + 1..];
    if socket.is_empty() || socket.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "a socket's path has 1 to {MAX_SOCKET_PATH} bytes, in {value:?}"
        ));
    }
    Ok(Listen {
        address,
        socket: OsStr::from_bytes(socket).to_owned(),
    })
}

fn parse_limit(value: &OsStr) -> Result<Limit, String> {
    let wrong = || format!("--limit takes core=BYTES, fsize=BYTES or nproc=NUMBER, not {value:?}");
    let (name, most) = value
        .to_str()
        .and_then(|value| value.split_once('='))
        .ok_or_else(wrong)?;
    let resource = match name {
        "core" => Resource::Core,
        "fsize" => Resource::FileSize,
        "nproc" => Resource::Processes,
        _ => return Err(wrong()),
    };
    let most = most.parse().map_err(|_| wrong())?;
    Ok(Limit { resource, most })
}

fn parse_number(name: &str, value: &OsStr) -> Result<usize, String> {
    let number = value.to_str().and_then(|value| value.parse().ok());
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("{name} takes a number above 0, not {value:?}"))
}

/// A size.
pub fn parse_bytes(name: &str, value: &OsStr) -> Result<u64, String> {
    let number = value.to_str().and_then(|value| value.parse().ok());
    number.ok_or_else(|| format!("{name} takes a number of bytes, not {value:?}"))
}

/// Whole seconds, or with up to nine decimal places.
pub fn parse_seconds(name: &str, value: &OsStr) -> Result<Duration, String> {
    let parse = |value: &str| {
        let (whole, fraction) = value.split_once('.').unwrap_or((value, "0"));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        Some(Duration::new(
            whole.parse().ok()?,
            format!("{fraction:0<9}").parse().ok()?,
        ))
    };
    value
        .to_str()
        .and_then(parse)
        .ok_or_else(|| format!("{name} takes seconds, such as 12 or 12.5, not {value:?}"))
}
