//! What is wrong is refused before anything is done.

use v6_runtime::{
    Access, Annotations, EgressGrant, ErrorKind, GrantName, INLINE_MAX, Mount, MountSource, Output,
    RunSpec, Runtime,
};

use super::files::limit;
use crate::bench::{Bench, output, path, run_id};
use crate::case::{self, Failure, equal, fails, holds};

case::cases! {
    a_wrong_spec_is_refused ["RUN-6"]: "a spec that is wrong anywhere is refused as InvalidSpec, names the field, leaves nothing and makes no call";
    a_refusal_spares_the_run ["RUN-3", "RUN-6"]: "a spec that is refused changes nothing of the run that has its id";
}

/// Fails unless the spec is refused with this kind of error, which names the field; nothing is
/// left, and the engine was not asked.
pub(crate) async fn refused(
    bench: &Bench,
    id: &str,
    spec: RunSpec,
    kind: ErrorKind,
    field: &str,
) -> Result<(), Failure> {
    let calls = bench.harness.calls(bench.runtime.owner());
    let error = fails(id, bench.runtime.run(&run_id(id), &spec).await, kind)?;
    let more = bench.harness.calls(bench.runtime.owner());
    equal(&format!("calls made to the engine, {id}"), more, calls)?;
    holds(
        &format!("{id}: {error} does not name {field}"),
        error.message().contains(field),
    )?;
    holds(
        &format!("{id}: {error:?} says that it may have started or can be repeated"),
        !error.may_have_started() && !error.is_retryable(),
    )?;
    let left = bench.leftovers().await?;
    holds(&format!("{id} left behind {left:?}"), left.is_empty())
}

async fn a_wrong_spec_is_refused(bench: Bench) -> case::Outcome {
    let spec = bench.spec("exit 0").await?;
    let file = || Mount::new(MountSource::Inline(Default::default()), path("/x"));
    let mount = |source, target: &str| Mount::new(source, path(target));
    let with = |mount| spec.clone().with_mount(mount);
    let large = vec![0; INLINE_MAX + 1].into();
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
        (
            "large",
            "mounts",
            with(mount(MountSource::Inline(large), "/x")),
        ),
        (
            "below-a-file",
            "mounts",
            with(mount(MountSource::Inline(Default::default()), "/x/y")).with_mount(file()),
        ),
        (
            "same-place",
            "mounts",
            with(file()).with_output(output("o"), Output::file(path("/x"), limit(10)?)),
        ),
        (
            "writable",
            "mounts",
            with(file().with_access(Access::ReadWrite)),
        ),
        (
            "grants",
            "egress",
            spec.clone()
                .with_egress(EgressGrant::new(GrantName::new("g")?, "a.example", 1)?)
                .with_egress(EgressGrant::new(GrantName::new("g")?, "b.example", 1)?),
        ),
    ];
    for (id, field, spec) in wanted {
        refused(&bench, id, spec, ErrorKind::InvalidSpec, field).await?;
    }
    Ok(())
}

async fn a_refusal_spares_the_run(bench: Bench) -> case::Outcome {
    let id = run_id("there");
    let spec = bench.spec("sleep 300 then exit 4").await?;
    bench.runtime.run(&id, &spec).await?;
    let wrong = spec.clone().with_args(["a\0b"]);
    let again = bench.runtime.run(&id, &wrong).await;
    fails("a wrong spec", again, ErrorKind::InvalidSpec)?;
    bench.ends_with(&id, 4).await
}
