//! Safe wrappers around the system calls that the standard library does not have.

use std::ffi::{CStr, CString, NulError, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::time::Duration;

use crate::args::Resource;

pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Keeps other processes of the same user from tracing this one and from reading its memory
/// and its descriptors in `/proc`.
pub fn forbid_tracing() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Makes orphans below this process its children, as they are for PID 1.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Signals that say that this process itself is broken; blocking them would make it hang.
const FATAL: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
];

/// Blocks all signals but those of a defect, and returns a descriptor to read them from.
pub fn take_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that the following calls read and change.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in FATAL {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            set.as_ptr(),
            ptr::null_mut(),
        ))?;
        own(libc::signalfd(
            -1,
            set.as_ptr(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))
    }
}

/// One signal read from [`take_signals`].
pub struct Signal {
    pub number: i32,
    /// Who sent it; 0 for the kernel and for senders outside this PID namespace.
    pub sender: u32,
}

/// The next pending signal, if there is one.
pub fn next_signal(fd: &OwnedFd) -> io::Result<Option<Signal>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = mem::size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as large as said.
    let got = unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: zeroed above, then written by the kernel; any bits are valid integers.
    let info = unsafe { info.assume_init() };
    Ok(Some(Signal {
        number: i32::try_from(info.ssi_signo).unwrap_or(0),
        sender: info.ssi_pid,
    }))
}

/// Gives the calling process default signal dispositions, an empty mask and a session of its
/// own. Async-signal-safe: to be called between fork and exec.
pub fn reset_before_exec() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition, the set is initialised before it is read, and
    // each of these calls is async-signal-safe. Errors of `signal` (KILL, STOP, and 32 and 33,
    // which the C library keeps for itself) are of no interest.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            none.as_ptr(),
            ptr::null_mut(),
        ))?;
        check(libc::setsid()).map(drop)
    }
}

/// Strings in the form that `execve` takes.
pub struct CStrings {
    /// Into the strings, and a null at the end.
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the pointers lead into heap memory that the value itself owns and never changes.
unsafe impl Send for CStrings {}
// SAFETY: as above.
unsafe impl Sync for CStrings {}

impl CStrings {
    pub fn new(strings: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, NulError> {
        let strings: Vec<CString> = strings
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Ok(Self {
            pointers,
            _strings: strings,
        })
    }
}

/// Becomes another program, or returns why not. Async-signal-safe.
pub fn execve(path: &CStr, arguments: &CStrings, environment: &CStrings) -> io::Error {
    // SAFETY: three pointers to strings, or null-ended lists of such, that live during the call.
    unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    io::Error::last_os_error()
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signaled(i32),
}

/// The PID of a child that has ended and not been reaped, if there is one.
pub fn ended_child() -> Option<i32> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel writes into the structure given; it stays zeroed when no child has
    // ended, and for waitid the PID is a valid member in both cases.
    let pid = unsafe {
        if libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) < 0 {
            return None;
        }
        info.assume_init().si_pid()
    };
    (pid > 0).then_some(pid)
}

/// Reaps a child that [`ended_child`] has named.
pub fn reap(pid: i32) -> Option<End> {
    let mut status = 0;
    // SAFETY: the kernel writes one integer.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } != pid {
        return None;
    }
    Some(end_of(status))
}

/// Waits for any child to end, and reaps it.
pub fn wait_any() -> Option<(i32, End)> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one integer.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if pid > 0 {
            return Some((pid, end_of(status)));
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Waits for one child, which is sure to end, and reaps it.
pub fn reap_waiting(pid: i32) {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
}

fn end_of(status: libc::c_int) -> End {
    if libc::WIFSIGNALED(status) {
        End::Signaled(libc::WTERMSIG(status))
    } else {
        End::Exited(libc::WEXITSTATUS(status))
    }
}

/// `kill(2)`. Errors mean that there is nobody (left) to get it.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// A timer that is not yet running: on the wall clock, which a change of the clock and a
/// suspended machine do not delay, or on the boot-time clock.
pub fn timer(wall_clock: bool) -> io::Result<OwnedFd> {
    let clock = if wall_clock {
        libc::CLOCK_REALTIME
    } else {
        libc::CLOCK_BOOTTIME
    };
    // SAFETY: takes no pointers.
    own(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })
}

/// Lets a timer expire once: at a moment since its clock's beginning, or after a time.
pub fn set_timer(fd: &OwnedFd, time: Duration, absolute: bool) -> io::Result<()> {
    // A zero would switch the timer off.
    let time = time.max(Duration::from_nanos(1));
    let spec = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        },
    };
    let flags = if absolute { libc::TFD_TIMER_ABSTIME } else { 0 };
    // SAFETY: the structure is read during the call only; no old value is asked for.
    check(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const spec, ptr::null_mut()) })
        .map(drop)
}

/// Whether the timer has expired since it was last asked.
pub fn expired(fd: &OwnedFd) -> bool {
    let mut count = 0u64;
    // SAFETY: the kernel writes eight bytes.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
}

/// An epoll instance.
pub struct Poll(OwnedFd);

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    fn control(&self, operation: i32, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the structure is read during the call only.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) })
            .map(drop)
    }

    /// Changes what is watched for on a descriptor. Nothing wanted means not watched at all,
    /// since hang-ups and errors are always reported and could not be acted on.
    pub fn change(&self, fd: &impl AsRawFd, token: u64, old: u32, new: u32) -> io::Result<()> {
        let operation = match (old, new) {
            (old, new) if old == new => return Ok(()),
            (0, _) => libc::EPOLL_CTL_ADD,
            (_, 0) => libc::EPOLL_CTL_DEL,
            _ => libc::EPOLL_CTL_MOD,
        };
        self.control(operation, fd.as_raw_fd(), new, token)
    }

    /// Waits for events and returns their tokens and masks. No time means for ever.
    pub fn wait(&self, events: &mut Events, time: Option<Duration>) -> io::Result<()> {
        // Rounded up: waking early would only mean to wait once more.
        let time = time.map_or(-1, |t| {
            i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let capacity = events.buffer.len() as i32;
        // SAFETY: the kernel writes at most `capacity` initialised elements.
        let got = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.buffer.as_mut_ptr(),
                capacity,
                time,
            )
        };
        events.filled = 0;
        match check(got) {
            Ok(filled) => events.filled = filled as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What [`Poll::wait`] fills.
pub struct Events {
    buffer: [libc::epoll_event; 64],
    filled: usize,
}

impl Events {
    pub const fn new() -> Self {
        Self {
            buffer: [libc::epoll_event { events: 0, u64: 0 }; 64],
            filled: 0,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.buffer[..self.filled]
            .iter()
            .map(|event| (event.u64, event.events))
    }
}

/// The longest path of a unix socket, in bytes.
pub const MAX_SOCKET_PATH: usize = 107;

/// Connects to a unix socket without ever waiting: where the standard library's call would
/// block because the listener's queue is full, this one fails with `WouldBlock`.
pub fn connect_unix(path: &OsStr) -> io::Result<OwnedFd> {
    let path = path.as_bytes();
    if path.is_empty() || path.len() > MAX_SOCKET_PATH {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: takes no pointers.
    let fd = own(unsafe {
        libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    })?;
    // SAFETY: a structure of integers, for which zero is valid.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let size = mem::size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: address and size belong together; the path ends with a zero, as it is shorter
    // than the array, which was zeroed.
    check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(fd)
}

/// Tells the peer of a socket that nothing more will come.
pub fn shut_down(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Bytes that nobody can guess.
pub fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    // SAFETY: the buffer is as large as said.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(32) => Ok(bytes),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Makes closing the socket a reset, so that the peer does not take a broken transfer for a
/// whole one.
pub fn reset_on_close(fd: &impl AsRawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let size = mem::size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: value and size belong together; the structure is read during the call only.
    unsafe {
        let value = (&raw const linger).cast();
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            value,
            size,
        );
    }
}

/// Lowers a limit of this process and all that it starts, beyond its power to raise it again. One
/// that is lower already stays.
pub fn lower_limit(resource: Resource, most: u64) -> io::Result<()> {
    let which = match resource {
        Resource::Core => libc::RLIMIT_CORE,
        Resource::FileSize => libc::RLIMIT_FSIZE,
        Resource::Processes => libc::RLIMIT_NPROC,
    };
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one structure, written by the first call and read by the second.
    unsafe {
        check(libc::getrlimit(which, &raw mut limit))?;
        limit.rlim_max = limit.rlim_max.min(most);
        limit.rlim_cur = limit.rlim_cur.min(limit.rlim_max);
        check(libc::setrlimit(which, &raw const limit)).map(drop)
    }
}

/// Raises this process' own limit of descriptors as far as it may.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one structure, written by the first call and read by the second.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The end of a pipe to read from, and the one to write to; no program that is started gets them.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two integers.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((own(ends[0])?, own(ends[1])?))
}

/// Makes a named pipe, and opens both its ends.
pub fn make_pipe(path: &str) -> io::Result<File> {
    let name = CString::new(path)?;
    // SAFETY: a string that lives during the call.
    check(unsafe { libc::mkfifo(name.as_ptr(), 0o600) })?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

/// Reading from this descriptor never waits.
pub fn never_wait(fd: &OwnedFd) -> io::Result<()> {
    set_status(fd, libc::O_NONBLOCK)
}

fn set_status(fd: &impl AsRawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// What this process was given as its standard input, under a number that no program that is
/// started gets; the standard input itself is empty from now on.
pub fn standard_input() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let kept = own(unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3) })?;
    let null = File::open("/dev/null")?;
    replace(&null, 0)?;
    Ok(kept)
}

/// Standard output and standard error lead nowhere from now on.
pub fn silence() -> io::Result<()> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    replace(&null, 1)?;
    replace(&null, 2)
}

/// Standard output (1) or standard error (2) leads into a named pipe that somebody reads.
pub fn print_into(path: &OsStr, standard: RawFd) -> io::Result<()> {
    // Where nobody reads, this fails instead of waiting.
    let mut options = OpenOptions::new();
    let pipe = options
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    set_status(&pipe, 0)?;
    replace(&pipe, standard)
}

fn replace(by: &impl AsRawFd, standard: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers; what the standard descriptors lead to is owned by nobody.
    check(unsafe { libc::dup2(by.as_raw_fd(), standard) }).map(drop)
}

/// Forks: 0 in the child, its number in the parent.
pub fn fork() -> io::Result<i32> {
    // SAFETY: this process has one thread, so no lock is held by another one in the child.
    check(unsafe { libc::fork() })
}

/// Leaves the session of whoever started this process.
pub fn new_session() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Asks the kernel to kill this process when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Keeps this process and all that it starts from gaining privileges by starting a program.
pub fn forbid_privileges() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Whether the other end of a pipe is closed.
pub fn is_hung_up(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one structure, as said.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLHUP != 0 }
}

/// A process that can be signalled without meaning another that got its number.
pub fn process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    own(libc::c_int::try_from(fd).unwrap_or(-1))
}

/// Signals a process of [`process`]. Errors mean that it has ended.
pub fn signal(process: &OwnedFd, signal: i32) {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: no information is given along.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            none,
            0,
        )
    };
}
