//! What a call has made that an engine carried out late, on a real engine.
#![expect(clippy::unwrap_used, reason = "a failed test panics")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveVolumeOptions,
};
use common::{Bench, shell};
use futures_util::StreamExt;
use v6_runtime::Runtime;

/// A process is killed while the engine makes a container for it, somebody removes the run, and then
/// the container is there: without a record, and on a volume that the engine has made for it, which
/// could as well be anybody's.
#[tokio::test]
async fn a_container_without_a_record_goes() {
    let Some(bench) = Bench::new().await else {
        return;
    };
    let runtime = bench.connect().await;
    let spec = shell(&runtime, "sleep 600").await;
    let owner = bench.config.owner.to_string();
    let of_owner = HashMap::from([("label", vec![format!("v6-runtime.owner={owner}")])]);
    let seen = async || {
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&of_owner)
            .build();
        bench.docker.list_containers(Some(options)).await.unwrap()
    };
    let name = format!("v6-{owner}.late");
    let mount = Mount {
        typ: Some(MountType::VOLUME),
        source: Some(name.clone()),
        target: Some("/v6".to_owned()),
        ..Default::default()
    };
    let labels = HashMap::from(
        [
            ("schema", "1"),
            ("owner", &owner),
            ("run", "late"),
            ("part", "files"),
            ("attempt", "0123"),
        ]
        .map(|(label, value)| (format!("v6-runtime.{label}"), value.to_owned())),
    );
    let body = ContainerCreateBody {
        image: Some(spec.image.reference.to_string()),
        labels: Some(labels),
        host_config: Some(HostConfig {
            mounts: Some(vec![mount]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = CreateContainerOptionsBuilder::new()
        .name(&format!("{name}.files"))
        .build();
    bench
        .docker
        .create_container(Some(options), body)
        .await
        .unwrap();
    assert_eq!(seen().await.len(), 1);

    let next = bench.connect().await;
    let mut events = next.watch();
    events.next().await.unwrap().unwrap();
    let gone = async {
        while !seen().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .expect("it is removed");
    // It is still there.
    bench
        .docker
        .remove_volume(&name, None::<RemoveVolumeOptions>)
        .await
        .unwrap();
}
