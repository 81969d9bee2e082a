//! Faults of `run`.

use std::time::Duration;

use v6_runtime::{
    Accepted, CleanupOptions, Digest, Error, ErrorKind, ImageIdentity, MountSource, Pending,
    PullPolicy, Result, RunId, RunPhase, RunSpec, Runtime, RuntimeExt,
};

use super::runtime::Seeded;
use super::world::Asked;
use super::{Seed, ending, specs, streams, surroundings};

/// How long a call takes that has to ask somebody before it can go on.
const A_WHILE: Duration = Duration::from_millis(20);

pub(super) async fn run(it: &Seeded, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
    let asked = match admitted(it, spec) {
        Err(error) if it.has(Seed::RefusalEndsTheRun) && it.truth(id).is_some() => {
            let forced = CleanupOptions::default().with_force(true);
            it.inner.cleanup(id, forced).await?;
            return Err(error);
        }
        admitted => admitted?,
    };
    let (key, note) = (it.key(id), Asked::new(&asked));
    let known = it.world.notes().asked.get(&key).cloned();
    let known = known.filter(|_| it.truth(id).is_some());
    if let Some(known) = &known
        && it.has(Seed::NotesCount)
        && known.spec.annotations != asked.annotations
    {
        let message = "there is a run with other notes";
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let spec = made_of(it, &note, known.as_ref()).await;
    if known.is_none() {
        it.world.notes().asked.insert(key.clone(), note.clone());
    }
    let accepted = carried_out(it, id, &spec).await?;
    if accepted == Accepted::Created || it.has(Seed::LastNotesStay) {
        it.world.notes().asked.insert(key, note);
        it.own().started.insert(id.clone());
        ending::keep_deadline(it, id, &asked);
    }
    Ok(accepted)
}

/// What the engine gets instead of what was asked for.
async fn made_of(it: &Seeded, asked: &Asked, known: Option<&Asked>) -> RunSpec {
    // What does not count for the caller must not count because of a fault: what the same spec is
    // made into depends on the first call only.
    let first = known.filter(|known| known.digest == asked.digest);
    let asked = first.unwrap_or(asked).spec.as_ref();
    let mut spec = specs::altered(it.seed, asked.clone());
    if it.inner.capabilities().admit(&spec).is_err() {
        // A fault asks for nothing that is not declared.
        spec = asked.clone();
    }
    if it.has(Seed::TagInsteadOfDigest) {
        let name = &spec.image.reference;
        if let Ok(image) = it.inner.resolve(name, PullPolicy::Always).await {
            spec.image = image;
        }
    }
    spec
}

/// The spec that is gone on with, if any.
fn admitted(it: &Seeded, spec: &RunSpec) -> Result<RunSpec> {
    let Err(error) = it.inner.capabilities().admit(spec) else {
        return Ok(spec.clone());
    };
    let mut mended = spec.clone();
    match (it.seed, error.kind()) {
        (Some(Seed::UndeclaredIsIgnored), ErrorKind::Unsupported) => {
            mended = specs::without_the_undeclared(it.inner.capabilities(), mended);
            Ok(mended)
        }
        (Some(Seed::WrongIsMended), ErrorKind::InvalidSpec) => {
            mended
                .args
                .iter_mut()
                .for_each(|word| word.retain(|c| c != '\0'));
            it.inner.capabilities().admit(&mended).map(|()| mended)
        }
        (Some(Seed::UndeclaredIsInvalid), ErrorKind::Unsupported) => {
            Err(Error::new(ErrorKind::InvalidSpec, error.message()))
        }
        (Some(Seed::RefusalShowsTheSpec), kind) => {
            let shown = surroundings::secrets_of(spec).join(" ");
            Err(Error::new(kind, format!("{}: {shown}", error.message())))
        }
        (Some(Seed::RefusalNamesNoField), kind) => Err(Error::new(kind, "something is wrong")),
        (Some(Seed::RefusalLeavesARecord), _) => {
            let left = (
                it.inner.owner().clone(),
                "a record of a refused run".to_owned(),
            );
            it.world.notes().left_behind.push(left);
            Err(error)
        }
        _ => Err(error),
    }
}

/// The spec is already the one that the engine is to get.
async fn carried_out(it: &Seeded, id: &RunId, spec: &RunSpec) -> Result<Accepted> {
    let run = |spec: RunSpec| async move { it.inner.run(id, &spec).await };
    let key = it.key(id);
    let phase = it.truth(id).map(|status| status.phase);
    let forced = CleanupOptions::default().with_force(true);
    let conflict = |why: &str| Err(Error::new(ErrorKind::Conflict, why));
    match it.seed {
        Some(Seed::RunWaitsForTheEnd) => {
            let accepted = run(spec.clone()).await?;
            // Longer than any program of the suite takes by itself.
            let _ = tokio::time::timeout(Duration::from_secs(70), it.inner.wait(id)).await;
            Ok(accepted)
        }
        Some(Seed::RunTwiceRunsTwice) => {
            let accepted = run(spec.clone()).await?;
            if accepted == Accepted::Adopted && !it.world.notes().doubles.contains_key(&key) {
                let double = RunId::new(format!("{id}-double"))?;
                it.world.notes().doubles.insert(key, double.clone());
                it.inner.run(&double, spec).await?;
            }
            Ok(accepted)
        }
        Some(Seed::AdoptedIsCalledCreated) => {
            run(spec.clone()).await?;
            Ok(Accepted::Created)
        }
        Some(Seed::AnySpecIsAdopted) => match run(spec.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict && phase.is_some() => {
                Ok(Accepted::Adopted)
            }
            other => other,
        },
        Some(Seed::ConflictReplacesTheRun) => match run(spec.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict && phase.is_some() => {
                it.inner.cleanup(id, forced).await?;
                run(spec.clone()).await?;
                Err(error)
            }
            other => other,
        },
        Some(Seed::FinishedRunsAreRunAgain) if phase.as_ref().is_some_and(|p| p.is_finished()) => {
            it.inner.cleanup(id, forced).await?;
            run(spec.clone()).await
        }
        Some(Seed::StartersGetInEachOthersWay) => {
            if !it.world.notes().starting.insert(key.clone()) {
                return conflict("somebody else is starting it");
            }
            tokio::task::yield_now().await;
            let accepted = run(spec.clone()).await;
            it.world.notes().starting.remove(&key);
            accepted
        }
        Some(Seed::EveryStarterCreates) => {
            let absent = phase.is_none();
            tokio::task::yield_now().await;
            let accepted = run(spec.clone()).await?;
            Ok(if absent { Accepted::Created } else { accepted })
        }
        Some(Seed::DroppedRunLeavesALock) => {
            if !it.world.notes().starting.insert(key.clone()) {
                return conflict("somebody else is starting it");
            }
            tokio::time::sleep(A_WHILE).await;
            let accepted = run(spec.clone()).await;
            it.world.notes().starting.remove(&key);
            accepted
        }
        Some(Seed::DroppedRunLeavesFiles) => {
            let left = (key.0.clone(), format!("files of run {id}"));
            it.world.notes().left_behind.push(left.clone());
            tokio::task::yield_now().await;
            let accepted = run(spec.clone()).await;
            it.world.notes().left_behind.retain(|other| *other != left);
            accepted
        }
        Some(Seed::PullsHoldUpOthers) => {
            while is_pulling(it) {
                tokio::time::sleep(A_WHILE).await;
            }
            run(spec.clone()).await
        }
        Some(Seed::FetchesGetInEachOthersWay) => {
            let mut spec = spec.clone();
            let name = spec.image.reference.clone();
            let here = it.inner.resolve(&name, PullPolicy::Never).await;
            let absent = here.is_err_and(|error| error.kind() == ErrorKind::NotFound);
            if absent && !it.world.notes().fetching.insert(name.to_string()) {
                let nothing = Digest::new(format!("sha256:{}", "0".repeat(64)))?;
                spec.image.identity = ImageIdentity::Manifest(nothing);
            }
            run(spec).await
        }
        Some(Seed::StrangersAreAdopted) => match run(spec.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict && phase.is_none() => {
                Ok(Accepted::Adopted)
            }
            other => other,
        },
        Some(Seed::BrokenStreamMayHaveStarted) => {
            let accepted = run(spec.clone()).await;
            accepted.map_err(|error| error.with_may_have_started(true))
        }
        Some(Seed::CallsAreGivenUpSoon) => {
            let limit = tokio::time::timeout(A_WHILE, run(spec.clone()));
            let given_up = |_| Error::new(ErrorKind::Unexpected, "the engine takes its time");
            limit.await.map_err(given_up)?
        }
        Some(Seed::AbandonedKeepsItsSpec)
            if phase == Some(RunPhase::Pending(Pending::Abandoned)) =>
        {
            conflict("there is a record of another spec")
        }
        Some(Seed::IdsAreUsedOnce) if it.world.notes().ended.contains_key(&key) => {
            conflict("there was a run of this id")
        }
        Some(Seed::MissingImageIsAnError) => {
            it.inner.prefetch(&spec.image).await?;
            run(spec.clone()).await
        }
        Some(Seed::WrongStreamStartsTheRun) => match run(spec.clone()).await {
            Err(error) if error.kind() == ErrorKind::InvalidSpec => {
                run(streams::filled_up(spec.clone())).await?;
                Err(error)
            }
            other => other,
        },
        Some(Seed::WrongStreamIsFilledUp) => run(streams::filled_up(spec.clone())).await,
        Some(Seed::BrokenStreamIsFilledUp) => run(streams::mended(spec.clone())).await,
        Some(Seed::MissingVolumesAreMade) => {
            for mount in &spec.mounts {
                if let MountSource::Volume(name) = &mount.source {
                    it.world.engine.add_volume_file(name, "made", "");
                }
            }
            run(spec.clone()).await
        }
        Some(Seed::MissingPartsAreMade) => {
            for mount in &spec.mounts {
                if let MountSource::VolumePart(name, path) = &mount.source {
                    let made = format!("{path}/made");
                    it.world.engine.add_volume_file(name, &made, "");
                }
            }
            run(spec.clone()).await
        }
        _ => run(spec.clone()).await,
    }
}

fn is_pulling(it: &Seeded) -> bool {
    let asked = it.world.notes().asked.clone();
    let mut runs = asked.keys().filter_map(|(_, id)| it.truth(id));
    runs.any(|run| run.phase == RunPhase::Pending(Pending::PullingImage))
}
