use v6_helper::RunFolder;
use v6_runtime::{
    Digest, EgressGrant, GrantName, ImageIdentity, ImageRef, Output, OutputName, Owner,
    ResolvedImage, Secret,
};

use super::*;
use crate::image::Description;

fn spec() -> RunSpec {
    let digest = Digest::new(format!("sha256:{}", "0".repeat(64))).expect("a digest");
    RunSpec::new(ResolvedImage::new(
        ImageRef::parse("localhost/a:1").expect("a name"),
        ImageIdentity::Manifest(digest),
        "linux/amd64",
    ))
}

fn path(text: &str) -> ContainerPath {
    ContainerPath::new(text).expect("a path")
}

fn place() -> Place {
    Place(RunFolder::new("/r"))
}

fn image() -> Ready {
    Ready {
        path: "/i".into(),
        description: Description {
            entrypoint: vec!["/e".into()],
            cmd: vec!["c".into()],
            env: vec!["PATH=/own".into(), "HOME=/root".into(), "A=1".into()],
            workdir: Some("/app".into()),
            volumes: ["/data/", "/process", "/proc", "/.v6/claim", "/dev/shm", "x"]
                .map(str::to_owned)
                .into(),
            platform: "linux/amd64".into(),
        },
        native: false,
    }
}

fn planned(spec: &RunSpec) -> Plan {
    let config = SingularityConfig::new(Owner::new("o").expect("an owner"), "/f");
    plan(spec, &place(), &image(), &config, Path::new("/s")).expect("it can be planned")
}

fn content(plan: &Plan, name: &str) -> String {
    let entry = plan.files.iter().find(|entry| entry.path.ends_with(name));
    match &entry.expect("it is there").content {
        Content::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_of_the_run_is_on_a_command_line() {
    let spec = spec()
        .with_command(["$(id)", "`id`"])
        .with_args(["a\nb", ""])
        .with_env("Q", "'\"$HOME")
        .with_env("S", Secret::new("hunter2"));
    let plan = planned(&spec);
    assert_eq!(content(&plan, "command"), "$(id)\0`id`\0a\nb\0\0");
    let env = content(&plan, "env");
    assert!(
        env.contains("Q='\"$HOME\0") && env.contains("S=hunter2\0"),
        "{env}"
    );
    assert!(
        env.contains("PATH=/own\0") && env.contains("HOME=/tmp\0"),
        "{env}"
    );
    let line = plan.init.join(" ");
    assert!(!line.contains("id") && !line.contains("hunter2"), "{line}");
}

#[test]
fn the_command_is_the_runs_or_the_images() {
    assert_eq!(command(&spec(), &image()).expect("one"), ["/e", "c"]);
    let own = spec().with_args(["x"]);
    assert_eq!(command(&own, &image()).expect("one"), ["/e", "x"]);
    let other = spec().with_command(["/y"]);
    assert_eq!(command(&other, &image()).expect("one"), ["/y"]);
    let mut none = image();
    none.description.entrypoint.clear();
    none.description.cmd.clear();
    let failure = command(&spec(), &none).expect_err("none");
    assert_eq!(failure.cause, StartFailureCause::CommandNotFound);
}

#[test]
fn what_is_inside_is_mounted_after_what_it_is_in() {
    let limit = NonZeroU64::new(10).expect("not zero");
    let spec = spec()
        .with_mount(Mount::new(
            MountSource::Inline("x".into()),
            path("/w/a/b/in"),
        ))
        .with_mount(Mount::new(MountSource::Scratch(None), path("/w/a")))
        .with_output(
            OutputName::new("w").expect("a name"),
            Output::folder(path("/w"), limit),
        );
    let plan = planned(&spec);
    let targets: Vec<&str> = plan
        .container
        .binds
        .iter()
        .map(|b| b.target.as_str())
        .collect();
    let at = |target: &str| targets.iter().position(|t| *t == target).expect("mounted");
    assert!(
        at("/w") < at("/w/a") && at("/w/a") < at("/w/a/b/in"),
        "{targets:?}"
    );
    assert!(at("/.v6") < at("/.v6/claim"), "{targets:?}");
    assert!(
        targets.contains(&"/data") && targets.contains(&"/process"),
        "{targets:?}"
    );
    // An image takes nothing away that every container has.
    let times = |target: &str| targets.iter().filter(|t| **t == target).count();
    assert_eq!(
        (times("/proc"), times("/.v6/claim"), times("/dev/shm")),
        (0, 1, 1),
        "{targets:?}"
    );
    // Each has a place to be mounted on.
    let made: Vec<PathBuf> = files(&spec, &place()).into_iter().map(|e| e.path).collect();
    for needed in [
        "/r/out/0/a",
        "/r/scratch/1/b",
        "/r/scratch/1/b/in",
        "/r/in/0",
    ] {
        assert!(
            made.contains(&PathBuf::from(needed)),
            "{needed} in {made:?}"
        );
    }
}

#[test]
fn given_content_can_begin_an_output() {
    let limit = NonZeroU64::new(10).expect("not zero");
    let given = Mount::new(MountSource::Inline("x".into()), path("/w/d/f"));
    let spec = spec()
        .with_mount(given.with_access(Access::ReadWrite))
        .with_output(
            OutputName::new("w").expect("a name"),
            Output::folder(path("/w"), limit),
        );
    let last = files(&spec, &place()).pop().expect("files");
    assert_eq!(last.path, Path::new("/r/out/0/d/f"));
    assert!(
        !planned(&spec)
            .container
            .binds
            .iter()
            .any(|bind| bind.target == "/w/d/f")
    );
}

#[test]
fn each_host_has_an_address() {
    let grant = |name: &str, host: &str, port| {
        EgressGrant::new(GrantName::new(name).expect("a name"), host, port).expect("a grant")
    };
    let spec = spec()
        .with_egress(grant("a", "b.example.org", 443))
        .with_egress(grant("b", "a.example.org", 443))
        .with_egress(grant("c", "b.example.org", 80));
    assert!(hosts(&spec).ends_with("127.0.1.2\ta.example.org\n127.0.1.1\tb.example.org\n"));
    let line = planned(&spec).init.join(" ");
    assert!(
        line.contains("--listen 127.0.1.1:80=/.v6/egress/2.sock"),
        "{line}"
    );
}

#[test]
fn what_would_stay_writable_is_not_mounted_read_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let real = folder.path().canonicalize().expect("it is there");
    let mount = |access| {
        let source = MountSource::HostPath(folder.path().to_owned());
        Mount::new(source, path("/d")).with_access(access)
    };
    let info = format!("1 2 3:4 / {}/in\\040ner rw - ext4 x rw\n", real.display());
    assert!(unusable(&mount(Access::ReadOnly), &info).is_some());
    assert!(unusable(&mount(Access::ReadWrite), &info).is_none());
    assert!(unusable(&mount(Access::ReadOnly), "1 2 3:4 / / rw - ext4 x rw\n").is_none());
    let gone = MountSource::HostPath(folder.path().join("gone"));
    assert!(unusable(&Mount::new(gone, path("/d")), "").is_some());
}
