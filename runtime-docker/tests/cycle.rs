//! One run from its start to its cleanup, on a real engine.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::{Bench, bytes, file, id, output, path, shell};
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use v6_runtime::{
    Accepted, Access, CancelOptions, Cancelled, CleanedUp, EgressGrant, ErrorKind, GrantName,
    InputStream, Mount, MountSource, Outcome, Output, Resources, RunPhase, Runtime, RuntimeExt,
    Secret, StartFailureCause,
};
use v6_runtime_docker::DockerRuntime;

#[tokio::test]
async fn files_go_in_and_out() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let script = "cat /in/plain /in/secret /in/stream > /data/out && echo -n $SECRET >> /data/out \
                  && mkdir -p /work/sub && echo -n made > /work/sub/new && cat /work/deep/seed >&2 \
                  && echo changed > /work/deep/seed; id; ls -ln /in /data /.v6; cat /proc/mounts; env";
    let stream = InputStream::once(3, &b"str"[..]);
    let given = |source, at| Mount::new(source, path(at));
    let spec = shell(&docker, script)
        .await
        .with_env("SECRET", Secret::new("s3cr3t"))
        .with_mount(given(
            MountSource::Inline(Bytes::from_static(b"plain ")),
            "/in/plain",
        ))
        .with_mount(given(
            MountSource::Secret(Secret::new("secret ")),
            "/in/secret",
        ))
        .with_mount(given(MountSource::Stream(stream), "/in/stream"))
        .with_mount(given(
            MountSource::Inline(Bytes::from_static(b"ro")),
            "/work/sub2/read",
        ))
        .with_mount(
            given(
                MountSource::Inline(Bytes::from_static(b"seed")),
                "/work/deep/seed",
            )
            .with_access(Access::ReadWrite),
        )
        .with_output(output("result"), file("/data/out", 1000))
        .with_output(output("work"), Output::folder(path("/work"), bytes(10_000)));
    let id = id("files");
    assert_eq!(docker.run(&id, &spec).await.unwrap(), Accepted::Created);
    assert_eq!(docker.run(&id, &spec).await.unwrap(), Accepted::Adopted);
    let status = docker.wait(&id).await.unwrap();
    let logs = docker.logs_bytes(&id, 100_000).await.unwrap();
    let logs = String::from_utf8_lossy(&logs).into_owned();
    assert_eq!(
        status.phase,
        RunPhase::Finished(Outcome::Exited(0)),
        "{logs}"
    );
    let result = docker
        .collect_bytes(&id, &output("result"), 1000)
        .await
        .unwrap();
    assert_eq!(result, "plain secret strs3cr3t", "{logs}");
    // As from an engine whose disk this process does not see.
    let remote = DockerRuntime::connect(bench.config.clone().with_local_files(false));
    let remote = remote.await.unwrap();
    let result = remote
        .collect_bytes(&id, &output("result"), 1000)
        .await
        .unwrap();
    assert_eq!(result, "plain secret strs3cr3t", "{logs}");
    let folder = docker
        .collect_bytes(&id, &output("work"), 100_000)
        .await
        .unwrap();
    let mut archive = tar::Archive::new(&folder[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    for wanted in ["sub/new", "deep/seed"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    assert!(!names.iter().any(|name| name == "sub2/read"), "{names:?}");
    assert_eq!(
        docker.cleanup(&id, Default::default()).await.unwrap(),
        CleanedUp::Removed
    );
    assert_eq!(
        docker.cleanup(&id, Default::default()).await.unwrap(),
        CleanedUp::Absent
    );
    bench.finish(&docker).await;
}

#[tokio::test]
async fn ends_are_told_apart() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let base = shell(&docker, "true").await;
    let sh = |text: &str| base.clone().with_command(["sh", "-c", text]);
    let memory = Resources::default().with_memory_bytes(bytes(32 << 20));
    let cases = [
        ("zero", sh("exit 0"), Outcome::Exited(0)),
        ("seven", sh("exit 7"), Outcome::Exited(7)),
        ("high", sh("exit 137"), Outcome::Exited(137)),
        ("signal", sh("kill -KILL $$"), Outcome::Signaled(9)),
        (
            "memory",
            sh("tail /dev/zero").with_resources(memory),
            Outcome::OutOfMemory,
        ),
        (
            "deadline",
            sh("sleep 60")
                .with_deadline(SystemTime::now() + Duration::from_secs(4))
                .with_grace(Duration::from_secs(1)),
            Outcome::DeadlineExceeded,
        ),
    ];
    for (name, spec, _) in &cases {
        docker.run(&id(name), spec).await.unwrap();
    }
    for (name, _, wanted) in &cases {
        let status = docker.wait(&id(name)).await.unwrap();
        assert_eq!(status.outcome(), Some(wanted), "{name}");
        assert!(status.started <= status.finished, "{name}: {status:?}");
        // On a machine under load the deadline may pass before the start.
        assert!(
            status.started.is_some() || *wanted == Outcome::DeadlineExceeded,
            "{name}: {status:?}"
        );
    }
    for (name, command, wanted) in [
        ("absent", "/no/such", StartFailureCause::CommandNotFound),
        (
            "text",
            "/etc/passwd",
            StartFailureCause::CommandNotExecutable,
        ),
    ] {
        let spec = base.clone().with_command([command]);
        docker.run(&id(name), &spec).await.unwrap();
        match docker.wait(&id(name)).await.unwrap().phase {
            RunPhase::Finished(Outcome::FailedToStart(failure)) => {
                assert_eq!(failure.cause, wanted, "{failure:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    bench.finish(&docker).await;
}

#[tokio::test]
async fn cancelled_in_each_phase() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let stubborn = shell(&docker, "trap '' TERM; echo up; while :; do sleep 1; done").await;
    let run = id("stubborn");
    docker.run(&run, &stubborn).await.unwrap();
    let log = docker.logs(&run, v6_runtime::LogOptions::default().with_follow(true));
    drop(log);
    wait_for(&docker, &run, |phase| *phase == RunPhase::Running).await;
    let grace = CancelOptions::default().with_grace(Duration::from_millis(500));
    assert_eq!(
        docker.cancel(&run, grace.clone()).await.unwrap(),
        Cancelled::Requested
    );
    let status = docker.wait(&run).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Cancelled));
    assert_eq!(
        docker.cancel(&run, grace.clone()).await.unwrap(),
        Cancelled::AlreadyFinished
    );

    let early = id("early");
    docker.run(&early, &stubborn).await.unwrap();
    docker.cancel(&early, grace.clone()).await.unwrap();
    assert_eq!(
        docker.wait(&early).await.unwrap().outcome(),
        Some(&Outcome::Cancelled)
    );

    let over = id("over");
    docker
        .run(&over, &shell(&docker, "exit 3").await)
        .await
        .unwrap();
    docker.wait(&over).await.unwrap();
    assert_eq!(
        docker.cancel(&over, grace).await.unwrap(),
        Cancelled::AlreadyFinished
    );
    assert_eq!(
        docker.status(&over).await.unwrap().outcome(),
        Some(&Outcome::Exited(3))
    );
    bench.finish(&docker).await;
}

#[tokio::test]
async fn connections_are_handed_over() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let grant = |name: &str, host: &str, port| {
        EgressGrant::new(GrantName::new(name).unwrap(), host, port).unwrap()
    };
    let script = "echo ping | nc db.example.org 80 && echo pong | nc other.example.org 80 \
                  && ! nc -w 1 db.example.org 81 2> /dev/null";
    let spec = shell(&docker, script)
        .await
        .with_egress(grant("db", "db.example.org", 80))
        .with_egress(grant("other", "other.example.org", 80));
    let run = id("egress");
    docker.run(&run, &spec).await.unwrap();
    let mut connections = docker.connections();
    for (name, said) in [("db", "ping\n"), ("other", "pong\n")] {
        let mut connection = connections.next().await.unwrap().unwrap();
        assert_eq!(
            (&connection.run, connection.grant.name.as_str()),
            (&run, name)
        );
        let mut heard = vec![0; said.len()];
        connection.io.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said.as_bytes());
        connection.io.write_all(b"answer\n").await.unwrap();
        connection.io.shutdown().await.unwrap();
    }
    let status = docker.wait(&run).await.unwrap();
    let logs = docker.logs_bytes(&run, 10_000).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)), "{logs:?}");
    assert!(logs.starts_with(b"answer\nanswer\n"), "{logs:?}");
    bench.finish(&docker).await;
}

#[tokio::test]
async fn another_value_goes_on() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let spec = shell(&docker, "sleep 2; exit 5").await;
    let run = id("adopted");
    docker.run(&run, &spec).await.unwrap();
    wait_for(&docker, &run, |phase| phase.rank() >= 1).await;
    drop(docker);
    let docker = bench.connect().await;
    let listed: Vec<_> = docker.list().try_collect().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(docker.run(&run, &spec).await.unwrap(), Accepted::Adopted);
    assert_eq!(
        docker.wait(&run).await.unwrap().outcome(),
        Some(&Outcome::Exited(5))
    );
    let other = shell(&docker, "exit 6").await;
    assert_eq!(
        docker.run(&run, &other).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    bench.finish(&docker).await;
}

#[tokio::test]
async fn strangers_are_spared() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let run = id("taken");
    let volume = bollard::models::VolumeCreateRequest {
        name: Some(bench.name(&run)),
        ..Default::default()
    };
    bench.docker.create_volume(volume).await.unwrap();
    let spec = shell(&docker, "true").await;
    let error = docker.run(&run, &spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(
        docker.cleanup(&run, Default::default()).await.unwrap(),
        CleanedUp::Absent
    );
    let name = bench.name(&run);
    bench.docker.inspect_volume(&name).await.unwrap();
    bench
        .docker
        .remove_volume(
            &name,
            None::<bollard::query_parameters::RemoveVolumeOptions>,
        )
        .await
        .unwrap();
    bench.finish(&docker).await;
}

async fn wait_for(
    docker: &v6_runtime_docker::DockerRuntime,
    run: &v6_runtime::RunId,
    wanted: impl Fn(&RunPhase) -> bool,
) {
    let mut events = docker.watch();
    while let Some(event) = events.next().await {
        let found = match event.unwrap() {
            v6_runtime::WatchEvent::Snapshot(runs) => runs.into_iter().find(|r| r.id == *run),
            v6_runtime::WatchEvent::Changed(status) if status.id == *run => Some(*status),
            _ => None,
        };
        if found.is_some_and(|status| wanted(&status.phase)) {
            return;
        }
    }
    panic!("the watch ended");
}

#[tokio::test]
async fn an_images_own_volumes_are_bounded() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let docker = bench.connect().await;
    let first = id("first");
    docker
        .run(&first, &shell(&docker, "true").await)
        .await
        .unwrap();
    docker.wait(&first).await.unwrap();
    let name = format!("localhost/{}", bench.config.owner);
    let options = bollard::query_parameters::CommitContainerOptionsBuilder::new()
        .container(&bench.name(&first))
        .repo(&name)
        .tag("volume")
        .build();
    let config = bollard::models::ContainerConfig {
        volumes: Some(vec!["/declared".to_owned()]),
        ..Default::default()
    };
    bench
        .docker
        .commit_container(options, config)
        .await
        .unwrap();
    let name = format!("{name}:volume");
    let image = v6_runtime::ImageRef::parse(&name).unwrap();
    let image = docker
        .resolve(&image, v6_runtime::PullPolicy::Never)
        .await
        .unwrap();
    let script = "grep -q '^tmpfs /declared tmpfs .*size=' /proc/mounts";
    let spec = v6_runtime::RunSpec::new(image).with_command(["sh", "-c", script]);
    let second = id("second");
    docker.run(&second, &spec).await.unwrap();
    let status = docker.wait(&second).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)));
    let seen = bench
        .docker
        .inspect_container(
            &bench.name(&second),
            None::<bollard::query_parameters::InspectContainerOptions>,
        )
        .await
        .unwrap();
    let volumes = seen.mounts.unwrap_or_default();
    let volumes = volumes.iter().filter(|mount| mount.name.is_some());
    assert_eq!(volumes.count(), 0);
    for run in [&first, &second] {
        docker.cleanup(run, Default::default()).await.unwrap();
    }
    let options = None::<bollard::query_parameters::RemoveImageOptions>;
    bench
        .docker
        .remove_image(&name, options, None)
        .await
        .unwrap();
    bench.finish(&docker).await;
}
