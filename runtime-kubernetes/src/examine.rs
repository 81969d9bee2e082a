//! A run of our own that tries what a run must not be able to do.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use v6_runtime::{
    CleanupOptions, Connection, EgressGrant, Error, ErrorKind, GrantName, ImageRef, Observation,
    Outcome, Owner, PullPolicy, Result, RunId, RunSpec, Runtime, RuntimeExt,
};

use crate::canary;
use crate::config::KubernetesConfig;
use crate::pod::HELPER;
use crate::runtime::KubernetesRuntime;

/// The name and port by which the run reaches us, to show that it can reach something.
const CONTROL: (&str, u16) = ("control.internal", 7);
/// The run takes some seconds, once a machine has the image.
const LIMIT: Duration = Duration::from_secs(120);
/// More than the program ever prints.
const OUTPUT: u64 = 1 << 20;

/// Examines a cluster, under an owner of its own: neither the runs nor the connections of the
/// asking owner come near it.
///
/// The work goes on to its end, and removes what it made, if the future is dropped.
pub(crate) async fn examine(config: &KubernetesConfig) -> Result<Vec<Observation>> {
    let mut config = config.clone();
    config.owner = Owner::new(format!("examine-{:016x}", rand::random::<u64>()))?;
    // What they show is told with the rest, and whatever it is, the rest is to be told.
    config.canary_every = None;
    let work = tokio::spawn(async move {
        // All that is in it is the program that examines.
        let image = config.helper_image.clone();
        let runtime = Box::pin(KubernetesRuntime::connect(config)).await?;
        let id = RunId::new("examine")?;
        let looking = async {
            let mut seen = Box::pin(canary::observe(&runtime.shared)).await?;
            seen.extend(Box::pin(observe(&runtime, &id, &image)).await?);
            Ok::<_, Error>(seen)
        };
        let seen = tokio::time::timeout(LIMIT, Box::pin(looking)).await;
        let removed = runtime
            .cleanup(&id, CleanupOptions::default().with_force(true))
            .await;
        let seen =
            seen.map_err(|_| Error::new(ErrorKind::Timeout, "the examining run did not end"))??;
        removed?;
        Ok(seen)
    });
    work.await.map_err(|error| {
        Error::new(ErrorKind::Unexpected, "the examination broke").with_source(error)
    })?
}

async fn observe(
    runtime: &KubernetesRuntime,
    id: &RunId,
    image: &ImageRef,
) -> Result<Vec<Observation>> {
    let policy = match image.digest() {
        Some(_) => PullPolicy::Never,
        None => PullPolicy::IfNotPresent,
    };
    let image = runtime.resolve(image, policy).await?;
    let (host, port) = CONTROL;
    let control = format!("{host}:{port}");
    let spec = RunSpec::new(image)
        .with_deadline(SystemTime::now() + LIMIT)
        .with_egress(EgressGrant::new(GrantName::new("control")?, host, port)?)
        .with_command([
            HELPER,
            "examine",
            "--control",
            &control,
            "--network",
            "denied",
        ]);
    let mut connections = runtime.connections();
    runtime.run(id, &spec).await?;
    let serving = async {
        while let Some(connection) = connections.next().await {
            if let Ok(connection) = connection {
                // What the run makes of the answer is what it tells.
                let _ = answer(connection).await;
            }
        }
        std::future::pending().await
    };
    let ended = tokio::select! {
        ended = runtime.wait(id) => ended?,
        never = serving => never,
    };
    let printed = runtime.logs_bytes(id, OUTPUT).await?;
    match ended.outcome() {
        Some(Outcome::Exited(0)) => parse(&printed),
        other => {
            let words = String::from_utf8_lossy(&printed);
            let message = format!("the examining run ended with {other:?} {words}");
            Err(Error::new(ErrorKind::Unexpected, message))
        }
    }
}

/// Gives back the one line that it is sent.
async fn answer(connection: Connection) -> std::io::Result<()> {
    let mut stream = BufReader::new(connection.io);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let io = stream.get_mut();
    io.write_all(line.as_bytes()).await?;
    io.shutdown().await
}

#[derive(serde::Deserialize)]
struct Line {
    name: String,
    holds: bool,
    seen: String,
}

fn parse(printed: &[u8]) -> Result<Vec<Observation>> {
    let lines: Vec<Line> = serde_json::from_slice(printed).map_err(|error| {
        Error::new(
            ErrorKind::Protocol,
            "the examining run's words were not understood",
        )
        .with_source(error)
    })?;
    Ok(lines
        .into_iter()
        .map(|Line { name, holds, seen }| Observation::new(name, holds, seen))
        .collect())
}
