//! A program for the inside of containers: it does, step by step, what its arguments
//! say, and reports what it sees as one line of JSON per step. Tests of runtimes are
//! built on it, so that the same behaviour can be asked of every engine.
//!
//! ```text
//! probe STEP... [then STEP...]...
//! probe stdout 1000 then sleep 50 then exit 3
//! probe try write /etc/x 1 then identity
//! ```
//!
//! A step that cannot be done ends the program with exit code [`STEP_FAILED`] and a
//! message on standard error; with `try` before it, a line of JSON tells the error and
//! the next step follows. A step that is not understood ends it with [`BAD_USAGE`], `try`
//! or not. `probe help` lists the steps.

mod attempt;
mod files;
mod identity;
mod net;
mod output;
mod process;

use std::fmt;
use std::process::ExitCode;

use serde_json::json;

/// Exit code of a program one of whose steps could not be done.
const STEP_FAILED: u8 = 121;
/// Exit code of a program whose arguments were not understood.
const BAD_USAGE: u8 = 122;

const HELP: &str = "\
steps (N, MS, MIB, CODE are decimal numbers; MS are milliseconds):
  identity                 who and where: ids, capabilities, limits, mounts, network, environment
  processes                every process in /proc
  env NAME                 the raw value of a variable, and a line end
  echo WORD...             the words on standard output; echo-err: on standard error
  stdout N, stderr N       N bytes of the pattern: 63 digits of the line's number, and a line end
  bytes N                  N bytes on standard output: all 256 values in turn
  tick COUNT MS            COUNT lines `tick I`, MS apart
  write FILE N             a file of N bytes of the pattern, replacing what was in it
  text FILE WORD...        a file with the words, replacing what was in it
  cat FILE                 the file's bytes on standard output
  copy FROM TO             one file's bytes into another
  verify FILE N            fails unless the file is N bytes of the pattern
  stat PATH                kind, size, mode, owner, link target
  list FOLDER              the names in a folder, with the same
  symlink TARGET PATH      also: mkdir PATH, mkfifo PATH, remove PATH, rename FROM TO
  link FROM TO             a hard link; mknod PATH: a device, the null one
  sparse FILE N            a file of N bytes of which none is stored
  wait-for PATH MS         fails unless the path is there within MS
  sleep MS                 waits; spin MS: burns a core and tells how much of it there was; allocate MIB: takes memory and keeps it
  children COUNT MS        starts COUNT processes that sleep MS, and does not wait for them
  orphans COUNT MS         the same, of a parent that ends at once
  trap-term ignore         SIGTERM is reported and has no effect from now on
  trap-term exit CODE [MS] SIGTERM is reported and ends the program with CODE, after MS
  connect HOST PORT [WORD...]         sends a line, prints the line that comes back
  connect-many HOST PORT COUNT        the same on COUNT connections at once
  exchange HOST PORT N                sends N bytes of the pattern and wants the same back
  listen ADDRESS PORT MS              sends back all that it gets, for MS
  resolve HOST             the addresses that a name has
  attempt WHAT             setuid, setgid, setgroups, mount, mknod, chroot, hostname, raw-socket:
                           tries it and says whether it was allowed; never fails
  kill-self SIGNAL         by number
  exit CODE
";

/// Why a step was not done.
enum Failure {
    /// The arguments make no sense.
    Usage(String),
    /// The system refused.
    Io(std::io::Error),
    /// It was done and the result is not what it should be.
    Wrong(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Wrong(text) => f.write_str(text),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

/// What to do after a step.
enum Next {
    Continue,
    Exit(u8),
}

/// What outlives a step.
#[derive(Default)]
struct State {
    memory: Vec<Vec<u8>>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() || words[0] == "help" {
        eprint!("{HELP}");
        return ExitCode::from(if words.is_empty() { BAD_USAGE } else { 0 });
    }
    let mut state = State::default();
    for step in words.split(|word| word == "then") {
        let step: Vec<&str> = step.iter().map(String::as_str).collect();
        let (tolerant, step) = match step.as_slice() {
            ["try", rest @ ..] => (true, rest),
            all => (false, all),
        };
        let name = step.first().copied().unwrap_or("");
        match run(&mut state, step) {
            Ok(Next::Continue) if tolerant => {
                let report = json!({"step": "try", "of": name, "ok": true});
                if output::report(&report).is_err() {
                    return ExitCode::from(STEP_FAILED);
                }
            }
            Ok(Next::Continue) => {}
            Ok(Next::Exit(code)) => return ExitCode::from(code),
            Err(Failure::Usage(text)) => {
                eprintln!("probe: {name}: {text}");
                return ExitCode::from(BAD_USAGE);
            }
            Err(failure) if tolerant => {
                let code = match &failure {
                    Failure::Io(error) => error.raw_os_error(),
                    _ => None,
                };
                let report = json!({
                    "step": "try", "of": name, "ok": false,
                    "error": failure.to_string(), "errno": code,
                });
                if output::report(&report).is_err() {
                    return ExitCode::from(STEP_FAILED);
                }
            }
            Err(failure) => {
                eprintln!("probe: {name}: {failure}");
                return ExitCode::from(STEP_FAILED);
            }
        }
    }
    ExitCode::SUCCESS
}

fn run(state: &mut State, step: &[&str]) -> Result<Next, Failure> {
    match *step {
        ["identity"] => output::report(&identity::identity()?)?,
        ["processes"] => output::report(&process::processes()?)?,
        ["env", name] => output::variable(name)?,
        ["echo", ref words @ ..] => output::line(&words.join(" "))?,
        ["echo-err", ref words @ ..] => output::error_line(&words.join(" "))?,
        ["stdout", n] => output::pattern(&mut std::io::stdout().lock(), number(n)?)?,
        ["stderr", n] => output::pattern(&mut std::io::stderr().lock(), number(n)?)?,
        ["bytes", n] => output::bytes(number(n)?)?,
        ["tick", count, ms] => output::tick(number(count)?, millis(ms)?)?,
        ["write", path, n] => files::write_pattern(path, number(n)?)?,
        ["text", path, ref words @ ..] => std::fs::write(path, words.join(" "))?,
        ["cat", path] => files::cat(path)?,
        ["copy", from, to] => files::copy(from, to)?,
        ["verify", path, n] => files::verify(path, number(n)?)?,
        ["stat", path] => output::report(&files::stat(path)?)?,
        ["list", path] => output::report(&files::list(path)?)?,
        ["symlink", target, path] => std::os::unix::fs::symlink(target, path)?,
        ["mkdir", path] => std::fs::create_dir(path)?,
        ["mkfifo", path] => files::mkfifo(path)?,
        ["link", from, to] => std::fs::hard_link(from, to)?,
        ["mknod", path] => files::mknod(path)?,
        ["sparse", path, n] => std::fs::File::create(path)?.set_len(number(n)?)?,
        ["remove", path] => files::remove(path)?,
        ["rename", from, to] => std::fs::rename(from, to)?,
        ["wait-for", path, ms] => files::wait_for(path, millis(ms)?)?,
        ["sleep", ms] => std::thread::sleep(millis(ms)?),
        ["spin", ms] => output::line(&process::spin(millis(ms)?)?.to_string())?,
        ["allocate", mib] => state.memory.push(process::allocate(number(mib)?)?),
        ["children", count, ms] => process::children(number(count)?, millis(ms)?)?,
        ["orphans", count, ms] => process::orphans(number(count)?, millis(ms)?)?,
        ["trap-term", "ignore"] => process::trap_term(None)?,
        ["trap-term", "exit", code] => {
            process::trap_term(Some((small(code)?, std::time::Duration::ZERO)))?;
        }
        ["trap-term", "exit", code, ms] => {
            process::trap_term(Some((small(code)?, millis(ms)?)))?;
        }
        ["connect", host, port, ref words @ ..] => {
            output::line(&net::ask(host, small(port)?, &words.join(" "))?)?;
        }
        ["connect-many", host, port, count] => {
            output::report(&net::ask_many(host, small(port)?, number(count)?)?)?;
        }
        ["exchange", host, port, n] => {
            output::report(&net::exchange(host, small(port)?, number(n)?)?)?;
        }
        ["listen", address, port, ms] => {
            output::report(&net::listen(address, small(port)?, millis(ms)?)?)?;
        }
        ["resolve", host] => output::report(&net::resolve(host)?)?,
        ["attempt", what] => output::report(&attempt::attempt(what)?)?,
        ["kill-self", signal] => process::kill_self(number(signal)?)?,
        ["exit", code] => return Ok(Next::Exit(small(code)?)),
        _ => return Err(Failure::Usage("no such step, see `probe help`".into())),
    }
    Ok(Next::Continue)
}

fn number(word: &str) -> Result<u64, Failure> {
    word.parse()
        .map_err(|_| Failure::Usage(format!("{word} is not a number")))
}

fn small<T: TryFrom<u64>>(word: &str) -> Result<T, Failure> {
    T::try_from(number(word)?).map_err(|_| Failure::Usage(format!("{word} is too large")))
}

fn millis(word: &str) -> Result<std::time::Duration, Failure> {
    number(word).map(std::time::Duration::from_millis)
}
