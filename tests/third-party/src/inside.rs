//! The first process of a run: in namespaces of its own it makes the root that the program sees,
//! starts the program, and ends with it.
//!
//! `unshare` (util-linux) starts it with all capabilities over these namespaces, and none over
//! anything else. Its standard input is a socket to the supervisor: the order comes from there,
//! then a byte for each request to end; when it closes, everything in here ends, as the kernel
//! leaves nothing alive in a process namespace without its first process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, pivot_root, wait};
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_no_new_privs,
};
use serde::{Deserialize, Serialize};
use v6_runtime::{Outcome, StartFailure, StartFailureCause};

/// Where the program finds its image: the contract keeps `/.v6` for backends.
pub const PROGRAM: &str = "/.v6/program";

/// What `unshare` is told: a user who is nobody, and namespaces of every kind that matters.
pub const UNSHARE: [&str; 10] = [
    "--user",
    "--map-user=65534",
    "--map-group=65534",
    "--keep-caps",
    "--mount",
    "--pid",
    "--fork",
    "--net",
    "--ipc",
    "--uts",
];

/// What is to be started. Without `Debug`: it has secrets in it.
#[derive(Serialize, Deserialize)]
pub struct Order {
    /// The file that is the image.
    pub image: PathBuf,
    /// The program and its arguments.
    pub words: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub workdir: String,
    /// What it sees besides, by path: what is below another comes after it.
    pub places: BTreeMap<String, Place>,
}

/// What is at a path.
#[derive(Serialize, Deserialize)]
pub enum Place {
    /// A file of the run's folder, to be read.
    Input(String),
    /// A file of the run's folder, to be written.
    Output(String),
    /// An empty folder, with a size limit if any.
    Scratch(Option<u64>),
}

/// What the supervisor is told.
#[derive(Serialize, Deserialize)]
pub enum Report {
    /// The program runs.
    Started,
    /// It is over, or never began.
    Ended(Outcome),
}

/// Does all of it for the run in this folder. An error is one of the conversation: what goes
/// wrong with the run is reported.
pub fn inside(run: &Path) -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut requests = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    requests.read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    match make_root(run, &order).and_then(|()| start(&order)) {
        Ok(program) => {
            tell(&socket, &Report::Started)?;
            std::thread::spawn(move || {
                for _request in requests.bytes().map_while(Result::ok) {
                    // It may have ended just now, which `main` will tell.
                    let _ = kill_process(program, Signal::TERM);
                }
                std::process::exit(0);
            });
            tell(&socket, &Report::Ended(until_end(program)?))
        }
        Err(failure) => tell(&socket, &Report::Ended(Outcome::FailedToStart(failure))),
    }
}

/// Whether a root could be made here, tried on a folder that has to be there.
pub fn check(folder: &Path) -> io::Result<()> {
    surroundings(folder).and_then(|()| enter(folder))
}

fn tell(mut socket: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// Makes the root, and goes there.
fn make_root(run: &Path, order: &Order) -> Result<(), StartFailure> {
    let failed = |cause| move |error: io::Error| StartFailure::new(cause, error.to_string());
    let root = run.join("root");
    surroundings(&root).map_err(failed(StartFailureCause::NotIsolated))?;
    read_only(&order.image, &root.join(&PROGRAM[1..])).map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::NotFound => StartFailureCause::ImageNotFound,
            _ => StartFailureCause::ImageUnusable,
        };
        StartFailure::new(cause, error.to_string())
    })?;
    for (target, place) in &order.places {
        let target = root.join(target.trim_start_matches('/'));
        match place {
            Place::Input(file) => read_only(&run.join(file), &target),
            Place::Output(file) => bind(&run.join(file), &target),
            Place::Scratch(limit) => scratch(&target, *limit),
        }
        .map_err(failed(StartFailureCause::MountUnusable))?;
    }
    // As engines do: a program can start in any folder that is named.
    fs::create_dir_all(root.join(order.workdir.trim_start_matches('/')))
        .and_then(|()| enter(&root))
        .map_err(failed(StartFailureCause::NotIsolated))
}

/// What every program sees: an empty root, its processes, a few devices.
fn surroundings(root: &Path) -> io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", root, "tmpfs", quiet, c"mode=0755")?;
    fs::create_dir_all(root.join("proc"))?;
    // Read-only: if it is root who runs us, the files in there that set up the machine are
    // those of the program's user.
    let proc = quiet | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount("proc", root.join("proc"), "proc", proc, None)?;
    for device in ["null", "zero", "full", "random", "urandom"] {
        bind(
            &Path::new("/dev").join(device),
            &root.join("dev").join(device),
        )?;
    }
    for (name, number) in [
        ("stdin", "/0"),
        ("stdout", "/1"),
        ("stderr", "/2"),
        ("fd", ""),
    ] {
        symlink(
            format!("/proc/self/fd{number}"),
            root.join("dev").join(name),
        )?;
    }
    Ok(())
}

/// Makes this the root, without a way back.
fn enter(root: &Path) -> io::Result<()> {
    let same = MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(root, MountFlags::BIND | MountFlags::RDONLY | same, "")?;
    std::env::set_current_dir(root)?;
    // The old root on top of the new one, and away with it: pivot_root(2).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

/// An empty folder in memory that everyone can write.
fn scratch(target: &Path, limit: Option<u64>) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let limit = limit.map_or(String::new(), |bytes| format!(",size={bytes}"));
    let options = std::ffi::CString::new(format!("mode=1777{limit}"))?;
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount("tmpfs", target, "tmpfs", quiet, options.as_c_str())?)
}

/// Shows a file at another path.
fn bind(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
    File::create_new(target)?;
    Ok(mount_bind(source, target)?)
}

/// Shows a file at another path, where it cannot be written.
fn read_only(source: &Path, target: &Path) -> io::Result<()> {
    bind(source, target)?;
    // The kernel refuses to let go of what the file's own mount forbids.
    let forbidden = statvfs(target)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (said, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ] {
        flags.set(flag, forbidden.contains(said));
    }
    Ok(mount_remount(target, flags, "")?)
}

/// Gives up every power for the program, and starts it.
fn start(order: &Order) -> Result<Pid, StartFailure> {
    let powerless = || -> rustix::io::Result<()> {
        set_no_new_privs(true)?;
        clear_ambient_capability_set()?;
        for number in 0..64 {
            // The kernel has fewer; which, it tells by refusing the others.
            match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number))
            {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
        let mut sets = rustix::thread::capabilities(None)?;
        sets.inheritable = CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets)
    };
    powerless()
        .map_err(|error| StartFailure::new(StartFailureCause::NotIsolated, error.to_string()))?;
    let (program, args) = match &order.words[..] {
        [program, args @ ..] => (program.as_str(), args),
        [] => (PROGRAM, &[][..]),
    };
    let started = Command::new(program)
        .args(args)
        .env_clear()
        .envs(&order.env)
        .current_dir(&order.workdir)
        .stdin(Stdio::null())
        .spawn();
    let child = started.map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::NotFound => StartFailureCause::CommandNotFound,
            _ => StartFailureCause::CommandNotExecutable,
        };
        StartFailure::new(cause, format!("{program}: {error}"))
    })?;
    Ok(Pid::from_child(&child))
}

/// Waits for the program, and buries everyone else who ends meanwhile.
fn until_end(program: Pid) -> io::Result<Outcome> {
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty())? else {
            continue;
        };
        if pid != program {
            continue;
        }
        if let Some(code) = status.exit_status() {
            return Ok(Outcome::Exited(code));
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(Outcome::Signaled(signal));
        }
    }
}
