//! What is wrong or not declared is refused before anything is done.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, SystemTime};

use v6_runtime::{
    Annotations, EgressGrant, ErrorKind, Gpu, GrantName, InputStream, Mount, MountSource, Output,
    Resources, RunSpec, Runtime, Trust,
};

use crate::bench::{Bench, output, path, run_id};
use crate::case::{self, Failure, fails, holds};

case::cases! {
    the_undeclared_is_refused ["RUN-6"]: "a spec that asks for what is not declared is refused as Unsupported, naming the field, and leaves nothing";
    a_wrong_spec_is_refused ["RUN-6"]: "a spec that is wrong anywhere is refused as InvalidSpec, naming the field, and leaves nothing";
}

async fn refused(
    bench: &Bench,
    id: &str,
    spec: RunSpec,
    kind: ErrorKind,
    field: &str,
) -> Result<(), Failure> {
    let error = fails(id, bench.runtime.run(&run_id(id), &spec).await, kind)?;
    holds(
        &format!("{id}: {error} does not name {field}"),
        error.message().contains(field),
    )?;
    let left = bench.leftovers().await?;
    holds(&format!("{id} left behind {left:?}"), left.is_empty())
}

async fn the_undeclared_is_refused(bench: Bench) -> case::Outcome {
    let spec = bench.spec("exit 0").await?;
    let declared = bench.runtime.capabilities().clone();
    let one = NonZeroU64::new(1 << 20).ok_or("not zero")?;
    let few = NonZeroU32::new(10).ok_or("not zero")?;
    let with = |resources: Resources| spec.clone().with_resources(resources);
    let mounted = |source| spec.clone().with_mount(Mount::new(source, path("/x")));
    let stream = InputStream::once(0, tokio::io::empty());
    let wanted: Vec<(bool, &str, &str, RunSpec)> = vec![
        (
            declared.resources.cpu,
            "cpu",
            "resources.cpu_milli",
            with(Resources::default().with_cpu_milli(few)),
        ),
        (
            declared.resources.memory,
            "memory",
            "resources.memory_bytes",
            with(Resources::default().with_memory_bytes(one)),
        ),
        (
            declared.resources.pids,
            "pids",
            "resources.pids",
            with(Resources::default().with_pids(few)),
        ),
        (
            declared.resources.scratch,
            "scratch",
            "resources.scratch_bytes",
            with(Resources::default().with_scratch_bytes(one)),
        ),
        (
            declared.resources.gpu,
            "gpu",
            "resources.gpu",
            with(Resources::default().with_gpu(Gpu::All)),
        ),
        (
            declared.mounts.stream,
            "stream",
            "mounts",
            mounted(MountSource::Stream(stream)),
        ),
        (
            declared.mounts.host_path,
            "host-path",
            "mounts",
            mounted(MountSource::HostPath("/tmp".into())),
        ),
        (
            declared.mounts.volume,
            "volume",
            "mounts",
            mounted(MountSource::Volume("none".into())),
        ),
        (
            declared.mounts.scratch,
            "scratch-folder",
            "mounts",
            mounted(MountSource::Scratch(None)),
        ),
        (
            declared.mounts.scratch_limit,
            "scratch-limit",
            "mounts",
            mounted(MountSource::Scratch(Some(one))),
        ),
        (
            declared.outputs.file,
            "file",
            "outputs",
            spec.clone()
                .with_output(output("o"), Output::file(path("/o"), one)),
        ),
        (
            declared.outputs.folder,
            "folder",
            "outputs",
            spec.clone()
                .with_output(output("o"), Output::folder(path("/o"), one)),
        ),
        (
            declared.egress,
            "egress",
            "egress",
            spec.clone()
                .with_egress(EgressGrant::new(GrantName::new("g")?, "a.example", 1)?),
        ),
        (
            declared.deadline,
            "deadline",
            "deadline",
            spec.clone()
                .with_deadline(SystemTime::now() + Duration::from_secs(60)),
        ),
        (
            declared.grace,
            "grace",
            "grace",
            spec.clone().with_grace(Duration::from_secs(3)),
        ),
        (
            declared.trust,
            "trust",
            "trust",
            spec.clone()
                .with_trust(Trust::default().with_image_user(true)),
        ),
        (
            declared.supplementary_groups,
            "groups",
            "supplementary_groups",
            spec.clone().with_supplementary_groups([1234]),
        ),
    ];
    for (declared, id, field, spec) in wanted {
        if !declared {
            refused(&bench, id, spec, ErrorKind::Unsupported, field).await?;
        }
    }
    Ok(())
}

async fn a_wrong_spec_is_refused(bench: Bench) -> case::Outcome {
    let spec = bench.spec("exit 0").await?;
    let file = || Mount::new(MountSource::Inline(Default::default()), path("/x"));
    let long: Annotations = [("long", "x".repeat(Annotations::MAX_BYTES))]
        .into_iter()
        .collect();
    let wanted = [
        ("nul", "args", spec.clone().with_args(["a\0b"])),
        (
            "no-command",
            "command",
            spec.clone().with_command::<String>([]),
        ),
        ("name", "env", spec.clone().with_env("a=b", "c")),
        (
            "twice",
            "mounts",
            spec.clone().with_mount(file()).with_mount(file()),
        ),
        (
            "reserved",
            "mounts",
            spec.clone()
                .with_mount(Mount::new(MountSource::Scratch(None), path("/proc/x"))),
        ),
        ("long", "annotations", spec.clone().with_annotations(long)),
    ];
    for (id, field, spec) in wanted {
        refused(&bench, id, spec, ErrorKind::InvalidSpec, field).await?;
    }
    Ok(())
}
