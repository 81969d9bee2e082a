use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use v6_runtime::{
    Access, Annotations, DEFAULT_GRACE, EgressGrant, EnvValue, Gpu, GrantName, InputStream, Mount,
    MountSource, Output, Resources, RunSpec, Secret, SpecDigest, Trust, VolumePath,
};

use crate::{bytes, image, output, path, spec};

fn of(spec: &RunSpec) -> SpecDigest {
    SpecDigest::of(spec)
}

/// The fields that make a run what it is, as plain data that can be compared.
#[derive(Debug, Clone, PartialEq)]
struct Relevant {
    image: u8,
    command: Option<Vec<String>>,
    args: Vec<String>,
    /// With whether the value is a secret.
    env: Vec<(String, Option<String>)>,
    workdir: Option<String>,
    mounts: Vec<(u8, Vec<u8>, bool)>,
    outputs: Vec<(bool, u64)>,
    cpu: Option<u32>,
    memory: Option<u64>,
    pids: Option<u32>,
    scratch: Option<u64>,
    gpu: Option<Option<u32>>,
    egress: Vec<(String, u16)>,
    grace: u64,
    trust: (bool, bool),
    groups: Vec<u32>,
}

fn word() -> impl Strategy<Value = String> {
    // Few and short, so that shifted boundaries ("ab","c" and "a","bc") come up.
    "[ab=]{0,2}"
}

fn relevant() -> impl Strategy<Value = Relevant> {
    let words = || proptest::collection::vec(word(), 0..3);
    let name = "[ab]{1,2}";
    let first = (
        0..2_u8,
        proptest::option::of(words()),
        words(),
        proptest::collection::btree_map(name, proptest::option::of(word()), 0..3),
        proptest::option::of("/[ab]{1,2}"),
        proptest::collection::vec(
            (
                0..7_u8,
                proptest::collection::vec(0..2_u8, 0..2),
                any::<bool>(),
            ),
            0..3,
        ),
        proptest::collection::vec((any::<bool>(), 1..3_u64), 0..3),
    );
    let limits = (
        proptest::option::of(1..3_u32),
        proptest::option::of(1..3_u64),
        proptest::option::of(1..3_u32),
        proptest::option::of(1..3_u64),
        proptest::option::of(proptest::option::of(1..3_u32)),
    );
    let rest = (
        proptest::collection::vec((name, 1..3_u16), 0..3),
        9..12_u64,
        any::<(bool, bool)>(),
        proptest::collection::vec(0..3_u32, 0..3),
    );
    (first, limits, rest).prop_map(|(first, limits, rest)| Relevant {
        image: first.0,
        command: first.1,
        args: first.2,
        env: first.3.into_iter().collect(),
        workdir: first.4,
        // Content of secrets and streams does not count; that of scratch folders is none.
        mounts: first
            .5
            .into_iter()
            .map(|(kind, content, writable)| match kind {
                1 | 4 | 5 => (kind, Vec::new(), writable),
                2 => (kind, vec![0; content.len()], writable),
                _ => (kind, content, writable),
            })
            .collect(),
        outputs: first.6,
        cpu: limits.0,
        memory: limits.1,
        pids: limits.2,
        scratch: limits.3,
        gpu: limits.4,
        egress: rest.0,
        grace: rest.1,
        trust: rest.2,
        groups: rest.3,
    })
}

/// A spec with these fields. What does not count is filled with `noise`.
fn make(from: &Relevant, noise: u8) -> RunSpec {
    let mut spec = RunSpec::new(image(char::from(b'0' + from.image)))
        .with_args(from.args.clone())
        .with_grace(Duration::from_secs(from.grace))
        .with_trust(
            Trust::default()
                .with_image_user(from.trust.0)
                .with_writable_root(from.trust.1),
        )
        .with_supplementary_groups(from.groups.clone())
        .with_deadline(SystemTime::UNIX_EPOCH + Duration::from_secs(noise.into()))
        .with_annotations(
            [("noise", noise.to_string())]
                .into_iter()
                .collect::<Annotations>(),
        );
    spec.command = from.command.clone();
    spec.workdir = from.workdir.as_ref().map(|text| path(text));
    for (name, value) in &from.env {
        let value = value.clone().map_or_else(
            || EnvValue::Secret(Secret::new(noise.to_string())),
            EnvValue::Plain,
        );
        spec = spec.with_env(name.clone(), value);
    }
    for (n, (kind, content, writable)) in from.mounts.iter().enumerate() {
        let text: String = content.iter().map(|n| format!("x{n}")).collect();
        let source = match kind {
            0 => MountSource::Inline(content.clone().into()),
            1 => MountSource::Secret(Secret::new(noise.to_string())),
            2 => MountSource::Stream(InputStream::once(
                content.len() as u64,
                std::io::Cursor::new(vec![noise; content.len()]),
            )),
            3 => MountSource::HostPath(text.into()),
            4 => MountSource::Scratch(None),
            5 => MountSource::VolumePart("v".into(), VolumePath::new(format!("p{text}")).unwrap()),
            _ => MountSource::Volume("v".into()),
        };
        let access = if *writable {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        spec = spec.with_mount(Mount::new(source, path(&format!("/m{n}"))).with_access(access));
    }
    for (n, (folder, limit)) in from.outputs.iter().enumerate() {
        let at = path(&format!("/o{n}"));
        let declared = if *folder {
            Output::folder(at, bytes(*limit))
        } else {
            Output::file(at, bytes(*limit))
        };
        spec = spec.with_output(output(&format!("o{n}")), declared);
    }
    let mut resources = Resources::default();
    resources.cpu_milli = from.cpu.and_then(NonZeroU32::new);
    resources.memory_bytes = from.memory.map(bytes);
    resources.pids = from.pids.and_then(NonZeroU32::new);
    resources.scratch_bytes = from.scratch.map(bytes);
    resources.gpu = from.gpu.map(|gpu| match gpu.and_then(NonZeroU32::new) {
        Some(count) => Gpu::Count(count),
        None => Gpu::All,
    });
    spec = spec.with_resources(resources);
    for (n, (host, port)) in from.egress.iter().enumerate() {
        let name = GrantName::new(format!("g{n}")).unwrap();
        spec = spec.with_egress(EgressGrant::new(name, host.clone(), *port).unwrap());
    }
    spec
}

proptest! {
    #[test]
    fn equal_iff_what_counts_is_equal(a in relevant(), b in relevant(), noise: (u8, u8)) {
        prop_assert_eq!(of(&make(&a, noise.0)), of(&make(&a, noise.1)));
        prop_assert_eq!(of(&make(&a, noise.0)) == of(&make(&b, noise.1)), a == b);
    }

    /// Two unrelated specs are hardly ever close, so one field of one spec is changed.
    #[test]
    fn each_field_counts(a in relevant(), b in relevant(), field in 0..16_usize) {
        let mut changed = a.clone();
        match field {
            0 => changed.image = b.image,
            1 => changed.command = b.command,
            2 => changed.args = b.args,
            3 => changed.env = b.env,
            4 => changed.workdir = b.workdir,
            5 => changed.mounts = b.mounts,
            6 => changed.outputs = b.outputs,
            7 => changed.cpu = b.cpu,
            8 => changed.memory = b.memory,
            9 => changed.pids = b.pids,
            10 => changed.scratch = b.scratch,
            11 => changed.gpu = b.gpu,
            12 => changed.egress = b.egress,
            13 => changed.grace = b.grace,
            14 => changed.trust = b.trust,
            _ => changed.groups = b.groups,
        }
        prop_assert_eq!(of(&make(&a, 0)) == of(&make(&changed, 0)), a == changed);
    }
}

#[test]
fn what_is_at_its_default_does_not_count() {
    let plain = spec();
    let spelled_out = spec()
        .with_args(Vec::<String>::new())
        .with_grace(DEFAULT_GRACE)
        .with_resources(Resources::default())
        .with_trust(Trust::default())
        .with_supplementary_groups([]);
    assert_eq!(of(&plain), of(&spelled_out));
    // An empty command is not the image's own.
    assert_ne!(of(&plain), of(&spec().with_command(Vec::<String>::new())));
}

/// Records of older versions carry it: it may change only together with its version.
#[test]
fn the_form_is_fixed() {
    let spec = spec()
        .with_args(["a", ""])
        .with_env("NAME", "value")
        .with_env("TOKEN", Secret::new("hidden"))
        .with_output(
            output("result"),
            Output::file(path("/output/result"), bytes(1024)),
        );
    let digest = of(&spec);
    assert_eq!(
        digest.as_str(),
        "v1:56537479e0836fa6fe5afaf3ddacb0b44bf50ff6fdfa08d5151607fdf7653427"
    );
    assert_eq!(digest.as_str().parse::<SpecDigest>().unwrap(), digest);
    assert!("v1:00".parse::<SpecDigest>().is_err());
}
