//! What is the memory runtime's own, beyond the contract that the conformance suite asks of every
//! runtime.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use v6_runtime::memory::{ExitStatus, MemoryEngine, MemoryImage, ProgramContext, RegistryFault};
use v6_runtime::{
    Accepted, CancelOptions, Cancelled, CleanedUp, CleanupOptions, ContainerPath, EgressGrant,
    ErrorKind, GrantName, ImageRef, InputStream, Mount, MountSource, Outcome, Output, OutputName,
    Owner, Pending, PullPolicy, ResolvedImage, Resources, RunId, RunPhase, RunSpec, Runtime,
    RuntimeExt, StartFailureCause, Tracker, VolumePath,
};

fn owner() -> Owner {
    Owner::new("owner").unwrap()
}

fn id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

fn path(text: &str) -> ContainerPath {
    ContainerPath::new(text).unwrap()
}

fn sleeper(engine: &MemoryEngine) -> ResolvedImage {
    let sleep = |_: ProgramContext| async {
        std::future::pending::<()>().await;
        ExitStatus::SUCCESS
    };
    engine.add_image("sleeper", sleep).unwrap()
}

#[tokio::test(start_paused = true)]
async fn deadline_and_grace_pass_at_once_on_a_paused_clock() {
    let engine = MemoryEngine::new();
    let image = engine
        .add_image("stubborn", |ctx: ProgramContext| async move {
            ctx.trap_termination();
            ctx.terminated().await;
            ctx.print("no");
            std::future::pending::<()>().await;
            ExitStatus::SUCCESS
        })
        .unwrap();
    let runtime = engine.runtime(owner());
    let hour = Duration::from_secs(3600);
    let spec = RunSpec::new(image)
        .with_deadline(engine.now() + hour)
        .with_grace(Duration::from_secs(60));
    runtime.run(&id("a"), &spec).await.unwrap();
    let status = runtime.wait(&id("a")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::DeadlineExceeded));
    let lasted = status
        .finished
        .unwrap()
        .duration_since(status.started.unwrap())
        .unwrap();
    assert!(
        (hour..hour + Duration::from_secs(61)).contains(&lasted),
        "{lasted:?}"
    );
    assert_eq!(runtime.logs_bytes(&id("a"), 10).await.unwrap(), "no");
}

#[tokio::test]
async fn the_end_of_a_value_abandons_what_it_was_about_to_start() {
    let engine = MemoryEngine::new();
    let image = sleeper(&engine);
    let hold = engine.hold_pulls();
    let (first, second) = (engine.runtime(owner()), engine.runtime(owner()));
    let spec = RunSpec::new(image.clone());
    first.run(&id("a"), &spec).await.unwrap();
    let tracker = Tracker::new(std::sync::Arc::new(second.clone()));
    let pulling = RunPhase::Pending(Pending::PullingImage);
    tracker
        .wait_until(&id("a"), move |run| run.phase == pulling)
        .await
        .unwrap();
    assert_eq!(
        second.run(&id("a"), &spec).await.unwrap(),
        Accepted::Adopted
    );
    drop(first);
    let abandoned = RunPhase::Pending(Pending::Abandoned);
    assert_eq!(second.status(&id("a")).await.unwrap().phase, abandoned);
    drop(hold);
    // Nobody starts it but who is told to, and by the new spec.
    let other = spec.with_args(["other"]);
    assert_eq!(
        second.run(&id("a"), &other).await.unwrap(),
        Accepted::Created
    );
    let running = tracker
        .wait_until(&id("a"), |run| run.phase.rank() > 0)
        .await
        .unwrap();
    assert_eq!(running.phase, RunPhase::Running);
    assert_eq!(running.spec, v6_runtime::SpecDigest::of(&other));
    let forced = CleanupOptions::default().with_force(true);
    assert_eq!(
        second.cleanup(&id("a"), forced).await.unwrap(),
        CleanedUp::Removed
    );
    assert_eq!(engine.inventory(&owner()), Vec::<String>::new());
}

#[tokio::test]
async fn a_dropped_run_call_leaves_an_abandoned_record() {
    let engine = MemoryEngine::new();
    let image = engine
        .add_image("cat", |ctx: ProgramContext| async move {
            match ctx.read("/in") {
                Ok(bytes) => ctx.print(bytes),
                Err(_) => return ExitStatus::FAILURE,
            }
            ExitStatus::SUCCESS
        })
        .unwrap();
    let runtime = engine.runtime(owner());
    let (reader, mut writer) = tokio::io::duplex(16);
    writer.write_all(b"half").await.unwrap();
    let spec = |stream| {
        RunSpec::new(image.clone()).with_mount(Mount::new(MountSource::Stream(stream), path("/in")))
    };
    let stuck = spec(InputStream::once(8, reader));
    let id = id("a");
    tokio::select! {
        biased;
        _ = runtime.run(&id, &stuck) => unreachable!("the input never ends"),
        () = tokio::task::yield_now() => {}
    }
    let phase = runtime.status(&id).await.unwrap().phase;
    assert_eq!(phase, RunPhase::Pending(Pending::Abandoned));
    let whole = spec(InputStream::once(8, &b"all of it"[..8]));
    assert_eq!(runtime.run(&id, &whole).await.unwrap(), Accepted::Created);
    assert_eq!(
        runtime.wait(&id).await.unwrap().outcome(),
        Some(&Outcome::Exited(0))
    );
    assert_eq!(runtime.logs_bytes(&id, 100).await.unwrap(), "all of i");
}

#[tokio::test]
async fn a_stream_of_another_length_is_refused_and_leaves_nothing() {
    let engine = MemoryEngine::new();
    let (image, runtime) = (sleeper(&engine), engine.runtime(owner()));
    for len in [3, 5] {
        let stream = InputStream::once(len, &b"four"[..]);
        let mount = Mount::new(MountSource::Stream(stream), path("/in"));
        let spec = RunSpec::new(image.clone()).with_mount(mount);
        let error = runtime.run(&id("a"), &spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
        assert!(engine.inventory(&owner()).is_empty());
    }
}

#[tokio::test]
async fn names_move_and_content_stays() {
    let engine = MemoryEngine::new();
    let exit = |code| move |_: ProgramContext| async move { ExitStatus::Code(code) };
    let old = engine.add_image("a:1", exit(1)).unwrap();
    let runtime = engine.runtime(owner());
    let name = ImageRef::parse("a:1").unwrap();
    let error = runtime.resolve(&name, PullPolicy::Never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    runtime.prefetch(&old).await.unwrap();
    let new = engine.add_image("a:1", exit(2)).unwrap();
    assert_ne!(old.identity, new.identity);
    for (policy, wanted) in [
        (PullPolicy::Never, &old),
        (PullPolicy::IfNotPresent, &old),
        (PullPolicy::Always, &new),
    ] {
        assert_eq!(runtime.resolve(&name, policy).await.unwrap(), *wanted);
    }
    for (image, code) in [(old, 1), (new, 2)] {
        let run = id(&format!("run-{code}"));
        runtime.run(&run, &RunSpec::new(image)).await.unwrap();
        let status = runtime.wait(&run).await.unwrap();
        assert_eq!(status.outcome(), Some(&Outcome::Exited(code)));
    }
}

#[tokio::test]
async fn registry_faults_are_told_apart() {
    let engine = MemoryEngine::new();
    let image = sleeper(&engine);
    let runtime = engine.runtime(owner());
    let name = ImageRef::parse("sleeper").unwrap();
    let words = || "words of the registry".to_owned();
    for (n, (fault, kind, cause)) in [
        (
            RegistryFault::NotFound(words()),
            Some(ErrorKind::NotFound),
            StartFailureCause::ImageNotFound,
        ),
        (
            RegistryFault::Denied(words()),
            Some(ErrorKind::Denied),
            StartFailureCause::ImageDenied,
        ),
        (
            RegistryFault::Unreachable(words()),
            Some(ErrorKind::Unavailable),
            StartFailureCause::RegistryUnreachable,
        ),
        (
            RegistryFault::Unusable(words()),
            None,
            StartFailureCause::ImageUnusable,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        engine.set_registry_fault("sleeper", Some(fault)).unwrap();
        match (runtime.resolve(&name, PullPolicy::Always).await, kind) {
            (Err(error), Some(kind)) => {
                assert_eq!((error.kind(), error.message()), (kind, words().as_str()));
            }
            (Ok(found), None) => assert_eq!(found, image),
            (answer, kind) => unreachable!("{answer:?} instead of {kind:?}"),
        }
        let run = id(&format!("run-{n}"));
        runtime
            .run(&run, &RunSpec::new(image.clone()))
            .await
            .unwrap();
        match runtime.wait(&run).await.unwrap().outcome() {
            Some(Outcome::FailedToStart(why)) => {
                assert_eq!((why.cause, why.message.as_str()), (cause, words().as_str()));
            }
            other => unreachable!("{other:?}"),
        }
    }
    engine.set_registry_fault("sleeper", None).unwrap();
    assert!(runtime.resolve(&name, PullPolicy::Always).await.is_ok());
}

#[tokio::test]
async fn an_engine_that_is_away_answers_nothing_and_forgets_nothing() {
    let engine = MemoryEngine::new();
    let (image, runtime) = (sleeper(&engine), engine.runtime(owner()));
    let spec = RunSpec::new(image.clone());
    runtime.run(&id("a"), &spec).await.unwrap();
    let tracker = Tracker::new(std::sync::Arc::new(runtime.clone()));
    tracker
        .wait_until(&id("a"), |run| run.phase.rank() > 0)
        .await
        .unwrap();
    let follow = v6_runtime::LogOptions::default().with_follow(true);
    let mut logs = runtime.logs(&id("a"), follow);
    engine.go_away();
    let name = ImageRef::parse("sleeper").unwrap();
    let a = id("a");
    let cancel = runtime.cancel(&a, CancelOptions::default());
    let cleanup = runtime.cleanup(&a, CleanupOptions::default());
    let errors = [
        runtime.ping().await.map(drop).unwrap_err(),
        runtime.examine().await.map(drop).unwrap_err(),
        runtime.acquire().await.map(drop).unwrap_err(),
        runtime
            .resolve(&name, PullPolicy::Always)
            .await
            .map(drop)
            .unwrap_err(),
        runtime.prefetch(&image).await.unwrap_err(),
        runtime.run(&id("b"), &spec).await.map(drop).unwrap_err(),
        runtime.status(&id("a")).await.map(drop).unwrap_err(),
        runtime.list().next().await.unwrap().map(drop).unwrap_err(),
        logs.next().await.unwrap().map(drop).unwrap_err(),
        cancel.await.map(drop).unwrap_err(),
        cleanup.await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.is_retryable());
    }
    // It is lost while nobody can see it.
    assert!(engine.end_run(&owner(), &id("a"), Outcome::NodeLost("fire".into())));
    engine.come_back();
    let status = tracker.wait(&id("a")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::NodeLost("fire".into())));
    let again = runtime
        .cancel(&id("a"), CancelOptions::default())
        .await
        .unwrap();
    assert_eq!(again, Cancelled::AlreadyFinished);
}

#[tokio::test(start_paused = true)]
async fn connections_wait_for_a_reader_and_not_for_ever() {
    let engine = MemoryEngine::new();
    let image = engine
        .add_image("talker", |ctx: ProgramContext| async move {
            for stranger in [
                ("other.example.org", 443),
                ("db.example.org", 1),
                ("192.0.2.1", 443),
            ] {
                if ctx.connect(stranger.0, stranger.1).await.is_ok() {
                    return ExitStatus::Code(2);
                }
            }
            let Ok(mut io) = ctx.connect("db.example.org", 443).await else {
                return ExitStatus::Code(3);
            };
            let mut answer = Vec::new();
            let asked = io.write_all(b"ping").await.and(io.shutdown().await);
            match asked.and(io.read_to_end(&mut answer).await) {
                Ok(_) => ctx.print(answer),
                Err(_) => return ExitStatus::Code(4),
            }
            ExitStatus::SUCCESS
        })
        .unwrap();
    let runtime = engine.runtime(owner());
    let grant = EgressGrant::new(GrantName::new("db").unwrap(), "db.example.org", 443).unwrap();
    let spec = RunSpec::new(image).with_egress(grant.clone());
    runtime.run(&id("read"), &spec).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let mut superseded = runtime.connections();
    let mut connections = runtime.connections();
    assert!(superseded.next().await.is_none());
    let mut connection = connections.next().await.unwrap().unwrap();
    assert_eq!((&connection.run, &connection.grant), (&id("read"), &grant));
    let mut question = String::new();
    connection.io.read_to_string(&mut question).await.unwrap();
    connection
        .io
        .write_all(format!("{question} pong").as_bytes())
        .await
        .unwrap();
    drop(connection);
    let status = runtime.wait(&id("read")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)));
    assert_eq!(
        runtime.logs_bytes(&id("read"), 100).await.unwrap(),
        "ping pong"
    );

    // Nobody reads: it is closed after a minute, and the program goes on.
    drop(connections);
    runtime.run(&id("unread"), &spec).await.unwrap();
    let status = runtime.wait(&id("unread")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)));
}

#[tokio::test]
async fn limits_bind() {
    let engine = MemoryEngine::new();
    let image = MemoryImage::new(|ctx: ProgramContext| async move {
        let processes: Vec<_> = std::iter::from_fn(|| ctx.start_process().ok()).collect();
        ctx.print(format!("{} ", processes.len()));
        let full = (0..100).find(|_| ctx.append("/tmp/file", [0; 100]).is_err());
        ctx.print(format!("{full:?} "));
        drop(ctx.allocate(600).await);
        let _kept = ctx.allocate(600).await;
        ctx.print("within");
        let _too_much = ctx.allocate(600).await;
        ExitStatus::SUCCESS
    });
    let image = engine.add("greedy", image).unwrap();
    let runtime = engine.runtime(owner());
    let resources = Resources::default()
        .with_memory_bytes(NonZeroU64::new(1000).unwrap())
        .with_pids(NonZeroU32::new(5).unwrap())
        .with_scratch_bytes(NonZeroU64::new(1000).unwrap());
    runtime
        .run(&id("a"), &RunSpec::new(image).with_resources(resources))
        .await
        .unwrap();
    let status = runtime.wait(&id("a")).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::OutOfMemory));
    assert_eq!(status.usage.peak_memory_bytes, Some(1200));
    assert_eq!(
        runtime.logs_bytes(&id("a"), 100).await.unwrap(),
        "4 Some(10) within"
    );
}

#[tokio::test]
async fn volumes_and_folders() {
    let engine = MemoryEngine::new();
    let image = engine
        .add_image("folders", |ctx: ProgramContext| async move {
            let done = (|| {
                assert!(ctx.write("/data/a", "b").is_err());
                ctx.create_dir("/out/made")?;
                ctx.write("/out/made/copy", ctx.read("/data/a")?)?;
                ctx.append("/out/begun", " and done")?;
                ctx.symlink("/data/a", "/out/link")?;
                ctx.print(ctx.read("/out/link")?);
                assert!(ctx.write("/part/b", "c").is_err());
                assert!(ctx.read("/part/../a").is_err());
                ctx.print(format!(" {:?} ", ctx.read_dir("/part")?));
                ctx.print(ctx.read("/part/b")?);
                ctx.print(format!(" {:?}", ctx.read_dir("/out")?));
                std::io::Result::Ok(())
            })();
            match done {
                Ok(()) => ExitStatus::SUCCESS,
                Err(error) => {
                    ctx.eprint(error.to_string());
                    ExitStatus::FAILURE
                }
            }
        })
        .unwrap();
    engine.add_volume_file("data", "a", "content");
    engine.add_volume_file("data", "sub/folder/b", "of a part");
    let runtime = engine.runtime(owner());
    let folder = OutputName::new("folder").unwrap();
    let inline = |text: &'static str| MountSource::Inline(text.into());
    let spec = RunSpec::new(image)
        .with_mount(Mount::new(
            MountSource::Volume("data".into()),
            path("/data"),
        ))
        .with_mount(Mount::new(
            MountSource::VolumePart("data".into(), VolumePath::new("sub/folder").unwrap()),
            path("/part"),
        ))
        .with_mount(Mount::new(inline("kept apart"), path("/out/given")))
        .with_mount(
            Mount::new(inline("begun"), path("/out/begun"))
                .with_access(v6_runtime::Access::ReadWrite),
        )
        .with_output(
            folder.clone(),
            Output::folder(path("/out"), NonZeroU64::new(1000).unwrap()),
        );
    runtime.run(&id("a"), &spec).await.unwrap();
    let status = runtime.wait(&id("a")).await.unwrap();
    let printed = runtime.logs_bytes(&id("a"), 1000).await.unwrap();
    assert_eq!(status.outcome(), Some(&Outcome::Exited(0)), "{printed:?}");
    assert_eq!(
        printed,
        r#"content ["b"] of a part ["begun", "given", "link", "made"]"#
    );
    let archive = runtime
        .collect_bytes(&id("a"), &folder, 1 << 20)
        .await
        .unwrap();
    let mut archive = tar::Archive::new(&archive[..]);
    let found: Vec<(String, String)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            (name, std::io::read_to_string(&mut entry).unwrap())
        })
        .collect();
    let wanted = [
        ("begun", "begun and done"),
        ("made", ""),
        ("made/copy", "content"),
    ];
    assert_eq!(
        found,
        wanted.map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
}

#[tokio::test]
async fn a_lease_can_be_lost() {
    let engine = MemoryEngine::new();
    let (first, second) = (engine.runtime(owner()), engine.runtime(owner()));
    let lease = first.acquire().await.unwrap();
    assert_eq!(
        second.acquire().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    engine.break_lease(&owner(), "the disk is gone");
    assert_eq!(lease.lost().await, "the disk is gone");
    let _taken = second.acquire().await.unwrap();
    drop(lease);
    assert_eq!(
        first.acquire().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
}

#[tokio::test]
async fn a_lease_that_was_given_back_is_free() {
    let engine = MemoryEngine::new();
    let (first, second) = (engine.runtime(owner()), engine.runtime(owner()));
    let lease = first.acquire().await.unwrap();
    assert_eq!(
        second.acquire().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    lease.give_back().await;
    second.acquire().await.unwrap().give_back().await;
}
