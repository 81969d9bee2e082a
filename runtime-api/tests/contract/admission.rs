use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use v6_runtime::{
    Access, Annotations, Capabilities, EgressGrant, ErrorKind, Gpu, GrantName, INLINE_MAX,
    InputStream, Mount, MountSource, Output, Resources, RunSpec, Secret, Trust, VolumePath,
};

use crate::{bytes, output, path, spec};

fn everything() -> Capabilities {
    let mut all = Capabilities::none();
    all.mounts = v6_runtime::MountKinds::all();
    all.outputs = v6_runtime::OutputKinds::all();
    all.resources = v6_runtime::ResourceKinds::all();
    all.egress = true;
    all.deadline = true;
    all.grace = true;
    all.trust = true;
    all.supplementary_groups = true;
    all
}

fn grant(name: &str, host: &str, port: u16) -> EgressGrant {
    EgressGrant::new(GrantName::new(name).unwrap(), host, port).unwrap()
}

fn mounted(source: MountSource) -> RunSpec {
    spec().with_mount(Mount::new(source, path("/m")))
}

fn limited(resources: Resources) -> RunSpec {
    spec().with_resources(resources)
}

type Declare = fn(&mut Capabilities, bool);

/// What has to be declared, the field that a refusal names, and a spec that asks for it.
fn asked() -> Vec<(Declare, &'static str, RunSpec)> {
    let one = NonZeroU32::MIN;
    vec![
        (
            |c, on| c.mounts.stream = on,
            "mounts",
            mounted(MountSource::Stream(InputStream::once(0, &b""[..]))),
        ),
        (
            |c, on| c.mounts.host_path = on,
            "mounts",
            mounted(MountSource::HostPath("/a".into())),
        ),
        (
            |c, on| c.mounts.volume = on,
            "mounts",
            mounted(MountSource::Volume("a".into())),
        ),
        (
            |c, on| c.mounts.volume_part = on,
            "mounts",
            mounted(MountSource::VolumePart(
                "a".into(),
                VolumePath::new("b").unwrap(),
            )),
        ),
        (
            |c, on| c.mounts.scratch = on,
            "mounts",
            mounted(MountSource::Scratch(None)),
        ),
        (
            |c, on| c.mounts.scratch_limit = on,
            "mounts",
            mounted(MountSource::Scratch(Some(bytes(1)))),
        ),
        (
            |c, on| c.outputs.file = on,
            "outputs",
            spec().with_output(output("o"), Output::file(path("/o"), bytes(1))),
        ),
        (
            |c, on| c.outputs.folder = on,
            "outputs",
            spec().with_output(output("o"), Output::folder(path("/o"), bytes(1))),
        ),
        (
            |c, on| c.resources.cpu = on,
            "resources.cpu_milli",
            limited(Resources::default().with_cpu_milli(one)),
        ),
        (
            |c, on| c.resources.memory = on,
            "resources.memory_bytes",
            limited(Resources::default().with_memory_bytes(bytes(1))),
        ),
        (
            |c, on| c.resources.pids = on,
            "resources.pids",
            limited(Resources::default().with_pids(one)),
        ),
        (
            |c, on| c.resources.scratch = on,
            "resources.scratch_bytes",
            limited(Resources::default().with_scratch_bytes(bytes(1))),
        ),
        (
            |c, on| c.resources.gpu = on,
            "resources.gpu",
            limited(Resources::default().with_gpu(Gpu::All)),
        ),
        (
            |c, on| c.egress = on,
            "egress",
            spec().with_egress(grant("g", "example.org", 1)),
        ),
        (
            |c, on| c.deadline = on,
            "deadline",
            spec().with_deadline(SystemTime::UNIX_EPOCH),
        ),
        (
            |c, on| c.grace = on,
            "grace",
            spec().with_grace(Duration::from_secs(1)),
        ),
        (
            |c, on| c.trust = on,
            "trust",
            spec().with_trust(Trust::default().with_image_user(true)),
        ),
        (
            |c, on| c.trust = on,
            "trust",
            spec().with_trust(Trust::default().with_writable_root(true)),
        ),
        (
            |c, on| c.supplementary_groups = on,
            "supplementary_groups",
            spec().with_supplementary_groups([1]),
        ),
    ]
}

#[test]
fn what_is_not_declared_is_refused_by_its_name() {
    for (n, (declare, field, spec)) in asked().into_iter().enumerate() {
        let mut without = everything();
        declare(&mut without, false);
        let error = without.admit(&spec).expect_err(field);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{n}: {error}");
        assert!(
            error.message().starts_with(&format!("{field}: ")),
            "{n}: {error}"
        );
        assert!(!error.is_retryable());
        // It alone is what was lacking, and enough.
        assert!(everything().admit(&spec).is_ok(), "{n}: {field}");
        let mut alone = Capabilities::none();
        declare(&mut alone, true);
        assert!(alone.admit(&spec).is_ok(), "{n}: {field}");
    }
}

#[test]
fn the_core_needs_no_declaration() {
    let core = spec()
        .with_command(["/a"])
        .with_args(["", "-x", "\n$'\""])
        .with_env("A", "")
        .with_env("B", Secret::new("b"))
        .with_workdir(path("/w"))
        .with_annotations([("a", "b")].into_iter().collect())
        .with_mount(Mount::new(
            MountSource::Inline(vec![0; INLINE_MAX].into()),
            path("/i"),
        ))
        .with_mount(Mount::new(
            MountSource::Secret(Secret::new("s")),
            path("/s"),
        ));
    assert!(Capabilities::none().admit(&core).is_ok());
}

#[test]
fn what_is_wrong_anywhere_is_refused_everywhere() {
    let inline = |at: &str| Mount::new(MountSource::Inline("x".into()), path(at));
    let file = |at: &str| Output::file(path(at), bytes(1));
    let notes = |size: usize| {
        [("a", "b".repeat(size - 1))]
            .into_iter()
            .collect::<Annotations>()
    };
    let many = (0..=EgressGrant::MAX).map(|n| grant(&format!("g{n}"), &format!("h{n}"), 1));
    let wrong = [
        ("command", spec().with_command(Vec::<String>::new())),
        ("command", spec().with_command([""])),
        ("args", spec().with_args(["a\0b"])),
        ("args", spec().with_command(["a", "\0"])),
        ("env", spec().with_env("", "x")),
        ("env", spec().with_env("A=B", "x")),
        ("env", spec().with_env("A", "\0")),
        ("env", spec().with_env("A", Secret::new("hunter2\0"))),
        (
            "mounts",
            spec().with_mount(inline("/a")).with_mount(inline("/a")),
        ),
        (
            "mounts",
            spec()
                .with_mount(inline("/a"))
                .with_output(output("o"), file("/a")),
        ),
        (
            "mounts",
            spec().with_mount(inline("/a")).with_mount(inline("/a/b")),
        ),
        ("mounts", spec().with_mount(inline("/proc/x"))),
        ("mounts", spec().with_mount(inline("/sys"))),
        ("mounts", spec().with_output(output("o"), file("/dev/x"))),
        (
            "mounts",
            spec().with_mount(inline("/a").with_access(Access::ReadWrite)),
        ),
        (
            "mounts",
            mounted(MountSource::Inline(vec![0; INLINE_MAX + 1].into())),
        ),
        (
            "mounts",
            mounted(MountSource::Secret(Secret::new("x".repeat(INLINE_MAX + 1)))),
        ),
        ("egress", many.fold(spec(), RunSpec::with_egress)),
        (
            "egress",
            spec()
                .with_egress(grant("a", "b", 1))
                .with_egress(grant("a", "c", 1)),
        ),
        (
            "egress",
            spec()
                .with_egress(grant("a", "c", 1))
                .with_egress(grant("b", "C", 1)),
        ),
        (
            "annotations",
            spec().with_annotations(notes(Annotations::MAX_BYTES + 1)),
        ),
    ];
    for (n, (field, spec)) in wrong.into_iter().enumerate() {
        let error = everything().admit(&spec).expect_err(field);
        assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{n}: {error}");
        assert!(
            error.message().starts_with(&format!("{field}: ")),
            "{n}: {error}"
        );
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    let right = [
        spec()
            .with_mount(inline("/process/x"))
            .with_mount(inline("/a"))
            .with_mount(inline("/ab")),
        spec()
            .with_egress(grant("a", "c", 1))
            .with_egress(grant("b", "c", 2)),
        spec().with_annotations(notes(Annotations::MAX_BYTES)),
        spec()
            .with_output(output("o"), Output::folder(path("/o"), bytes(1)))
            .with_mount(inline("/o/given").with_access(Access::ReadWrite)),
    ];
    for (n, spec) in right.into_iter().enumerate() {
        assert!(everything().admit(&spec).is_ok(), "{n}");
    }
}

#[test]
fn switches_are_listed_by_name() {
    let names: BTreeSet<&str> = v6_runtime::Floor::all()
        .iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names.len(), 8);
    assert!(v6_runtime::Floor::all().iter().all(|(_, on)| on));
    assert!(v6_runtime::Floor::default().iter().all(|(_, on)| !on));
}
