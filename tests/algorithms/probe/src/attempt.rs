//! Things that a confined program must not be able to do.

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::process::{Gid, Uid};
use serde_json::{Value, json};

use crate::Failure;

/// Try one of them, undo it where it was allowed, and say which it was.
pub(crate) fn attempt(what: &str) -> Result<Value, Failure> {
    let scratch = std::env::temp_dir();
    let result = match what {
        "setuid" => rustix::thread::set_thread_uid(Uid::ROOT),
        "setgid" => rustix::thread::set_thread_gid(Gid::ROOT),
        "setgroups" => rustix::thread::set_thread_groups(&[Gid::ROOT]),
        "mount" => rustix::mount::mount("none", &scratch, "tmpfs", MountFlags::empty(), None)
            .and_then(|()| rustix::mount::unmount(&scratch, UnmountFlags::DETACH)),
        "mknod" => {
            let path = scratch.join("probe-device");
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, null)
                .and_then(|()| rustix::fs::unlink(&path))
        }
        "chroot" => rustix::process::chroot("/"),
        "hostname" => rustix::system::sethostname(b"probe"),
        "raw-socket" => {
            rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).map(drop)
        }
        _ => {
            return Err(Failure::Usage(format!(
                "there is nothing called {what} to attempt"
            )));
        }
    };
    Ok(json!({
        "step": "attempt", "what": what, "allowed": result.is_ok(),
        "error": result.err().map(|error| error.to_string()),
    }))
}
