//! The proxy itself: its connections, its absence, its end.

mod common;

use std::os::unix::net::UnixListener as StdListener;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use v6_fault_proxy::{Address, Fault, FaultProxy, Requests, Rule};

use common::{Bench, KINDS, Kind, all, connect, data, next, piped, reply, whole};

/// Cases look at the threads of this process: one at a time.
static THREADS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tokio() -> tokio::runtime::Runtime {
    let mut tokio = tokio::runtime::Builder::new_current_thread();
    tokio.enable_all().build().expect("a runtime")
}

/// How many threads are a proxy's.
fn threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").expect("a list");
    let name = |thread: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(thread.ok()?.path().join("comm")).ok()
    };
    threads
        .filter_map(name)
        .filter(|name| name == "v6-fault-proxy\n")
        .count()
}

/// The kernel lists a thread for a moment after it was joined.
fn no_thread_is_left() {
    let began = Instant::now();
    while threads() > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "a thread is left"
        );
        std::thread::yield_now();
    }
}

/// An engine with an endless reply at `/events`.
async fn engine(kind: Kind) -> Bench {
    Bench::new(kind, |request| async move {
        if request.uri().path() != "/events" {
            return reply(whole("done"));
        }
        let (sender, body) = piped();
        tokio::spawn(async move {
            let _ = sender.send(data("event")).await;
            sender.closed().await;
        });
        reply(body)
    })
    .await
}

#[test]
fn a_cut_ends_all_that_is_open_and_nothing_else() {
    let _alone = alone();
    for kind in KINDS {
        tokio().block_on(async {
            let bench = engine(kind).await;
            let (mut idle, mut busy) = (bench.client().await, bench.client().await);
            idle.get("/").await.expect("a reply");
            let mut events = busy.get("/events").await.expect("a reply").into_body();
            assert_eq!(
                next(&mut events).await.expect("one").expect("no error"),
                "event"
            );
            let hold = bench
                .proxy
                .add(Rule::new(Requests::any().path("/held"), Fault::Hold));
            let mut held = bench.client().await;
            let held = tokio::spawn(async move { held.get("/held").await.map(drop) });
            hold.until_fired(1).await;

            assert_eq!(bench.proxy.cut(), 3);
            assert_eq!(all(events).await, (Vec::new(), false));
            held.await.expect("no panic").expect_err("no reply");
            idle.closed().await;
            busy.closed().await;

            bench.client().await.get("/").await.expect("a reply");
            assert_eq!(bench.proxy.requests(), 4);
        });
    }
}

#[test]
fn an_engine_that_is_away_refuses_connections() {
    let _alone = alone();
    for kind in KINDS {
        tokio().block_on(async {
            let bench = engine(kind).await;
            let address = bench.proxy.address().clone();
            let mut client = bench.client().await;
            client.get("/").await.expect("a reply");

            let (one, two) = (bench.proxy.away(), bench.proxy.away());
            client.closed().await;
            let refused = async || {
                let error = connect(&address).await.err().expect("nobody");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            };
            refused().await;
            drop(one);
            refused().await;
            two.end().expect("it listens again");

            assert_eq!(*bench.proxy.address(), address);
            bench.client().await.get("/").await.expect("a reply");
        });
    }
}

#[test]
fn the_last_handle_ends_it() {
    let _alone = alone();
    for kind in KINDS {
        tokio().block_on(async {
            let bench = engine(kind).await;
            assert_eq!(threads(), 1);
            let address = bench.proxy.address().clone();
            let mut client = bench.client().await;
            let mut events = client.get("/events").await.expect("a reply").into_body();
            assert_eq!(
                next(&mut events).await.expect("one").expect("no error"),
                "event"
            );
            let guard = bench.proxy.add(Rule::new(Requests::any(), Fault::Nothing));

            let other = bench.proxy.clone();
            drop(bench.proxy);
            connect(&address).await.expect("it is still there");
            drop(other);

            no_thread_is_left();
            connect(&address).await.err().expect("nobody");
            if let Address::Unix(path) = &address {
                assert!(!path.exists());
            }
            assert_eq!(all(events).await, (Vec::new(), false));
            client.closed().await;
            assert_eq!(guard.fired(), 0);
        });
    }
}

#[test]
fn it_belongs_to_no_runtime() {
    let _alone = alone();
    for kind in KINDS {
        let folder = tempfile::tempdir().expect("a folder");
        let engines = tokio();
        let bench = engines.block_on(engine(kind));
        // Made where there is no runtime at all, and used in several.
        let listen = kind.address(&folder, "second.sock");
        let proxy = FaultProxy::start(listen, bench.engine.clone()).expect("a proxy");
        let stop = tokio_util::sync::CancellationToken::new();
        let serve = std::thread::spawn({
            let stop = stop.clone();
            move || engines.block_on(stop.cancelled())
        });
        for requests in 1..=3 {
            tokio().block_on(async {
                let stream = connect(proxy.address()).await.expect("a connection");
                let mut client = common::Client::new(stream).await;
                client.get("/").await.expect("a reply");
            });
            assert_eq!(proxy.requests(), requests);
        }
        stop.cancel();
        serve.join().expect("no panic");
    }
}

#[test]
fn a_place_that_is_taken_is_an_error_and_a_deserted_one_is_not() {
    let _alone = alone();
    for kind in KINDS {
        let bench = tokio().block_on(engine(kind));
        let taken = FaultProxy::start(bench.proxy.address().clone(), bench.engine.clone());
        let error = taken.expect_err("somebody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        // The attempt has not taken anything away.
        tokio()
            .block_on(connect(bench.proxy.address()))
            .expect("it is still there");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("deserted.sock");
    drop(StdListener::bind(&path).expect("a socket"));
    assert!(path.exists());
    let address = Address::Unix(path);
    FaultProxy::start(address.clone(), address.clone()).expect("a proxy");

    let nowhere = Address::Unix(folder.path().join("none/x.sock"));
    FaultProxy::start(nowhere, address).expect_err("no such folder");
    no_thread_is_left();
}

#[test]
fn without_an_engine_connections_are_closed() {
    let _alone = alone();
    for kind in KINDS {
        tokio().block_on(async {
            let folder = tempfile::tempdir().expect("a folder");
            let engine = match kind {
                Kind::Unix => Address::Unix(folder.path().join("none.sock")),
                // Nobody can listen there.
                Kind::Tcp => "tcp://127.0.0.1:0".parse().expect("an address"),
            };
            let proxy =
                FaultProxy::start(kind.address(&folder, "x.sock"), engine).expect("a proxy");
            let stream = connect(proxy.address()).await.expect("a connection");
            let mut client = common::Client::new(stream).await;
            client.get("/").await.expect_err("no reply");
            client.closed().await;
            assert_eq!(proxy.requests(), 1);
        });
    }
}

#[test]
fn hundreds_are_no_burden() {
    let _alone = alone();
    let engine: Address = "tcp://127.0.0.1:1".parse().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let start = |number| {
        let listen = Address::Unix(folder.path().join(format!("{number}.sock")));
        FaultProxy::start(listen, engine.clone()).expect("a proxy")
    };
    let proxies: Vec<_> = (0..300).map(start).collect();
    assert_eq!(threads(), 300);
    drop(proxies);
    no_thread_is_left();
    assert_eq!(std::fs::read_dir(&folder).expect("a list").count(), 0);
}

#[test]
fn a_rules_function_cannot_wait_for_its_own_thread() {
    let _alone = alone();
    tokio().block_on(async {
        let bench = engine(Kind::Unix).await;
        let proxy = bench.proxy.clone();
        let cut = Fault::rewrite(move |_| assert_eq!(proxy.cut(), 0));
        let rule = bench
            .proxy
            .add(Rule::new(Requests::any().method("POST"), cut));
        let mut client = bench.client().await;
        client
            .post("/", "{}")
            .await
            .expect_err("the function has panicked");
        bench
            .client()
            .await
            .get("/")
            .await
            .expect("the proxy lives");
        // The last handle is the rule's.
        drop(bench);
        drop(rule);
        no_thread_is_left();
    });
}
