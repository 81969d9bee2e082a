//! What happens in a folder, told by the kernel.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// After this long, look again without a notice: the kernel tells of files, not of a supervisor
/// that was killed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Names in one folder, as something happens to them.
///
/// inotify rather than looking every few milliseconds: an end is seen at once, and many runs that
/// do nothing cost next to nothing. The kernel gives a user 128 of these; without one there is a
/// look every second.
#[derive(Debug)]
pub struct Notices(Option<AsyncFd<OwnedFd>>);

/// What may have changed.
#[derive(Debug)]
pub enum News {
    /// These, or nothing.
    Of(BTreeSet<String>),
    /// Anything: more happened than the kernel keeps.
    Any,
}

impl Notices {
    /// Of this folder from now on. Needs a Tokio runtime.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let notices = match inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) {
            Err(rustix::io::Errno::MFILE) => return Ok(Self(None)),
            notices => notices?,
        };
        let moved = WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        let changed = WatchFlags::ATTRIB | WatchFlags::MODIFY | WatchFlags::CREATE;
        inotify::add_watch(&notices, folder, moved | changed | WatchFlags::ONLYDIR)?;
        // SAFETY: an `OwnedFd` is open, and the same one, as long as it lives.
        #[expect(
            unsafe_code,
            reason = "Tokio leaves it to us that the descriptor stays open"
        )]
        let notices = unsafe { AsyncFd::register_with_interest(notices, Interest::READABLE)? };
        Ok(Self(Some(notices)))
    }

    /// Waits until something has happened, or a second is over. Cancel-safe.
    pub async fn next(&self) -> io::Result<News> {
        let Some(notices) = &self.0 else {
            tokio::time::sleep(LOOK_AGAIN).await;
            return Ok(News::Any);
        };
        let reading = notices.async_io(Interest::READABLE, read);
        match tokio::time::timeout(LOOK_AGAIN, reading).await {
            Ok(news) => news,
            Err(_) => Ok(News::Of(BTreeSet::new())),
        }
    }
}

/// All notices that there are; `WouldBlock` if there is none.
fn read(notices: &OwnedFd) -> io::Result<News> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = Reader::new(notices, &mut buffer);
    let mut names = BTreeSet::new();
    loop {
        let event = reader.next()?;
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            return Ok(News::Any);
        }
        let name = event.file_name().unwrap_or_default();
        names.insert(name.to_string_lossy().into_owned());
        if reader.is_buffer_empty() {
            return Ok(News::Of(names));
        }
    }
}
