//! What a spec becomes in the cluster.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, Pod};
use v6_runtime::{
    Access, ContainerPath, Digest, EgressGrant, GrantName, ImageIdentity, ImageRef, InputStream,
    Mount, MountSource, Output, OutputName, Owner, RegistryCredentials, ResolvedImage, Resources,
    RunId, RunSpec, Secret, VolumePath,
};

use crate::claim;
use crate::config::{KubernetesConfig, Outputs};
use crate::contents::Contents;
use crate::pod::{PROGRAM, Parts, RECEIVE, SIDECAR, pod};
use crate::record::Record;

const HIDDEN: &str = "hunter2";

fn image(identity: fn(Digest) -> ImageIdentity) -> ResolvedImage {
    let digest = Digest::new(format!("sha256:{}", "a".repeat(64))).unwrap();
    let name = ImageRef::parse("registry.example.org/average:1").unwrap();
    ResolvedImage::new(name, identity(digest), "linux/amd64")
}

fn spec() -> RunSpec {
    RunSpec::new(image(ImageIdentity::Manifest))
}

fn at(path: &str) -> ContainerPath {
    ContainerPath::new(path).unwrap()
}

fn config() -> KubernetesConfig {
    let helper = ImageRef::parse("registry.example.org/v6-helper:1").unwrap();
    KubernetesConfig::new(Owner::new("hospital-a").unwrap(), helper)
}

fn made(spec: &RunSpec, config: &KubernetesConfig) -> Pod {
    let contents = Contents::new(spec, &config.credentials).unwrap();
    let id = RunId::new("run-1").unwrap();
    let record = Record::new(&id, spec, contents.len(), SystemTime::now());
    pod(&Parts {
        owner: &config.owner,
        record: &record,
        spec,
        config,
        contents: &contents,
    })
    .unwrap()
}

fn containers(pod: &Pod) -> Vec<&Container> {
    let spec = pod.spec.as_ref().unwrap();
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers).collect()
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    let found = containers(pod).into_iter().find(|it| it.name == name);
    found.unwrap()
}

#[test]
fn where_pods_may_go_is_the_operators() {
    let tolerated = serde_json::json!([{"key": "dedicated", "value": "research"}]);
    let affinity = serde_json::json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}});
    let added = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let placement = crate::Placement::default()
        .with_tolerations(crate::tolerations(&tolerated).unwrap())
        .with_affinity(Some(crate::affinity(&affinity).unwrap()))
        .with_annotations([added("sidecar.istio.io/inject", "false")].into());
    let config = config().with_placement(placement);
    let pod = made(&spec(), &config);
    let annotations = pod.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["sidecar.istio.io/inject"], "false");
    let id = RunId::new("run-1").unwrap();
    assert!(Record::read(id, &pod).is_ok(), "its own are there, too");
    let spec = pod.spec.unwrap();
    let key = spec.tolerations.unwrap().remove(0).key;
    assert_eq!(key.as_deref(), Some("dedicated"));
    assert!(spec.affinity.unwrap().node_affinity.is_some());
}

#[test]
fn accelerators_are_asked_for_by_the_clusters_name() {
    let two = v6_runtime::Gpu::Count(2.try_into().unwrap());
    let config = config().with_gpu_resource(Some("nvidia.com/gpu".into()));
    let mut wanted = spec();
    assert!(!format!("{:?}", made(&wanted, &config)).contains("nvidia"));
    wanted.resources = wanted.resources.with_gpu(two);
    let pod = made(&wanted, &config);
    let resources = container(&pod, PROGRAM).resources.as_ref().unwrap();
    for all in [&resources.requests, &resources.limits] {
        assert_eq!(all.as_ref().unwrap()["nvidia.com/gpu"].0, "2");
    }
}

#[test]
fn every_container_has_the_floor() {
    let pod = made(&spec(), &config());
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(spec.host_network, None);
    assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    let whole = spec.security_context.as_ref().unwrap();
    assert_eq!(
        (whole.run_as_non_root, whole.run_as_user),
        (Some(true), Some(65_532))
    );
    assert_eq!(
        whole.seccomp_profile.as_ref().unwrap().type_,
        "RuntimeDefault"
    );
    assert_eq!(containers(&pod).len(), 3);
    for one in containers(&pod) {
        let own = one.security_context.as_ref().unwrap();
        assert_eq!(own.allow_privilege_escalation, Some(false), "{}", one.name);
        assert_eq!(own.read_only_root_filesystem, Some(true), "{}", one.name);
        let dropped = own.capabilities.as_ref().unwrap().drop.as_deref();
        assert_eq!(dropped, Some(&["ALL".to_owned()][..]), "{}", one.name);
        let resources = one.resources.as_ref().unwrap();
        assert!(resources.limits.as_ref().unwrap().contains_key("memory"));
    }
}

#[test]
fn no_machine_gets_it_before_its_input_is_there() {
    let pod = made(&spec(), &config());
    let gates = pod.spec.unwrap().scheduling_gates.unwrap();
    assert_eq!(gates.len(), 1);
    let kept = pod.metadata.finalizers.unwrap();
    assert_eq!(kept, ["v6-runtime/record"]);
}

#[test]
fn secrets_are_not_in_the_pod() {
    let secret = || Secret::new(HIDDEN);
    let spec = spec()
        .with_env("PASSWORD", secret())
        .with_mount(Mount::new(MountSource::Secret(secret()), at("/in/key")))
        .with_mount(Mount::new(
            MountSource::Inline(Bytes::from_static(b"given hunter2")),
            at("/in/plain"),
        ));
    let login = RegistryCredentials::new("registry.example.org", "u", HIDDEN.to_owned().into());
    let config = config().with_credentials(vec![login]);
    let pod = made(&spec, &config);
    let text = serde_json::to_string(&pod).unwrap();
    assert!(!text.contains(HIDDEN), "{text}");
    // The login and nothing but it.
    let pull = pod.spec.unwrap().image_pull_secrets.unwrap();
    assert_eq!(pull.len(), 1);
}

#[test]
fn words_reach_the_program_as_they_are() {
    let spec = spec()
        .with_command(["/bin/$(x)"])
        .with_args(["$(HOME)", "$$", "a b"])
        .with_env("TEXT", "$(HOME) $");
    let pod = made(&spec, &config());
    let program = container(&pod, PROGRAM);
    // The cluster makes one dollar of two.
    assert_eq!(program.command.as_deref().unwrap(), ["/bin/$$(x)"]);
    assert_eq!(
        program.args.as_deref().unwrap(),
        ["$$(HOME)", "$$$$", "a b"]
    );
    let variable = program.env.iter().flatten().find(|it| it.name == "TEXT");
    let value = variable.unwrap().value.as_deref();
    assert_eq!(value, Some("$$(HOME) $$"));
}

#[test]
fn the_image_is_its_content() {
    let pod = made(&spec(), &config());
    let program = container(&pod, PROGRAM);
    let wanted = format!("registry.example.org/average@sha256:{}", "a".repeat(64));
    assert_eq!(program.image, Some(wanted));
    assert_eq!(program.image_pull_policy.as_deref(), Some("IfNotPresent"));
    // By an engine's own name of it, a registry would be asked for something else.
    let pod = made(&RunSpec::new(image(ImageIdentity::ImageId)), &config());
    let program = container(&pod, PROGRAM);
    assert_eq!(program.image_pull_policy.as_deref(), Some("Never"));
}

#[test]
fn each_host_has_an_address_of_its_own() {
    let grant = |name: &str, host: &str, port| {
        EgressGrant::new(GrantName::new(name).unwrap(), host, port).unwrap()
    };
    let spec = spec()
        .with_egress(grant("a", "one.example", 443))
        .with_egress(grant("b", "two.example", 443))
        .with_egress(grant("c", "one.example", 80));
    let pod = made(&spec, &config());
    let args = container(&pod, SIDECAR).args.clone().unwrap().join(" ");
    for wanted in ["127.0.1.1:443", "127.0.1.2:443", "127.0.1.1:80"] {
        assert!(args.contains(&format!("--listen {wanted}")), "{args}");
    }
    let hosts = pod.spec.unwrap().host_aliases.unwrap();
    assert_eq!(hosts.len(), 2);
}

#[test]
fn what_is_given_and_may_be_changed_begins_an_output() {
    let seed = Mount::new(
        MountSource::Inline(Bytes::from_static(b"seed")),
        at("/work/deep/seed"),
    );
    let stream = MountSource::Stream(InputStream::once(7, &b"content"[..]));
    let limit = NonZeroU64::new(1000).unwrap();
    let spec = spec()
        .with_output(
            OutputName::new("work").unwrap(),
            Output::folder(at("/work"), limit),
        )
        .with_mount(seed.with_access(Access::ReadWrite))
        .with_mount(Mount::new(stream, at("/in/data")));
    let pod = made(&spec, &config());
    let args = container(&pod, RECEIVE).args.clone().unwrap().join(" ");
    for wanted in ["--folder 0", "=out/0/deep/seed", "--stream 7=in/1"] {
        assert!(args.contains(wanted), "{args}");
    }
    let program = container(&pod, PROGRAM);
    let mounts = program.volume_mounts.as_ref().unwrap();
    let of = |path: &str| mounts.iter().find(|mount| mount.mount_path == path);
    assert_eq!(of("/in/data").unwrap().read_only, Some(true));
    assert_eq!(of("/work").unwrap().read_only, Some(false));
    assert!(of("/work/deep/seed").is_none());
}

#[test]
fn no_more_is_booked_than_may_be_used() {
    let few = NonZeroU32::new(50).unwrap();
    let many = NonZeroU32::new(500).unwrap();
    let spec = |cpu| spec().with_resources(Resources::default().with_cpu_milli(cpu));
    for (cpu, booked, wanted) in [
        (many, None, "500m"),
        (many, Some(few), "50m"),
        (few, Some(many), "50m"),
    ] {
        let config = config().with_cpu_request_milli(booked);
        let pod = made(&spec(cpu), &config);
        let resources = container(&pod, PROGRAM).resources.clone().unwrap();
        assert_eq!(resources.requests.unwrap()["cpu"].0, wanted);
        assert_eq!(resources.limits.unwrap()["cpu"].0, format!("{cpu}m"));
    }
}

#[test]
fn disk_is_booked_where_that_is_wanted() {
    let disk = NonZeroU64::new(1 << 30);
    let config = config().with_ephemeral_storage_bytes(disk);
    let of = |config: &KubernetesConfig| {
        let pod = made(&spec(), config);
        let resources = container(&pod, PROGRAM).resources.clone().unwrap();
        [resources.requests, resources.limits].map(|all| {
            let disk = all.unwrap().get("ephemeral-storage").cloned();
            disk.map(|quantity| quantity.0)
        })
    };
    assert_eq!(
        of(&config),
        [Some("1073741824".into()), Some("1073741824".into())]
    );
    let without = config.with_ephemeral_storage_bytes(None);
    assert_eq!(of(&without), [None, None]);
}

#[test]
fn the_helper_has_the_processor_it_is_given() {
    for (most, booked) in [
        (None, "10m"),
        (NonZeroU32::new(500), "10m"),
        (NonZeroU32::new(5), "5m"),
    ] {
        let pod = made(&spec(), &config().with_helper_cpu_milli(most));
        for name in [RECEIVE, SIDECAR] {
            let resources = container(&pod, name).resources.clone().unwrap();
            assert_eq!(resources.requests.unwrap()["cpu"].0, booked);
            let limit = resources.limits.unwrap().get("cpu").cloned();
            assert_eq!(limit.map(|cpu| cpu.0), most.map(|most| format!("{most}m")));
        }
    }
}

#[test]
fn a_grace_has_whole_seconds() {
    let spec = spec().with_grace(Duration::from_millis(1500));
    let pod = made(&spec, &config());
    let probe = container(&pod, PROGRAM).liveness_probe.clone().unwrap();
    assert_eq!(probe.termination_grace_period_seconds, Some(2));
    assert_eq!(pod.spec.unwrap().termination_grace_period_seconds, Some(2));
}

fn claims() -> KubernetesConfig {
    let storage_class = Some("fast".to_owned());
    config().with_outputs(Outputs::Claim { storage_class })
}

fn with_output() -> RunSpec {
    let output = Output::file(at("/out/a"), NonZeroU64::new(1000).unwrap());
    spec().with_output(OutputName::new("a").unwrap(), output)
}

#[test]
fn outputs_on_a_claim_need_no_pod_that_waits() {
    let pod = made(&with_output(), &claims());
    let whole = pod.spec.as_ref().unwrap();
    let before = whole.init_containers.as_ref().unwrap();
    let names: Vec<_> = before.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, [RECEIVE, SIDECAR]);
    assert_eq!(before[1].restart_policy.as_deref(), Some("Always"));
    assert_eq!(whole.containers.len(), 1);
    let group = whole.security_context.as_ref().unwrap().fs_group;
    assert_eq!(group, Some(65_532));
    let id = RunId::new("run-1").unwrap();
    let owner = Owner::new("hospital-a").unwrap();
    let named = claim::of(&owner, &id, &pod).unwrap();
    assert!(named.starts_with("v6-hospital-a.run-1.") && named.ends_with(".out"));
    // Nothing of another run is taken for it.
    let other = RunId::new("run-2").unwrap();
    assert_eq!(claim::of(&owner, &other, &pod), None);
}

#[test]
fn without_outputs_or_where_a_volume_may_be_changed_there_is_no_claim() {
    let volume = || Mount::new(MountSource::Volume("data".into()), at("/data"));
    let changed = with_output().with_mount(volume().with_access(Access::ReadWrite));
    let id = RunId::new("run-1").unwrap();
    let owner = Owner::new("hospital-a").unwrap();
    for (spec, claimed) in [
        (spec(), false),
        (with_output().with_mount(volume()), true),
        (changed, false),
    ] {
        let pod = made(&spec, &claims());
        assert_eq!(claim::of(&owner, &id, &pod).is_some(), claimed);
        let whole = pod.spec.unwrap().security_context.unwrap();
        assert_eq!(whole.fs_group.is_some(), claimed);
    }
    let pod = made(&with_output(), &config());
    assert_eq!(claim::of(&owner, &id, &pod), None);
}

#[test]
fn users_are_the_pods_own_where_that_is_asked_for() {
    let users = |config| made(&spec(), &config).spec.unwrap().host_users;
    assert_eq!(users(config()), None);
    assert_eq!(users(config().with_user_namespaces(true)), Some(false));
}

#[test]
fn a_claim_is_named_once_however_often_it_is_mounted() {
    let part = |path: &str| {
        let path = VolumePath::new(path).unwrap();
        MountSource::VolumePart("data".into(), path)
    };
    let other = MountSource::Volume("other".into());
    let spec = spec()
        .with_mount(Mount::new(part("raw/a.csv"), at("/a")))
        .with_mount(Mount::new(other, at("/other")))
        .with_mount(Mount::new(part("b"), at("/b")).with_access(Access::ReadWrite));
    let pod = made(&spec, &config()).spec.unwrap();
    let volumes = pod.volumes.unwrap();
    let claims: Vec<_> = volumes
        .iter()
        .filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref()?;
            Some((
                volume.name.as_str(),
                claim.claim_name.as_str(),
                claim.read_only,
            ))
        })
        .collect();
    let whole = [
        ("volume-0", "data", Some(false)),
        ("volume-1", "other", Some(true)),
    ];
    assert_eq!(claims, whole);

    let program = pod.containers.iter().find(|one| one.name == PROGRAM);
    let mounts = program.unwrap().volume_mounts.as_ref().unwrap();
    let mounted = |at: &str| {
        let mount = mounts.iter().find(|mount| mount.mount_path == at).unwrap();
        (
            mount.name.as_str(),
            mount.sub_path.as_deref(),
            mount.read_only,
        )
    };
    assert_eq!(mounted("/a"), ("volume-0", Some("raw/a.csv"), Some(true)));
    assert_eq!(mounted("/other"), ("volume-1", None, Some(true)));
    assert_eq!(mounted("/b"), ("volume-0", Some("b"), Some(false)));

    // The helper looks first whether there are such.
    let receive = &pod.init_containers.unwrap()[0];
    let looks = receive.args.as_ref().unwrap().join(" ");
    let wanted = "--part /v6/volumes/0/data=raw/a.csv --part /v6/volumes/2/data=b";
    assert!(looks.contains(wanted), "{looks}");
    let has = |at: &str| {
        let mounts = receive.volume_mounts.as_ref().unwrap();
        let mount = mounts.iter().find(|mount| mount.mount_path == at).unwrap();
        (mount.name.clone(), mount.read_only)
    };
    assert_eq!(
        has("/v6/volumes/2/data"),
        ("volume-0".to_owned(), Some(true))
    );
}

#[test]
fn a_claim_has_room_for_its_outputs() {
    let (spec, config) = (with_output(), claims());
    let contents = Contents::new(&spec, &[]).unwrap();
    let id = RunId::new("run-1").unwrap();
    let record = Record::new(&id, &spec, contents.len(), SystemTime::now());
    let claim = claim::body(&Parts {
        owner: &config.owner,
        record: &record,
        spec: &spec,
        config: &config,
        contents: &contents,
    });
    assert_eq!(claim.metadata.owner_references, None);
    let labels = claim.metadata.labels.unwrap();
    assert_eq!(labels["v6-runtime.owner"], "hospital-a");
    // No listing of runs takes it for one.
    assert_eq!(labels["v6-runtime.part"], "claim");
    let wanted = claim.spec.unwrap();
    assert_eq!(wanted.storage_class_name.as_deref(), Some("fast"));
    let size = &wanted.resources.unwrap().requests.unwrap()["storage"];
    assert_eq!(size.0, (2000 + (64 << 20)).to_string());
}
