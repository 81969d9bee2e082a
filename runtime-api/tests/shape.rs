//! The contract's shape: usable as a trait object, from any thread, with streams that borrow
//! nothing.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use futures_util::StreamExt;
use v6_runtime::memory::{ExitStatus, MemoryEngine, ProgramContext};
use v6_runtime::{
    CancelOptions, CleanupOptions, ImageRef, LogOptions, OutputName, Owner, PullPolicy, RunId,
    RunSpec, Runtime, RuntimeExt, Tracker,
};

fn is_send<T: Send>(value: T) -> T {
    value
}

fn is_static<T: Send + 'static>(value: T) -> T {
    value
}

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(MemoryEngine::new().runtime(Owner::new("owner").unwrap()))
}

#[test]
fn is_object_safe_and_shared_between_threads() {
    fn wants(_: &(dyn Runtime + Send + Sync + 'static)) {}
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    let runtime = runtime();
    wants(&*runtime);
    wants(&runtime);
    wants(&(Box::new(runtime.clone()) as Box<dyn Runtime>));
    shared(&runtime);
}

#[tokio::test]
async fn streams_outlive_what_they_were_made_with() {
    let (watch, list, logs, collect, connections) = {
        let (runtime, id) = (runtime(), RunId::new("r").unwrap());
        let output = OutputName::new("o").unwrap();
        (
            is_static(runtime.watch()),
            is_static(runtime.list()),
            is_static(runtime.logs(&id, LogOptions::default())),
            is_static(runtime.collect(&id, &output)),
            is_static(runtime.connections()),
        )
    };
    drop(connections);
    assert_eq!(watch.take(1).count().await, 1);
    assert_eq!(list.count().await, 0);
    assert!(logs.into_future().await.0.unwrap().is_err());
    assert!(collect.into_future().await.0.unwrap().is_err());
}

#[tokio::test]
async fn futures_are_send() {
    let engine = MemoryEngine::new();
    let image = engine
        .add_image("a", |_: ProgramContext| async { ExitStatus::SUCCESS })
        .unwrap();
    let runtime: Arc<dyn Runtime> = Arc::new(engine.runtime(Owner::new("owner").unwrap()));
    let (id, name) = (RunId::new("r").unwrap(), ImageRef::parse("a").unwrap());
    is_send(runtime.ping()).await.unwrap();
    is_send(runtime.examine()).await.unwrap();
    let lease = is_send(runtime.acquire()).await.unwrap();
    drop(lease);
    is_send(runtime.resolve(&name, PullPolicy::Always))
        .await
        .unwrap();
    is_send(runtime.prefetch(&image)).await.unwrap();
    let spec = RunSpec::new(image);
    is_send(runtime.run(&id, &spec)).await.unwrap();
    is_send(runtime.wait(&id)).await.unwrap();
    let tracker = Tracker::new(runtime.clone());
    is_send(tracker.wait(&id)).await.unwrap();
    is_send(runtime.status(&id)).await.unwrap();
    is_send(runtime.logs_bytes(&id, 1)).await.unwrap();
    is_send(runtime.cancel(&id, CancelOptions::default()))
        .await
        .unwrap();
    is_send(runtime.cleanup(&id, CleanupOptions::default()))
        .await
        .unwrap();
}
