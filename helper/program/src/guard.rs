//! The guard: the first process of a run's own name spaces. When it ends, the kernel ends all
//! others in them, and it ends with the monitor, however that ends.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cgroup;
use crate::monitor_args::{Monitor, Tmpfs};
use crate::namespaces;
use crate::sys;

/// The guard as its parent knows it.
pub struct Guard {
    pub pid: i32,
    /// Closed when the monitor ends, and with it the guard.
    _life: OwnedFd,
}

/// What is run.
#[derive(Debug)]
pub struct Program {
    pub words: Vec<OsString>,
    /// If it does not get the environment that there is.
    pub environment: Option<Vec<(OsString, OsString)>>,
}

/// Starts a program in name spaces of its own; both its streams go to `words`.
///
/// # Errors
///
/// In one sentence, what could not be made.
pub fn start(options: &Monitor, program: &Program, words: &OwnedFd) -> Result<Guard, String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (told, tell) = sys::pipe().map_err(failed("cannot make a pipe"))?;
    let (life, hold) = sys::pipe().map_err(failed("cannot make a pipe"))?;
    // Opened here: what the run's own name spaces allow is not what counts.
    let group = options.cgroup.as_deref().map(cgroup::door).transpose();
    let group = group.map_err(failed("cannot open the run's control group"))?;
    let ids = namespaces::ids();
    let pid = namespaces::fork_into_new().map_err(failed(
        "cannot make a user name space, as the run's isolation needs",
    ))?;
    if pid == 0 {
        drop((told, hold));
        let entered = group.map_or(Ok(()), cgroup::enter);
        let entered = entered.map_err(failed("cannot enter the run's control group"));
        std::process::exit(
            guard(options, program, entered, ids, words, &life, tell).unwrap_or(125),
        );
    }
    drop(tell);
    let mut text = String::new();
    let read = File::from(told).take(4096).read_to_string(&mut text);
    if read.is_err() || !text.is_empty() {
        sys::kill(pid, libc::SIGKILL);
        sys::reap_waiting(pid);
        return Err(text);
    }
    Ok(Guard { pid, _life: hold })
}

/// What the guard does. Whatever goes wrong before the command runs is written to `tell`, which
/// closes without a word otherwise.
fn guard(
    options: &Monitor,
    program: &Program,
    entered: Result<(), String>,
    ids: (u32, u32),
    words: &OwnedFd,
    life: &OwnedFd,
    tell: OwnedFd,
) -> Result<i32, ()> {
    let mut tell = File::from(tell);
    let mut fail = |what: String| {
        let _ = tell.write_all(what.as_bytes());
    };
    // What the starter reads from must not stay open for as long as the run lasts.
    let prepared = entered
        .and_then(|()| sys::silence().map_err(|error| format!("cannot open /dev/null: {error}")))
        .and_then(|()| {
            sys::die_with_parent()
                .map_err(|error| format!("cannot be ended with its parent: {error}"))
        })
        .and_then(|()| match sys::is_hung_up(life) {
            // It ended before we asked to end with it.
            true => Err("the monitor is gone".to_owned()),
            false => isolate(options, ids),
        });
    prepared.map_err(&mut fail)?;
    let output = || words.as_fd().try_clone_to_owned().map(Stdio::from);
    let Some((name, arguments)) = program.words.split_first() else {
        fail("there is no command".into());
        return Err(());
    };
    let spawned = output().and_then(|out| {
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(out).stderr(output()?);
        if let Some(environment) = &program.environment {
            command.env_clear().envs(environment.iter().cloned());
        }
        // SAFETY: the function makes async-signal-safe calls only.
        unsafe { command.pre_exec(sys::reset_before_exec) };
        command.spawn()
    });
    let child = spawned.map_err(|error| fail(format!("cannot start {name:?}: {error}")))?;
    drop(tell);
    let main = i32::try_from(child.id()).map_err(drop)?;
    loop {
        match sys::wait_any() {
            Some((pid, sys::End::Exited(code))) if pid == main => return Ok(code),
            Some((pid, sys::End::Signaled(signal))) if pid == main => return Ok(128 + signal),
            Some(_) => {}
            None => return Ok(125),
        }
    }
}

/// Everything that needs the powers which this process has over its new name spaces, and the
/// command must not have.
fn isolate(options: &Monitor, (uid, gid): (u32, u32)) -> Result<(), String> {
    let write = |path: &str, text: &str| {
        fs::write(path, text).map_err(|error| format!("cannot write {path}: {error}"))
    };
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", &format!("{gid} {gid} 1"))?;
    namespaces::loopback_up().map_err(|error| format!("cannot use loopback: {error}"))?;
    // Granted names may have any port.
    write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    namespaces::private_mounts().map_err(|error| format!("cannot separate mounts: {error}"))?;
    namespaces::mount_proc().map_err(|error| format!("cannot mount /proc: {error}"))?;
    for tmpfs in &options.tmpfs {
        mount(tmpfs).map_err(|error| format!("cannot mount a folder of limited size: {error}"))?;
    }
    sys::forbid_privileges().map_err(|error| format!("cannot give up privileges: {error}"))
}

/// Mounts a folder in memory over one of the disk, with the same folders and empty files: others
/// are mounted on them.
fn mount(tmpfs: &Tmpfs) -> io::Result<()> {
    let top = Path::new(&tmpfs.path);
    let mut places = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let is_folder = entry.file_type()?.is_dir();
            if is_folder {
                folders.push(entry.path());
            }
            places.push((entry.path(), is_folder));
        }
    }
    let name = CString::new(tmpfs.path.as_bytes())?;
    namespaces::mount_tmpfs(&name, tmpfs.bytes)?;
    // Each was found after the folder that it is in.
    for (path, is_folder) in places {
        if is_folder {
            fs::create_dir(path)?;
        } else {
            File::create(path)?;
        }
    }
    Ok(())
}
