//! One watch on the folders of all runs: the kernel says where to look, never what is so.

use std::collections::{BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use v6_runtime::{RunId, RunStatus};

use crate::error::{Error, Result, blocking};
use crate::look::{AT_ONCE, Look};
use crate::state::Shared;
use crate::tunnel;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// Files that tell something of a run when they are made, replaced, or closed by who wrote them: a
/// lock is closed when whoever held it is gone, however that went.
const TELLING: [&str; 6] = ["state", "stop", "lock", "failed.json", "record.json", "job"];

impl Shared {
    /// Starts the watch, once.
    pub(crate) async fn start_watching(self: &Arc<Self>) {
        let start = || async {
            // The watch ends with the runtime, whose state it must not keep alive.
            let shared = self.clone();
            self.spawn(follow(shared));
        };
        self.watching.get_or_init(start).await;
    }

    /// Looks at a run, and passes on what is so.
    pub(crate) async fn refresh_unlocked(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let _lock = self.lock(id).await;
        self.refresh(id).await?;
        if self.hub.get(id).is_none() {
            self.forget(id);
        }
        Ok(())
    }

    /// Looks at a run of which nobody has told anything: it may have waited for too long, and more of
    /// its log may be there.
    async fn look_again(self: &Arc<Self>, id: &RunId) -> Result<()> {
        let _lock = self.lock(id).await;
        self.refresh(id).await?;
        self.log_news.tell(id);
        match self.hub.get(id) {
            Some(status) => self.end_overdue(&status).await,
            None => {
                self.forget(id);
                Ok(())
            }
        }
    }

    /// The same for a caller who has the right to change the run.
    pub(crate) async fn refresh(self: &Arc<Self>, id: &RunId) -> Result<()> {
        match self.look(id).await? {
            Some(look) => {
                self.hub.update(look.status.clone());
                self.attend(&look);
            }
            None => self.hub.remove(id),
        }
        Ok(())
    }

    /// Listens for all runs that have grants, those of an earlier process included.
    pub(crate) async fn open_sockets(self: &Arc<Self>) {
        if let Some(listen) = self.slurm.as_ref().and_then(|it| it.config.listen.clone()) {
            let start = || async { self.spawn(tunnel::serve(self.clone(), listen)) };
            self.answering.get_or_init(start).await;
            return;
        }
        if self.watching.initialized() {
            // The runs that the watch has seen before anybody wanted connections.
            self.spawn(take_up_all(self.clone()));
        } else {
            self.start_watching().await;
        }
    }

    /// Takes up what a run needs of a live process: its sockets.
    fn attend(self: &Arc<Self>, look: &Look) {
        let id = &look.status.id;
        if look.status.phase.is_finished() {
            self.egress.close(id);
            self.log_news.tell(id);
            return;
        }
        if self.slurm.is_none()
            && self.egress.is_wanted()
            && let Err(error) = self.egress.open(id, &look.record.egress)
        {
            let error = v6_runtime::Error::from(error);
            self.hub
                .notice(id, format!("its connections wait: {error}"));
        }
    }
}

async fn take_up_all(shared: Arc<Shared>) {
    let mut delay = FIRST_DELAY;
    while let Err(error) = all(&shared).await {
        tracing::warn!(%error, "sockets of runs are not open yet");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

/// Looks at all runs and takes them up.
async fn all(shared: &Arc<Shared>) -> Result<Vec<RunStatus>> {
    let runs = shared.runs.clone();
    let ids = blocking(move || runs.ids()).await?;
    let looks = stream::iter(ids).map(|id| async move {
        // Whoever is changing the run has the last word.
        let _lock = shared.lock(&id).await;
        let look = shared.look(&id).await;
        if let Ok(Some(look)) = &look {
            shared.attend(look);
        }
        look
    });
    let looks: Vec<Result<Option<Look>>> = looks.buffer_unordered(AT_ONCE).collect().await;
    let mut found = Vec::new();
    for look in looks {
        match look {
            Ok(look) => found.extend(look.map(|look| look.status)),
            // One that cannot be read keeps nobody from the others.
            Err(error @ Error::Record { .. }) => tracing::error!(%error, "a run is left out"),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn follow(shared: Arc<Shared>) {
    let mut delay = FIRST_DELAY;
    loop {
        let mut synced = false;
        let Err(error) = session(&shared, &mut synced).await;
        let error = v6_runtime::Error::from(error);
        tracing::warn!(%error, "the watch on the runs' folders is interrupted");
        let unavailable = v6_runtime::ErrorKind::Unavailable;
        shared
            .hub
            .failed(&v6_runtime::Error::new(unavailable, error.message()));
        if synced {
            delay = FIRST_DELAY;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

/// What a watch of the kernel is on.
#[derive(Debug, Clone)]
enum Watched {
    Folder,
    Run(RunId),
    Log(RunId),
}

struct Watch {
    fd: AsyncFd<OwnedFd>,
    on: HashMap<i32, Watched>,
}

/// What has happened.
#[derive(Default)]
struct News {
    runs: BTreeSet<RunId>,
    logs: BTreeSet<RunId>,
    /// Some of it was not told.
    missed: bool,
    /// Nothing has happened; it is time to look.
    timed: bool,
}

/// The runs that are not known to be over.
async fn unfinished(shared: &Arc<Shared>) -> Result<BTreeSet<RunId>> {
    let runs = shared.runs.clone();
    let mut ids = blocking(move || runs.ids()).await?;
    let over = |id: &RunId| {
        shared
            .hub
            .get(id)
            .is_some_and(|run| run.phase.is_finished())
    };
    ids.retain(|id| !over(id));
    Ok(ids.into_iter().collect())
}

impl Watch {
    fn new(shared: &Shared) -> Result<Self> {
        let failed = || {
            Error::host(
                "the kernel gives no watch on the runs' folders (fs.inotify.max_user_instances)",
            )
        };
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|error| failed()(error.into()))?;
        #[expect(deprecated, reason = "an OwnedFd is what the safe form is right for")]
        let fd = AsyncFd::new(fd).map_err(failed())?;
        let mut watch = Self {
            fd,
            on: HashMap::new(),
        };
        shared.runs.make()?;
        let folder = WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE;
        watch.add(shared.runs.path(), folder, Watched::Folder)?;
        Ok(watch)
    }

    /// Watches a path; one that is not there is no error.
    fn add(&mut self, path: &std::path::Path, flags: WatchFlags, on: Watched) -> Result<()> {
        match inotify::add_watch(&self.fd, path, flags) {
            Ok(number) => {
                self.on.insert(number, on);
                Ok(())
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
            Err(error) => {
                let what = format!("{} cannot be watched", path.display());
                Err(Error::host(what)(error.into()))
            }
        }
    }

    fn add_run(&mut self, shared: &Shared, id: &RunId) -> Result<()> {
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE;
        let place = shared.runs.place(id);
        self.add(
            place.path(),
            flags | WatchFlags::ONLYDIR,
            Watched::Run(id.clone()),
        )
    }

    fn add_log(&mut self, shared: &Shared, id: &RunId) -> Result<()> {
        let log = shared.runs.place(id).0.log();
        self.add(&log, WatchFlags::MODIFY, Watched::Log(id.clone()))
    }

    async fn next(&mut self) -> Result<News> {
        let failed = || Error::host("the kernel's news of the runs' folders cannot be read");
        let mut ready = self.fd.readable().await.map_err(failed())?;
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
        let mut news = News::default();
        let mut gone = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(failed()(error.into())),
            };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                news.missed = true;
                continue;
            }
            if event.events().contains(ReadFlags::IGNORED) {
                gone.push(event.wd());
                continue;
            }
            let name = event.file_name().and_then(|name| name.to_str().ok());
            match self.on.get(&event.wd()) {
                Some(Watched::Folder) => {
                    news.runs
                        .extend(name.and_then(|name| RunId::new(name).ok()));
                }
                Some(Watched::Run(id)) if name.is_some_and(|name| TELLING.contains(&name)) => {
                    news.runs.insert(id.clone());
                }
                Some(Watched::Log(id)) => {
                    news.logs.insert(id.clone());
                }
                _ => {}
            }
        }
        for number in gone {
            self.on.remove(&number);
        }
        Ok(news)
    }
}

async fn session(shared: &Arc<Shared>, synced: &mut bool) -> Result<std::convert::Infallible> {
    let mut watch = Watch::new(shared)?;
    // Watched first, then looked at: nothing falls between.
    let runs = shared.runs.clone();
    for id in blocking(move || runs.ids()).await? {
        watch.add_run(shared, &id)?;
    }
    let start = shared.hub.begin_listing();
    let listed = all(shared).await?;
    shared.hub.reset(start, listed);
    *synced = true;
    // The kernel tells what is done on this machine; jobs write on others.
    let pause = shared.slurm.as_ref().map(|slurm| slurm.config.poll);
    let mut tick = tokio::time::interval(pause.unwrap_or(LAST_DELAY));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let news = tokio::select! {
            news = watch.next() => news?,
            _ = tick.tick(), if pause.is_some() => News {
                runs: unfinished(shared).await?,
                timed: true,
                ..News::default()
            },
            id = shared.log_news.wanted() => {
                watch.add_log(shared, &id)?;
                shared.log_news.tell(&id);
                continue;
            }
        };
        if news.missed {
            let message = "the kernel has dropped news of the runs' folders";
            let kind = v6_runtime::ErrorKind::Unavailable;
            return Err(v6_runtime::Error::new(kind, message).into());
        }
        for id in &news.logs {
            shared.log_news.tell(id);
        }
        for id in &news.runs {
            // A run that is new is watched before it is looked at.
            watch.add_run(shared, id)?;
        }
        let timed = news.timed;
        let looks = stream::iter(news.runs).map(|id| async move {
            let looked = match timed {
                true => shared.look_again(&id).await,
                false => shared.refresh_unlocked(&id).await,
            };
            if let Err(error) = looked {
                tracing::warn!(run = %id, %error, "a run could not be looked at");
                shared
                    .hub
                    .notice(&id, format!("it could not be looked at: {error}"));
            }
        });
        looks.buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}
