//! Images from real registries, through a real engine.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use bollard::query_parameters::{ImportImageOptionsBuilder, RemoveImageOptionsBuilder};
use common::{Bench, id};
use futures_util::TryStreamExt;
use v6_runtime::{
    Digest, ErrorKind, ImageIdentity, ImageRef, Outcome, PullPolicy, RegistryCredentials, RunSpec,
    Runtime, RuntimeExt, StartFailureCause,
};

/// Registries of this test's own, one open and one with a password.
struct Registries {
    script: PathBuf,
    folder: tempfile::TempDir,
    env: HashMap<String, String>,
}

impl Registries {
    /// `None`, and a line that says why, if the program is not on this machine.
    fn start() -> Option<Self> {
        let script =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/services/registry.sh");
        // The script wants a short path.
        let folder = tempfile::Builder::new()
            .prefix("v6r")
            .tempdir_in("/tmp")
            .unwrap();
        let mut made = Self {
            script,
            folder,
            env: HashMap::new(),
        };
        match made.script(&["up"]) {
            Ok(lines) => {
                let words = lines
                    .split_whitespace()
                    .filter_map(|word| word.split_once('='));
                made.env = words
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect();
                Some(made)
            }
            Err(why) => {
                let required = std::env::var_os("V6_TESTS_INSTALL").is_some_and(|v| v == "1");
                assert!(!required, "{why}");
                println!("SKIP no registry: {}", why.trim());
                None
            }
        }
    }

    fn script(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.script);
        command
            .arg(args[0])
            .arg(self.folder.path())
            .args(&args[1..]);
        let done = command.output().map_err(|error| error.to_string())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() {
            Ok(said(&done.stdout))
        } else {
            Err(said(&done.stderr))
        }
    }

    fn image(&self, registry: &str, name: &str) -> ImageRef {
        let host = &self.env[&format!("V6_REGISTRY_{registry}")];
        ImageRef::parse(&format!("{host}/{name}")).unwrap()
    }

    fn login(&self, password: &str) -> RegistryCredentials {
        let password = v6_runtime::Secret::new(password.to_owned());
        let host = &self.env["V6_REGISTRY_PRIVATE"];
        RegistryCredentials::new(host, &self.env["V6_REGISTRY_USER"], password)
    }
}

impl Drop for Registries {
    fn drop(&mut self) {
        if let Err(why) = self.script(&["down"]) {
            println!("the registries could not be ended: {why}");
        }
    }
}

async fn forget(bench: &Bench, name: &str) {
    let options = RemoveImageOptionsBuilder::default().noprune(true).build();
    bench
        .docker
        .remove_image(name, Some(options), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_registry_says_decides() {
    let Some(mut bench) = Bench::new().await else {
        return;
    };
    let Some(registries) = Registries::start() else {
        return;
    };
    registries
        .script(&["push", "localhost/v6-busybox:test", "v6-test/busybox:1"])
        .unwrap();
    let open = registries.image("OPEN", "v6-test/busybox:1");
    let docker = bench.connect().await;

    // Asking fetches nothing; what is run is what was asked for.
    let resolved = docker.resolve(&open, PullPolicy::Always).await.unwrap();
    let ImageIdentity::Manifest(digest) = resolved.identity.clone() else {
        panic!("{resolved:?}")
    };
    assert!(resolved.platform.starts_with("linux/"));
    let pinned = open.pinned(digest.clone());
    assert!(
        bench
            .docker
            .inspect_image(&pinned.to_string())
            .await
            .is_err()
    );
    let absent = docker.resolve(&open, PullPolicy::Never).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    let spec = |image| RunSpec::new(image).with_command(["true"]);
    docker
        .run(&id("first"), &spec(resolved.clone()))
        .await
        .unwrap();
    let first = docker.wait(&id("first")).await.unwrap();
    assert_eq!(first.outcome(), Some(&Outcome::Exited(0)));
    assert_eq!(first.image, resolved);
    docker.prefetch(&resolved).await.unwrap();

    // Absent, denied.
    let kind = async |docker: &v6_runtime_docker::DockerRuntime, image: &ImageRef| {
        docker
            .resolve(image, PullPolicy::Always)
            .await
            .unwrap_err()
            .kind()
    };
    for name in ["v6-test/busybox:2", "v6-test/nothing:1"] {
        assert_eq!(
            kind(&docker, &registries.image("OPEN", name)).await,
            ErrorKind::NotFound
        );
    }
    let private = registries.image("PRIVATE", "v6-test/busybox:1");
    assert_eq!(kind(&docker, &private).await, ErrorKind::Denied);
    let zeros = Digest::new(format!("sha256:{}", "0".repeat(64))).unwrap();
    let hidden = private.pinned(digest.clone());
    for (name, image, cause) in [
        (
            "absent",
            open.pinned(zeros),
            StartFailureCause::ImageNotFound,
        ),
        ("denied", hidden.clone(), StartFailureCause::ImageDenied),
    ] {
        // A digest is settled without a registry: what is wrong shows at the start.
        let image = docker.resolve(&image, PullPolicy::Always).await.unwrap();
        docker.run(&id(name), &spec(image)).await.unwrap();
        let status = docker.wait(&id(name)).await.unwrap();
        let Some(Outcome::FailedToStart(failure)) = status.outcome() else {
            panic!("{name}: {:?}", status.phase)
        };
        assert_eq!(failure.cause, cause, "{failure:?}");
    }
    let password = registries.env["V6_REGISTRY_PASSWORD"].clone();
    for (password, wanted) in [("wrong", Some(ErrorKind::Denied)), (&password, None)] {
        bench.config = bench
            .config
            .with_credentials(vec![registries.login(password)]);
        let docker = bench.connect().await;
        let resolved = docker.resolve(&private, PullPolicy::Always).await;
        assert_eq!(resolved.as_ref().err().map(|error| error.kind()), wanted);
        if let Ok(resolved) = resolved {
            assert_eq!(resolved.identity, ImageIdentity::Manifest(digest.clone()));
            docker.prefetch(&resolved).await.unwrap();
        }
    }

    // A blob that the registry has lost, told in the middle of the pull.
    let local = format!("localhost/v6-test-damaged-{}:1", std::process::id());
    load(&bench, &local, "amd64", &noise()).await;
    registries
        .script(&["push", &local, "v6-test/damaged:1"])
        .unwrap();
    forget(&bench, &local).await;
    let damaged = registries.image("OPEN", "v6-test/damaged:1");
    let damaged = docker.resolve(&damaged, PullPolicy::Always).await.unwrap();
    lose_layers(&registries);
    docker.run(&id("damaged"), &spec(damaged)).await.unwrap();
    let status = docker.wait(&id("damaged")).await.unwrap();
    let Some(Outcome::FailedToStart(failure)) = status.outcome() else {
        panic!("{:?}", status.phase)
    };
    assert_eq!(
        failure.cause,
        StartFailureCause::ImageUnusable,
        "{failure:?}"
    );

    // Unreachable; what the engine has goes on.
    registries.script(&["stop"]).unwrap();
    assert_eq!(kind(&docker, &open).await, ErrorKind::Unavailable);
    let settled = docker.resolve(&pinned, PullPolicy::Always).await.unwrap();
    assert_eq!(settled.identity, resolved.identity);
    docker.run(&id("last"), &spec(settled)).await.unwrap();
    let last = docker.wait(&id("last")).await.unwrap();
    assert_eq!(last.outcome(), Some(&Outcome::Exited(0)));
    forget(&bench, &pinned.to_string()).await;
    forget(&bench, &hidden.to_string()).await;
    docker.run(&id("gone"), &spec(resolved)).await.unwrap();
    let status = docker.wait(&id("gone")).await.unwrap();
    let Some(Outcome::FailedToStart(failure)) = status.outcome() else {
        panic!("{:?}", status.phase)
    };
    assert_eq!(
        failure.cause,
        StartFailureCause::RegistryUnreachable,
        "{failure:?}"
    );
    bench.finish(&docker).await;
}

/// Spoils the layers in the open registry's storage.
fn lose_layers(registries: &Registries) {
    let blobs = "registry/open/docker/registry/v2/blobs/sha256";
    let mut folders = vec![registries.folder.path().join(blobs)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::metadata(&path).unwrap().len() > 100_000 {
                std::fs::write(&path, b"").unwrap();
            }
        }
    }
}

/// What no engine has and nothing compresses.
fn noise() -> Vec<u8> {
    let mut state = u64::from(std::process::id()) | 1;
    let bytes = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    });
    bytes.take(200_000).collect()
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Gives the engine an image of one file.
async fn load(bench: &Bench, name: &str, architecture: &str, file: &[u8]) {
    use sha2::Digest as _;
    let layer = tar_of(&[("file", file)]);
    let digest: String = sha2::Sha256::digest(&layer)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let image = tar_of(&[
        ("layer.tar", &layer),
        ("config.json", config.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ]);
    let options = ImportImageOptionsBuilder::new().quiet(true).build();
    let loading = bench
        .docker
        .import_image(options, bollard::body_full(image.into()), None);
    loading
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_engine_has_needs_no_registry() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let image = ImageRef::parse("localhost/v6-busybox:test").unwrap();
    let local = docker
        .resolve(&image, PullPolicy::IfNotPresent)
        .await
        .unwrap();
    let id = bench
        .docker
        .inspect_image(&image.to_string())
        .await
        .unwrap()
        .id
        .unwrap();
    assert_eq!(
        local.identity,
        ImageIdentity::ImageId(Digest::new(id).unwrap())
    );
    assert_eq!(
        docker.resolve(&image, PullPolicy::Never).await.unwrap(),
        local
    );
    docker.prefetch(&local).await.unwrap();
    let mut other = local;
    other.identity = ImageIdentity::ImageId(Digest::new(format!("sha256:{:064}", 0)).unwrap());
    let error = docker.prefetch(&other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // Nobody listens at port 9.
    let nowhere = ImageRef::parse("127.0.0.1:9/image:1").unwrap();
    let error = docker
        .resolve(&nowhere, PullPolicy::IfNotPresent)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("connection refused"), "{error}");
    bench.finish(&docker).await;
}

#[tokio::test]
async fn an_image_for_another_machine_is_told_apart() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let name = format!("localhost/v6-test-{}:other", std::process::id());
    load(&bench, &name, "riscv64", b"nothing").await;
    let image = ImageRef::parse(&name).unwrap();
    let error = docker.resolve(&image, PullPolicy::Never).await;
    forget(&bench, &name).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("linux/riscv64"), "{error}");
    bench.finish(&docker).await;
}
