//! Safe wrappers around the system calls that make name spaces and mounts.

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::sys::{check, own};

/// The user and group id of this process.
pub fn ids() -> (u32, u32) {
    // SAFETY: take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Forks into new user, process, mount, network and IPC name spaces: 0 in the child, its number in
/// the parent.
pub fn fork_into_new() -> io::Result<i32> {
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::SIGCHLD;
    // SAFETY: without a stack and without CLONE_VM this is a fork. This process has one thread, so
    // no lock of the C library is held by another one in the child.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Switches the loopback interface of this network name space on.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: takes no pointers.
    let socket =
        own(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a structure of integers and bytes, for which zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request names an interface and its flags, as this call reads it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

/// Keeps what is mounted from here on from everybody else.
pub fn private_mounts() -> io::Result<()> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// The `/proc` of this process name space.
pub fn mount_proc() -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None)
}

/// A folder in memory of a limited size, for everybody.
pub fn mount_tmpfs(path: &CStr, bytes: u64) -> io::Result<()> {
    let options = CString::new(format!("mode=1777,size={bytes}"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(&options))
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or a string that lives during the call.
    let done = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(options).cast(),
        )
    };
    check(done).map(drop)
}
