//! The command line of mode `init`.

use std::net::SocketAddrV4;
use std::time::{Duration, SystemTime};

/// The longest path of a unix socket on Linux, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// An option that the program would refuse, or a text that no command line can hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOption {
    /// A listener's address is not a loopback address.
    #[error("{0} is not a loopback address")]
    NotLoopback(SocketAddrV4),
    /// The path of a socket is empty or too long for the kernel.
    #[error("a socket's path has 1 to {MAX_SOCKET_PATH} bytes, and not {0}")]
    SocketPath(usize),
    /// The deadline lies before the beginning of Unix time.
    #[error("the deadline lies before 1970")]
    Deadline,
    /// No connection at all would be accepted.
    #[error("at least one connection at once must be allowed")]
    NoConnections,
    /// There is no command.
    #[error("the command is missing")]
    NoCommand,
    /// A text has a NUL in it.
    #[error("an argument has a NUL byte in it")]
    Nul,
}

/// A loopback address inside the container, whose connections go to a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listener {
    /// Where the program listens.
    pub address: SocketAddrV4,
    /// The path of the unix socket, as seen inside the container. Nobody has to listen there
    /// when the container starts.
    pub socket: String,
}

impl Listener {
    /// Connections to `address` go to `socket`.
    #[must_use]
    pub fn new(address: SocketAddrV4, socket: impl Into<String>) -> Self {
        Self {
            address,
            socket: socket.into(),
        }
    }
}

/// What the program is asked to do as the first process of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InitOptions {
    /// The addresses on which it listens before the command starts.
    pub listeners: Vec<Listener>,
    /// How many connections each listener holds at once; 256 if not given. Further ones wait
    /// in the kernel's queue.
    pub connections: Option<usize>,
    /// How long a connection waits for somebody to listen on its socket before it is closed;
    /// ten minutes if not given.
    pub wait: Option<Duration>,
    /// When all processes of the container get SIGTERM, by the wall clock. A run whose
    /// deadline is over at its start is not started.
    pub deadline: Option<SystemTime>,
    /// From the deadline's SIGTERM to SIGKILL; ten seconds if not given.
    pub grace: Option<Duration>,
    /// The most bytes that a core dump may have, for good; 0 is none at all. As the container
    /// has it, if not given.
    pub core_bytes: Option<u64>,
    /// The most bytes that any one file may have, for good. As the container has it, if not
    /// given.
    pub file_bytes: Option<u64>,
    /// A file inside the container with pairs `KEY=VALUE`, each ended by a NUL, that are added
    /// to the command's environment. For what must not be seen in a container's description.
    pub env_file: Option<String>,
    /// Whether the command's environment is the one of that file and no other.
    pub clear_env: bool,
    /// The most processes and threads in the user name space that the command is in, for good. As
    /// the container has it, if not given.
    pub processes: Option<u64>,
    /// Named pipes inside the container into which the command prints: standard output, standard
    /// error. Somebody has to read from them when the program starts.
    pub output: Option<(String, String)>,
    /// A file inside the container: if it is there when everything else is ready, the command is
    /// not started. Who makes it and then sends SIGTERM ends a run at any moment.
    pub stop_file: Option<String>,
    /// The command's working folder, inside the container. As the container has it, if not given.
    pub workdir: Option<String>,
    /// An existing file inside the container into which the program writes how the command
    /// ended, see [`crate::Claim`].
    pub claim: Option<String>,
}

impl InitOptions {
    /// Nothing but to run the command.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds to [`Self::listeners`].
    #[must_use]
    pub fn with_listener(mut self, listener: Listener) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Sets [`Self::connections`].
    #[must_use]
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Sets [`Self::wait`].
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Sets [`Self::deadline`].
    #[must_use]
    pub fn with_deadline(mut self, deadline: SystemTime) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets [`Self::grace`].
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Sets [`Self::core_bytes`].
    #[must_use]
    pub fn with_core_bytes(mut self, bytes: u64) -> Self {
        self.core_bytes = Some(bytes);
        self
    }

    /// Sets [`Self::file_bytes`].
    #[must_use]
    pub fn with_file_bytes(mut self, bytes: u64) -> Self {
        self.file_bytes = Some(bytes);
        self
    }

    /// Sets [`Self::env_file`].
    #[must_use]
    pub fn with_env_file(mut self, path: impl Into<String>) -> Self {
        self.env_file = Some(path.into());
        self
    }

    /// Sets [`Self::clear_env`].
    #[must_use]
    pub fn with_clear_env(mut self, clear: bool) -> Self {
        self.clear_env = clear;
        self
    }

    /// Sets [`Self::processes`].
    #[must_use]
    pub fn with_processes(mut self, most: u64) -> Self {
        self.processes = Some(most);
        self
    }

    /// Sets [`Self::output`].
    #[must_use]
    pub fn with_output(mut self, stdout: impl Into<String>, stderr: impl Into<String>) -> Self {
        self.output = Some((stdout.into(), stderr.into()));
        self
    }

    /// Sets [`Self::stop_file`].
    #[must_use]
    pub fn with_stop_file(mut self, path: impl Into<String>) -> Self {
        self.stop_file = Some(path.into());
        self
    }

    /// Sets [`Self::workdir`].
    #[must_use]
    pub fn with_workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// Sets [`Self::claim`].
    #[must_use]
    pub fn with_claim(mut self, path: impl Into<String>) -> Self {
        self.claim = Some(path.into());
        self
    }

    /// The whole command line: the program's path inside the container, its options, and the
    /// command with its arguments, which are passed on as they are.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`] for what the program would refuse.
    pub fn command_line(
        &self,
        program: &str,
        command: &[String],
    ) -> Result<Vec<String>, InvalidOption> {
        let mut line = self.options(program)?;
        if command.is_empty() {
            return Err(InvalidOption::NoCommand);
        }
        line.push("--".to_owned());
        line.extend_from_slice(command);
        without_nul(line)
    }

    /// The same, with a command that is in a file inside the container: its words, each ended by a
    /// NUL. So it is seen in no list of processes, and no shell on the way can touch it.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`] for what the program would refuse.
    pub fn command_line_of_file(
        &self,
        program: &str,
        file: &str,
    ) -> Result<Vec<String>, InvalidOption> {
        let mut line = self.options(program)?;
        line.extend(["--command-file".to_owned(), file.to_owned()]);
        without_nul(line)
    }

    fn options(&self, program: &str) -> Result<Vec<String>, InvalidOption> {
        let Self {
            listeners,
            connections,
            wait,
            deadline,
            grace,
            core_bytes,
            file_bytes,
            env_file,
            clear_env,
            processes,
            output,
            stop_file,
            workdir,
            claim,
        } = self;
        let mut line = vec![program.to_owned(), "init".to_owned()];
        let mut option = |name: &str, value: String| line.extend([name.to_owned(), value]);
        for Listener { address, socket } in listeners {
            if !address.ip().is_loopback() {
                return Err(InvalidOption::NotLoopback(*address));
            }
            if !(1..=MAX_SOCKET_PATH).contains(&socket.len()) {
                return Err(InvalidOption::SocketPath(socket.len()));
            }
            option("--listen", format!("{address}={socket}"));
        }
        match connections {
            Some(0) => return Err(InvalidOption::NoConnections),
            Some(connections) => option("--connections", connections.to_string()),
            None => {}
        }
        if let Some(deadline) = deadline {
            let since = deadline.duration_since(SystemTime::UNIX_EPOCH);
            option(
                "--deadline",
                seconds(since.map_err(|_| InvalidOption::Deadline)?),
            );
        }
        for (name, time) in [("--wait", wait), ("--grace", grace)] {
            if let Some(time) = time {
                option(name, seconds(*time));
            }
        }
        let limits = [
            ("core", core_bytes),
            ("fsize", file_bytes),
            ("nproc", processes),
        ];
        for (name, most) in limits {
            if let Some(most) = most {
                option("--limit", format!("{name}={most}"));
            }
        }
        let (stdout, stderr) = output.as_ref().map(|(out, err)| (out, err)).unzip();
        let paths = [
            ("--env-file", env_file.as_ref()),
            ("--claim", claim.as_ref()),
            ("--stdout", stdout),
            ("--stderr", stderr),
            ("--stop-file", stop_file.as_ref()),
            ("--workdir", workdir.as_ref()),
        ];
        for (name, path) in paths {
            if let Some(path) = path {
                option(name, path.clone());
            }
        }
        if *clear_env {
            line.push("--clear-env".to_owned());
        }
        Ok(line)
    }
}

fn without_nul(line: Vec<String>) -> Result<Vec<String>, InvalidOption> {
    if line.iter().any(|text| text.contains('\0')) {
        return Err(InvalidOption::Nul);
    }
    Ok(line)
}

fn seconds(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed test panics")]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_spelt() {
        let options = InitOptions::new()
            .with_listener(Listener::new("127.0.1.1:443".parse().unwrap(), "/e/a"))
            .with_listener(Listener::new("127.0.1.2:443".parse().unwrap(), "/e/b=c"))
            .with_connections(7)
            .with_wait(Duration::from_millis(1500))
            .with_deadline(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250))
            .with_grace(Duration::from_secs(3))
            .with_core_bytes(0)
            .with_file_bytes(5_000_000_000)
            .with_env_file("/e/env")
            .with_clear_env(true)
            .with_processes(64)
            .with_output("/e/o", "/e/e")
            .with_stop_file("/e/stop")
            .with_workdir("/w")
            .with_claim("/e/claim");
        let line = options
            .command_line("/h", &["--".into(), String::new()])
            .unwrap();
        let expected = "/h init --listen 127.0.1.1:443=/e/a --listen 127.0.1.2:443=/e/b=c --connections 7 \
             --deadline 1700000000.250000000 --wait 1.500000000 --grace 3.000000000 \
             --limit core=0 --limit fsize=5000000000 --limit nproc=64 --env-file /e/env \
             --claim /e/claim --stdout /e/o --stderr /e/e --stop-file /e/stop --workdir /w --clear-env";
        assert_eq!(line.join(" "), format!("{expected} -- -- "));
        let line = options.command_line_of_file("/h", "/e/c").unwrap();
        assert_eq!(line.join(" "), format!("{expected} --command-file /e/c"));
    }

    #[test]
    fn what_the_program_would_refuse_is_refused() {
        let sh = ["sh".to_owned()];
        let listen = |address: &str, socket: String| {
            InitOptions::new().with_listener(Listener::new(address.parse().unwrap(), socket))
        };
        let refused = |options: InitOptions, command: &[String]| {
            options.command_line("/h", command).unwrap_err()
        };
        assert!(matches!(
            refused(listen("10.0.0.1:1", "/s".into()), &sh),
            InvalidOption::NotLoopback(_)
        ));
        assert!(matches!(
            refused(listen("127.0.0.1:1", "s".repeat(108)), &sh),
            InvalidOption::SocketPath(108)
        ));
        assert!(matches!(
            refused(listen("127.0.0.1:1", String::new()), &sh),
            InvalidOption::SocketPath(0)
        ));
        let early = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert!(matches!(
            refused(InitOptions::new().with_deadline(early), &sh),
            InvalidOption::Deadline
        ));
        assert!(matches!(
            refused(InitOptions::new().with_connections(0), &sh),
            InvalidOption::NoConnections
        ));
        assert!(matches!(
            refused(InitOptions::new(), &[]),
            InvalidOption::NoCommand
        ));
        assert!(matches!(
            refused(InitOptions::new(), &["a\0".to_owned()]),
            InvalidOption::Nul
        ));
    }
}
