//! What a run leaves to be read: its outputs and its log.

use bytes::Bytes;
use tokio::sync::watch;

use super::engine::{Key, MemoryEngine};
use super::way::{Reach, away};
use crate::{Error, ErrorKind, LogChunk, OutputKind, OutputName, Result};

pub(super) fn output_content(engine: &MemoryEngine, key: &Key, name: &OutputName) -> Result<Bytes> {
    let state = engine.reachable(&key.0, "collect")?;
    let run = state
        .runs
        .get(key)
        .ok_or_else(|| Error::no_such_run(&key.1))?;
    let absent = |why: &str| Error::new(ErrorKind::NotFound, format!("output {name}: {why}"));
    let declared = run
        .spec
        .outputs
        .get(name)
        .ok_or_else(|| absent("was not declared"))?;
    if !run.status.phase.is_finished() {
        let message = "the run has not finished";
        return Err(Error::new(ErrorKind::NotReady, message));
    }
    let made = run
        .outputs
        .get(name)
        .ok_or_else(|| absent("the program never started"))?;
    if made.size() > declared.limit.get() {
        let message = format!(
            "output {name} has {} bytes, at most {}",
            made.size(),
            declared.limit
        );
        return Err(Error::new(ErrorKind::Quota, message));
    }
    match declared.kind {
        OutputKind::File => made
            .content()
            .ok_or_else(|| Error::invalid("outputs", format!("{name} is no regular file"))),
        OutputKind::Folder => {
            let archive = made.tar().map_err(|error| {
                Error::new(ErrorKind::Unexpected, "a folder could not be packed").with_source(error)
            })?;
            Ok(archive.into())
        }
    }
}

pub(super) struct LogReader {
    pub(super) engine: MemoryEngine,
    pub(super) reach: watch::Receiver<Reach>,
    pub(super) absences: u64,
    pub(super) key: Key,
    /// Whose log it is; a record made anew under the same id is another's.
    pub(super) attempt: Option<u64>,
    pub(super) position: u64,
    pub(super) left: u64,
    pub(super) follow: bool,
}

impl LogReader {
    pub(super) async fn next(mut self) -> Result<Option<(LogChunk, Self)>> {
        let engine = self.engine.clone();
        loop {
            let most = engine.piece(&self.key.0, self.position, self.left);
            let mut changed = {
                let mut state = engine.state();
                let reach = *self.reach.borrow_and_update();
                if reach.away || reach.absences > self.absences {
                    return Err(away());
                }
                let run = match (state.runs.get_mut(&self.key), self.attempt) {
                    (Some(run), None) => run,
                    (Some(run), Some(attempt)) if run.attempt == attempt => run,
                    (None, None) => return Err(Error::no_such_run(&self.key.1)),
                    // It was cleaned up: there is nothing more.
                    _ => return Ok(None),
                };
                self.attempt = Some(run.attempt);
                if self.left == 0 {
                    return Ok(None);
                }
                if let Some((chunk, position)) = run.log.after(self.position, most) {
                    self.position = position;
                    self.left -= chunk.bytes.len() as u64;
                    return Ok(Some((chunk, self)));
                }
                if !self.follow || run.status.phase.is_finished() {
                    return Ok(None);
                }
                run.changed.subscribe()
            };
            // An error is a record that is gone, which the next round sees.
            tokio::select! {
                _ = changed.changed() => {}
                _ = self.reach.changed() => {}
            }
        }
    }
}
