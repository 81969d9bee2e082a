//! What is not declared is refused, for each capability that can be asked for.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use v6_runtime::{
    Capabilities, EgressGrant, ErrorKind, Gpu, GrantName, InputStream, LogOptions, LogPosition,
    Mount, MountSource, Output, PullPolicy, Resources, RunSpec, Runtime, Trust,
};

use super::refusals::refused;
use crate::bench::{Bench, output, part, path, run_id};
use crate::case::{self, Failure, Stop, fails, holds};

/// A case for each capability: what it is called, the field that the refusal has to name, whether
/// it is declared, and a spec that asks for it.
macro_rules! undeclared {
    ($($id:ident: $bit:literal, $field:literal, $declared:expr, $asks:expr;)+) => {
        case::cases! {
            $($id ["RUN-6"]: concat!(
                "where ", $bit, " is not declared, a spec that asks for it is refused as \
                 Unsupported, names the field, leaves nothing and makes no call"
            );)+
            #[alone]
            undeclared_pull_asks_no_registry ["IMG-1", "IMG-3"]: "where pull is not declared, an image that only a registry has is refused as NotFound or Unsupported, whatever the policy";
            undeclared_image_store_finds_nothing ["IMG-1"]: "where image_store is not declared, an image that was run is not found without its registry: it is refused as NotFound or Unsupported";
            undeclared_logs_follow_is_unsupported ["RUN-6", "LOG-2"]: "where logs.follow is not declared, following a log is refused as Unsupported";
            undeclared_logs_since_is_unsupported ["RUN-6", "LOG-2"]: "where logs.since is not declared, reading a log from a position is refused as Unsupported";
        }
        $(async fn $id(bench: Bench) -> case::Outcome {
            is_refused(&bench, $bit, $field, $declared, $asks).await
        })+
    };
}

async fn is_refused(
    bench: &Bench,
    bit: &str,
    field: &str,
    declared: fn(&Capabilities) -> bool,
    asks: fn(RunSpec) -> Result<RunSpec, Failure>,
) -> case::Outcome {
    not_declared(bench, bit, declared)?;
    let spec = asks(bench.spec("exit 0").await?)?;
    refused(bench, "asking", spec, ErrorKind::Unsupported, field).await?;
    Ok(())
}

fn not_declared(bench: &Bench, bit: &str, declared: fn(&Capabilities) -> bool) -> case::Outcome {
    match declared(bench.runtime.capabilities()) {
        true => Err(Stop::Undeclared(format!("{bit} is declared"))),
        false => Ok(()),
    }
}

undeclared! {
    undeclared_mounts_stream_is_unsupported: "mounts.stream", "mounts", |c| c.mounts.stream,
        |spec| mounted(spec, MountSource::Stream(InputStream::once(0, tokio::io::empty())));
    undeclared_mounts_host_path_is_unsupported: "mounts.host_path", "mounts", |c| c.mounts.host_path,
        |spec| mounted(spec, MountSource::HostPath("/tmp".into()));
    undeclared_mounts_volume_is_unsupported: "mounts.volume", "mounts", |c| c.mounts.volume,
        |spec| mounted(spec, MountSource::Volume("none".into()));
    undeclared_mounts_volume_part_is_unsupported: "mounts.volume_part", "mounts", |c| c.mounts.volume_part,
        |spec| mounted(spec, MountSource::VolumePart("none".into(), part("none")));
    undeclared_mounts_scratch_is_unsupported: "mounts.scratch", "mounts", |c| c.mounts.scratch,
        |spec| mounted(spec, MountSource::Scratch(None));
    undeclared_mounts_scratch_limit_is_unsupported: "mounts.scratch_limit", "mounts", |c| c.mounts.scratch_limit,
        |spec| mounted(spec, MountSource::Scratch(Some(mib()?)));
    undeclared_outputs_file_is_unsupported: "outputs.file", "outputs", |c| c.outputs.file,
        |spec| Ok(spec.with_output(output("o"), Output::file(path("/o"), mib()?)));
    undeclared_outputs_folder_is_unsupported: "outputs.folder", "outputs", |c| c.outputs.folder,
        |spec| Ok(spec.with_output(output("o"), Output::folder(path("/o"), mib()?)));
    undeclared_resources_cpu_is_unsupported: "resources.cpu", "resources.cpu_milli", |c| c.resources.cpu,
        |spec| Ok(spec.with_resources(Resources::default().with_cpu_milli(few()?)));
    undeclared_resources_memory_is_unsupported: "resources.memory", "resources.memory_bytes", |c| c.resources.memory,
        |spec| Ok(spec.with_resources(Resources::default().with_memory_bytes(mib()?)));
    undeclared_resources_pids_is_unsupported: "resources.pids", "resources.pids", |c| c.resources.pids,
        |spec| Ok(spec.with_resources(Resources::default().with_pids(few()?)));
    undeclared_resources_scratch_is_unsupported: "resources.scratch", "resources.scratch_bytes", |c| c.resources.scratch,
        |spec| Ok(spec.with_resources(Resources::default().with_scratch_bytes(mib()?)));
    undeclared_resources_gpu_is_unsupported: "resources.gpu", "resources.gpu", |c| c.resources.gpu,
        |spec| Ok(spec.with_resources(Resources::default().with_gpu(Gpu::All)));
    undeclared_egress_is_unsupported: "egress", "egress", |c| c.egress,
        |spec| Ok(spec.with_egress(EgressGrant::new(GrantName::new("g")?, "a.example", 1)?));
    undeclared_deadline_is_unsupported: "deadline", "deadline", |c| c.deadline,
        |spec| Ok(spec.with_deadline(SystemTime::now() + Duration::from_secs(60)));
    undeclared_grace_is_unsupported: "grace", "grace", |c| c.grace,
        |spec| Ok(spec.with_grace(Duration::from_secs(3)));
    undeclared_trust_is_unsupported: "trust", "trust", |c| c.trust,
        |spec| Ok(spec.with_trust(Trust::default().with_image_user(true)));
    undeclared_supplementary_groups_is_unsupported: "supplementary_groups", "supplementary_groups", |c| c.supplementary_groups,
        |spec| Ok(spec.with_supplementary_groups([1234]));
}

fn mib() -> Result<NonZeroU64, Failure> {
    super::files::limit(1 << 20)
}

fn few() -> Result<NonZeroU32, Failure> {
    NonZeroU32::new(10).ok_or_else(|| "10 is not zero".into())
}

fn mounted(spec: RunSpec, source: MountSource) -> Result<RunSpec, Failure> {
    Ok(spec.with_mount(Mount::new(source, path("/x"))))
}

async fn undeclared_pull_asks_no_registry(bench: Bench) -> case::Outcome {
    not_declared(&bench, "pull", |c| c.pull)?;
    let name = bench.registries().await?.open;
    for policy in [
        PullPolicy::Never,
        PullPolicy::IfNotPresent,
        PullPolicy::Always,
    ] {
        match bench.runtime.resolve(&name, policy).await {
            Err(error) => holds(
                &format!("{policy:?}: {error}"),
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported),
            )?,
            Ok(image) => return Err(format!("{policy:?}: it resolved to {image:?}").into()),
        }
    }
    Ok(())
}

async fn undeclared_image_store_finds_nothing(bench: Bench) -> case::Outcome {
    not_declared(&bench, "image_store", |c| c.image_store)?;
    let spec = bench.spec("exit 0").await?;
    bench.done(&run_id("known"), &spec).await?;
    let name = bench.harness.probe_image();
    match bench.runtime.resolve(&name, PullPolicy::Never).await {
        Err(error) => holds(
            &error.to_string(),
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported),
        )?,
        Ok(image) => return Err(format!("it resolved to {image:?}").into()),
    }
    Ok(())
}

async fn undeclared_logs_follow_is_unsupported(bench: Bench) -> case::Outcome {
    not_declared(&bench, "logs.follow", |c| c.logs.follow)?;
    let options = LogOptions::default().with_follow(true);
    reading_is_refused(&bench, "follow", options).await
}

async fn undeclared_logs_since_is_unsupported(bench: Bench) -> case::Outcome {
    not_declared(&bench, "logs.since", |c| c.logs.since)?;
    let options = LogOptions::default().with_since(LogPosition::new("0"));
    reading_is_refused(&bench, "since", options).await
}

async fn reading_is_refused(bench: &Bench, field: &str, options: LogOptions) -> case::Outcome {
    let id = run_id("printed");
    let spec = bench.spec("echo words").await?;
    bench.done(&id, &spec).await?;
    let read = bench.runtime.logs(&id, options).try_next().await;
    let error = fails("reading", read, ErrorKind::Unsupported)?;
    holds(
        &format!("{error} does not name {field}"),
        error.message().contains(field),
    )?;
    Ok(())
}
