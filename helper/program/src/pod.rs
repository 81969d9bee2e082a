//! What the two modes of a pod have in common: the command line, the key, the tunnel's listener.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::pod_handshake::Key;

/// Where the other end of the tunnel is expected, inside the pod. Above the range from which the
/// kernel takes ports by itself.
pub const TUNNEL_PORT: u16 = 61_653;
/// Listened to on the pod's own address, too, for as long as the program may run: the machine's
/// probe of the program's container looks there.
pub const ALIVE_PORT: u16 = 61_654;

/// The run's isolation was not seen in time.
pub const EXIT_NOT_ISOLATED: i32 = 81;
/// The deadline was over before everything was in place.
pub const EXIT_LATE: i32 = 82;
/// Nobody brought the input.
pub const EXIT_NO_INPUT: i32 = 83;
/// A volume lacks what is to be mounted of it.
pub const EXIT_NO_PART: i32 = 84;
const EXIT_FAILED: i32 = 125;

/// What `receive` and `sidecar` are asked for.
#[derive(Debug, Default)]
pub struct Options {
    /// The file with the key that the other end of the tunnel has, too.
    pub key: String,
    /// Where the outputs are.
    pub out: String,
    /// Where streamed input goes.
    pub input: String,
    /// Since the beginning of Unix time.
    pub deadline: Option<Duration>,
    /// `receive`: an address that must become unreachable, or `none`.
    pub control: Option<String>,
    /// `receive`: how long nothing may get out before that counts as denied.
    pub settle: Duration,
    /// `receive`: how long it waits for the denial, and for input.
    pub wait: Duration,
    /// `receive`: outputs to make, by their index.
    pub files: Vec<usize>,
    pub folders: Vec<usize>,
    /// `receive`: content to copy, and where below `out`.
    pub copies: Vec<(String, String)>,
    /// `receive`: folders of volumes, and what each must have.
    pub parts: Vec<(String, String)>,
    /// `receive`: input that is to come, as place below `input` or `out` and length.
    pub streams: Vec<(String, u64)>,
    /// `sidecar`: where to listen for each grant.
    pub listen: Vec<SocketAddrV4>,
    /// `sidecar`: after how long without a request it ends by itself.
    pub idle: Option<Duration>,
    /// Where the tunnel's other end is expected.
    pub tunnel_port: u16,
    /// `sidecar`: where it is listened as long as the program may run.
    pub alive_port: u16,
}

/// Reads the arguments that follow the mode.
///
/// # Errors
///
/// In one sentence, what is wrong with them.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options {
        settle: Duration::from_millis(1500),
        wait: Duration::from_secs(60),
        tunnel_port: TUNNEL_PORT,
        alive_port: ALIVE_PORT,
        ..Options::default()
    };
    while let Some(argument) = arguments.next() {
        let name = argument
            .into_string()
            .map_err(|name| format!("{name:?} is not an option, see --help"))?;
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?
            .into_string()
            .map_err(|value| format!("{name}: {value:?} is not UTF-8"))?;
        let wrong = || format!("{name}: {value:?} is not understood, see --help");
        let pair = || value.split_once('=').ok_or_else(wrong);
        match name.as_str() {
            "--key" => options.key = value,
            "--out" => options.out = value,
            "--in" => options.input = value,
            "--control" => options.control = Some(value),
            "--deadline" => options.deadline = Some(seconds(&value).ok_or_else(wrong)?),
            "--settle" => options.settle = seconds(&value).ok_or_else(wrong)?,
            "--wait" => options.wait = seconds(&value).ok_or_else(wrong)?,
            "--tunnel-port" => options.tunnel_port = value.parse().map_err(|_| wrong())?,
            "--alive-port" => options.alive_port = value.parse().map_err(|_| wrong())?,
            "--idle" => options.idle = Some(seconds(&value).ok_or_else(wrong)?),
            "--file" => options.files.push(value.parse().map_err(|_| wrong())?),
            "--folder" => options.folders.push(value.parse().map_err(|_| wrong())?),
            "--copy" => {
                let (from, to) = pair()?;
                options.copies.push((from.to_owned(), to.to_owned()));
            }
            "--part" => {
                let (folder, path) = pair()?;
                options.parts.push((folder.to_owned(), path.to_owned()));
            }
            "--stream" => {
                let (len, to) = pair()?;
                let len = len.parse().map_err(|_| wrong())?;
                options.streams.push((to.to_owned(), len));
            }
            "--listen" => {
                let address: SocketAddrV4 = value.parse().map_err(|_| wrong())?;
                if !address.ip().is_loopback() {
                    return Err(wrong());
                }
                options.listen.push(address);
            }
            _ => return Err(format!("{name} is not an option, see --help")),
        }
    }
    Ok(options)
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

impl Options {
    /// Reads the key.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or holds no key.
    pub fn read_key(&self) -> Result<Key, Failure> {
        let bytes = std::fs::read(&self.key)
            .map_err(|error| Failure::new(format!("the key {}: {error}", self.key)))?;
        Key::new(bytes).ok_or_else(|| Failure::new(format!("{} holds no key", self.key)))
    }

    /// How long there is until the deadline; `None` without one.
    pub fn left(&self) -> Option<Duration> {
        let deadline = UNIX_EPOCH.checked_add(self.deadline?)?;
        let left = deadline.duration_since(SystemTime::now());
        Some(left.unwrap_or(Duration::ZERO))
    }
}

/// Why a mode ends without having done its work.
#[derive(Debug)]
pub struct Failure {
    pub code: i32,
    pub words: String,
}

impl Failure {
    pub fn new(words: impl Into<String>) -> Self {
        Self {
            code: EXIT_FAILED,
            words: words.into(),
        }
    }

    pub fn with_code(code: i32, words: impl Into<String>) -> Self {
        Self {
            code,
            words: words.into(),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Runs a mode to its end on this thread alone.
pub fn run(mode: impl Future<Output = Result<(), Failure>>) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For the tar archive of one folder at a time.
        .max_blocking_threads(2)
        .build();
    let done = match runtime {
        Ok(runtime) => {
            let local = tokio::task::LocalSet::new();
            let done = local.block_on(&runtime, mode);
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => 0,
        Err(Failure { code, words }) => {
            eprintln!("v6-helper: {words}");
            // What the cluster shows of a container that has ended.
            let message = std::fs::OpenOptions::new()
                .append(true)
                .open("/dev/termination-log");
            if let Ok(mut message) = message {
                let _ = message.write_all(words.as_bytes());
            }
            code
        }
    }
}
