//! The processes below this one: starting the command, and reaching all of them at once.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::args::Words;
use crate::claim::Cause;
use crate::sys::{self, CStrings};

/// More than the kernel lets a program have as its environment or arguments.
const MAX_FILE: u64 = 8 << 20;

/// Reads pairs `KEY=VALUE`, each ended by a NUL. Errors never show any of it.
pub fn read_env_file(path: &OsStr) -> Result<Vec<(OsString, OsString)>, String> {
    let bytes = read_file(path, "environment")?;
    let Some(pairs) = strings(&bytes, path, "environment")? else {
        return Ok(Vec::new());
    };
    let pair = |(index, pair): (usize, &[u8])| {
        let split = pair
            .iter()
            .position(|byte| *byte == b'=')
            .filter(|at| *at > 0);
        let at = split.ok_or_else(|| {
            format!("entry {index} of the environment file {path:?} is not KEY=VALUE")
        })?;
        Ok((
            OsString::from_vec(pair[..at].to_vec()),
            OsString::from_vec(pair[at + 1..].to_vec()),
        ))
    };
    pairs
        .split(|byte| *byte == 0)
        .enumerate()
        .map(pair)
        .collect()
}

/// The command and its arguments.
pub fn words(words: &Words) -> Result<Vec<OsString>, String> {
    match words {
        Words::Given(words) => Ok(words.clone()),
        Words::File(path) => {
            let bytes = read_file(path, "command")?;
            let words = strings(&bytes, path, "command")?;
            let words = words.ok_or_else(|| format!("the command file {path:?} is empty"))?;
            let words = words.split(|byte| *byte == 0);
            Ok(words
                .map(|word| OsStr::from_bytes(word).to_owned())
                .collect())
        }
    }
}

fn read_file(path: &OsStr, what: &str) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| format!("cannot read the {what} file {path:?}: {error}");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("the {what} file {path:?} is over {MAX_FILE} bytes"));
    }
    Ok(bytes)
}

/// Strings that are each ended by a NUL, without the last one; `None` if there are none.
fn strings<'a>(bytes: &'a [u8], path: &OsStr, what: &str) -> Result<Option<&'a [u8]>, String> {
    match bytes.strip_suffix(b"\0") {
        None if bytes.is_empty() => Ok(None),
        None => Err(format!("the {what} file {path:?} does not end with a NUL")),
        some => Ok(some),
    }
}

/// Where commands are looked up when the environment has no PATH, as the C library does.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Starts the command and returns its PID. It is looked up in the PATH of its own environment.
pub fn start(
    words: &[OsString],
    env: Vec<(OsString, OsString)>,
    clear: bool,
) -> Result<i32, (Cause, String)> {
    let fail = |cause, error: &dyn Display| {
        let name = words.first().map(|name| name.to_string_lossy());
        let mut name = name.unwrap_or_default().into_owned();
        if let Some((end, _)) = name.char_indices().nth(MAX_NAME) {
            name.truncate(end);
            name.push('…');
        }
        (cause, format!("cannot start {name:?}: {error}"))
    };
    let inherited = (!clear).then(env::vars_os).into_iter().flatten();
    let environment: BTreeMap<OsString, OsString> = inherited.chain(env).collect();
    let exec = Exec::new(words, &environment).map_err(|error| fail(Cause::Other, &error))?;
    // The standard library forks and brings back errors; it never gets to its own exec, which
    // would hand a file of an unknown format, such as another architecture's, to a shell.
    let mut command = Command::new("/");
    // SAFETY: both functions make async-signal-safe calls only, and allocate nothing.
    unsafe { command.pre_exec(move || sys::reset_before_exec().and_then(|()| Err(exec.run()))) };
    let child = command.spawn().map_err(|error| {
        let cause = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Cause::NotFound,
            Some(libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::EISDIR | libc::ELIBBAD) => {
                Cause::NotExecutable
            }
            _ => Cause::Other,
        };
        fail(cause, &error)
    })?;
    i32::try_from(child.id()).map_err(|error| fail(Cause::Other, &error))
}

/// Characters of a command's name that are shown.
const MAX_NAME: usize = 200;

/// All that `execve` needs, made before the fork.
struct Exec {
    candidates: Vec<CString>,
    arguments: CStrings,
    environment: CStrings,
}

impl Exec {
    fn new(
        words: &[OsString],
        environment: &BTreeMap<OsString, OsString>,
    ) -> Result<Self, NulError> {
        let command = words.first().map_or(&b""[..], |command| command.as_bytes());
        let candidates = if command.is_empty() {
            Vec::new()
        } else if command.contains(&b'/') {
            vec![CString::new(command)?]
        } else {
            let path = environment
                .get(OsStr::new("PATH"))
                .map_or(DEFAULT_PATH, |path| path.as_bytes());
            let folders = path.split(|byte| *byte == b':');
            let join = |folder: &[u8]| {
                let folder = if folder.is_empty() { b"." } else { folder };
                CString::new([folder, b"/", command].concat())
            };
            folders.map(join).collect::<Result<_, _>>()?
        };
        let pairs = environment
            .iter()
            .map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
        Ok(Self {
            candidates,
            arguments: CStrings::new(words.iter().map(|word| word.as_bytes().to_vec()))?,
            environment: CStrings::new(pairs)?,
        })
    }

    /// Becomes the command, or returns why not: of several candidates, the first that is
    /// there decides, except that one which may not be executed gives way to others.
    fn run(&self) -> io::Error {
        let mut reason = libc::ENOENT;
        for candidate in &self.candidates {
            let error = sys::execve(candidate, &self.arguments, &self.environment);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => reason = libc::EACCES,
                _ => return error,
            }
        }
        io::Error::from_raw_os_error(reason)
    }
}

/// Whether this process is the first of its PID namespace.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Sends a signal to all processes of the container, or, where this is not PID 1, to all
/// below this one.
pub fn signal_all(signal: i32) {
    if is_first() {
        sys::kill(-1, signal);
        return;
    }
    for pid in descendants(std::process::id().cast_signed()) {
        sys::kill(pid, signal);
    }
}

/// Signals the first process of the next process name space inside that of `guard`, which is itself
/// the first of one, or else what it has started. Whoever makes containers passes such a signal on
/// or not; the first process of the container gets it here.
pub fn signal_inside(guard: i32, signal: i32) {
    let below = descendants(guard);
    let first_of = |pid: &i32| {
        let process = sys::process(*pid).ok()?;
        // After the process was taken hold of: the number could be another's before.
        let depth = depth_of_first(*pid)?;
        Some((depth, process))
    };
    let next = below
        .iter()
        .filter_map(first_of)
        .min_by_key(|(depth, _)| *depth);
    if let Some((_, process)) = next {
        sys::signal(&process, signal);
        return;
    }
    for process in below.iter().filter_map(|pid| sys::process(*pid).ok()) {
        sys::signal(&process, signal);
    }
}

/// In how many process name spaces a process is, if it is the first of the innermost.
fn depth_of_first(pid: i32) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    let ids: Vec<&str> = ids.split_ascii_whitespace().collect();
    (ids.last() == Some(&"1")).then_some(ids.len())
}

/// When a process started, in ticks since the machine's start: tells whether a number still means
/// the same process.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, in parentheses, and may hold anything.
    let at = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(at + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The PIDs below a process, nearest first. What starts meanwhile may be missing.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read(thread.path().join("children")).ok());
    lists.flat_map(|list| parse_pids(&list)).collect()
}

fn parse_pids(list: &[u8]) -> Vec<i32> {
    let words = OsStr::from_bytes(list)
        .to_str()
        .unwrap_or_default()
        .split_ascii_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}
