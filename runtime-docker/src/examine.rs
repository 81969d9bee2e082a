//! A run of our own that tries what a run must not be able to do.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use v6_runtime::{
    CleanupOptions, Connection, EgressGrant, Error, ErrorKind, GrantName, ImageRef, Observation,
    Outcome, Owner, PullPolicy, Result, RunId, RunSpec, Runtime, RuntimeExt,
};

use crate::config::DockerConfig;
use crate::files_image;
use crate::runtime::DockerRuntime;

/// The name and port by which the run reaches us, to show that it can reach something.
const CONTROL: (&str, u16) = ("control.internal", 7);
/// The run takes about a second.
const LIMIT: Duration = Duration::from_secs(45);
/// More than the program ever prints.
const OUTPUT: u64 = 1 << 20;

/// Examines an engine, under an owner of its own: neither the runs nor the connections of the
/// asking owner come near it.
///
/// The work goes on to its end, and removes what it made, if the future is dropped.
pub(crate) async fn examine(config: &DockerConfig) -> Result<Vec<Observation>> {
    let mut config = config.clone();
    config.owner = Owner::new(format!("examine-{:016x}", rand::random::<u64>()))?;
    let work = tokio::spawn(async move {
        let runtime = Box::pin(DockerRuntime::connect(config)).await?;
        let id = RunId::new("examine")?;
        let seen = tokio::time::timeout(LIMIT, Box::pin(observe(&runtime, &id))).await;
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

async fn observe(runtime: &DockerRuntime, id: &RunId) -> Result<Vec<Observation>> {
    // Connecting has given the engine this image; the program is mounted into every run.
    let image = runtime
        .resolve(&ImageRef::parse(files_image::NAME)?, PullPolicy::Never)
        .await?;
    let (host, port) = CONTROL;
    let mut command = vec![crate::container::HELPER.to_owned(), "examine".to_owned()];
    let mut spec = RunSpec::new(image).with_deadline(SystemTime::now() + LIMIT);
    if runtime.capabilities().egress {
        command.extend(["--control".to_owned(), format!("{host}:{port}")]);
        spec = spec.with_egress(EgressGrant::new(GrantName::new("control")?, host, port)?);
    }
    let spec = spec.with_command(command);
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
