//! The record of one run, and the life of its program.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::engine::{Control, Key, MemoryEngine, State};
use super::files::{Storage, Tree, View};
use super::images::MemoryImage;
use super::log::Log;
use super::program::{ExitStatus, ProgramContext, Running};
use crate::{
    Access, LogStream, Mount, MountSource, Outcome, OutputKind, OutputName, Pending, RunPhase,
    RunSpec, RunStatus, StartFailure, StartFailureCause, StopCause,
};

/// Processes of a run whose spec sets no limit.
const PIDS: u32 = 1024;
/// Bytes of a temporary folder whose size the spec does not set.
const SCRATCH: u64 = 1 << 30;
/// SIGABRT: how a program that panics ends.
const ABORT: i32 = 6;

pub(super) struct Run {
    pub spec: RunSpec,
    pub status: RunStatus,
    pub attempt: u64,
    /// Which runtime value is starting it.
    pub at_work: Option<u64>,
    pub control: watch::Sender<Control>,
    pub changed: watch::Sender<()>,
    pub log: Log,
    pub outputs: BTreeMap<OutputName, Tree>,
    pub memory: u64,
    pub peak: u64,
    pub processes: u32,
}

impl Run {
    pub(super) fn new(spec: RunSpec, status: RunStatus, attempt: u64, log_limit: u64) -> Self {
        Self {
            spec,
            status,
            attempt,
            at_work: None,
            control: watch::Sender::default(),
            changed: watch::Sender::default(),
            log: Log::new(log_limit),
            outputs: BTreeMap::new(),
            memory: 0,
            peak: 0,
            // The program itself.
            processes: 1,
        }
    }

    pub(super) fn print(&mut self, stream: LogStream, bytes: &[u8]) {
        if self.status.phase.is_finished() {
            return;
        }
        self.log.append(stream, bytes);
        self.changed.send_replace(());
    }

    pub(super) fn take_memory(&mut self, bytes: u64) -> bool {
        self.memory = self.memory.saturating_add(bytes);
        self.peak = self.peak.max(self.memory);
        let limit = self.spec.resources.memory_bytes;
        let within = limit.is_none_or(|limit| self.memory <= limit.get());
        if !within {
            self.control
                .send_modify(|control| control.over = Some(Outcome::OutOfMemory));
        }
        within
    }

    pub(super) fn take_process(&mut self) -> bool {
        let limit = self
            .spec
            .resources
            .pids
            .map_or(PIDS, std::num::NonZero::get);
        let free = self.processes < limit;
        self.processes += u32::from(free);
        free
    }

    /// Asks the program to end, and sets when it is killed.
    pub(super) fn stop(&mut self, cause: StopCause, grace: Duration) -> StopCause {
        let kill_at = Instant::now() + grace;
        self.control.send_modify(|control| {
            control.stop.get_or_insert(cause);
            control.kill_at = Some(control.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        });
        self.control.borrow().stop.unwrap_or(cause)
    }
}

/// Everything between acceptance and the end, whoever is watching. The token is that of the
/// runtime value which accepted the run; without it nobody starts it.
pub(super) async fn carry_out(
    engine: MemoryEngine,
    key: Key,
    attempt: u64,
    content: Vec<Option<Vec<u8>>>,
    at_work: CancellationToken,
) {
    let started = tokio::select! {
        biased;
        () = at_work.cancelled() => return,
        started = start(&engine, &key, attempt, content) => started,
    };
    match started {
        Some(Ok((context, program))) => supervise(&engine, &key, context, program).await,
        Some(Err(failure)) => {
            let mut state = engine.state();
            if state.attempt(&key, attempt).is_some() {
                let outcome = Outcome::FailedToStart(failure);
                state.finish(&key, outcome, engine.now());
            }
        }
        None => {}
    }
}

type Started = (ProgramContext, Running);

/// `None` if the run was ended or removed meanwhile.
async fn start(
    engine: &MemoryEngine,
    key: &Key,
    attempt: u64,
    content: Vec<Option<Vec<u8>>>,
) -> Option<Result<Started, StartFailure>> {
    let (image, deadline) = {
        let mut state = engine.state();
        let run = state.attempt(key, attempt)?;
        (run.spec.image.clone(), run.spec.deadline)
    };
    if !engine.state().images.has(&image) {
        pending(&mut engine.state(), key, attempt, Pending::PullingImage)?;
        let mut held = engine.pulls_held();
        let stalled = engine.state().images.is_stalled(&image);
        let pull = async {
            if stalled {
                std::future::pending::<()>().await;
            }
            let _ = held.wait_for(|held| *held == 0).await;
        };
        match deadline {
            None => pull.await,
            Some(deadline) => {
                let pulled = tokio::time::timeout_at(engine.instant(deadline), pull).await;
                if pulled.is_err() {
                    let mut state = engine.state();
                    state.attempt(key, attempt)?;
                    state.finish(key, Outcome::DeadlineExceeded, engine.now());
                    return None;
                }
            }
        }
        let mut state = engine.state();
        let pull = state.capabilities.pull;
        if let Err(fault) = state.images.fetch(&image, pull) {
            let (cause, words) = fault.cause();
            return Some(Err(StartFailure::new(cause, words)));
        }
    }
    let mut state = engine.state();
    pending(&mut state, key, attempt, Pending::Starting)?;
    let image = state.images.content(&image)?;
    let run = state.attempt(key, attempt)?;
    let spec = run.spec.clone();
    let (control, now) = (run.control.subscribe(), engine.now());
    if deadline.is_some_and(|deadline| deadline <= now) {
        state.finish(key, Outcome::DeadlineExceeded, now);
        return None;
    }
    let (view, outputs) = match view(&state, &image, &spec, content) {
        Ok(made) => made,
        Err(failure) => return Some(Err(failure)),
    };
    let words = image.words(spec.command.as_deref(), &spec.args);
    let command = words.first().map_or("", String::as_str);
    let Some(program) = image.program(command).cloned() else {
        let cause = match view.look(command) {
            Ok(_) => StartFailureCause::CommandNotExecutable,
            Err(_) => StartFailureCause::CommandNotFound,
        };
        return Some(Err(StartFailure::new(cause, format!("{command:?}"))));
    };
    let context = ProgramContext::new(
        engine.clone(),
        (key.clone(), attempt),
        &spec,
        words.clone(),
        &image.env,
        view,
        control,
    );
    let run = state.attempt(key, attempt)?;
    run.outputs = outputs;
    run.at_work = None;
    run.status.started = Some(now);
    state.enter(key, RunPhase::Running);
    drop(state);
    let program = program(context.clone());
    Some(Ok((context, program)))
}

/// `None` if the run is not this attempt any more, or is over.
fn pending(state: &mut State, key: &Key, attempt: u64, why: Pending) -> Option<()> {
    let run = state.attempt(key, attempt)?;
    if run.status.phase.is_finished() {
        return None;
    }
    state.enter(key, RunPhase::Pending(why));
    Some(())
}

/// Polls the program until it ends or is ended.
async fn supervise(engine: &MemoryEngine, key: &Key, context: ProgramContext, program: Running) {
    let attempt = context.inner.attempt;
    let mut control = context.inner.control.clone();
    let mut traps = context.inner.traps.subscribe();
    let deadline = context.inner.deadline.map(|at| engine.instant(at));
    drop(context);
    let mut deadline_passed = false;
    let mut program = AssertUnwindSafe(program).catch_unwind().fuse();
    let by_itself = loop {
        let told = control.borrow_and_update().clone();
        let killed = told.kill_at.is_some_and(|at| at <= Instant::now());
        if told.over.is_some() || killed || told.stop.is_some() && !*traps.borrow_and_update() {
            break None;
        }
        tokio::select! {
            biased;
            ended = &mut program => break Some(ended.unwrap_or(ExitStatus::Signal(ABORT))),
            // Both ends of these are held by the record and the program for as long as they live.
            Ok(()) = control.changed() => {}
            Ok(()) = traps.changed() => {}
            () = until(told.kill_at) => {}
            () = until(deadline), if !deadline_passed => {
                deadline_passed = true;
                let mut state = engine.state();
                let Some(run) = state.attempt(key, attempt) else { break None };
                let grace = run.spec.grace;
                let cause = run.stop(StopCause::Deadline, grace);
                state.enter(key, RunPhase::Stopping(cause));
            }
        }
    };
    // Before the end is told: what the program holds is gone by then.
    drop(program);
    let mut state = engine.state();
    let Some(run) = state.attempt(key, attempt) else {
        return;
    };
    let told = run.control.borrow().clone();
    let outcome = match (told.over, told.stop, by_itself) {
        (Some(outcome), _, _) => outcome,
        (_, Some(StopCause::Deadline), _) => Outcome::DeadlineExceeded,
        (_, Some(StopCause::Engine), _) => Outcome::Evicted("the engine ended it".into()),
        (_, Some(StopCause::Cancel), _) => Outcome::Cancelled,
        (_, None, Some(ExitStatus::Code(code))) => Outcome::Exited(code.into()),
        (_, None, Some(ExitStatus::Signal(signal))) => Outcome::Signaled(signal),
        (_, None, None) => Outcome::Lost("its program is gone".into()),
    };
    let outcome = state.declared(outcome);
    state.finish(key, outcome, engine.now());
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl State {
    /// The outcome in the words of an engine that tells only what is declared.
    fn declared(&self, outcome: Outcome) -> Outcome {
        let kinds = self.capabilities.outcomes;
        match outcome {
            Outcome::Signaled(signal) if !kinds.signaled => Outcome::Exited(128 + signal),
            Outcome::OutOfMemory if !kinds.out_of_memory => Outcome::Exited(137),
            Outcome::Cancelled if !kinds.cancelled => Outcome::Exited(143),
            outcome => outcome,
        }
    }
}

/// The run's file system, with its outputs. `content` is that of each mount whose content is
/// given.
fn view(
    state: &State,
    image: &MemoryImage,
    spec: &RunSpec,
    content: Vec<Option<Vec<u8>>>,
) -> Result<(View, BTreeMap<OutputName, Tree>), StartFailure> {
    let root_access = match spec.trust.writable_root {
        true => Access::ReadWrite,
        false => Access::ReadOnly,
    };
    let mut view = View::new(image.root(), root_access);
    let part = |tree: Tree, part: String, limit: Option<u64>| Storage::Tree { tree, part, limit };
    let tree = |tree: Tree, limit: Option<u64>| part(tree, String::new(), limit);
    let scratch = spec.resources.scratch_bytes.map_or(SCRATCH, |n| n.get());
    view.mount(
        super::TMPDIR,
        tree(Tree::folder(), Some(scratch)),
        Access::ReadWrite,
    );
    let mut outputs = BTreeMap::new();
    for (name, output) in &spec.outputs {
        let made = match output.kind {
            OutputKind::File => Tree::file(Vec::new()),
            OutputKind::Folder => Tree::folder(),
        };
        let storage = tree(made.clone(), None);
        view.mount(output.path.as_str(), storage, Access::ReadWrite);
        outputs.insert(name.clone(), made);
    }
    for (mount, content) in spec.mounts.iter().zip(content) {
        let target = mount.target.as_str();
        let storage = match (&mount.source, content) {
            (_, Some(content)) if mount.access == Access::ReadWrite => {
                place_in_output(spec, &outputs, mount, content);
                continue;
            }
            (_, Some(content)) => tree(Tree::file(content), None),
            (MountSource::HostPath(path), _) => {
                usable(path)?;
                Storage::Host(path.clone())
            }
            (MountSource::Volume(name), _) => tree(volume(state, name)?, None),
            (MountSource::VolumePart(name, path), _) => {
                let volume = volume(state, name)?;
                if !volume.has(path.as_str()) {
                    let words = format!("the volume {name} has no {path}");
                    return Err(StartFailure::new(StartFailureCause::MountUnusable, words));
                }
                part(volume, path.as_str().to_owned(), None)
            }
            (MountSource::Scratch(limit), _) => tree(Tree::folder(), limit.map(|n| n.get())),
            // Their content was read in `run`.
            (MountSource::Inline(_) | MountSource::Secret(_) | MountSource::Stream(_), None) => {
                continue;
            }
        };
        view.mount(target, storage, mount.access);
    }
    Ok((view, outputs))
}

fn volume(state: &State, name: &str) -> Result<Tree, StartFailure> {
    let found = state.volumes.get(name).cloned();
    found.ok_or_else(|| {
        let words = format!("there is no volume {name}");
        StartFailure::new(StartFailureCause::MountUnusable, words)
    })
}

/// Given content that may be changed is the beginning of the folder output that it is below.
fn place_in_output(
    spec: &RunSpec,
    outputs: &BTreeMap<OutputName, Tree>,
    mount: &Mount,
    content: Vec<u8>,
) {
    let deepest = spec
        .outputs
        .iter()
        .filter_map(|(name, output)| Some((name, mount.target.relative_to(&output.path)?)))
        .min_by_key(|(_, below)| below.len());
    if let Some((name, below)) = deepest
        && let Some(tree) = outputs.get(name)
    {
        tree.place(below, content);
    }
}

fn usable(path: &Path) -> Result<(), StartFailure> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(StartFailure::new(
            StartFailureCause::MountUnusable,
            format!("{}: {error}", path.display()),
        )),
    }
}
