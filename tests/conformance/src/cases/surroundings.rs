//! What surrounds the program: folders of the machine, scratch space, trust, groups, usage.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use v6_runtime::{
    Access, Capabilities, Error, ErrorKind, Gpu, Mount, MountSource, Outcome, Resources, RunId,
    RunSpec, Runtime, StartFailureCause, Trust,
};

use super::isolation::has_option;
use super::needs::{volume_parts, volumes};
use crate::bench::{Bench, part, path, run_id};
use crate::case::{self, Failure, Stop, equal, holds};
use crate::probe::pattern;

const MIB: u64 = 1 << 20;

fn host_path(c: &Capabilities) -> Result<(), &'static str> {
    c.mounts.host_path.then_some(()).ok_or("mounts.host_path")
}

/// That it is kept shows only in what was used.
fn cpu(c: &Capabilities) -> Result<(), &'static str> {
    c.resources.cpu.then_some(()).ok_or("resources.cpu")
}

/// Groups mean something only where there are users.
fn groups(c: &Capabilities) -> Result<(), &'static str> {
    let both = c.supplementary_groups && c.floor.non_root;
    both.then_some(())
        .ok_or("supplementary_groups with floor.non_root")
}

case::cases! {
    #[needs(host_path)]
    host_paths_are_mounted ["FLOOR-6"]: "a file of the machine is read byte for byte and cannot be changed; a folder mounted for writing can";
    #[needs(host_path)]
    a_missing_host_path_is_an_outcome ["RUN-7"]: "a path that the machine does not have is the outcome MountUnusable";
    #[needs(|c: &Capabilities| c.mounts.scratch_limit.then_some(()).ok_or("mounts.scratch_limit"))]
    a_scratch_limit_binds ["FLOOR-7"]: "no more than its limit can be written to a scratch folder";
    #[needs(|c: &Capabilities| c.resources.scratch.then_some(()).ok_or("resources.scratch"))]
    the_temporary_folder_is_limited ["FLOOR-5"]: "no more than the limit can be written to TMPDIR";
    #[needs(|c: &Capabilities| c.trust.then_some(()).ok_or("trust"))]
    trust_is_what_opens_the_root ["FLOOR-5"]: "the root file system can be written by an image that is trusted to, and by no other";
    #[needs(|c: &Capabilities| c.resources.gpu.then_some(()).ok_or("resources.gpu"))]
    graphics_processors_are_given ["RUN-6"]: "a run that asks for graphics processors has devices that another has not";
    #[needs(groups)]
    further_groups_are_given ["RUN-6"]: "the program has the group ids that the spec names";
    #[needs(volumes)]
    volumes_are_mounted ["FLOOR-6"]: "a named volume is read byte for byte, and cannot be changed where it is mounted read-only";
    #[needs(volumes)]
    a_missing_volume_is_an_outcome ["RUN-7"]: "a volume that the engine does not have is the outcome MountUnusable, and is not made";
    #[needs(volume_parts)]
    a_part_of_a_volume_is_mounted ["FLOOR-6"]: "what a named volume has at a path, a file or a folder, is read byte for byte, cannot be changed where it is mounted read-only, and nothing beside it is there";
    #[needs(volume_parts)]
    a_missing_part_is_an_outcome ["RUN-7"]: "what a volume does not have is the outcome MountUnusable, and is not made";
    #[needs(cpu)]
    a_processor_limit_binds ["FLOOR-7"]: "a program that never waits gets no more of a processor than its limit";
    #[needs(|c: &Capabilities| c.usage.then_some(()).ok_or("usage"))]
    usage_is_told ["RUN-6"]: "processor time and peak memory of a run are told after its end";
}

/// A folder that is removed at the end, and that the run's user may write.
struct Shared(PathBuf);

impl Shared {
    fn new(bench: &Bench) -> Result<Self, Stop> {
        use std::os::unix::fs::PermissionsExt;
        let above = bench.shared_folder()?;
        let folder = Self(above.join(format!("{}-shared", bench.runtime.owner())));
        let made = std::fs::create_dir(&folder.0).and_then(|()| {
            // Whatever user the run has.
            std::fs::set_permissions(&folder.0, std::fs::Permissions::from_mode(0o777))
        });
        made.map_err(|error| format!("{}: {error}", folder.0.display()))?;
        Ok(folder)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn at(source: &Path, target: &str) -> Mount {
    Mount::new(MountSource::HostPath(source.to_owned()), path(target))
}

async fn host_paths_are_mounted(bench: Bench) -> case::Outcome {
    let shared = Shared::new(&bench)?;
    let io = |error: std::io::Error| Failure::from(error.to_string());
    let given = shared.0.join("given file");
    let folder = shared.0.join("folder");
    std::fs::write(&given, pattern(1000)).map_err(io)?;
    std::fs::create_dir(&folder).map_err(io)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&folder, open).map_err(io)?;
    let id = run_id("host-paths");
    let words = "verify /data/file 1000 then try write /data/file 3 then try write /closed/made 3 \
                 then write /open/made 700";
    let spec = bench
        .spec(words)
        .await?
        .with_mount(at(&given, "/data/file"))
        .with_mount(at(&folder, "/closed"))
        .with_mount(at(&folder, "/open").with_access(Access::ReadWrite));
    let status = bench.finish(&id, &spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    let what = format!("its end ({log})");
    equal(&what, status.outcome().cloned(), Some(Outcome::Exited(0)))?;
    holds(
        &format!("something was allowed: {log}"),
        !log.contains("\"ok\":true"),
    )?;
    let read = |file: &Path| std::fs::read(file).map_err(io);
    equal("the given file", read(&given)?, pattern(1000).to_vec())?;
    equal(
        "what the run made",
        read(&folder.join("made"))?,
        pattern(700).to_vec(),
    )?;
    Ok(())
}

async fn a_missing_host_path_is_an_outcome(bench: Bench) -> case::Outcome {
    // Of this case alone: there are engines that would make it, and then it is there.
    let nowhere = format!("/v6-conformance/{}/path", bench.runtime.owner());
    let spec = bench.spec("exit 0").await?;
    is_unusable(&bench, spec.with_mount(at(Path::new(&nowhere), "/data"))).await
}

async fn is_unusable(bench: &Bench, spec: RunSpec) -> case::Outcome {
    let status = bench.finish(&run_id("unusable"), &spec).await?;
    match status.outcome() {
        Some(Outcome::FailedToStart(failure)) => {
            equal("its cause", failure.cause, StartFailureCause::MountUnusable)?;
        }
        other => return Err(format!("wanted FailedToStart, got {other:?}").into()),
    }
    Ok(())
}

async fn a_missing_volume_is_an_outcome(bench: Bench) -> case::Outcome {
    let nowhere = format!("{}-no-such-volume", bench.runtime.owner());
    stays_unusable(&bench, &MountSource::Volume(nowhere)).await
}

/// Twice: the first must not have made it.
async fn stays_unusable(bench: &Bench, source: &MountSource) -> case::Outcome {
    for round in 0..2 {
        let spec = bench.spec("exit 0").await?;
        let spec = spec.with_mount(Mount::new(source.clone(), path("/data")));
        match is_unusable(bench, spec).await {
            Err(Stop::Failed(failure)) => {
                return Err(format!("attempt {round}: {failure}").into());
            }
            other => other?,
        }
        bench.clean(&run_id("unusable")).await?;
    }
    Ok(())
}

async fn a_missing_part_is_an_outcome(bench: Bench) -> case::Outcome {
    let name = bench.volume().await?;
    // Below something that is there, and below something that is not.
    let mut outcome = Ok(());
    for nowhere in ["folder/nowhere", "no/where"] {
        let source = MountSource::VolumePart(name.clone(), part(nowhere));
        outcome = outcome.and(stays_unusable(&bench, &source).await);
    }
    bench.tidy().await?;
    outcome
}

async fn a_part_of_a_volume_is_mounted(bench: Bench) -> case::Outcome {
    let name = bench.volume().await?;
    let outcome = reads_parts(&bench, &name).await;
    bench.tidy().await?;
    outcome
}

async fn reads_parts(bench: &Bench, name: &str) -> case::Outcome {
    let words = "verify /file 1000 then verify /part/data 1000 \
                 then try write /file 3 then try write /part/data 3 then try write /part/made 3 \
                 then try verify /part/folder/data 1000 then try verify /part/../data 1000 \
                 then verify /file 1000";
    let mounted = |at, of| {
        let source = MountSource::VolumePart(name.to_owned(), part(of));
        Mount::new(source, path(at))
    };
    let spec = bench.spec(words).await?;
    let spec = spec.with_mount(mounted("/file", "folder/data"));
    let spec = spec.with_mount(mounted("/part", "folder"));
    let log = bench.done(&run_id("part"), &spec).await?;
    let allowed = log.contains("\"ok\":true");
    holds(&format!("something was allowed: {log}"), !allowed)?;
    Ok(())
}

async fn volumes_are_mounted(bench: Bench) -> case::Outcome {
    let name = bench.volume().await?;
    let outcome = reads_volume(&bench, &name).await;
    // The volume cannot be removed while a run has it.
    bench.tidy().await?;
    outcome
}

async fn reads_volume(bench: &Bench, name: &str) -> case::Outcome {
    let id = run_id("volume");
    let words = "verify /data/data 1000 then try write /data/data 3 then try write /data/made 3 \
                 then try remove /data/data then verify /data/data 1000 \
                 then identity";
    let mount = Mount::new(MountSource::Volume(name.to_owned()), path("/data"));
    let spec = bench.spec(words).await?.with_mount(mount);
    let log = bench.done(&id, &spec).await?;
    let allowed = log.contains("\"ok\":true");
    holds(&format!("something was allowed: {log}"), !allowed)?;
    // Not being root, it might be refused even where it is mounted writable.
    let last = log.lines().last().unwrap_or_default();
    let identity: Value =
        serde_json::from_str(last).map_err(|error| format!("{error} in {last}"))?;
    for mount in identity["mounts"].as_array().into_iter().flatten() {
        let is_writable = mount["point"] == "/data" && !has_option(mount, "ro");
        holds(&format!("it is mounted as {mount}"), !is_writable)?;
    }
    Ok(())
}

async fn a_processor_limit_binds(bench: Bench) -> case::Outcome {
    let quarter = NonZeroU32::new(250).ok_or("250 is not zero")?;
    let spec = bench.spec("spin 2000").await?;
    let spec = spec.with_resources(Resources::default().with_cpu_milli(quarter));
    let log = bench.done(&run_id("spinning"), &spec).await?;
    let told: Value = serde_json::from_str(&log).map_err(|error| format!("{error} in {log}"))?;
    let used = told["cpu_ms"].as_u64().ok_or("no time is told")?;
    // 500 ms; without the limit 2 s, unless the machine has much else to do.
    holds(
        &format!("in 2 s it used {used} ms with a limit of a quarter"),
        used < 800,
    )?;
    Ok(())
}

/// Below the limit works, above it does not.
async fn is_limited(bench: &Bench, folder: &str, spec: RunSpec) -> Result<(), Failure> {
    let id = run_id("limited");
    let half = MIB / 2;
    let words = format!(
        "write {folder}/half {half} then try write {folder}/more {} then verify {folder}/half {half}",
        4 * MIB
    );
    let spec = spec.with_args(words.split_whitespace());
    let status = bench.finish(&id, &spec).await?;
    let log = String::from_utf8_lossy(&bench.log(&id).await?).into_owned();
    let what = format!("its end ({log})");
    equal(&what, status.outcome().cloned(), Some(Outcome::Exited(0)))?;
    holds(
        &format!("4 MiB fitted into 1 MiB: {log}"),
        log.contains("\"ok\":false"),
    )
}

async fn a_scratch_limit_binds(bench: Bench) -> case::Outcome {
    let mount = Mount::new(MountSource::Scratch(NonZeroU64::new(MIB)), path("/work"));
    let spec = bench.spec("").await?.with_mount(mount);
    is_limited(&bench, "/work", spec).await?;
    Ok(())
}

async fn the_temporary_folder_is_limited(bench: Bench) -> case::Outcome {
    let limit = NonZeroU64::new(MIB).ok_or("a MiB is not zero")?;
    let spec = bench.spec("").await?;
    let spec = spec.with_resources(Resources::default().with_scratch_bytes(limit));
    is_limited(&bench, "/tmp", spec).await?;
    Ok(())
}

async fn trust_is_what_opens_the_root(bench: Bench) -> case::Outcome {
    // The folder belongs to root, which is the probe image's user. The uppermost one would not do: in
    // Podman it is read-only for a root without powers, whatever the image says.
    let user = Trust::default().with_image_user(true);
    for (id, trust, allowed) in [
        ("closed", user, false),
        ("open", user.with_writable_root(true), true),
    ] {
        let spec = bench
            .spec("try write /srv/made 10")
            .await?
            .with_trust(trust);
        bench.finish(&run_id(id), &spec).await?;
        let log = String::from_utf8_lossy(&bench.log(&run_id(id)).await?).into_owned();
        let wanted = format!("\"ok\":{allowed}");
        holds(&format!("{id}: {log}"), log.contains(&wanted))?;
    }
    Ok(())
}

/// The names in `/dev` that a run of `list /dev` has printed.
async fn devices(bench: &Bench, id: &RunId) -> Result<BTreeSet<String>, Failure> {
    let status = bench.ended(id).await?;
    let log = bench.text(id).await?;
    let what = format!("the end of {id} ({log})");
    equal(&what, status.outcome(), Some(&Outcome::Exited(0)))?;
    let told: serde_json::Value =
        serde_json::from_str(&log).map_err(|error| format!("{error}: {log}"))?;
    let entries = told["entries"].as_object().ok_or("nothing is in /dev")?;
    Ok(entries.keys().cloned().collect())
}

async fn graphics_processors_are_given(bench: Bench) -> case::Outcome {
    let spec = bench.spec("list /dev").await?;
    let with = |gpu| {
        spec.clone()
            .with_resources(Resources::default().with_gpu(gpu))
    };
    let (without, given) = (run_id("plain"), run_id("given"));
    bench.runtime.run(&without, &spec).await?;
    let plain = devices(&bench, &without).await?;
    let all = bench.runtime.run(&given, &with(Gpu::All)).await;
    let takes_a_number_only = |error: &Error| error.kind() == ErrorKind::Unsupported;
    if all.as_ref().is_err_and(takes_a_number_only) {
        let one = Gpu::Count(NonZeroU32::MIN);
        bench.runtime.run(&given, &with(one)).await?;
    } else {
        all?;
    }
    let given = devices(&bench, &given).await?;
    let more = given.difference(&plain).count();
    holds(
        &format!("it has {given:?}, and without {plain:?}"),
        more > 0,
    )?;
    Ok(())
}

async fn further_groups_are_given(bench: Bench) -> case::Outcome {
    let id = run_id("groups");
    let spec = bench.spec("identity").await?;
    bench
        .finish(&id, &spec.with_supplementary_groups([12_345, 23_456]))
        .await?;
    let log = bench.log(&id).await?;
    let report: serde_json::Value =
        serde_json::from_slice(&log).map_err(|error| format!("{error}: {log:?}"))?;
    let groups = report["groups"].as_array().cloned().unwrap_or_default();
    for wanted in [12_345, 23_456] {
        holds(
            &format!("{wanted} is not in {groups:?}"),
            groups.contains(&wanted.into()),
        )?;
    }
    holds("it is in root's group", !groups.contains(&0.into()))?;
    Ok(())
}

async fn usage_is_told(bench: Bench) -> case::Outcome {
    let spec = bench.spec("allocate 16 then spin 300").await?;
    let status = bench.finish(&run_id("busy"), &spec).await?;
    let (cpu, memory) = (status.usage.cpu, status.usage.peak_memory_bytes);
    holds(
        &format!("300 ms of work took {cpu:?} of a processor"),
        cpu.is_some_and(|cpu| cpu >= Duration::from_millis(100)),
    )?;
    holds(
        &format!("16 MiB of memory were {memory:?} bytes"),
        memory.is_some_and(|bytes| bytes >= 16 * MIB),
    )?;
    Ok(())
}
